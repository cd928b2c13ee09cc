"""Devices: NVMe through SPDK's own target over TCP and vfio-user; crashes; what is not a volume."""

import os
import random
import signal
import subprocess
import time
import unittest

from rig import BIN, MIB, ROOT, Case, Target, free_port, pattern, run


class Nvme(Case):
    def over(self, transport):
        self.format()
        target = Target(self)
        self.start(devices=target.device(transport))
        for size in (1, 4096, 100_000, 5 * MIB):
            self.put(f"/f{size}", pattern(size, size), "--direct", "--fsync")
        for size in (1, 4096, 100_000, 5 * MIB):
            self.assertEqual(self.get(f"/f{size}"), pattern(size, size))
        self.cli("mkdir", "-p", "/a/b")
        self.cli("mv", "/f1", "/a/b/f1")
        # The daemon dies; the journal on the namespace is replayed.
        self.kill()
        self.start(devices=target.device(transport))
        self.assertEqual(self.get("/f100000"), pattern(100_000, 100_000))
        self.cli("sync")
        self.stop()
        target.stop()
        self.fsck()

    def test_over_tcp(self):
        self.over("tcp")

    def test_over_vfio_user(self):
        self.over("vfio-user")


class Attaching(Case):
    def test_devices_and_volumes_come_and_go(self):
        self.format()
        self.start(devices="", volumes="")
        self.cli("attach", "image", "disk", self.image)
        self.cli("mount", "disk", "vol")
        self.put("vol:/f", b"hello")
        self.assertEqual([v["name"] for v in self.json("volumes")], ["vol"])
        self.assertNotEqual(self.cli("detach", "disk", ok=False).returncode, 0)
        self.cli("unmount", "vol")
        self.cli("detach", "disk")
        self.fsck()
        self.cli("attach", "image", "again", self.image, "--read-only")
        self.cli("mount", "again", "vol", "--read-only")
        self.assertEqual(self.get("vol:/f"), b"hello")
        self.assertEqual(self.cli("mkdir", "vol:/d", ok=False).returncode, 5)
        self.cli("unmount", "vol")
        self.stop()
        self.fsck()


class NotVolumes(Case):
    """Each is refused with a message that says what and where, and the daemon goes on."""

    def refuse(self, *words):
        self.start(devices="", volumes="")
        self.cli("attach", "image", "disk", self.image)
        done = self.cli("mount", "disk", "vol", ok=False)
        self.assertNotEqual(done.returncode, 0)
        for word in words:
            self.assertIn(word, done.stderr.decode().lower())
        self.cli("health")
        self.stop()

    def test_random_bytes(self):
        with open(self.image, "wb") as file:
            file.write(random.Random(1).randbytes(8 * MIB))
        self.refuse("ocfs2")

    def test_zeroes(self):
        with open(self.image, "wb") as file:
            file.truncate(8 * MIB)
        self.refuse("ocfs2")

    def test_truncated(self):
        self.format()
        os.truncate(self.image, 100 * MIB)
        self.refuse("truncated")

    def test_wrong_block_size(self):
        self.format(None, "--fs-feature-level=max-compat")
        with open(self.image, "r+b") as file:
            file.seek(2 * 4096 + 0xC0 + 0x38)
            file.write((11).to_bytes(4, "little"))
        self.refuse("not a mountable ocfs2 volume", "2^11")

    def test_unknown_incompatible_feature(self):
        self.format(None, "--fs-feature-level=max-compat")
        with open(self.image, "r+b") as file:
            file.seek(2 * 4096 + 0xC0 + 0x20)
            bits = int.from_bytes(file.read(4), "little")
            file.seek(-4, os.SEEK_CUR)
            file.write((bits | 0x40000).to_bytes(4, "little"))
        self.refuse("unsupported features", "0x40000")

    def test_unknown_read_only_feature_mounts_read_only(self):
        self.format(None, "--fs-feature-level=max-compat")
        with open(self.image, "r+b") as file:
            file.seek(2 * 4096 + 0xC0 + 0x24)
            file.write((0x100).to_bytes(4, "little"))
        self.start()
        self.assertEqual(self.cli("mkdir", "/d", ok=False).returncode, 5)
        self.assertIn("lost+found", self.names("/"))
        self.stop()

    def test_a_cluster_volume(self):
        with open(self.image, "wb") as file:
            file.truncate(256 * MIB)
        run("mkfs.ocfs2", "-q", "-x", "-F", "-N", "2", "--cluster-stack=o2cb", "--cluster-name=c", self.image)
        self.refuse("cluster")


class Crashes(Case):
    image_mib = 512

    def test_kill_9_five_times(self):
        """OCELOT_KILLS more often, with fsck.ocfs2 after each recovery; OCELOT_SEED another course."""
        rounds = int(os.environ.get("OCELOT_KILLS", "5"))
        seed = os.environ.get("OCELOT_SEED", "kill")
        self.format()
        rng = random.Random(seed)
        kept = {}
        for round_nr in range(rounds):
            with self.subTest(seed=seed, kill=round_nr):
                self.start()
                self.verify_survivors(kept, round_nr - 1)
                if rounds > 5:
                    self.stop()
                    self.fsck()
                    self.start()
                self.load_and_kill(kept, round_nr, rng)
        self.start()
        self.verify_survivors(kept, rounds - 1)
        self.stop()
        self.fsck()

    def load_and_kill(self, kept, round_nr, rng):
        """Files that are kept are acknowledged by an fsync; others are on their way when the daemon dies."""
        for i in range(3):
            name = f"/kept-{round_nr}-{i}"
            content = pattern(round_nr * 10 + i, rng.randrange(1, 400_000))
            self.put(name, content, "--fsync", *rng.choice([[], ["--direct"]]))
            kept[name] = content
        while len(kept) > rng.randrange(8, 12):
            victim = rng.choice(sorted(kept))
            kept.pop(victim)
            self.cli("rm", victim)
        ocelot = [os.path.join(BIN, "ocelot"), "--server", self.server]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        writers = [
            subprocess.Popen([*ocelot, "put", "-", f"/torn-{round_nr}-{i}"], stdin=subprocess.PIPE, **quiet)
            for i in range(3)
        ]
        # Names as well as bytes.
        source = os.path.join(ROOT, "docs")
        tree = subprocess.Popen([*ocelot, "put", "-r", "--preserve", source, f"/tree-{round_nr}"], **quiet)
        self.processes += [*writers, tree]
        for i, writer in enumerate(writers):
            try:
                writer.stdin.write(pattern(100 + i, 8 * MIB))
                writer.stdin.flush()
            except BrokenPipeError:
                pass
        time.sleep(rng.random() * 0.3)
        self.kill()
        for process in (*writers, tree):
            process.kill()
            process.communicate()

    def verify_survivors(self, kept, killed):
        """What was acknowledged is there; of the rest, a beginning or nothing. Makes room for more."""
        for name, content in kept.items():
            self.assertEqual(self.get(name), content, f"{name} after kill {killed}")
        for i in range(3):
            name = f"/torn-{killed}-{i}"
            if self.cli("stat", name, ok=False).returncode == 0:
                content = self.get(name)
                self.assertEqual(content, pattern(100 + i, 8 * MIB)[: len(content)], name)
                self.cli("rm", name)
        tree = f"/tree-{killed}"
        if self.cli("stat", tree, ok=False).returncode == 0:
            for folder, _, files in os.walk(os.path.join(ROOT, "docs")):
                for file in files:
                    path = os.path.join(folder, file)
                    copy = tree + path[len(os.path.join(ROOT, "docs")):]
                    if self.cli("stat", copy, ok=False).returncode == 0:
                        with open(path, "rb") as source:
                            whole = source.read()
                        found = self.get(copy)
                        self.assertEqual(found, whole[: len(found)], copy)
            self.cli("rm", "-r", tree)

    def test_fsck_recovers_what_a_kill_left(self):
        self.format()
        self.start()
        self.put("/f", pattern(3, 300_000), "--fsync")
        self.cli("mkdir", "/d")
        self.cli("sync")
        self.kill()
        run("fsck.ocfs2", "-fy", self.image, ok=False)
        self.fsck()
        self.start()
        self.assertEqual(self.get("/f"), pattern(3, 300_000))
        self.assertIn("d", self.names("/"))
        self.stop()
        self.fsck()


class Daemon(Case):
    def test_idle_daemon_sleeps_and_wakes_at_once(self):
        self.format()
        self.start()
        self.cli("ls", "/")
        time.sleep(1)

        def cpu_seconds():
            with open(f"/proc/{self.daemon.pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        before, began = cpu_seconds(), time.monotonic()
        time.sleep(4)
        share = (cpu_seconds() - before) / (time.monotonic() - began)
        self.assertLess(share, 0.05, "of a core while idle")
        self.cli("ls", "/")
        self.stop()

    def test_a_second_daemon_beside_it(self):
        self.format()
        self.start()
        other = Daemon("test_idle_daemon_sleeps_and_wakes_at_once")
        other.setUp()
        self.addCleanup(other.doCleanups)
        other.format()
        other.start()
        self.put("/a", b"1")
        other.put("/a", b"2")
        self.assertEqual((self.get("/a"), other.get("/a")), (b"1", b"2"))
        other.stop()
        self.stop()

    def test_tcp_and_bad_configurations(self):
        self.format()
        port = free_port()
        self.start(tcp=f'["127.0.0.1:{port}"]')
        self.put("/f", b"tcp")
        self.server = f"http://127.0.0.1:{port}"
        self.assertEqual(self.get("/f"), b"tcp")
        self.stop()
        path = os.path.join(self.run_dir, "bad.toml")
        for text, word in (
            ("[listen]\nport = 1\n", b"port"),
            ('[[volume]]\ndevice = "nowhere"\n', b"nowhere"),
            ("[spdk]\nmemory_mib = -1\n", b"memory_mib"),
        ):
            with open(path, "w") as file:
                file.write(text)
            done = run(os.path.join(BIN, "ocelotd"), "--config", path, "--check-config", ok=False)
            self.assertNotEqual(done.returncode, 0, text)
            self.assertIn(word, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
