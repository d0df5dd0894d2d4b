"""What all systems have in common.

Everything here runs in namespaces of its own (see peers.py): a process table in which every process but this script
and what called it belongs to the system, a network with nothing but loopback, and private mounts.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time

# An address of the loopback device, set aside for documentation: some systems refuse 127.0.0.1 for their servers.
ADDRESS = "192.0.2.1"


class Broken(Exception):
    """A system cannot be measured; one line says why."""


def call(*command, timeout=120):
    """Runs a command and returns what it printed. A file takes the output: a daemon would hold a pipe open."""
    command = [str(word) for word in command]
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                  timeout=timeout, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Broken(f"{command[0]}: {error}") from error
        out.seek(0)
        text = out.read().decode(errors="replace").strip()
    if done.returncode != 0:
        raise Broken(f"{' '.join(command[:4])} failed: {(text or str(done.returncode)).splitlines()[-1]}")
    return text


def wait_for(what, check, seconds=60):
    """Until `check` is true."""
    until = time.monotonic() + seconds
    while not check():
        if time.monotonic() > until:
            raise Broken(f"{what} did not happen in {seconds} s")
        time.sleep(0.2)


def alive(pid):
    """A zombie has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class System:
    """One system, from nothing to nothing. Class attributes say what it is, methods what differs."""

    name = ""
    # Heading in the tables.
    column = ""
    packages = ()
    # Services that a package would start at the next boot.
    units = ()

    def __init__(self, emberfs, base, size):
        self.emberfs = emberfs
        self.base = os.path.join(base, self.name)
        self.mnt = os.path.join(self.base, "mnt")
        self.pid_file = os.path.join(self.base, "pids")
        self.client_file = os.path.join(self.base, "client")
        self.size = size

    def start_servers(self):
        """Until they can be mounted."""

    def mount_client(self):
        """Mounts on self.mnt; may return before it is ready."""

    def ready(self):
        """Every replica takes part; called after each mount until it is true."""
        return True

    def forget(self):
        """Drops what servers cache outside the kernel; the client is not mounted."""

    def stop_servers(self):
        """Before all processes are killed."""

    def up(self):
        for folder in (self.base, self.mnt):
            os.makedirs(folder, exist_ok=True)
        self.start_servers()
        self.mount()

    def mount(self):
        before = self.pids()
        self.mount_client()
        wait_for(f"{self.name}: the mount", lambda: os.path.ismount(self.mnt))
        wait_for(f"{self.name}: every replica", self.ready)
        pids = self.pids()
        self.write(self.client_file, pids - before)
        self.write(self.pid_file, pids)

    def unmount(self):
        wait_for(f"{self.name}: unmounting", lambda: subprocess.run(
            ["umount", self.mnt], stderr=subprocess.DEVNULL, check=False).returncode == 0, 20)
        with open(self.client_file, encoding="utf-8") as file:
            client = [int(pid) for pid in file.read().split()]
        wait_for(f"{self.name}: the end of the client", lambda: not any(map(alive, client)), 30)

    def remount(self):
        """Makes the client forget everything."""
        self.unmount()
        self.forget()
        self.mount()

    def down(self):
        """Never fails: what is left after it dies with the namespaces."""
        for step in (self.stop_servers, self.end_all):
            try:
                step()
            except (Broken, OSError):
                pass

    def end_all(self):
        with open("/proc/self/mounts", encoding="utf-8") as file:
            mounts = [line.split()[:2] for line in file]
        if os.path.exists(self.mnt):
            subprocess.run(["umount", "--lazy", self.mnt], stderr=subprocess.DEVNULL, check=False)
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        wait_for("the end of all processes", lambda: not any(map(alive, self.pids())), 20)
        for _, path in reversed(mounts):
            if path != self.mnt and path in self.private_paths():
                # Lazily: threads of a process that seems to have ended may still close files.
                subprocess.run(["umount", "--lazy", path], check=False)
        shutil.rmtree(self.base, ignore_errors=True)

    def pids(self):
        """All processes but this one and those that called it."""
        ours, pid = set(), os.getpid()
        while pid > 0:
            ours.add(pid)
            with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
                pid = int(stat.read().rsplit(")", 1)[1].split()[1])
        return {int(name) for name in os.listdir("/proc") if name.isdigit()} - ours

    def private_paths(self):
        """Directories that the system would share with one that is installed on this host."""
        return ()

    def make_private(self):
        for path in self.private_paths():
            mine = os.path.join(self.base, "private", path.strip("/"))
            os.makedirs(mine, exist_ok=True)
            call("mount", "--bind", mine, path)

    def path(self, *names):
        return os.path.join(self.base, *names)

    def folder(self, *names):
        path = self.path(*names)
        os.makedirs(path, exist_ok=True)
        return path

    def write_text(self, path, *lines):
        with open(path, "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
        return path

    def write(self, path, numbers):
        self.write_text(path, *sorted(numbers))
