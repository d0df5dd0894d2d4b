"""CephFS: one monitor, manager and metadata server, three OSDs (BlueStore on a sparse file each), size 3, ceph-fuse.

Its writes are on all three replicas' disks before they are acknowledged.
"""

import os
import uuid
from concurrent.futures import ThreadPoolExecutor

from .base import ADDRESS, System, call, wait_for

GIB = 2**30
ADMIN = "/etc/ceph/ceph.client.admin.keyring"
STATE = "/var/lib/ceph"


class CephFs(System):
    name = "cephfs"
    column = "cephfs"
    packages = ("ceph-mon", "ceph-mgr", "ceph-mds", "ceph-osd", "ceph-common", "ceph-fuse")
    units = ("ceph.target", "ceph-fuse.target")

    def private_paths(self):
        return ("/etc/ceph", STATE, "/var/log/ceph")

    def configure(self, fsid):
        # Freed space comes back with delay.
        block = 10 * GIB + 10 * self.size
        self.write_text(
            "/etc/ceph/ceph.conf", "[global]", f"fsid = {fsid}", "mon initial members = a", f"mon host = {ADDRESS}",
            f"public network = {ADDRESS}/32", "auth cluster required = cephx", "auth service required = cephx",
            "auth client required = cephx", "osd pool default size = 3", "osd pool default min size = 2",
            # Replicas on one host; and no change of placement groups while something is measured.
            "osd crush chooseleaf type = 0", "osd pool default pg autoscale mode = off",
            f"osd memory target = {GIB}", f"bluestore block size = {block}",
            # The monitor would end itself on a disk that others fill.
            "mon data avail crit = 1", "mon data avail warn = 2")

    def keyring(self, folder, who, *caps):
        call("ceph", "auth", "get-or-create", who, *caps, "-o", os.path.join(folder, "keyring"))

    def state(self, kind, who):
        folder = os.path.join(STATE, kind, f"ceph-{who}")
        os.makedirs(folder)
        return folder

    def start_servers(self):
        self.make_private()
        os.makedirs("/run/ceph", exist_ok=True)
        fsid = uuid.uuid4()
        self.configure(fsid)
        everything = [word for kind in ("mon", "osd", "mds", "mgr") for word in ("--cap", kind, "allow *")]
        keys, monmap = self.path("mon.keyring"), self.path("monmap")
        call("ceph-authtool", "--create-keyring", keys, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        call("ceph-authtool", "--create-keyring", ADMIN, "--gen-key", "-n", "client.admin", *everything)
        call("ceph-authtool", keys, "--import-keyring", ADMIN)
        call("monmaptool", "--create", "--add", "a", ADDRESS, "--fsid", fsid, monmap)
        self.state("mon", "a")
        call("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keys)
        call("ceph-mon", "-i", "a")
        self.keyring(self.state("mgr", "a"), "mgr.a", "mon", "allow profile mgr", "osd", "allow *", "mds", "allow *")
        call("ceph-mgr", "-i", "a")
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start_osd, range(3), [self.register_osd(osd) for osd in range(3)]))
        self.keyring(self.state("mds", "a"), "mds.a", "mon", "allow profile mds", "osd", "allow *", "mds", "allow *",
                     "mgr", "allow profile mds")
        for pool, groups in (("fs_meta", 8), ("fs_data", 32)):
            call("ceph", "osd", "pool", "create", pool, groups)
        call("ceph", "fs", "new", "fs", "fs_meta", "fs_data")
        call("ceph-mds", "-i", "a")
        wait_for("cephfs: an active metadata server", lambda: "up:active" in call("ceph", "mds", "stat"), 90)
        wait_for("cephfs: three clean replicas", self.clean, 90)

    def register_osd(self, osd):
        """One after the other, because numbers are given in turn."""
        identity = uuid.uuid4()
        call("ceph", "osd", "new", identity)
        self.keyring(self.state("osd", osd), f"osd.{osd}", "mon", "allow profile osd", "mgr", "allow profile osd",
                     "osd", "allow *")
        return identity

    def start_osd(self, osd, identity):
        call("ceph-osd", "-i", osd, "--mkfs", "--osd-uuid", identity)
        call("ceph-osd", "-i", osd)

    def clean(self):
        """Such as: 41 pgs: 41 active+clean; 2.3 KiB data, ..."""
        groups = call("ceph", "pg", "stat").split(";")[0].split()
        up = "3 up" in call("ceph", "osd", "stat")
        return up and len(groups) >= 4 and groups[0] == groups[2] and groups[3] == "active+clean"

    def mount_client(self):
        call("ceph-fuse", self.mnt)

    def forget(self):
        call("ceph", "tell", "osd.*", "cache", "drop")
