"""Ranges of files and clones through the command line, on an image file; fsck.ocfs2 judges."""

import unittest

from rig import MIB, Case, pattern


class Ranges(Case):
    def seek(self, what, path, offset=0):
        return self.json("seek", what, "-o", str(offset), path)["offset"]

    def allocated(self, path):
        return sum(e["length"] for e in self.json("extents", path) if not e["inline"])

    def test_allocate_punch_and_zero(self):
        self.format()
        self.start()
        content = bytearray(pattern(1, 2 * MIB))
        self.put("/f", bytes(content))
        # A hole whose edges are inside clusters.
        self.cli("fallocate", "-p", "-o", "4000", "-l", "100000", "/f")
        content[4000:104000] = bytes(100000)
        self.assertEqual(self.get("/f"), bytes(content))
        self.assertEqual(self.seek("--hole", "/f"), 4096)
        self.assertEqual(self.seek("--data", "/f", 4096), 102400)
        self.assertEqual(self.allocated("/f"), 2 * MIB - 98304)
        # Space for it again, and it reads as before.
        self.cli("fallocate", "-o", "0", "-l", "2M", "/f")
        self.assertEqual(self.allocated("/f"), 2 * MIB)
        self.assertEqual(self.get("/f"), bytes(content))
        self.assertTrue(any(e["unwritten"] for e in self.json("extents", "/f")))
        self.cli("fallocate", "-z", "-o", "1M", "-l", "1500000", "/f")
        content[MIB:] = bytes(1500000)
        self.assertEqual(self.get("/f"), bytes(content))
        self.cli("fallocate", "-k", "-o", "8M", "-l", "1M", "/f")
        self.assertEqual(self.stat("/f")["size_bytes"], len(content))
        self.assertEqual(self.json("extents", "/f")[-1]["logical"], 8 * MIB)
        self.assertIn(b"unwritten", self.cli("extents", "/f").stdout)
        # What cannot be, by its exit status.
        self.assertEqual(self.cli("seek", "--data", "-o", "1M", "/f", ok=False).returncode, 3)
        self.assertEqual(self.cli("fallocate", "-l", "0", "/f", ok=False).returncode, 2)
        self.assertEqual(self.cli("fallocate", "-l", "1T", "/f", ok=False).returncode, 6)
        self.assertEqual(self.get("/f"), bytes(content))
        self.stop()
        # Space past the end of a file, as the kernel leaves it as well.
        self.fsck(allowed=["INODE_SPARSE_SIZE"])

    def test_clones_are_files_of_their_own(self):
        self.format()
        self.start()
        content = pattern(2, 3 * MIB + 77)
        self.put("/f", content)
        self.cli("chmod", "4711", "/f")
        self.cli("chown", "5:6", "/f")
        self.cli("xattr", "set", "/f", "user.k", "value")
        self.cli("mkdir", "/d")
        self.cli("reflink", "/f", "/d")
        self.cli("reflink", "-p", "/f", "/same")
        self.assertEqual(self.cli("reflink", "/f", "/same", ok=False).returncode, 4)
        self.assertEqual(self.cli("reflink", "/d", "/e", ok=False).returncode, 5)
        same, new = self.stat("/same"), self.stat("/d/f")
        self.assertEqual((same["uid"], same["gid"]), (5, 6))
        self.assertNotEqual((new["uid"], new["gid"]), (5, 6))
        self.assertTrue(all(e["shared"] for e in self.json("extents", "/d/f")))
        self.assertEqual(self.json("extents", "/d/f"), self.json("extents", "/f"))
        self.cli("truncate", "-s", "1000000", "/f")
        self.put("/f", b"more", "--append")
        self.cli("fallocate", "-p", "-o", "100", "-l", "1000", "/same")
        self.assertEqual(self.get("/d/f"), content)
        self.assertEqual(self.get("/f"), content[:1000000] + b"more")
        self.assertEqual(self.get("/same"), content[:100] + bytes(1000) + content[1100:])
        self.assertEqual(self.cli("xattr", "get", "/d/f", "user.k").stdout.strip(), b"value")
        self.stop()
        self.fsck()
        self.start()
        self.assertEqual(self.get("/d/f"), content)
        for path in ("/f", "/same", "/d/f"):
            self.cli("rm", path)
        self.stop()
        self.fsck()


if __name__ == "__main__":
    unittest.main()
