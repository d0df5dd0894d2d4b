"""EmberFS, and what it is measured by besides other clusters: the local disk, bare and behind FUSE."""

import os

from .base import System, call


class EmberFs(System):
    name = "emberfs"
    column = "emberfs"
    settings = ()

    def start_servers(self):
        settings = [word for setting in self.settings for word in ("--set", setting)]
        call(self.emberfs, "up", "--dir", self.path("data"), "--mount", self.mnt, "--storage", 3, "--replicas", 3,
             "--disk-root", self.folder("disks"), *settings)

    def mount_client(self):
        # The first time `up` has done it.
        if not os.path.ismount(self.mnt):
            call(self.emberfs, "start", "--dir", self.path("data"), "mount")

    def unmount(self):
        call(self.emberfs, "stop", "--dir", self.path("data"), "mount")

    def stop_servers(self):
        call(self.emberfs, "down", "--dir", self.path("data"), "--purge", "--force")


class EmberFsProcess(EmberFs):
    name = "emberfs-process"
    column = "emberfs, durability=process"
    settings = ("storage.durability=process",)


class BindFs(System):
    name = "bindfs"
    column = "bindfs"
    packages = ("bindfs",)

    def mount_client(self):
        call("bindfs", self.folder("plain"), self.mnt)


class Local(System):
    name = "local"
    column = "local disk"

    def up(self):
        os.makedirs(self.mnt)
        self.write(self.pid_file, [])

    def remount(self):
        """The kernel's caches are all there are."""
