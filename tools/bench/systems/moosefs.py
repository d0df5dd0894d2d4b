"""MooseFS: a master, three chunkservers, goal 3. Its fsync waits for the page caches of all three, not for disks."""

import os
import shutil

from .base import ADDRESS, Broken, System, call

# Debian's master comes with an empty store.
EMPTY = "/var/lib/mfs/metadata.mfs.empty"


class MooseFs(System):
    name = "moosefs"
    column = "moosefs"
    packages = ("moosefs-master", "moosefs-chunkserver", "moosefs-client")
    units = ("moosefs-master", "moosefs-chunkserver")

    def start_servers(self):
        user = ("WORKING_USER = root", "WORKING_GROUP = root")
        if not os.path.exists(EMPTY):
            raise Broken(f"{EMPTY} is missing")
        master = self.folder("master")
        shutil.copy(EMPTY, os.path.join(master, "metadata.mfs"))
        exports = self.write_text(self.path("exports.cfg"), "* / rw,alldirs,maproot=0")
        topology = self.write_text(self.path("topology.cfg"))
        conf = self.write_text(self.path("master.cfg"), *user, f"DATA_PATH = {master}",
                               f"EXPORTS_FILENAME = {exports}", f"TOPOLOGY_FILENAME = {topology}")
        call("mfsmaster", "-c", conf, "start")
        for number in (1, 2, 3):
            disks = self.write_text(self.path(f"disks{number}.cfg"), self.folder(f"disk{number}"))
            conf = self.write_text(self.path(f"chunkserver{number}.cfg"), *user,
                                   f"DATA_PATH = {self.folder(f'chunkserver{number}')}",
                                   f"HDD_CONF_FILENAME = {disks}", f"MASTER_HOST = {ADDRESS}",
                                   f"CSSERV_LISTEN_PORT = {9430 + number}")
            call("mfschunkserver", "-c", conf, "start")

    def mount_client(self):
        call("mfsmount", self.mnt, "-H", ADDRESS)

    def ready(self):
        """A new file gets three copies."""
        # Removed files would stay for a day.
        call("mfssettrashtime", "-r", "0", self.mnt)
        call("mfssetgoal", "-r", "3", self.mnt)
        probe = os.path.join(self.mnt, "probe")
        try:
            with open(probe, "w", encoding="utf-8") as file:
                file.write("probe")
            copies = call("mfsfileinfo", probe).count("status:VALID")
            os.unlink(probe)
        except OSError:
            return False
        return copies == 3
