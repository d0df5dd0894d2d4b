#!/usr/bin/env python3
"""Floors of this machine, then EmberFS natively and through the mount, as one Markdown table.

usage: tools/bench/suite.py EMBERFS

Everything alternates over several rounds and medians are shown, because machines drift. The floors
are what the same disk and the loopback network give without EmberFS; a write goes to the one disk under
all servers as often as there are replicas, so its floor is the disk's rate divided by them.

environment: BENCH_DIR (where; default /var/tmp), SIZE (1G), FILES (2000), ROUNDS (3), STORAGE (3), REPLICAS (3)
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

SIZE = os.environ.get("SIZE", "1G")
FILES = os.environ.get("FILES", "2000")
ROUNDS = int(os.environ.get("ROUNDS", "3"))
STORAGE = os.environ.get("STORAGE", "3")
REPLICAS = os.environ.get("REPLICAS", "3")
TOOLS = {"fio": "fio", "iperf3": "iperf3"}


def output(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode != 0:
        sys.exit(f"bench: {' '.join(command)} failed with exit code {done.returncode}")
    return done.stdout


def need_tools():
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if missing and os.geteuid() == 0:
        subprocess.run(["apt-get", "install", "-y", *missing], check=True, stdout=subprocess.DEVNULL)
    elif missing:
        sys.exit(f"bench: run: sudo apt-get install -y {' '.join(missing)}")


def fio(directory, mode, block, depth, seconds):
    path = os.path.join(directory, "fio")
    text = output(
        "fio", "--name=floor", f"--filename={path}", f"--size={SIZE}", f"--rw={mode}", f"--bs={block}",
        "--ioengine=io_uring", "--direct=1", f"--iodepth={depth}", "--end_fsync=1", f"--runtime={seconds}",
        "--output-format=json")
    side = json.loads(text)["jobs"][0]["write" if "write" in mode else "read"]
    return side["bw_bytes"] / 2**20, side["iops"]


def iperf():
    server = subprocess.Popen(["iperf3", "-s", "-1", "-p", "15201", "--forceflush"], stdout=subprocess.PIPE, text=True)
    try:
        # Its first line says that it listens.
        server.stdout.readline()
        text = output("iperf3", "-c", "127.0.0.1", "-p", "15201", "-t", "3", "-J")
        return json.loads(text)["end"]["sum_received"]["bits_per_second"] / 8 / 2**20
    finally:
        server.kill()
        server.wait()


def phases(emberfs, where, *workload):
    report = json.loads(output(emberfs, "bench", *where, "--json", *workload))
    return {phase["phase"]: phase for phase in report["phases"]}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    emberfs = os.path.abspath(sys.argv[1])
    need_tools()
    base = tempfile.mkdtemp(prefix="emberfs-bench-", dir=os.environ.get("BENCH_DIR", "/var/tmp"))
    data, mount, plain = (os.path.join(base, name) for name in ("data", "mnt", "plain"))
    os.mkdir(plain)
    results = {}

    def note(row, column, value):
        results.setdefault(row, {}).setdefault(column, []).append(value)

    try:
        output(emberfs, "up", "--dir", data, "--mount", mount, "--storage", STORAGE, "--replicas", REPLICAS)
        subjects = {
            "local disk": ("--path", plain, "--dir", base),
            "native": ("--dir", data),
            "mount": ("--path", mount, "--dir", data),
        }
        for round_ in range(1, ROUNDS + 1):
            print(f"round {round_} of {ROUNDS}", file=sys.stderr)
            disk_write, _ = fio(plain, "write", "1M", 32, 30)
            disk_read, _ = fio(plain, "read", "1M", 32, 30)
            note("sequential write + fsync, MiB/s", "floor", disk_write / int(REPLICAS))
            note("sequential read, MiB/s", "floor", min(disk_read, iperf()))
            os.unlink(os.path.join(plain, "fio"))
            for column, where in subjects.items():
                write = phases(emberfs, where, "write", "--size", SIZE)["write"]
                read = phases(emberfs, where, "read", "--size", SIZE)["read"]
                small = phases(emberfs, where, "meta", "--files", FILES)
                many = phases(emberfs, where, "meta", "--files", FILES, "--jobs", "8")
                note("sequential write + fsync, MiB/s", column, write["mib_per_second"])
                note("sequential read, MiB/s", column, read["mib_per_second"])
                for name, phase in (("write", write), ("read", read)):
                    cpu = phase["cpu_seconds"] / (phase["bytes"] / 2**30)
                    note(f"CPU s per GiB, {name}, all processes", column, cpu)
                for jobs, report in (("1 job", small), ("8 jobs", many)):
                    for name in ("create", "stat", "read", "unlink"):
                        rate = report[name]["operations_per_second"]
                        note(f"4 KiB files, {name}, {jobs}, /s", column, rate)
    finally:
        if os.path.exists(os.path.join(data, "cluster.toml")):
            subprocess.run([emberfs, "down", "--dir", data, "--purge", "--force"],
                           stdout=subprocess.DEVNULL, check=False)
        shutil.rmtree(base, ignore_errors=True)
    show(results)


def show(results):
    columns = ["floor", "local disk", "native", "mount"]
    print(f"| median of {ROUNDS} rounds, {STORAGE} servers, {REPLICAS} replicas on one disk | "
          + " | ".join(columns) + " | native / floor | mount / floor |")
    print("|---" * (len(columns) + 3) + "|")
    for row, values in results.items():
        medians = {column: statistics.median(values[column]) for column in columns if column in values}
        cells = [number(medians.get(column)) for column in columns]
        for column in ("native", "mount"):
            floor = medians.get("floor")
            cells.append(f"{medians[column] / floor:.2f}" if floor else "-")
        print(f"| {row} | " + " | ".join(cells) + " |")


def number(value):
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


if __name__ == "__main__":
    main()
