"""A Python client that knows only server reflection, over the Unix socket and over TCP."""

import os
import unittest

from rig import ROOT, Case, free_port, run


class Reflection(Case):
    def test_client_by_reflection(self):
        self.format()
        port = free_port()
        self.start(tcp=f'["127.0.0.1:{port}"]')
        client = os.path.join(ROOT, "tests", "python", "run")
        for address in (self.server, f"127.0.0.1:{port}"):
            run(client, address, "data")
        self.stop()
        self.fsck()


if __name__ == "__main__":
    unittest.main()
