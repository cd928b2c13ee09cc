#!/usr/bin/env python3
"""A client that knows nothing but the address: everything else it asks by server reflection.

Lists the services, then makes a directory, writes a file through a client stream, reads it back
through a server stream, does both once more through the Io stream, looks at an error's detail, and
cleans up. Needs grpcio, grpcio-reflection and protobuf; tests/python/run makes a place with them.

    reflection_client.py ADDRESS [VOLUME]        ADDRESS: unix:/path or host:port
"""

import os
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

MESSAGE_BYTES = 5 << 20
WANTED = {
    "ocelot.v1.Volumes",
    "ocelot.v1.Namespace",
    "ocelot.v1.Files",
    "ocelot.v1.Node",
    "grpc.health.v1.Health",
}


class Client:
    """Calls methods by name; requests are keyword arguments."""

    def __init__(self, channel):
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = DescriptorPool(self.database)

    def message(self, name, **fields):
        return GetMessageClass(self.pool.FindMessageTypeByName(name))(**fields)

    def call(self, service, method, request):
        found = self.pool.FindServiceByName(service).FindMethodByName(method)
        answer = GetMessageClass(found.output_type)
        make = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, False): self.channel.stream_unary,
            (True, True): self.channel.stream_stream,
        }[(found.client_streaming, found.server_streaming)]
        invoke = make(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return invoke(request)

    def unary(self, service, method, **fields):
        found = self.pool.FindServiceByName(service).FindMethodByName(method)
        return self.call(service, method, GetMessageClass(found.input_type)(**fields))


def check(condition, what):
    if not condition:
        sys.exit(f"failed: {what}")


def main():
    address = sys.argv[1]
    volume = sys.argv[2] if len(sys.argv) > 2 else ""
    options = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
    ]
    if address.startswith("unix:"):
        # grpc's C core would send the socket's path as the request's authority, percent-encoded,
        # and HTTP/2 servers that check the authority's form refuse that.
        options.append(("grpc.default_authority", "localhost"))
    with grpc.insecure_channel(address, options=options) as channel:
        client = Client(channel)
        services = set(client.database.get_services())
        print("services:", *sorted(services))
        check(WANTED <= services, f"services missing: {WANTED - services}")

        health = client.unary("grpc.health.v1.Health", "Check")
        check(health.status == 1, f"health is {health.status}")

        # A name that is no UTF-8, as it may be on disk.
        directory = b"/reflection-%d-\xff" % os.getpid()
        name = directory + b"/data"

        def at(path):
            return client.message("ocelot.v1.Location", volume=volume, path=path)

        made = client.unary("ocelot.v1.Namespace", "MakeDirectory", at=at(directory))
        check(made.attributes.kind == 2, "the directory is none")

        flags = client.message(
            "ocelot.v1.OpenFlags", read=True, write=True, create=True, exclusive=True
        )
        handle = client.unary("ocelot.v1.Files", "Open", at=at(name), flags=flags).handle
        check(handle != 0, "no handle")

        data = os.urandom(3_000_000)
        pieces = [data[start : start + 1_000_000] for start in range(0, len(data), 1_000_000)]
        written = client.call(
            "ocelot.v1.Files",
            "Write",
            iter(client.message("ocelot.v1.WriteRequest", handle=handle, data=p) for p in pieces),
        )
        check(written.bytes_written == len(data), f"{written.bytes_written} bytes written")
        client.unary("ocelot.v1.Files", "Sync", handle=handle)
        chunks = client.unary("ocelot.v1.Files", "Read", handle=handle, chunk_bytes=65536)
        check(b"".join(chunk.data for chunk in chunks) == data, "what was read differs")

        # Many operations in flight; completions carry the ids.
        block = 4096
        blocks = {number: os.urandom(block) for number in range(64)}
        writes = (
            client.message(
                "ocelot.v1.IoRequest",
                id=number,
                write=client.message(
                    "ocelot.v1.IoWrite", handle=handle, offset=number * block, data=content
                ),
            )
            for number, content in blocks.items()
        )
        answers = {answer.id: answer for answer in client.call("ocelot.v1.Files", "Io", writes)}
        check(set(answers) == set(blocks), "completions are missing")
        check(all(answer.bytes == block for answer in answers.values()), "short writes")
        reads = (
            client.message(
                "ocelot.v1.IoRequest",
                id=number,
                read=client.message(
                    "ocelot.v1.IoRead", handle=handle, offset=number * block, length=block
                ),
            )
            for number in blocks
        )
        for answer in client.call("ocelot.v1.Files", "Io", reads):
            check(answer.data == blocks[answer.id], f"block {answer.id} differs")
        client.unary("ocelot.v1.Files", "Close", handle=handle)

        listed = client.unary("ocelot.v1.Namespace", "ReadDirectory", at=at(directory))
        names = {entry.name for message in listed for entry in message.entries}
        check(b"data" in names, f"listed: {names}")

        client.unary("ocelot.v1.Namespace", "Unlink", at=at(name))
        try:
            client.unary("ocelot.v1.Namespace", "Stat", at=at(name))
            check(False, "the file is still there")
        except grpc.RpcError as error:
            check(error.code() == grpc.StatusCode.NOT_FOUND, f"code {error.code()}")
            trailers = dict(error.trailing_metadata())
            check("grpc-status-details-bin" in trailers, "no details")
            check(b"ENOENT" in trailers["grpc-status-details-bin"], "no errno in the details")
        client.unary("ocelot.v1.Namespace", "RemoveDirectory", at=at(directory))
        print("round trip: good")


main()
