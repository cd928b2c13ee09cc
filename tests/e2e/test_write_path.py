"""The write path through the daemon: the seed bug, and what requests and volumes tell of it."""

import json
import unittest

from rig import MIB, Case, pattern


class Seed(Case):
    """Where Ocelot comes from. In the kernel a direct write that could not be done as direct I/O fell
    back to buffered I/O and came back partial; the AIO layer called again for the rest with the same
    kiocb, which still carried the unaligned flag of the first attempt, so that an aligned rest was
    treated, and unlocked, as what it was not.

    Here an unaligned direct request past the end of a file, on a volume without append-dio, falls back;
    the volume is full before its end, so it comes back partial; and the rest begins on a block.
    """

    image_mib = 64
    mkfs = ["--fs-features=noappend-dio,sparse,unwritten,inline-data"]

    def test_an_unaligned_fallback_comes_back_partial_and_goes_on_aligned(self):
        self.format()
        self.start()
        content = pattern(1, 5000)
        self.put("/f", content)
        self.cli("sync")
        free = self.json("df")
        free = (free[0] if isinstance(free, list) else free)["free_bytes"]
        self.put("/filler", b"")
        self.cli("fallocate", "-l", str(free - 3 * MIB), "/filler")
        data = pattern(2, 8 * MIB + 77)
        first = self.cli("put", "--append", "--direct", "-", "/f", data=data, ok=False)
        self.assertEqual(first.returncode, 6, first.stderr)
        done = self.stat("/f")["size_bytes"] - len(content)
        self.assertTrue(0 < done < len(data), done)
        self.assertEqual((len(content) + done) % 4096, 0, "the rest is aligned")
        self.assertEqual(self.get("/f"), content + data[:done])
        self.cli("rm", "/filler")
        self.cli("sync")
        told = self.cli(
            "--json", "put", "--append", "--direct", "--explain", "-", "/f", data=data[done:]
        ).stdout
        attempts = json.loads(told)
        self.assertTrue(attempts)
        for attempt in attempts:
            self.assertEqual(attempt["fallback"], "no-append-direct")
            self.assertFalse(attempt["direct"] or attempt["edges_serialised"])
        self.assertEqual(sum(a["bytes"] for a in attempts), len(data) - done)
        self.assertEqual(self.get("/f"), content + data)
        self.assertEqual(self.get("/f", "--direct"), content + data)
        # Over what is there now it is direct.
        self.put("/f", content + data, "--direct")
        self.stop()
        self.fsck()


class Cache(Case):
    def test_cached_data_is_seen_by_all_and_survives_the_end(self):
        self.format()
        self.start()
        data = pattern(3, 9 * MIB + 5)
        told = self.cli("put", "--explain", "-", "/f", data=data).stdout
        self.assertIn(b"cached", told)
        self.assertEqual(self.stat("/f")["size_bytes"], len(data))
        self.assertGreaterEqual(self.stat("/f")["allocated_bytes"], len(data))
        for how in ["--direct", "--buffered"]:
            self.assertEqual(self.get("/f", how), data)
        # Not asked to be durable, but a stop in order loses nothing.
        more = pattern(4, 70_001)
        self.put("/g", more)
        self.stop()
        self.fsck()
        self.start()
        self.assertEqual(self.get("/f"), data)
        self.assertEqual(self.get("/g"), more)

    def test_a_kill_keeps_what_was_synced(self):
        self.format()
        self.start()
        data = pattern(5, 3 * MIB)
        self.put("/synced", data, "--fsync")
        self.put("/not", data)
        self.kill()
        self.start()
        self.assertEqual(self.get("/synced"), data)
        # The other one is there in part, or not: never with bytes that nobody wrote to it.
        if b"not" in self.cli("ls", "/").stdout.split():
            found = self.get("/not")
            self.assertLessEqual(len(found), len(data))
            self.assertTrue(all(a == b or a == 0 for a, b in zip(found, data)))
        self.stop()
        self.fsck()


if __name__ == "__main__":
    unittest.main()
