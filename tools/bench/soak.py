#!/usr/bin/env python3
"""A cluster under full load while random servers are killed: no error, no wrong byte, stable memory.

usage: tools/bench/soak.py EMBERFS

Programs write, replace, read and remove files through the mount as fast as they can; every byte that is read is
checked, with nothing cached. Meanwhile one server after the other, metadata server included, is killed with SIGKILL
and started again, each once the cluster is healthy. At the end nothing may have failed, `emberfs fsck` must find nothing, and
the memory of each process in the last third may be at most a quarter (and 32 MiB) above that in the second third.

environment: BENCH_DIR (where; default /var/tmp), MINUTES (20), STORAGE (3 servers), REPLICAS (3), SEED (the time),
  OUT (a file for the results as JSON).
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

MINUTES = float(os.environ.get("MINUTES", "20"))
STORAGE = int(os.environ.get("STORAGE", "3"))
REPLICAS = int(os.environ.get("REPLICAS", "3"))
SEED = int(os.environ.get("SEED", str(int(time.time()))))
MIB = 2**20
BLOCKS = 64
"""Of a large file, 1 MiB each."""
SMALL = 110_000
LARGE_FILES, SMALL_FILES = 12, 2000
HEAL_SECONDS = 120
SAMPLE_SECONDS = 5
ROOM = 32 * MIB


def run(*command, check=True):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise SystemExit(f"soak: {' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done


class Content:
    """What a file must hold: blocks of a pool that its stamp chooses, the stamp in front of each."""

    def __init__(self, seed):
        source = random.Random(seed)
        self.pool = [source.randbytes(MIB - 16) for _ in range(16)]

    def block(self, stamp, index, size=MIB):
        head = stamp.to_bytes(8, "little") + index.to_bytes(8, "little")
        return head + self.pool[(stamp * 31 + index) % len(self.pool)][: size - 16]


class Load:
    """Threads that use the mount, and what they saw. In a process of their own: a program that is started while files of the
    mount are open closes them, which waits for the servers, so nothing that starts servers may have any."""

    def __init__(self, root, seed, stop):
        self.root = root
        self.content = Content(seed)
        self.stop = stop
        self.lock = threading.Lock()
        self.errors = []
        self.moved = {"written": 0, "read": 0, "files": 0}
        self.longest = {"write": 0.0, "read": 0.0}
        self.random = random.Random(seed)
        self.stamps = iter(range(1, 2**62))

    def step(self, kind, began):
        took = time.monotonic() - began
        with self.lock:
            self.longest[kind] = max(self.longest[kind], took)

    def count(self, what, amount):
        with self.lock:
            self.moved[what] += amount

    def write(self, name, blocks, size):
        """A new file takes the place of `name`, as a checkpoint does."""
        with self.lock:
            stamp = next(self.stamps)
        path, new = os.path.join(self.root, name), os.path.join(self.root, f"{name}.{stamp}")
        fd = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            for index in range(blocks):
                began = time.monotonic()
                data = self.content.block(stamp, index, size)
                if os.pwrite(fd, data, index * size) != len(data):
                    raise OSError(f"short write of {new}")
                self.step("write", began)
            began = time.monotonic()
            os.fsync(fd)
            self.step("write", began)
        finally:
            os.close(fd)
        os.rename(new, path)
        self.count("written", blocks * size)
        self.count("files", 1)

    def read(self, name, blocks, size):
        try:
            fd = os.open(os.path.join(self.root, name), os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            stamp = None
            for index in range(blocks):
                began = time.monotonic()
                data = os.pread(fd, size, index * size)
                self.step("read", began)
                stamp = int.from_bytes(data[:8], "little") if stamp is None else stamp
                if data != self.content.block(stamp, index, size):
                    raise OSError(f"{name}: block {index} of file {stamp} is wrong ({len(data)} bytes)")
            self.count("read", blocks * size)
        finally:
            os.close(fd)

    def loop(self, step):
        """Repeats a step until the end; an error ends it and the whole run."""
        while not self.stop.is_set():
            try:
                step()
            except Exception as error:  # pylint: disable=broad-except
                with self.lock:
                    self.errors.append(f"{time.strftime('%H:%M:%S')} {error!r}")
                self.stop.set()

    def threads(self):
        pick = self.random.randrange

        def replace_small():
            name = f"small-{pick(SMALL_FILES)}"
            if pick(8) == 0 and os.path.exists(os.path.join(self.root, name)):
                os.unlink(os.path.join(self.root, name))
            self.write(name, 1, SMALL)

        steps = [
            lambda: self.write(f"large-{pick(LARGE_FILES // 2) * 2}", BLOCKS, MIB),
            lambda: self.write(f"large-{pick(LARGE_FILES // 2) * 2 + 1}", BLOCKS, MIB),
            lambda: self.read(f"large-{pick(LARGE_FILES)}", BLOCKS, MIB),
            lambda: self.read(f"large-{pick(LARGE_FILES)}", BLOCKS, MIB),
            replace_small,
            lambda: self.read(f"small-{pick(SMALL_FILES)}", 1, SMALL),
        ]
        return [threading.Thread(target=self.loop, args=(step,)) for step in steps]

    def state(self):
        with self.lock:
            return {**self.moved, "longest_write_s": self.longest["write"], "longest_read_s": self.longest["read"],
                    "errors": list(self.errors)}

    def work(self, report):
        """Until the end; says now and then, and at last, how far it is."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threads = self.threads()
        for thread in threads:
            thread.start()
        while not self.stop.wait(SAMPLE_SECONDS):
            report.send(self.state())
        for thread in threads:
            thread.join()
        report.send(self.state())
        report.close()


class Cluster:
    def __init__(self, emberfs, base):
        self.emberfs = emberfs
        self.dir = os.path.join(base, "cluster")
        self.mount = os.path.join(base, "mnt")
        self.names = ["meta-1", *(f"storage-{n + 1}" for n in range(STORAGE))]

    def up(self):
        run(self.emberfs, "up", "--dir", self.dir, "--storage", STORAGE, "--replicas", REPLICAS, "--mount", self.mount)

    def down(self):
        return run(self.emberfs, "down", "--dir", self.dir, "--purge", check=False)

    def pid(self, name):
        with open(os.path.join(self.dir, "run", f"{name}.pid"), encoding="utf-8") as file:
            return int(file.read())

    def health(self):
        return run(self.emberfs, "health", "--dir", self.dir, check=False)

    def wait_healthy(self):
        until = time.monotonic() + HEAL_SECONDS
        while (answer := self.health()).returncode != 0:
            if time.monotonic() > until:
                raise SystemExit(f"soak: not healthy after {HEAL_SECONDS} s:\n{answer.stdout}{answer.stderr}")
            time.sleep(0.5)

    def memory(self):
        sizes = {}
        for name in [*self.names, "mount"]:
            try:
                with open(f"/proc/{self.pid(name)}/statm", encoding="utf-8") as file:
                    sizes[name] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except (OSError, ValueError):
                # It is dead just now.
                continue
        return sizes


def growth(samples, began, ended):
    """The largest size of each process in the second and in the last third, and those that grew too much."""
    third = (ended - began) / 3
    peaks, grown = {}, []
    for name in sorted({name for _, sizes in samples for name in sizes}):
        parts = [[s[name] for at, s in samples if name in s and began + n * third <= at < began + (n + 1) * third]
                 for n in (1, 2)]
        middle, last = (max(part, default=0) for part in parts)
        peaks[name] = {"second_third": middle, "last_third": last}
        if last > middle * 1.25 + ROOM:
            grown.append(name)
    return peaks, grown


class Worker:
    """The load's process, and what it said last."""

    def __init__(self, root):
        context = multiprocessing.get_context("fork")
        self.stop = context.Event()
        self.reports, report = context.Pipe(duplex=False)
        self.process = context.Process(target=Load(root, SEED, self.stop).work, args=(report,))
        self.process.start()
        report.close()
        self.state = {}

    def look(self):
        try:
            while self.reports.poll():
                self.state = self.reports.recv()
        except EOFError:
            # It has ended.
            self.stop.set()
        return self.state

    def end(self):
        self.stop.set()
        try:
            while True:
                self.state = self.reports.recv()
        except EOFError:
            self.process.join()
        return self.state


def pause(cluster, worker, samples, seconds):
    """Waits and watches; whether the load goes on."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if worker.stop.wait(min(left, SAMPLE_SECONDS)):
            return False
        worker.look()
        samples.append((time.monotonic(), cluster.memory()))
    return not worker.stop.is_set()


def soak(cluster):
    samples, kills = [], []
    chance = random.Random(SEED + 1)
    began = time.monotonic()
    worker = Worker(cluster.mount)
    try:
        while time.monotonic() < began + MINUTES * 60:
            if not pause(cluster, worker, samples, chance.uniform(5, 15)):
                break
            victim = chance.choice(cluster.names)
            os.kill(cluster.pid(victim), signal.SIGKILL)
            pause(cluster, worker, samples, chance.uniform(0, 12))
            run(cluster.emberfs, "start", "--dir", cluster.dir, victim)
            cluster.wait_healthy()
            kills.append(victim)
            state = worker.look()
            print(f"{time.monotonic() - began:6.0f} s  {len(kills):3} kills, last {victim:10} "
                  f"{state.get('written', 0) >> 20} MiB written, {state.get('read', 0) >> 20} MiB read and checked",
                  flush=True)
    finally:
        state = worker.end()
    ended = time.monotonic()
    peaks, grown = growth(samples, began, ended)
    fsck = run(cluster.emberfs, "fsck", "--dir", cluster.dir, check=False)
    return {
        "seconds": ended - began, "seed": SEED, "kills": {name: kills.count(name) for name in cluster.names},
        **state, "memory": peaks, "grown": grown,
        "fsck": "clean" if fsck.returncode == 0 else fsck.stdout + fsck.stderr,
    }


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    base = tempfile.mkdtemp(prefix="emberfs-soak-", dir=os.environ.get("BENCH_DIR", "/var/tmp"))
    cluster = Cluster(os.path.abspath(sys.argv[1]), base)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        cluster.up()
        result = soak(cluster)
    finally:
        left = cluster.down()
        if left.returncode == 0:
            shutil.rmtree(base, ignore_errors=True)
        else:
            print(f"soak: the cluster is still in {base}: {left.stderr}", file=sys.stderr)
    text = json.dumps(result, indent=1)
    print(text)
    if out := os.environ.get("OUT"):
        with open(out, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    sys.exit(1 if result["errors"] or result["grown"] or result["fsck"] != "clean" else 0)


if __name__ == "__main__":
    main()
