#!/usr/bin/env python3
"""EmberFS next to the distributed file systems that Debian 12 packages; writes JSON and a page from it.

usage: tools/bench/peers.py EMBERFS        (as root)

Every system runs on this host with three replicas on the one disk under BENCH_DIR, over loopback, with its defaults
where nothing else is said in tools/bench/systems; bindfs (FUSE in front of the local disk) and the local disk have
one copy. In each round every system is brought up, measured through its mount by the same `emberfs bench`
workloads, and removed. Medians are shown, because machines drift.

Before reads each client is mounted anew, dirty pages are written back and the kernel's caches dropped, for all systems
alike; what servers cache themselves is dropped too where there is a way. CPU time is that of all servers, the client and
the benchmark, user and system; kernel threads are not counted.

All of it happens in namespaces of its own: processes, mounts, and a network with nothing but loopback. So no port can be
taken, nothing meets services that are installed on this host, and no process or mount survives the script, however it ends.

environment: SYSTEMS (emberfs,emberfs-process,moosefs,glusterfs,cephfs,bindfs,local), BENCH_DIR (where; default /var/tmp),
  SIZE (512M), FILES (1000), ROUNDS (3), DURATION (3; length of each timed measurement), OUT (where the JSON goes; default
  ./bench-results), PAGE (default: page.md beside the JSON).
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from suite import GIB, output, parse_bytes
from systems import SYSTEMS, Broken, call
from systems.base import ADDRESS

SIZE = os.environ.get("SIZE", "512M")
FILES = int(os.environ.get("FILES", "1000"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
DURATION = os.environ.get("DURATION", "3")
CHOSEN = os.environ.get("SYSTEMS", ",".join(SYSTEMS)).split(",")
OUT = os.environ.get("OUT", "bench-results")

# Much more than any workload takes.
BENCH_TIMEOUT_S = 900
POLICY = "/usr/sbin/policy-rc.d"
# The end of this script ends the first process of the namespaces, and that one all others.
NAMESPACES = ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")

SEQUENTIAL = "MiB/s"
RANDOM = "random reads of 4 KiB, O_DIRECT, cold"
APPEND = "4 KiB append + fsync"
SMALL = "files per second"
CPU = "CPU s per GiB, servers and client"


def say(line):
    print(f"peers: {line}", file=sys.stderr, flush=True)


class Peers:
    """Inside the namespaces: all rounds."""

    def __init__(self, emberfs, base, out, chosen):
        self.emberfs = emberfs
        self.base = base
        self.out = out
        self.chosen = chosen
        self.size = parse_bytes(SIZE)
        self.records = []

    def save(self):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        packages = [f"{package} {version(package)}" for name in self.chosen
                    for package in SYSTEMS[name].packages[:1]]
        about = [
            f"Medians of {ROUNDS} rounds, {time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} cores, "
            f"{memory:.0f} GiB, kernel {platform.release()}, three replicas on one disk of this host, through FUSE mounts.",
            f"Debian's packages: {', '.join(packages)}.",
            f"`SIZE={SIZE} FILES={FILES} ROUNDS={ROUNDS} DURATION={DURATION} make bench-peers`",
        ]
        with open(os.path.join(self.out, "runs.json"), "w", encoding="utf-8") as file:
            json.dump({"about": about, "records": self.records}, file, indent=1)

    def run(self):
        for index in range(ROUNDS):
            say(f"round {index + 1} of {ROUNDS}")
            # No system is always the one after the same other.
            turn = index % len(self.chosen)
            for name in self.chosen[turn:] + self.chosen[:turn]:
                self.system(SYSTEMS[name](self.emberfs, self.base, self.size))
                # What a broken round leaves is still a measurement.
                self.save()

    def system(self, system):
        start = time.monotonic()
        try:
            system.up()
            started = time.monotonic()
            Measured(self, system).all()
            say(f"{system.name}: up in {started - start:.0f} s, measured in {time.monotonic() - started:.0f} s")
        except (Broken, OSError) as error:
            say(f"{system.name} left out of this round: {error}")
        finally:
            system.down()


class Measured:
    """One system that is up."""

    def __init__(self, peers, system):
        self.peers = peers
        self.system = system
        this = [sys.executable, os.path.abspath(__file__), "--remount", peers.emberfs, peers.base, str(peers.size), system.name]
        # --dir: a cluster of this host that happens to be where the command looks must not be counted.
        self.where = ("--path", system.mnt, "--dir", system.base, "--pids", system.pid_file,
                      "--drop-caches", " ".join(f"'{word}'" for word in this))

    def cell(self, table, row, value):
        self.peers.records.append({"table": table, "row": row, "column": self.system.column, "value": value})

    def phases(self, *workload):
        # What was written before would otherwise be written back during this.
        os.sync()
        command = [str(word) for word in (self.peers.emberfs, "bench", *self.where, "--json", *workload)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=BENCH_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise Broken(f"{' '.join(map(str, workload))} took more than {BENCH_TIMEOUT_S} s") from error
        if done.returncode != 0:
            reason = (done.stderr.strip() or str(done.returncode)).splitlines()[-1]
            raise Broken(f"{' '.join(map(str, workload))}: {reason}")
        return {phase["phase"]: phase for phase in json.loads(done.stdout)["phases"]}

    def all(self):
        self.streams()
        self.random()
        self.append()
        self.small()

    def streams(self):
        size, quarter = self.peers.size, max(self.peers.size // 4 & -4096, 4096)
        for row, options in (
                ("write, 1 MiB, and fsync", ("write", "--size", size)),
                ("read, 1 MiB, cold", ("read", "--size", size)),
                ("read, 1 MiB, cold, O_DIRECT", ("--direct", "read", "--size", size)),
                ("write 4 files at once, and fsync", ("write", "--size", quarter, "--jobs", 4)),
                ("read 4 files by 16 readers, cold", ("read", "--size", quarter, "--jobs", 4, "--readers", 4))):
            (phase,) = self.phases(*options).values()
            self.cell(SEQUENTIAL, row, phase["mib_per_second"])
            self.cell(CPU, row, phase["cpu_seconds"] / (phase["bytes"] / GIB))

    def timed(self, table, row, phase):
        self.cell(table, f"{row}/s", phase["operations_per_second"])
        for quantile in ("p50", "p99"):
            self.cell(table, f"{row}{quantile}, us", 1000 * phase["latency_ms"][quantile])

    def random(self):
        for jobs in (1, 4):
            phase = self.phases("--direct", "randread", "--size", self.peers.size, "--jobs", jobs,
                                "--seconds", DURATION)["randread"]
            self.timed(RANDOM, f"{jobs} job{'s' if jobs > 1 else ''}, ", phase)

    def append(self):
        self.timed(APPEND, "", self.phases("append", "--seconds", DURATION)["append"])

    def small(self):
        for jobs in (1, 8):
            report = self.phases("meta", "--files", FILES, "--size", "4K", "--jobs", jobs)
            for name, phase in report.items():
                row = f"{'open, read, close' if name == 'read' else name}, 4 KiB, {jobs} job{'s' if jobs > 1 else ''}"
                self.cell(SMALL, row, phase["operations_per_second"])
        report = self.phases("batch", "--files", FILES, "--size", "110K", "--jobs", 4)
        self.cell(SMALL, "write, 110 KiB, 8 jobs", report["create"]["operations_per_second"])
        self.cell(SMALL, "read shuffled, cold, 110 KiB, 4 jobs", report["fetch"]["operations_per_second"])


def version(package):
    """Empty if it is not installed."""
    done = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package],
                          capture_output=True, text=True, check=False)
    status, _, number = done.stdout.partition(" ")
    return number if status == "installed" else ""


def install(system):
    """Installs what is missing, and lets no service start: now, or at the next boot."""
    missing = [package for package in system.packages if not version(package)]
    if not missing:
        return
    say(f"installing {' '.join(missing)}")
    policy = not os.path.exists(POLICY)
    if policy:
        with open(POLICY, "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\nexit 101\n")
        os.chmod(POLICY, 0o755)
    try:
        call("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "--no-install-recommends", *missing,
             timeout=600)
    finally:
        if policy:
            os.unlink(POLICY)
    if shutil.which("systemctl"):
        subprocess.run(["systemctl", "--quiet", "disable", *system.units], stderr=subprocess.DEVNULL, check=False)


def installed(names):
    """Those that can be measured."""
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        sys.exit(f"peers: SYSTEMS knows {', '.join(SYSTEMS)}, not {', '.join(unknown)}")
    there = []
    for name in names:
        try:
            install(SYSTEMS[name])
            there.append(name)
        except (Broken, OSError) as error:
            say(f"{name} left out: {error}")
    return there


def inside(emberfs, base, out, chosen):
    """The first thing that runs in the namespaces."""
    call("ip", "link", "set", "lo", "up")
    call("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    # Sockets and pid files of systems whose place for them cannot be chosen.
    call("mount", "-t", "tmpfs", "tmpfs", "/run")
    Peers(emberfs, base, out, chosen.split(",")).run()


def remove(base):
    """Processes of a namespace that was ended may still write."""
    for _ in range(50):
        shutil.rmtree(base, ignore_errors=True)
        if not os.path.exists(base):
            return
        time.sleep(0.2)
    say(f"{base} stays behind: remove it")


def main(emberfs):
    emberfs = os.path.abspath(emberfs)
    if os.geteuid() != 0:
        sys.exit("peers: only root can do this")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    chosen = installed(CHOSEN)
    if not chosen:
        sys.exit("peers: nothing to measure")
    out = os.path.join(os.path.abspath(OUT), time.strftime("peers-%Y%m%dT%H%M%SZ", time.gmtime()))
    os.makedirs(out)
    base = tempfile.mkdtemp(prefix="emberfs-peers-", dir=os.environ.get("BENCH_DIR", "/var/tmp"))
    # The shell is process 1 of the namespace, where daemons that end become its children: it waits for all of them.
    this = [sys.executable, os.path.abspath(__file__), "--inside", emberfs, base, out, ",".join(chosen)]
    child = subprocess.Popen([*NAMESPACES, "sh", "-c", '"$@"; exit $?', "sh", *this], start_new_session=True)
    try:
        if child.wait() != 0:
            sys.exit("peers: broken off")
    finally:
        child.kill()
        child.wait()
        remove(base)
    page = os.environ.get("PAGE") or os.path.join(out, "page.md")
    print(output(emberfs, "bench", "report", out, "--page", page, "--block", "peers"), end="")


def entry():
    verb, *rest = sys.argv[1:] or [""]
    try:
        if verb == "--inside":
            inside(*rest)
        elif verb == "--remount":
            emberfs, base, size, name = rest
            SYSTEMS[name](emberfs, base, int(size)).remount()
        elif verb and not rest and not verb.startswith("-"):
            main(verb)
        else:
            sys.exit(__doc__)
    except (Broken, OSError) as error:
        sys.exit(f"peers: {error}")


if __name__ == "__main__":
    entry()
