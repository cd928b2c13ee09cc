"""Files as block devices: fio with SPDK's plugin over NVMe/TCP and vfio-user, verified; SPDK's own
tools; hosts and daemons that die in the middle; what exports promise. fsck.ocfs2 has the last word.
"""

import json
import os
import signal
import subprocess
import time

from rig import MIB, ROOT, SPDK, Case, free_port, pattern, run

FIO = os.path.join(ROOT, "tests", "fio")
SIZE = 64 * MIB


class Exports(Case):
    image_mib = 320

    def begin(self, **kwargs):
        self.format()
        self.start(**kwargs)

    def make_file(self, path, size=SIZE, content=None):
        self.put(path, content or b"", "--direct")
        self.cli("truncate", "-s", size, path)

    def address(self, transport):
        return f"127.0.0.1:{free_port()}" if transport == "nvme-tcp" else os.path.join(self.run_dir, "v")

    def export(self, path, transport, *options, name="vm"):
        address = () if transport == "bdev" else ("--address", self.address(transport))
        return self.json("export", path, "--as", transport, "--name", name, *address, *options)

    def exported(self, name="vm"):
        return next(e for e in self.json("exports") if e["name"] == name)

    def configuration(self, export):
        """Of an SPDK program that is the host."""
        if export["as"] == "nvme-tcp":
            host, port = export["address"].rsplit(":", 1)
            where = {"trtype": "TCP", "adrfam": "IPv4", "traddr": host, "trsvcid": port}
        else:
            where = {"trtype": "VFIOUSER", "traddr": export["address"]}
        attach = {"name": "far", "subnqn": export["nqn"], **where}
        calls = [
            {"method": "bdev_nvme_set_options", "params": {"enable_flush": True}},
            {"method": "bdev_nvme_attach_controller", "params": attach},
            {"method": "bdev_wait_for_examine"},
        ]
        path = os.path.join(self.run_dir, "host.json")
        with open(path, "w") as file:
            json.dump({"subsystems": [{"subsystem": "bdev", "config": calls}]}, file)
        return path

    def fio_command(self, job, export):
        env = dict(os.environ)
        env["LD_PRELOAD"] = os.path.join(SPDK, "lib", "fio", "spdk_bdev")
        env["OCELOT_CONF"] = self.configuration(export)
        env["OCELOT_BDEV"] = "farn1"
        command = ["fio", "--output-format=json", os.path.join(FIO, job)]
        return command, {"env": env, "cwd": self.dir}

    def fio(self, job, export):
        command, options = self.fio_command(job, export)
        done = subprocess.run(command, capture_output=True, timeout=300, **options)
        text = done.stdout.decode(errors="replace")
        self.assertEqual(done.returncode, 0, text[-3000:] + done.stderr.decode(errors="replace")[-3000:])
        result = json.loads(text[text.index("\n{") if not text.startswith("{") else 0 :])
        for one in result["jobs"]:
            self.assertEqual(one["error"], 0, one["jobname"])
        return result["jobs"]

    def load(self, export):
        """fio, writing until it is stopped."""
        command, options = self.fio_command("load.fio", export)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
        self.processes.append(process)
        deadline = time.monotonic() + 30
        while self.exported()["counters"]["writes"] < 1000:
            self.assertIsNone(process.poll(), "fio ended by itself")
            self.assertLess(time.monotonic(), deadline, "fio writes nothing")
            time.sleep(0.05)
        return process

    # -- fio -------------------------------------------------------------------------------------

    def verified(self, transport):
        self.begin()
        self.make_file("/disk.img")
        export = self.export("/disk.img", transport)
        self.assertEqual(export["block_size"], 4096)
        self.assertEqual(export["size_bytes"], SIZE)
        for job in ("random.fio", "sequential.fio", "trim.fio"):
            self.fio(job, export)
        counters = self.exported()["counters"]
        for name in ("reads", "writes", "flushes", "unmaps"):
            self.assertGreater(counters[name], 0, counters)
        self.assertEqual(counters["errors"], 0, counters)
        self.assertEqual(counters["in_flight"], 0, counters)
        # Trims gave space back, and the file is as long as it was.
        self.assertEqual(self.stat("/disk.img")["size_bytes"], SIZE)
        self.stop()
        self.fsck()

    def test_fio_verified_over_tcp(self):
        self.verified("nvme-tcp")

    def test_fio_verified_over_vfio_user(self):
        self.verified("vfio-user")

    # -- SPDK's tools ----------------------------------------------------------------------------

    def test_identify_and_perf(self):
        self.begin()
        self.make_file("/disk.img")
        export = self.export("/disk.img", "nvme-tcp")
        host, port = export["address"].rsplit(":", 1)
        where = f"trtype:TCP adrfam:IPv4 traddr:{host} trsvcid:{port} subnqn:{export['nqn']}"
        memory = ["-s", "128"]
        found = run(os.path.join(SPDK, "bin", "spdk_nvme_identify"), "-r", where, *memory).stdout.decode()
        self.assertIn("Ocelot file", found)
        self.assertIn(export["nqn"], found)
        self.assertIn(export["uuid"].lower(), found.lower())
        perf = run(
            os.path.join(SPDK, "bin", "spdk_nvme_perf"), "-r", where, *memory, "-q", 16, "-o", 4096, "-w", "randrw",
            "-M", 50, "-t", 2, "-c", "0x1",
        ).stdout.decode()
        self.assertIn("Total", perf)
        counters = self.exported()["counters"]
        self.assertGreater(counters["reads"], 100, perf)
        self.assertGreater(counters["writes"], 100, perf)
        self.stop()
        self.fsck()

    # -- content ---------------------------------------------------------------------------------

    def bdevperf_verify(self, export, *options):
        config = self.configuration(export)
        return run(
            os.path.join(SPDK, "bin", "bdevperf"), "-g", "--env-context=--in-memory", "-m", "0x1", "-s", 256, "-r",
            os.path.join(self.run_dir, "perf"), "--disable-cpumask-locks", "-c", config, "-q", 16, "-o", 65536, "-w",
            "verify", "-t", 2, *options,
        )

    def test_what_files_hold_is_what_hosts_see(self):
        """A sparse file with inline neighbours, clones and holes: written by the client, read by a host; written by a
        host, read by the client, and the clone unchanged."""
        self.begin()
        content = pattern(5, 8 * MIB)
        self.put("/disk.img", content)
        self.cli("fallocate", "--punch-hole", "-o", MIB, "-l", MIB, "/disk.img")
        self.cli("reflink", "/disk.img", "/clone.img")
        holed = content[:MIB] + bytes(MIB) + content[2 * MIB :]
        export = self.export("/disk.img", "nvme-tcp")
        self.bdevperf_verify(export)
        self.cli("unexport", "vm")
        self.assertEqual(self.get("/clone.img"), holed)
        self.assertEqual(len(self.get("/disk.img")), 8 * MIB)
        self.assertNotEqual(self.get("/disk.img"), holed)
        self.stop()
        self.fsck()

    # -- what dies in the middle -----------------------------------------------------------------

    def host_killed(self, transport):
        self.begin()
        self.make_file("/disk.img")
        export = self.export("/disk.img", transport)
        for _ in range(3):
            self.load(export).kill()
            self.processes[-1].wait()
            before = self.exported()["counters"]["writes"]
            deadline = time.monotonic() + 30
            while self.exported()["counters"]["in_flight"]:
                self.assertLess(time.monotonic(), deadline, "requests of a dead host")
                time.sleep(0.05)
            self.assertGreater(before, 0)
        # Another host is served as if nothing had been, and the daemon ends as it should.
        self.fio("random.fio", export)
        self.stop()
        self.fsck()

    def test_a_killed_tcp_host(self):
        self.host_killed("nvme-tcp")

    def test_a_killed_vfio_user_host(self):
        self.host_killed("vfio-user")

    def daemon_killed(self, transport):
        self.format()
        address = self.address(transport)
        volumes = (
            '[[volume]]\ndevice = "disk"\nname = "data"\n'
            f'[[export]]\npath = "/disk.img"\nas = "{transport}"\nname = "vm"\naddress = "{address}"\n'
        )
        self.start()
        self.make_file("/disk.img")
        self.put("/beside", pattern(1, 100_000), "--fsync")
        self.cli("sync")
        self.stop()
        for _ in range(3):
            self.start(volumes=volumes)
            export = self.exported()
            self.assertEqual((export["state"], export["reason"]), ("serving", ""))
            self.assertEqual(export["address"], address)
            host = self.load(export)
            self.kill()
            host.kill()
            host.wait()
        self.start(volumes=volumes)
        self.assertEqual(self.get("/beside"), pattern(1, 100_000))
        self.fio("random.fio", self.exported())
        self.stop()
        self.fsck()

    def test_a_killed_daemon_over_tcp(self):
        self.daemon_killed("nvme-tcp")

    def test_a_killed_daemon_over_vfio_user(self):
        self.daemon_killed("vfio-user")

    def test_taken_away_under_load(self):
        self.begin()
        self.make_file("/disk.img")
        for transport in ("nvme-tcp", "vfio-user"):
            export = self.export("/disk.img", transport)
            host = self.load(export)
            self.cli("unexport", "vm")
            self.assertEqual(self.json("exports"), [])
            host.kill()
            host.wait()
        self.cli("unmount", "data")
        self.stop()
        self.fsck()

    def test_ended_under_load(self):
        self.begin()
        self.make_file("/disk.img")
        host = self.load(self.export("/disk.img", "nvme-tcp"))
        self.stop()
        host.kill()
        host.wait()
        self.fsck()

    # -- promises --------------------------------------------------------------------------------

    def test_names_files_and_addresses_are_checked(self):
        self.begin()
        self.make_file("/disk.img")
        self.cli("mkdir", "/d")
        self.put("/odd", b"x" * 1000)
        self.put("/empty", b"")

        def refused(status, *args):
            done = self.cli("export", *args, ok=False)
            self.assertEqual(done.returncode, status, done.stderr)
            return done.stderr.decode()

        self.assertIn("whole blocks", refused(2, "/odd", "--as", "bdev"))
        refused(2, "/empty", "--as", "bdev")
        refused(1, "/d", "--as", "bdev")
        refused(3, "/nothing", "--as", "bdev")
        refused(2, "/disk.img", "--as", "bdev", "--name", "a/b")
        refused(2, "/disk.img", "--as", "nvme-tcp", "--address", "127.0.0.1")
        refused(2, "/disk.img", "--as", "nvme-tcp", "--nqn", "mine")
        self.assertIn("loopback", refused(5, "/disk.img", "--as", "nvme-tcp", "--address", "0.0.0.0:4420"))
        self.export("/disk.img", "bdev")
        refused(4, "/disk.img", "--as", "bdev", "--name", "vm")
        self.assertEqual(self.cli("unexport", "none", ok=False).returncode, 3)
        self.assertIn("vm", [d["name"] for d in self.json("devices")])
        # The volume stays while a file of it is exported.
        done = self.cli("unmount", "data", ok=False)
        self.assertIn("exported", done.stderr.decode())
        self.cli("unmount", "--force", "data")
        self.assertEqual(self.json("exports"), [])
        self.stop()
        self.fsck()

    def test_a_port_in_use_leaves_nothing_behind(self):
        self.begin()
        self.make_file("/disk.img")
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = "127.0.0.1:%d" % taken.getsockname()[1]
            done = self.cli("export", "/disk.img", "--as", "nvme-tcp", "--address", address, ok=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(address, done.stderr.decode())
            self.assertEqual(self.json("exports"), [])
        self.cli("export", "/disk.img", "--as", "nvme-tcp", "--address", address)
        self.cli("unexport", "disk.img")
        self.cli("unmount", "data")
        self.stop()
        self.fsck()

    def test_two_files_on_one_port(self):
        self.begin()
        port = free_port()
        for name in ("a", "b"):
            self.make_file(f"/{name}.img")
            self.cli("export", f"/{name}.img", "--as", "nvme-tcp", "--name", name, "--address", f"127.0.0.1:{port}")
        for name in ("a", "b"):
            self.fio("random.fio", self.exported(name))
        self.cli("unexport", "a")
        self.fio("trim.fio", self.exported("b"))
        self.stop()
        self.fsck()

    def test_read_only(self):
        self.begin()
        self.make_file("/disk.img", content=pattern(3, MIB))
        before = self.get("/disk.img")
        export = self.export("/disk.img", "nvme-tcp", "--read-only")
        self.assertTrue(export["read_only"])
        command, options = self.fio_command("load.fio", export)
        done = subprocess.run(command, capture_output=True, timeout=120, **options)
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(self.get("/disk.img"), before)
        self.stop()
        self.fsck()

    def test_growth_is_seen_and_a_write_never_grows(self):
        self.begin()
        self.make_file("/disk.img")
        export = self.export("/disk.img", "nvme-tcp")
        self.cli("truncate", "-s", 2 * SIZE, "/disk.img")
        deadline = time.monotonic() + 10
        while self.exported()["size_bytes"] != 2 * SIZE:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)
        # Cut short behind the host's back: what is past the end fails, and the file stays short.
        self.cli("truncate", "-s", 4 * MIB, "/disk.img")
        command, options = self.fio_command("load.fio", export)
        done = subprocess.run(command, capture_output=True, timeout=120, **options)
        self.assertNotEqual(done.returncode, 0)
        self.assertGreater(self.exported()["counters"]["errors"], 0)
        self.assertEqual(self.stat("/disk.img")["size_bytes"], 4 * MIB)
        self.stop()
        self.fsck()

    def test_no_space_is_told_to_the_host(self):
        self.image_mib = 64
        self.begin()
        self.make_file("/disk.img")
        export = self.export("/disk.img", "nvme-tcp")
        command, options = self.fio_command("sequential.fio", export)
        # The volume has its journals on it: 56 MiB do not fit.
        done = subprocess.run(command, capture_output=True, timeout=120, **options)
        self.assertNotEqual(done.returncode, 0)
        self.assertGreater(self.exported()["counters"]["errors"], 0)
        self.stop()
        self.fsck()

    def test_a_configured_export_that_fails_is_listed(self):
        volumes = (
            '[[volume]]\ndevice = "disk"\nname = "data"\n'
            '[[export]]\npath = "/missing.img"\nas = "bdev"\nname = "gone"\n'
        )
        self.begin(volumes=volumes)
        self.assertEqual(self.exported("gone")["state"], "failed")
        self.assertIn("missing.img", self.exported("gone")["reason"])
        self.make_file("/missing.img")
        self.export("/missing.img", "bdev", name="gone")
        self.assertEqual(self.exported("gone")["state"], "serving")
        self.stop()
        self.fsck()
