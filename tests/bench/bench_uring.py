#!/usr/bin/env python3
"""Reads that go through the daemon: FUSE over io_uring against read(2) and writev(2) of /dev/fuse.

    python3 tests/bench/bench_uring.py [--size 300MB] [--runs 5] [--work DIR] [--json FILE]

See README.md beside this file.
"""
from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import resource
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path

from ballast import Ballast
from bench_run import argument_parser, work_directory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

import models  # noqa: E402
from fuse_uring import kernel_uring  # noqa: E402
from hub_client import HubClient  # noqa: E402
from nexus import Mount, processes_with  # noqa: E402

REPO = "org/uring"
STEP = 1 << 20
ROUNDS = 3         # of a whole reading, in one run
SMALL_READS = 20_000
FAULTS = 10_000
ATTRIBUTES = 10_000


def cpu_s(nexus: Mount) -> float:
    [pid] = processes_with(str(nexus.path))
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Case:
    """One mount with the first part of a shard in its cache: the rest is missing, so each read goes through the daemon."""

    def __init__(self, work: Path, endpoint: str, shard: str, held: int, *flags: str) -> None:
        self.nexus = Mount(work, "--ram", "0", *flags, endpoint=endpoint,
                           config={"enable_prefetch": False, "prefetch_lookahead": 0})
        self.nexus.start()
        self.fd = os.open(self.nexus.path / REPO / shard, os.O_RDONLY)
        self.held = held
        self.buffer = bytearray(STEP)
        self.sequential(1)  # fetches

    def close(self) -> None:
        os.close(self.fd)
        self.nexus.stop()

    def sequential(self, rounds: int, begin: int = 0, end: int | None = None) -> None:
        buffer = bytearray(STEP)
        for _ in range(rounds):
            for offset in range(begin, end or self.held, STEP):
                os.preadv(self.fd, [buffer], offset)

    def parallel(self) -> None:
        half = self.held // 2 // STEP * STEP
        threads = [threading.Thread(target=self.sequential, args=(ROUNDS, *part)) for part in ((0, half), (half, self.held))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def small(self) -> None:
        picks = random.Random(7)
        buffer = bytearray(4096)
        for _ in range(SMALL_READS):
            os.preadv(self.fd, [buffer], picks.randrange(self.held // 4096) * 4096)

    def faults(self) -> None:
        mapping = mmap.mmap(self.fd, self.held, mmap.MAP_SHARED, mmap.PROT_READ)
        mapping.madvise(mmap.MADV_RANDOM)
        for page in random.Random(9).sample(range(self.held // 4096), FAULTS):
            mapping[page * 4096]
        mapping.close()

    def attributes(self) -> None:
        for _ in range(ATTRIBUTES):
            os.getxattr(self.fd, "user.nexus.state")

    def measure(self, what: str) -> dict:
        if what == "faults":
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        daemon, own, begin = cpu_s(self.nexus), own_cpu_s(), time.monotonic()
        getattr(self, what)() if what != "sequential" else self.sequential(ROUNDS)
        seconds = time.monotonic() - begin
        return {"seconds": seconds, "daemon_cpu_s": cpu_s(self.nexus) - daemon, "reader_cpu_s": own_cpu_s() - own}


def main() -> None:
    options = argument_parser(size="300MB", runs=5).parse_args()
    work = work_directory(options)
    model = models.make_model(work / "repos" / REPO, tensors=models.sized_llama(options.size, 4, "F16"), shards=1)
    [shard] = model.shards()
    held = (model.path / shard).stat().st_size * 3 // 4 // STEP * STEP
    ballast = Ballast(2 * options.size)
    results: dict[str, dict[str, list[dict]]] = {}
    with contextlib.ExitStack() as stack:
        hub = HubClient("--root", str(work / "repos"))
        stack.callback(hub.close)
        cases = {}
        for name, flags in (("/dev/fuse", ()), ("io_uring", ("--fuse-io-uring",))):
            with kernel_uring(True):
                cases[name] = Case(work / name.replace("/", "_"), hub.endpoint, shard, held, *flags)
            stack.callback(cases[name].close)
        for _ in range(options.runs):
            for what in ("sequential", "parallel", "small", "faults", "attributes"):
                for name, case in cases.items():
                    ballast.take()
                    ballast.let_go()
                    results.setdefault(what, {}).setdefault(name, []).append(case.measure(what))
    shutil.rmtree(work)

    units = {"sequential": ("ms/GB", 1e3 * 1e9 / (ROUNDS * held)), "parallel": ("ms/GB", 1e3 * 1e9 / (ROUNDS * held)),
             "small": ("us/read", 1e6 / SMALL_READS), "faults": ("us/fault", 1e6 / FAULTS), "attributes": ("us/call", 1e6 / ATTRIBUTES)}
    print(f"{'':12} {'':9} {'/dev/fuse':>10} {'io_uring':>10} {'ratio':>7}")
    for what, by_name in results.items():
        unit, scale = units[what]
        for value in ("seconds", "daemon_cpu_s", "reader_cpu_s"):
            device, ring = (statistics.median(run[value] for run in by_name[name]) * scale for name in ("/dev/fuse", "io_uring"))
            print(f"{what:12} {value:13} {device:10.2f} {ring:10.2f} {ring / device:7.3f}  {unit}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
