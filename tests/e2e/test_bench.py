"""`ocelot bench` and `ocelot put --explain`, on an image file."""

import json
import unittest

from rig import MIB, Case, pattern


class Bench(Case):
    def bench(self, *args, ok=True):
        done = self.cli("--json", "bench", "-t", "1", *args, ok=ok)
        return json.loads(done.stdout) if ok else done

    def test_every_kind_of_work_is_verified(self):
        self.format()
        self.start()
        for work in ("read", "write", "mixed"):
            for mode in ("--direct", "--buffered"):
                for more in (["--sequential", "-b", "64K", "-j", "2", "-d", "4"], ["-b", "4K"], ["-b", "1000"]):
                    found = self.bench("data:/f", "-w", work, mode, "-s", "4M", "--verify", *more)
                    self.assertEqual((found["work"], found["mode"]), (work, mode[2:]))
                    blocks = found["size_bytes"] // found["block_bytes"]
                    reads = found.get("read", {"requests": 0})["requests"]
                    self.assertEqual(found["verified_blocks"], reads + blocks)
                    for kind in [kind for kind in ("read", "write") if kind in found]:
                        one = found[kind]
                        self.assertGreater(one["requests"], 0)
                        self.assertEqual(one["bytes"], one["requests"] * found["block_bytes"])
                        latency = one["latency_us"]
                        order = ["min", "p50", "p90", "p95", "p99", "p99_9", "p99_99"]
                        values = [latency[name] for name in order]
                        self.assertEqual(values, sorted(values))
                        self.assertGreater(latency["min"], 0)
                    self.assertEqual(work != "write", "read" in found)
                    self.assertEqual(work != "read", "write" in found)
        # What it made is gone.
        self.assertNotIn("f", self.names("data:/"))
        self.stop()
        self.fsck()

    def test_files_that_are_there(self):
        self.format()
        self.start()
        content = pattern(5, 2 * MIB)
        self.put("data:/mine", content)
        done = self.bench("data:/mine", "-w", "write", "-s", "1M", ok=False)
        self.assertEqual(done.returncode, 4, done.stderr)
        done = self.bench("data:/mine", "-s", "4M", ok=False)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.bench("data:/mine", "-s", "2M")
        self.assertEqual(self.get("data:/mine"), content)
        self.bench("data:/mine", "-w", "write", "-s", "1M", "--overwrite")
        self.assertEqual(self.get("data:/mine")[MIB:], content[MIB:])
        self.assertNotEqual(self.get("data:/mine")[:MIB], content[:MIB])
        self.bench("data:/new", "-s", "1M", "--keep")
        self.assertEqual(self.stat("data:/new")["size_bytes"], MIB)
        self.assertEqual(self.bench("data:/none/f", ok=False).returncode, 3)
        self.stop()
        self.fsck()

    def test_a_put_is_explained(self):
        self.format()
        self.start()
        done = self.cli("--json", "put", "--explain", "--direct", "-", "data:/f", data=pattern(1, 100))
        self.assertEqual([one["how"] for one in json.loads(done.stdout)], ["inline"])
        done = self.cli("--json", "put", "--explain", "--direct", "-", "data:/f", data=pattern(2, 3 * MIB))
        told = json.loads(done.stdout)
        self.assertEqual(sum(one["bytes"] for one in told), 3 * MIB)
        self.assertTrue({one["how"] for one in told} <= {"hole", "inline"}, told)
        self.assertTrue(all(one["path"] == "data:/f" for one in told))
        text = self.cli("put", "--explain", "--direct", "-", "data:/f", data=b"x" * 4096).stdout.decode()
        self.assertIn("data:/f 0+4096: 4096 bytes", text)
        self.assertEqual(self.cli("put", "-", "data:/f", data=b"x").stdout, b"")
        self.stop()
        self.fsck()

    def test_counters_add_up(self):
        self.format()
        self.start()
        before = self.json("counters", "data")[0]["writes"]
        self.assertEqual(before["requests"], 0)
        self.put("data:/f", pattern(1, 3 * MIB), "--direct")
        self.put("data:/f", pattern(2, 100), "--direct")
        self.bench("data:/g", "-w", "write", "-s", "1M", "--direct")
        writes = self.json("counters")[0]["writes"]
        self.assertGreaterEqual(writes["hole_bytes"], 4 * MIB)
        self.assertGreaterEqual(writes["inline_bytes"], 100)
        self.assertGreater(writes["fallback_inline_data"], 0)
        self.assertGreater(writes["in_place"], 0)
        self.assertEqual(writes["in_place_bytes"], writes["in_place"] * 4096)
        self.assertEqual(writes["failed"], 0)
        lines = self.cli("counters", "data").stdout.decode().splitlines()
        self.assertIn(f"data writes.inline {writes['inline']}", lines)
        self.assertEqual(self.cli("counters", "none", ok=False).returncode, 3)
        self.stop()
        self.fsck()


if __name__ == "__main__":
    unittest.main()
