"""`ocelot check` on a running daemon: silent under load, tells what is wrong, and what is corrected."""

import threading
import time
import unittest

from rig import MIB, Case, pattern

PHASES = ["system", "allocators", "inodes", "refcounts", "clusters", "directories", "links", "quotas"]


class Check(Case):
    def check(self, ok=True):
        """Exit status and report."""
        import json

        done = self.cli("--json", "check", "data", ok=False)
        self.assertIn(done.returncode, [0] if ok else [0, 8], done.stderr)
        return done.returncode, json.loads(done.stdout)

    def flip(self, offset, mask):
        """Changes bits of the image."""
        with open(self.image, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ mask]))
        return byte

    def byte(self, offset):
        with open(self.image, "rb") as file:
            file.seek(offset)
            return file.read(1)[0]

    def load(self, worker, until, errors):
        """Somebody who uses the volume."""
        try:
            path = f"/w{worker}"
            self.cli("mkdir", path)
            turn = 0
            while time.monotonic() < until:
                name = f"{path}/f{turn % 7}"
                self.put(name, pattern(turn, 1 + 70_001 * turn % 900_000))
                if turn % 3 == 0:
                    self.cli("rm", name)
                if turn % 4 == 1:
                    self.cli("mkdir", "-p", f"{path}/d{turn % 5}/e")
                    self.cli("reflink", name, f"{path}/c{turn % 5}", ok=False)
                if turn % 5 == 2:
                    self.cli("xattr", "set", path, f"user.k{turn % 40}", "v" * (turn % 300 + 1))
                turn += 1
            self.assertGreater(turn, 5)
        except BaseException as error:  # pylint: disable=broad-except
            errors.append(error)

    def test_a_volume_in_use_has_no_findings(self):
        self.format()
        self.start()
        errors = []
        until = time.monotonic() + 12
        workers = [threading.Thread(target=self.load, args=(at, until, errors)) for at in range(3)]
        for worker in workers:
            worker.start()
        checks = 0
        while time.monotonic() < until:
            _, report = self.check()
            found = [f for f in report["findings"] if f["severity"] == "error"]
            self.assertEqual((report["clean"], found), (True, []))
            checks += 1
        for worker in workers:
            worker.join()
        self.assertEqual(errors, [])
        self.assertGreater(checks, 2)
        _, report = self.check()
        self.assertGreater(report["summary"]["inodes"], 10)
        self.assertEqual(report["summary"]["clusters_total"], 256 * MIB // 4096)
        # For people, and with the only volume that there is.
        self.assertIn(b"clean: ", self.cli("check").stdout)
        self.assertEqual(self.cli("check", "none", ok=False).returncode, 3)
        self.stop()
        self.fsck()

    def test_what_is_wrong_is_told_with_its_path(self):
        self.format(64, "--fs-features=nometaecc")
        self.start()
        self.cli("mkdir", "/d")
        self.put("/d/f", b"content")
        inode = self.stat("/d/f")["inode"]
        self.stop()
        # Its count of links.
        self.flip(inode * self.block_size + 0x2A, 4)
        self.start()
        status, report = self.check(ok=False)
        self.assertEqual((status, report["clean"], report["summary"]["errors"]), (8, False, 1))
        found = [f for f in report["findings"] if f["severity"] == "error"]
        self.assertEqual([(f["code"], f["inode"], f["path"]) for f in found], [("INODE_COUNT", inode, "/d/f")])
        done = self.cli("check", "data", ok=False)
        self.assertEqual(done.returncode, 8)
        self.assertIn(f"error INODE_COUNT inode {inode} (/d/f): ".encode(), done.stdout)
        # It was only looked at.
        self.assertEqual(self.get("/d/f"), b"content")
        self.put("/d/g", b"more")
        self.stop()

    def test_a_wrong_bit_is_corrected_shown_and_written_again(self):
        self.format()
        self.start()
        self.put("/f", b"content")
        inode = self.stat("/f")["inode"]
        self.stop()
        place = inode * self.block_size + 0x30
        right = self.flip(place, 0x20)
        self.start()
        _, report = self.check()
        self.assertEqual([f["code"] for f in report["findings"]], ["SINGLE_BIT_ERROR"])
        self.assertEqual(report["findings"][0]["path"], "/f")
        self.assertEqual(self.get("/f"), b"content")
        self.assertEqual(self.json("volumes")[0]["corrected_errors"], 1)
        self.cli("sync")
        self.stop()
        self.assertEqual(self.byte(place), right)
        self.fsck()


if __name__ == "__main__":
    unittest.main()
