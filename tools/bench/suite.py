#!/usr/bin/env python3
"""Floors of this machine, then EmberFS natively and through the mount; writes JSON and a page from it.

usage: tools/bench/suite.py EMBERFS

Everything alternates over several rounds and medians are shown, because machines drift. The floors are measured
in the same rounds: fio beside the chunk engine on the same file system (emberfs bench disk), and a sender and a
receiver of checksummed blocks over loopback (emberfs bench floor). bindfs, a FUSE file system that hands through the
local disk, is what a mount is measured by. A write goes to the one disk under
all servers as often as there are replicas, so its floor is the disk's rate divided by them.

Clusters come up one after the other, in each round: with their disks on the file system of BENCH_DIR and on that of
MEMORY_DIR (a tmpfs: the processor is the limit), each with every number of copies in REPLICAS.

environment: BENCH_DIR (where; default /var/tmp), MEMORY_DIR (/dev/shm; empty: none), SIZE (1G), FILES (2000),
  ROUNDS (3), DURATION (5; length of each timed measurement), STORAGE (3 servers), REPLICAS (1,3),
  OUT (where the JSON goes; default ./bench-results), PAGE (default: page.md beside the JSON).
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

SIZE = os.environ.get("SIZE", "1G")
FILES = int(os.environ.get("FILES", "2000"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
DURATION = os.environ.get("DURATION", "5")
STORAGE = int(os.environ.get("STORAGE", "3"))
REPLICAS = [int(copies) for copies in os.environ.get("REPLICAS", "1,3").split(",")]
MEMORY_DIR = os.environ.get("MEMORY_DIR", "/dev/shm")
OUT = os.environ.get("OUT", "bench-results")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
GIB = 2**30

SEQUENTIAL = "sequential, 1 MiB; MiB/s"
SERVERS = "CPU s per GiB, all servers"
CLIENTS = "CPU s per GiB, application and mount"
ENGINE = "chunk engine alone"
RANDOM = "random reads of 4 KiB, /s"
APPEND = "append + fsync, median ms"
SMALL = "files per second"
CHECKPOINT = "checkpoint"
LOADER = "loader, resnet50"


def parse_bytes(text):
    unit = text.upper().removesuffix("IB").removesuffix("B")
    return int(unit[:-1]) * UNITS[unit[-1]] if unit[-1] in UNITS else int(unit)


def output(*command):
    command = [str(word) for word in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode != 0:
        raise SystemExit(f"bench: {' '.join(command)} failed with exit code {done.returncode}")
    return done.stdout


def need_tools():
    missing = [tool for tool in ("fio", "bindfs") if not shutil.which(tool)]
    if missing and os.geteuid() != 0:
        sys.exit(f"bench: run: sudo apt-get install -y {' '.join(missing)}")
    if missing:
        subprocess.run(["apt-get", "install", "-y", *missing], check=True, stdout=subprocess.DEVNULL)


def rings_are_on():
    """Whether this kernel has FUSE over io_uring; root turns it on."""
    switch = "/sys/module/fuse/parameters/enable_uring"
    if not os.path.exists(switch):
        return False
    if os.geteuid() == 0:
        with open(switch, "w", encoding="utf-8") as file:
            file.write("Y")
    with open(switch, encoding="utf-8") as file:
        return file.read().strip() == "Y"


class Suite:
    def __init__(self, emberfs, base, out):
        self.emberfs = emberfs
        self.base = base
        self.out = out
        self.size = parse_bytes(SIZE)
        self.records = []
        self.rings = rings_are_on()

    def bench(self, where, *workload):
        return json.loads(output(self.emberfs, "bench", *where, "--json", *workload))

    def phases(self, where, *workload):
        return {phase["phase"]: phase for phase in self.bench(where, *workload)["phases"]}

    def cell(self, table, row, column, value):
        self.records.append({"table": table, "row": row, "column": column, "value": value})

    def point(self, plot, labels, series, x, value):
        x_label, y_label = labels
        self.records.append({"plot": plot, "x_label": x_label, "y_label": y_label, "series": series,
                             "x": x, "value": value})

    def save(self):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        about = [
            f"{'One round' if ROUNDS == 1 else f'Medians of {ROUNDS} rounds'}, {time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} cores, "
            f"{memory:.0f} GiB, kernel {platform.release()}, {STORAGE} storage servers on this host.",
            f"`SIZE={SIZE} FILES={FILES} ROUNDS={ROUNDS} DURATION={DURATION} make bench`",
        ]
        with open(os.path.join(self.out, "runs.json"), "w", encoding="utf-8") as file:
            json.dump({"about": about, "records": self.records}, file, indent=1)

    def floors(self, plain):
        """The engine and fio, and loopback; returns the rates of fio's write, its read, and loopback."""
        disk = self.bench(("--path", plain), "disk", "--size", self.size, "--rounds", "1", "--seconds", DURATION)
        rates = {}
        for case in disk["cases"]:
            unit = "operations_per_second" if case["case"].startswith("random") else "mib_per_second"
            name = case["case"].replace("_", " ") + (", /s" if unit.startswith("op") else ", MiB/s")
            self.cell(ENGINE, name, "engine", case["engine"][unit])
            self.cell(ENGINE, name, "fio", case["fio"][unit])
            self.cell(ENGINE, name, "ratio", case["ratio"])
            self.cell(ENGINE, name, "engine, CPU s/GiB", case["engine"]["cpu_seconds_per_gib"])
            self.cell(ENGINE, name, "fio, CPU s/GiB", case["fio"]["cpu_seconds_per_gib"])
            rates[case["case"]] = case["fio"]["mib_per_second"]
        ends = self.phases((), "floor", "--size", 4 * self.size)
        for table, end in ((SERVERS, "send"), (CLIENTS, "receive")):
            self.cell(table, "read, memory", "floor", ends[end]["cpu_seconds"] / (ends[end]["bytes"] / GIB))
        return rates["write"], rates["read"], ends["receive"]["mib_per_second"]

    def sequential(self, kind, copies, subjects, floors):
        name = f"{kind}, {copies} {'copy' if copies == 1 else 'copies'}"
        for column, where in subjects.items():
            for verb, label, options in (("write", "write + fsync", ()), ("read", "read", ()),
                                         ("read", "read by 8 threads", ("--readers", 8))):
                phase = self.phases(where, verb, "--size", self.size, *options)[verb]
                row = f"{label}, {name}"
                rate, floor = phase["mib_per_second"], floors[verb]
                if floor:
                    self.cell(SEQUENTIAL, row, "floor", floor)
                self.cell(SEQUENTIAL, row, column, rate)
                if floor and column == "native":
                    self.cell(SEQUENTIAL, row, "native / floor", rate / floor)
                clients = phase["client_cpu_seconds"]
                self.cell(SERVERS, row, column, (phase["cpu_seconds"] - clients) / (phase["bytes"] / GIB))
                self.cell(CLIENTS, row, column, clients / (phase["bytes"] / GIB))

    def passthrough(self, plain):
        """What FUSE itself takes: bindfs, which counts as a server, in front of the local disk."""
        bound, pids = (os.path.join(self.base, name) for name in ("bound", "pids"))
        os.makedirs(bound, exist_ok=True)
        output("bindfs", plain, bound)
        try:
            with open(pids, "w", encoding="utf-8") as file:
                file.write(output("pgrep", "--full", f"^bindfs .* {bound}$"))
            where = ("--path", bound, "--dir", self.base, "--pids", pids)
            columns = {"bindfs": where, "bindfs, O_DIRECT": (*where, "--direct")}
            self.sequential("local disk", 1, columns, {"write": None, "read": None})
            self.random("local disk", {"bindfs, O_DIRECT": columns["bindfs, O_DIRECT"]})
            self.small({"bindfs": where})
        finally:
            output("umount", bound)

    def random(self, name, subjects):
        for column, where in subjects.items():
            for jobs in (1, 8):
                phase = self.phases(where, "randread", "--size", self.size, "--jobs", jobs,
                                    "--seconds", DURATION)["randread"]
                row = f"{name}, {jobs} job{'s' if jobs > 1 else ''}"
                self.cell(RANDOM, row, column, phase["operations_per_second"])
                self.cell(RANDOM, f"{row}, p99 ms", column, phase["latency_ms"]["p99"])

    def append(self, name, subjects):
        """One write after the other, each durable: nothing hides what it takes."""
        for column, where in subjects.items():
            for size in ("4K", "1M"):
                phase = self.phases(where, "append", "--block", size, "--seconds", DURATION)["append"]
                row = f"{size.removesuffix('K').removesuffix('M')} {'KiB' if size == '4K' else 'MiB'}, {name}"
                self.cell(APPEND, row, column, phase["latency_ms"]["p50"])

    def small(self, subjects):
        for column, where in subjects.items():
            for size, jobs in (("4K", 1), ("4K", 8), ("110K", 8)):
                files = FILES if size == "4K" else max(FILES // 2, 1)
                report = self.phases(where, "meta", "--files", files, "--size", size, "--jobs", jobs)
                for name, phase in report.items():
                    row = f"{name}, {size.removesuffix('K')} KiB, {jobs} job{'s' if jobs > 1 else ''}"
                    self.cell(SMALL, row, column, phase["operations_per_second"])
            for jobs in (1, 4):
                batches = self.phases(where, "batch", "--files", FILES, "--jobs", jobs)
                row = f"read, 110 KiB, shuffled, batches of 256, {jobs} job{'s' if jobs > 1 else ''}"
                self.cell(SMALL, row, column, batches["fetch"]["operations_per_second"])

    def training(self, subjects):
        for column, where in subjects.items():
            report = self.phases(where, "checkpoint", "--ranks", 4, "--shard", max(self.size // 4, 4096))
            for name in ("save", "restore"):
                self.cell(CHECKPOINT, f"{name}, MiB/s", column, report[name]["mib_per_second"])
            self.cell(CHECKPOINT, "longest save of a rank, s", column, report["save"]["latency_ms"]["max"] / 1000)
            report = self.bench(where, "loader", "--shape", "resnet50", "--scale", 10, "--seconds", DURATION)
            self.cell(LOADER, "accelerator utilisation, %", column, report["loader"]["utilisation_percent"])
            self.cell(LOADER, "samples/s", column, report["loader"]["samples_per_second"])

    def curves(self, name, subjects):
        """Throughput and CPU time against the number of clients, and throughput against the size of files."""
        for column, where in subjects.items():
            for jobs in (1, 2, 4, 8):
                phase = self.phases(where, "read", "--size", max(self.size // jobs, 1), "--jobs", jobs)["read"]
                self.point(f"Sequential read by number of files read at once, {name}", ("files at once", "MiB/s"),
                           column, jobs, phase["mib_per_second"])
                self.point(f"CPU time of reads by number of files read at once, {name}",
                           ("files at once", "CPU s/GiB"), column, jobs,
                           phase["cpu_seconds"] / (phase["bytes"] / GIB))
            for size in (2**20, 2**22, 2**24, 2**26, 2**28, 2**30):
                if 4 * size <= self.size:
                    phase = self.phases(where, "read", "--size", size, "--jobs", 4)["read"]
                    self.point(f"Sequential read by size of file, four at once, {name}", ("bytes", "MiB/s"),
                               column, size, phase["mib_per_second"])

    def chains(self, kind, root):
        """Throughput against the number of chains that files are striped over."""
        copies = max(REPLICAS)
        for chains in (1, 2, 4, 8, 16):
            def measure(_kind, _copies, native, _buffered, _direct, chains=chains):
                for verb, series in (("write", "write + fsync"), ("read", "read")):
                    phase = self.phases(native, verb, "--size", self.size)[verb]
                    self.point(f"One native stream by number of chains, {kind}, {copies} copies", ("chains", "MiB/s"),
                               series, chains, phase["mib_per_second"])
            self.up(kind, root, copies, measure, "--no-mount", "--set", f"meta.targets_per_disk={chains}",
                    "--set", f"meta.stripe_width={chains}")

    def up(self, kind, root, copies, measure, *options):
        """One cluster, from nothing to nothing."""
        data, mount = (os.path.join(self.base, name) for name in ("data", "mnt"))
        disks = tempfile.mkdtemp(prefix="emberfs-bench-", dir=root)
        try:
            where = () if "--no-mount" in options else ("--mount", mount)
            output(self.emberfs, "up", "--dir", data, *where, "--storage", STORAGE,
                   "--replicas", copies, "--disk-root", disks, *options)
            buffered = ("--path", mount, "--dir", data)
            measure(kind, copies, ("--dir", data), buffered, (*buffered, "--direct"))
        finally:
            if os.path.exists(os.path.join(data, "cluster.toml")):
                subprocess.run([self.emberfs, "down", "--dir", data, "--purge", "--force"],
                               stdout=subprocess.DEVNULL, check=False)
            shutil.rmtree(disks, ignore_errors=True)

    def cluster(self, floors):
        """What is measured of a cluster, natively and through the mount."""
        def measure(kind, copies, native, buffered, direct):
            self.sequential(kind, copies, {"native": native, "mount": buffered, "mount, O_DIRECT": direct}, floors)
            self.append(f"{kind}, {copies} {'copy' if copies == 1 else 'copies'}", {"native": native, "mount": buffered})
            if copies == max(REPLICAS):
                self.random(kind, {"native": native, "mount, O_DIRECT": direct})
                self.curves(f"{kind}, {copies} copies", {"native": native, "mount": buffered})
                if kind == "disk":
                    self.small({"native": native, "mount": buffered})
                    self.training({"native": native, "mount": buffered})
        return measure

    def ring(self, kind, copies, _native, buffered, direct):
        """The same mount over the kernel's rings instead of its device."""
        nothing = {"write": None, "read": None}
        self.sequential(kind, copies, {"mount by ring": buffered, "mount by ring, O_DIRECT": direct}, nothing)
        self.random(kind, {"mount by ring, O_DIRECT": direct})

    def round(self):
        plain = os.path.join(self.base, "plain")
        os.makedirs(plain, exist_ok=True)
        write, read, loopback = self.floors(plain)
        for copies in REPLICAS:
            floors = {"write": write / copies, "read": min(read, loopback)}
            roots = [("disk", self.base, floors), ("memory", MEMORY_DIR, {"write": None, "read": loopback})]
            for kind, root, floors in roots if MEMORY_DIR else roots[:1]:
                self.up(kind, root, copies, self.cluster(floors))
                if copies == max(REPLICAS) and self.rings:
                    self.up(kind, root, copies, self.ring, "--mount-options", "transport=ring")
                if copies == max(REPLICAS) and STORAGE == copies:
                    self.chains(kind, root)
        local = ("--path", plain, "--dir", self.base)
        self.append("disk, 1 copy", {"local disk": local})
        self.random("disk", {"local disk, O_DIRECT": (*local, "--direct")})
        self.small({"local disk": local})
        self.passthrough(plain)
        self.training({"local disk": local})


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    emberfs = os.path.abspath(sys.argv[1])
    need_tools()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = os.path.join(os.path.abspath(OUT), time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
    os.makedirs(out)
    base = tempfile.mkdtemp(prefix="emberfs-bench-", dir=os.environ.get("BENCH_DIR", "/var/tmp"))
    try:
        suite = Suite(emberfs, base, out)
        for round_ in range(1, ROUNDS + 1):
            print(f"round {round_} of {ROUNDS}", file=sys.stderr)
            suite.round()
            # What a broken round leaves is still a measurement.
            suite.save()
    finally:
        shutil.rmtree(base, ignore_errors=True)
    page = os.environ.get("PAGE") or os.path.join(out, "page.md")
    print(output(emberfs, "bench", "report", out, "--page", page), end="")


if __name__ == "__main__":
    main()
