"""Devices that fail under a mounted volume: what the volume, its neighbours and the daemon make of it."""

import os
import shutil
import unittest

from rig import Case, Target, pattern

READ_ONLY = 5  # the client's exit status for EROFS


class Faults(Case):
    """`data` is on a device that fails on request, `other` on one that does not."""

    image_mib = 128

    def setUp(self):
        super().setUp()
        self.format()
        self.other_image = os.path.join(self.dir, "other")
        shutil.copy(self.image, self.other_image)
        self.target = Target(self, faulty=True)

    def begin(self, errors="remount-ro"):
        other = f'[[device]]\nname = "other"\ntype = "image-file"\npath = "{self.other_image}"\nengine = "aio"\n'
        volumes = f'[[volume]]\ndevice = "disk"\nname = "data"\nerrors = "{errors}"\n'
        volumes += '[[volume]]\ndevice = "other"\nname = "other"\n'
        self.start(devices=self.target.device("tcp") + other, volumes=volumes)

    def volume(self, name):
        return next(v for v in self.json("volumes") if v["name"] == name)

    def finish(self):
        """The data is there, on a device that works."""
        self.assertEqual(self.get("data:/kept"), pattern(1, 200_000))
        self.put("data:/after", pattern(2, 50_000), "--fsync")
        self.stop()
        self.target.stop()
        self.fsck()
        self.image = self.other_image
        self.fsck()

    def test_failed_metadata_writes_make_one_volume_read_only(self):
        self.begin()
        self.put("data:/kept", pattern(1, 200_000), "--fsync")
        self.cli("mkdir", "data:/lost")
        self.target.fail("write")
        self.assertNotEqual(self.cli("sync", "data", ok=False).returncode, 0)
        first = self.volume("data")
        self.assertEqual(first["state"], "read-only", first)
        self.assertIn("write of", first["reason"])
        self.assertIn(first["reason"], self.cli("volumes").stdout.decode())
        # Whatever follows, the first cause is what is shown.
        self.assertEqual(self.cli("mkdir", "data:/d", ok=False).returncode, READ_ONLY)
        self.assertNotEqual(self.cli("sync", "data", ok=False).returncode, 0)
        self.assertEqual(self.volume("data"), first)
        self.assertEqual(self.get("data:/kept"), pattern(1, 200_000))
        # The neighbour goes on.
        self.assertEqual(self.volume("other")["state"], "mounted")
        self.put("other:/f", pattern(3, 300_000), "--fsync")
        self.target.fail("clear")
        self.cli("unmount", "data", ok=False)
        self.cli("mount", "disk", "data")
        again = self.volume("data")
        self.assertEqual(again["state"], "mounted", again)
        self.assertTrue(again["recovered"], again)
        self.finish()

    def test_a_failed_data_write_is_that_writes_alone(self):
        self.begin()
        self.put("data:/kept", pattern(1, 200_000), "--fsync")
        self.cli("sync", "data")
        # More than the NVMe driver tries again.
        self.target.fail("write", 50)
        done = self.cli("put", "--direct", "-", "data:/bad", ok=False, data=pattern(4, 100_000))
        self.target.fail("clear")
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(self.volume("data")["state"], "mounted")
        self.finish()

    def test_errors_panic_ends_the_daemon(self):
        self.begin(errors="panic")
        self.put("data:/kept", pattern(1, 200_000), "--fsync")
        self.cli("mkdir", "data:/lost")
        self.target.fail("write")
        self.cli("sync", "data", ok=False)
        self.assertNotEqual(self.daemon.wait(30), 0)
        self.assertIn("errors=panic", self.log_text())
        self.assertNotIn("panicked", self.log_text())
        self.target.fail("clear")
        self.begin(errors="panic")
        self.finish()

    def test_a_device_that_is_gone(self):
        self.begin()
        self.put("data:/kept", pattern(1, 200_000), "--fsync")
        self.target.process.kill()
        self.target.process.wait()
        done = self.cli("put", "--fsync", "-", "data:/x", ok=False, data=b"x", timeout=120)
        self.assertNotEqual(done.returncode, 0)
        self.put("other:/f", pattern(3, 300_000), "--fsync")
        self.cli("sync", "data", ok=False, timeout=120)
        self.assertEqual(self.volume("other")["state"], "mounted")
        self.daemon.terminate()
        self.daemon.wait(60)
        self.assertNotIn("panicked", self.log_text())
        self.target = Target(self, faulty=True)
        self.begin()
        self.finish()


if __name__ == "__main__":
    unittest.main()
