"""What the end-to-end tests stand on: images, a daemon on them, SPDK's NVMe target, and the judges.

A daemon listens on a Unix socket of its own and is ended by its pid. Everything a test makes is in
a folder of its own, which goes with it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("OCELOT_BIN", os.path.join(ROOT, "target", "debug"))
SPDK = os.environ.get("SPDK_PREFIX", "/opt/spdk")
os.environ["PATH"] += ":/usr/sbin:/sbin"
MIB = 1 << 20


def run(*args, ok=True, data=None, timeout=300):
    """A command's result; with ok, its failure is the test's."""
    done = subprocess.run([str(a) for a in args], input=data, capture_output=True, timeout=timeout)
    if ok and done.returncode != 0:
        raise AssertionError(
            f"{args} ended with {done.returncode}\n{done.stdout[-2000:]!r}\n{done.stderr[-2000:]!r}"
        )
    return done


def pattern(seed, length):
    """Bytes that differ by seed, quickly."""
    import random

    return random.Random(seed).randbytes(length)


class Case(unittest.TestCase):
    """A test with a folder, an image, and whatever processes it starts."""

    image_mib = 256
    mkfs = ["--fs-feature-level=max-features"]
    block_size = 4096
    cluster_size = 4096

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="ocelot-e2e.", dir="/var/tmp")
        self.addCleanup(shutil.rmtree, self.dir, True)
        # A socket's path has to be short.
        self.run_dir = tempfile.mkdtemp(prefix="oc.", dir="/tmp")
        self.addCleanup(shutil.rmtree, self.run_dir, True)
        self.image = os.path.join(self.dir, "image")
        self.processes = []
        self.addCleanup(self.end_all)
        self.daemon = None

    def end_all(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    # -- volumes ---------------------------------------------------------------------------------

    def format(self, mib=None, *options):
        with open(self.image, "wb") as file:
            file.truncate((mib or self.image_mib) * MIB)
        sizes = ["-b", self.block_size, "-C", self.cluster_size]
        journal = ["-J", "size=16M"]
        options = options or self.mkfs
        run("mkfs.ocfs2", "-q", "-x", "-F", "-M", "local", "-N", "2", "-L", "test", *sizes, *journal, *options, self.image)

    def fsck(self, allowed=()):
        """fsck.ocfs2 -fn finds nothing but what is named."""
        done = run("fsck.ocfs2", "-fn", self.image, ok=False)
        text = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
        found = [l for l in text.splitlines() if l.startswith("[") and not any(a in l for a in allowed)]
        self.assertFalse(found or done.returncode, text)

    # -- the daemon ------------------------------------------------------------------------------

    def start(self, devices=None, volumes=None, spdk="", wait=True, tcp="[]"):
        """ocelotd on the image, mounted as `data`, unless said otherwise."""
        self.socket = os.path.join(self.run_dir, "s")
        self.server = "unix:" + self.socket
        if devices is None:
            devices = f'[[device]]\nname = "disk"\ntype = "image-file"\npath = "{self.image}"\nengine = "aio"\n'
        if volumes is None:
            volumes = '[[volume]]\ndevice = "disk"\nname = "data"\n'
        config = os.path.join(self.run_dir, "ocelotd.toml")
        with open(config, "w") as file:
            file.write(
                f'[listen]\nunix = "{self.socket}"\ntcp = {tcp}\n[log]\nfilter = "info"\n'
                f"[spdk]\nmemory_mib = 384\n{spdk}\n{devices}\n{volumes}\n"
            )
        self.log = os.path.join(self.dir, "ocelotd.log")
        with open(self.log, "ab") as log:
            self.daemon = subprocess.Popen(
                [os.path.join(BIN, "ocelotd"), "--config", config], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.processes.append(self.daemon)
        if wait:
            self.wait_healthy()

    def wait_healthy(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.daemon.poll() is not None:
                raise AssertionError(f"ocelotd ended with {self.daemon.returncode}:\n{self.log_text()}")
            if os.path.exists(self.socket) and self.cli("health", ok=False).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError(f"ocelotd does not answer:\n{self.log_text()}")

    def log_text(self):
        with open(self.log, errors="replace") as file:
            return file.read()[-6000:]

    def stop(self):
        """As an operator ends it: everything is unmounted, status 0."""
        self.daemon.send_signal(signal.SIGTERM)
        self.assertEqual(self.daemon.wait(60), 0, self.log_text())
        self.assertNotIn("panicked", self.log_text())

    def kill(self):
        self.daemon.kill()
        self.daemon.wait()
        self.assertNotIn("panicked", self.log_text())

    # -- the client ------------------------------------------------------------------------------

    def cli(self, *args, ok=True, data=None, timeout=300):
        command = [os.path.join(BIN, "ocelot"), "--server", self.server, *args]
        return run(*command, ok=ok, data=data, timeout=timeout)

    def json(self, *args):
        return json.loads(self.cli("--json", *args).stdout)

    def put(self, path, content, *options):
        self.cli("put", *options, "-", path, data=content)

    def get(self, path, *options):
        return self.cli("get", *options, path, "-").stdout

    def names(self, path):
        return sorted(self.cli("ls", "-a", path).stdout.decode().splitlines())

    def stat(self, path):
        found = self.json("stat", path)
        return found[0] if isinstance(found, list) else found


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Target:
    """SPDK's nvmf_tgt with the image as its namespace, on TCP and on vfio-user. With `faulty`, requests
    to it can be made to fail."""

    NQN = "nqn.2026-01.io.ocelot:test"

    def __init__(self, case, faulty=False):
        self.bdev = "EE_disk" if faulty else "disk"
        self.port = free_port()
        self.folder = os.path.join(case.run_dir, "v")
        # A target that was killed has left its socket.
        shutil.rmtree(self.folder, True)
        os.mkdir(self.folder)
        listen = "nvmf_subsystem_add_listener"
        config = {
            "subsystems": [
                {
                    "subsystem": "bdev",
                    "config": [
                        {
                            "method": "bdev_aio_create",
                            "params": {"name": "disk", "filename": case.image, "block_size": 512},
                        },
                        *([{"method": "bdev_error_create", "params": {"base_name": "disk"}}] if faulty else []),
                        {"method": "bdev_wait_for_examine"},
                    ],
                },
                {
                    "subsystem": "nvmf",
                    "config": [
                        {"method": "nvmf_create_transport", "params": {"trtype": "TCP"}},
                        {"method": "nvmf_create_transport", "params": {"trtype": "VFIOUSER"}},
                        {
                            "method": "nvmf_create_subsystem",
                            "params": {"nqn": self.NQN, "allow_any_host": True, "serial_number": "OCELOT0"},
                        },
                        {
                            "method": "nvmf_subsystem_add_ns",
                            "params": {"nqn": self.NQN, "namespace": {"bdev_name": self.bdev, "nsid": 1}},
                        },
                        {
                            "method": listen,
                            "params": {
                                "nqn": self.NQN,
                                "listen_address": {
                                    "trtype": "TCP",
                                    "adrfam": "IPv4",
                                    "traddr": "127.0.0.1",
                                    "trsvcid": str(self.port),
                                },
                            },
                        },
                        {
                            "method": listen,
                            "params": {
                                "nqn": self.NQN,
                                "listen_address": {"trtype": "VFIOUSER", "traddr": self.folder},
                            },
                        },
                    ],
                },
            ]
        }
        path = os.path.join(case.run_dir, "target.json")
        with open(path, "w") as file:
            json.dump(config, file)
        self.rpc = os.path.join(case.run_dir, "rpc")
        self.log = os.path.join(case.dir, "target.log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    os.path.join(SPDK, "bin", "nvmf_tgt"), "-m", "0x1", "-s", "256", "-r",
                    self.rpc, "--disable-cpumask-locks", "-c", path,
                ],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )
        case.processes.append(self.process)
        deadline = time.monotonic() + 60
        while not os.path.exists(os.path.join(self.folder, "cntrl")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                with open(self.log, errors="replace") as file:
                    raise AssertionError("nvmf_tgt did not start:\n" + file.read()[-3000:])
            time.sleep(0.1)

    def fail(self, what, count=1 << 30):
        """So many of the next requests of a kind ("write", "read", "flush", "all") fail; "clear": none."""
        params = {"name": self.bdev, "io_type": what, "error_type": "failure"}
        if what != "clear":
            params["num"] = count
        request = {"jsonrpc": "2.0", "id": 1, "method": "bdev_error_inject_error", "params": params}
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(self.rpc)
            s.sendall(json.dumps(request).encode())
            s.settimeout(10)
            answer = json.loads(s.recv(4096))
        assert answer.get("result") is True, answer

    def device(self, transport):
        """The daemon's configuration for it."""
        if transport == "tcp":
            where = f'transport = "tcp"\naddress = "127.0.0.1"\nservice = "{self.port}"\n'
        else:
            where = f'transport = "vfio-user"\naddress = "{self.folder}"\n'
        return f'[[device]]\nname = "disk"\ntype = "nvme"\n{where}subsystem_nqn = "{self.NQN}"\nnamespace_id = 1\n'

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
