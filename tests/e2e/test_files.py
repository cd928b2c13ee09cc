"""Files and names through the command line, on an image file; fsck.ocfs2 judges what is left."""

import hashlib
import os
import unittest

from rig import MIB, Case, pattern


class Files(Case):
    def test_round_trips_of_all_sizes(self):
        self.format()
        self.start()
        sizes = [0, 1, 511, 512, 3895, 3896, 3897, 4095, 4096, 4097, 65537, 3 * MIB + 5, 9 * MIB]
        for size in sizes:
            for mode in ("--direct", "--buffered"):
                self.put(f"data:/s{size}{mode}", pattern(size, size), mode)
        for size in sizes:
            for mode in ("--direct", "--buffered"):
                self.assertEqual(self.get(f"data:/s{size}{mode}", mode), pattern(size, size))
                self.assertEqual(self.stat(f"data:/s{size}{mode}")["size_bytes"], size)
        self.put("/s0--direct", b"appended", "--append")
        self.put("/s0--direct", b" twice", "--append")
        self.assertEqual(self.get("/s0--direct"), b"appended twice")
        self.stop()
        self.fsck()

    def test_trees_come_back_as_they_were(self):
        tree = os.path.join(self.dir, "tree")
        for i in range(40):
            folder = os.path.join(tree, f"d{i % 7}", f"e{i % 3}")
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, f"f{i}"), "wb") as file:
                file.write(pattern(i, i * 1777))
        os.symlink("d0/e0", os.path.join(tree, "link"))
        os.symlink("x" * 4000, os.path.join(tree, "long"))
        os.chmod(os.path.join(tree, "d0", "e0", "f0"), 0o600)
        os.utime(os.path.join(tree, "d0", "e0", "f0"), (1, 1234567890))
        self.format()
        self.start()
        self.cli("put", "-r", "--preserve", tree, "data:/tree")
        back = os.path.join(self.dir, "back")
        self.cli("get", "-r", "--preserve", "data:/tree", back)
        for folder, _, files in os.walk(tree):
            there = os.path.join(back, os.path.relpath(folder, tree))
            for name in files:
                ours, theirs = os.path.join(folder, name), os.path.join(there, name)
                if os.path.islink(ours):
                    self.assertEqual(os.readlink(ours), os.readlink(theirs))
                    continue
                with open(ours, "rb") as a, open(theirs, "rb") as b:
                    self.assertEqual(a.read(), b.read())
        meta = os.stat(os.path.join(back, "d0", "e0", "f0"))
        self.assertEqual((meta.st_mode & 0o7777, int(meta.st_mtime)), (0o600, 1234567890))
        self.cli("rm", "-r", "data:/tree")
        self.assertEqual([n for n in self.names("data:/") if n not in (".", "..")], ["lost+found"])
        self.stop()
        self.fsck()

    def test_names_attributes_and_exit_codes(self):
        self.format()
        self.start()
        self.cli("mkdir", "-p", "/a/b/c")
        self.put("/a/f", b"one")
        self.cli("ln", "/a/f", "/a/b/hard")
        self.cli("ln", "-s", "../f", "/a/b/soft")
        self.assertEqual(self.stat("/a/f")["links"], 2)
        self.assertEqual(self.get("/a/b/soft"), b"one")
        self.assertEqual(self.cli("readlink", "/a/b/soft").stdout.strip(), b"../f")
        self.cli("mv", "/a/f", "/a/b/c/g")
        self.assertEqual(self.get("/a/b/c/g"), b"one")
        self.cli("chmod", "640", "/a/b/c/g")
        self.cli("chown", "5:6", "/a/b/c/g")
        self.cli("truncate", "-s", "2", "/a/b/c/g")
        self.assertEqual(self.get("/a/b/hard"), b"on")
        stat = self.stat("/a/b/hard")
        self.assertEqual((stat["uid"], stat["gid"]), (5, 6))
        self.cli("xattr", "set", "/a/b/hard", "user.k", "value")
        self.assertEqual(self.cli("xattr", "get", "/a/b/c/g", "user.k").stdout.strip(), b"value")
        self.assertIn(b"user.k", self.cli("xattr", "ls", "/a/b/hard").stdout)
        self.cli("xattr", "rm", "/a/b/hard", "user.k")
        self.assertEqual(self.cli("xattr", "get", "/a/b/hard", "user.k", ok=False).returncode, 3)
        self.assertEqual(self.cli("stat", "/nowhere", ok=False).returncode, 3)
        self.assertEqual(self.cli("mkdir", "/a", ok=False).returncode, 4)
        self.assertNotEqual(self.cli("rmdir", "/a", ok=False).returncode, 0)
        self.assertEqual(self.cli("stat", "nosuch:/x", ok=False).returncode, 3)
        self.assertEqual(self.cli("frobnicate", ok=False).returncode, 2)
        self.assertIn(b"/nowhere", self.cli("stat", "/nowhere", ok=False).stderr)
        self.cli("df")
        self.cli("volumes")
        self.cli("devices")
        self.cli("sync")
        self.cli("rm", "-r", "/a")
        self.stop()
        self.assertEqual(self.cli("ls", "/", ok=False).returncode, 7)
        self.fsck()

    def test_no_path_leaves_the_volume(self):
        self.format()
        self.start()
        self.put("/f", b"x")
        self.assertEqual(self.get("/../../../../f"), b"x")
        self.cli("ln", "-s", "/../../etc/passwd", "/out")
        self.assertEqual(self.cli("cat", "/out", ok=False).returncode, 3)
        self.stop()
        self.fsck()


class Limits(Case):
    image_mib = 512

    def test_ten_thousand_files_in_one_directory(self):
        tree = os.path.join(self.dir, "many")
        os.mkdir(tree)
        for i in range(10_000):
            with open(os.path.join(tree, f"file-{i:05}-{i * 7919 % 10007:x}"), "w") as file:
                file.write(str(i))
        self.format()
        self.start()
        self.cli("put", "-r", "--jobs", "64", tree, "data:/many")
        self.assertEqual(
            [n for n in self.names("data:/many") if n not in (".", "..")], sorted(os.listdir(tree))
        )
        back = os.path.join(self.dir, "back")
        self.cli("get", "-r", "--jobs", "64", "data:/many", back)
        for name in os.listdir(tree):
            with open(os.path.join(tree, name)) as a, open(os.path.join(back, name)) as b:
                self.assertEqual(a.read(), b.read())
        self.stop()
        self.fsck()

    def test_sparse_deep_and_long(self):
        self.format()
        self.start()
        self.put("/sparse", b"start")
        self.cli("truncate", "-s", str(4 << 30), "/sparse")
        self.put("/sparse", b"end", "--append")
        stat = self.stat("/sparse")
        self.assertEqual(stat["size_bytes"], (4 << 30) + 3)
        back = os.path.join(self.dir, "sparse")
        self.cli("get", "/sparse", back)
        digest = hashlib.sha256()
        with open(back, "rb") as file:
            self.assertEqual(file.read(5), b"start")
            while piece := file.read(1 << 24):
                digest.update(piece)
        model = hashlib.sha256(b"\0" * ((1 << 24) - 5))
        zeroes = b"\0" * (1 << 24)
        for _ in range((4 << 30) // (1 << 24) - 1):
            model.update(zeroes)
        model.update(b"end")
        self.assertEqual(digest.digest(), model.digest())
        os.unlink(back)
        deep = "/".join(f"level{i}" for i in range(300))
        self.cli("mkdir", "-p", "/" + deep)
        self.put(f"/{deep}/bottom", b"deep")
        self.assertEqual(self.get(f"/{deep}/bottom"), b"deep")
        for name in ("x" * 255, "ü" * 127 + "x", "名" * 85, "tab\tand\\back"):
            self.put("/" + name, name.encode())
            self.assertEqual(self.get("/" + name), name.encode())
        self.assertNotEqual(self.cli("put", "-", "/" + "y" * 256, data=b"", ok=False).returncode, 0)
        self.stop()
        self.start()
        self.assertEqual(self.get(f"/{deep}/bottom"), b"deep")
        self.assertEqual(self.get("/" + "名" * 85), ("名" * 85).encode())
        self.cli("rm", "-r", "/level0")
        self.stop()
        self.fsck()


class Full(Case):
    image_mib = 96

    def test_a_full_volume_loses_nothing(self):
        self.format()
        self.start()
        self.put("/kept", pattern(1, 2 * MIB), "--fsync")
        full = None
        for i in range(200):
            done = self.cli("put", "-", f"/fill{i}", data=pattern(i, 3 * MIB), ok=False)
            if done.returncode != 0:
                full = done
                break
        self.assertIsNotNone(full, "the volume never filled")
        self.assertEqual(full.returncode, 6, full.stderr)
        self.assertEqual(self.get("/kept"), pattern(1, 2 * MIB))
        for j in range(i):
            self.assertEqual(self.get(f"/fill{j}"), pattern(j, 3 * MIB))
        # What failed is a prefix, and can go.
        rest = self.get(f"/fill{i}") if self.cli("stat", f"/fill{i}", ok=False).returncode == 0 else b""
        self.assertEqual(rest, pattern(i, 3 * MIB)[: len(rest)])
        self.cli("rm", "-f", *[f"/fill{j}" for j in range(i + 1)])
        self.put("/again", pattern(2, 20 * MIB))
        self.assertEqual(self.get("/again"), pattern(2, 20 * MIB))
        self.stop()
        self.fsck()


if __name__ == "__main__":
    unittest.main()
