"""GlusterFS: three bricks, replica 3, the FUSE client. Its fsync is one at each brick."""

import os

from .base import ADDRESS, System, call

VOLUME = "bench"


class GlusterFs(System):
    name = "glusterfs"
    column = "glusterfs"
    packages = ("glusterfs-server", "glusterfs-client")
    units = ("glusterd",)

    def private_paths(self):
        return ("/var/lib/glusterd", "/var/log/glusterfs")

    def bricks(self):
        return [self.path(f"brick{number}") for number in (1, 2, 3)]

    def start_servers(self):
        self.make_private()
        for brick in self.bricks():
            os.makedirs(brick, exist_ok=True)
        call("glusterd")
        bricks = [f"{ADDRESS}:{brick}" for brick in self.bricks()]
        # "force": bricks of one volume on one host, and on its root file system.
        call("gluster", "--mode=script", "volume", "create", VOLUME, "replica", 3, *bricks, "force")
        call("gluster", "--mode=script", "volume", "start", VOLUME)

    def mount_client(self):
        call("glusterfs", f"--volfile-server={ADDRESS}", f"--volfile-id={VOLUME}", self.mnt)

    def ready(self):
        """A new file is on every brick: a client goes on while it still connects to the third."""
        probe = f"probe-{os.urandom(4).hex()}"
        try:
            with open(os.path.join(self.mnt, probe), "w", encoding="utf-8") as file:
                file.write("probe")
            there = all(os.path.exists(os.path.join(brick, probe)) for brick in self.bricks())
            os.unlink(os.path.join(self.mnt, probe))
        except OSError:
            return False
        return there
