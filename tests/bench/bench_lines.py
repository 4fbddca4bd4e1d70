#!/usr/bin/env python3
"""A cold model through the mount, three ways, against 8 parallel curl ranges to files, over lines of different kinds.

    python3 tests/bench/bench_lines.py [--size 2GB] [--runs 5] [--line NAME]... [--fuse-io-uring] [--work DIR]
                                       [--json FILE] [--strict]

See README.md beside this file for what is measured and how to read it.
"""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ballast import Ballast
from bench_cold import LAYERS, REPO, curl_command, layer_ranges, parse_size
from static_hub import StaticHub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

import models  # noqa: E402
from fuse_uring import kernel_uring  # noqa: E402
from nexus import Mount, processes_with  # noqa: E402

FIRST_LAYER_MAX = 1.1  # time / curl's
CPU_MAX = 1.3          # daemon's CPU / curl's, the idle thread's digests left out
LINE_MIN = 0.95        # rate / curl's, in all three ways, where the line is the limit
LOOPBACK_MIN = {"layers": 0.85, "shards": 0.7, "mmap": 0.5}

# Touches every page of every tensor; prints its own time, since importing numpy is no reading.
MMAP_READER = """
import sys, time
from safetensors import safe_open
start = time.monotonic()
for path in sys.argv[1:]:
    with safe_open(path, "numpy") as file:
        for name in file.keys():
            file.get_tensor(name)
print(time.monotonic() - start)
"""


@dataclasses.dataclass(frozen=True)
class Line:
    rate: str = ""
    delay_ms: float = 0


LINES = {"loopback": Line(), "40 MB/s each": Line("40m"), "20 ms": Line("", 20), "40 MB/s, 20 ms": Line("40m", 20)}


def timed(command: list[str], ballast: Ballast) -> tuple[float, float]:
    """Wall and CPU seconds of a command; what it prints is its own measure of the first."""
    os.sync()  # nobody pays for the write-back of the one before
    ballast.let_go()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    seconds = float(printed) if printed else time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def daemon_cpu(pid: int) -> float:
    """CPU seconds of the daemon, without its thread of whole-file digests."""
    ticks = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, fields = (task / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
        if not name.startswith("nx-idle"):
            ticks += sum(map(int, fields.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


class Bench:
    def __init__(self, work: Path, size: int, uring: bool) -> None:
        self.work, self.uring = work, uring
        self.model = models.make_model(work / "repos" / REPO, tensors=models.sized_llama(size, LAYERS, "F16"), shards=4)
        self.first = layer_ranges(self.model, 0)
        self.shards = [(shard, 0, (self.model.path / shard).stat().st_size) for shard in self.model.shards()]
        for path in self.model.path.iterdir():  # the server's page cache is warm for everybody
            if path.is_file():
                path.read_bytes()
        self.ballast = Ballast(2 * size + (1 << 30))
        # The same bytes as in the shards, each once.
        self.layers = [f"layer_{i}.pt" for i in range(LAYERS)] + ["non_layer.pt"]

    def curl(self, hub: StaticHub, ranges) -> dict:
        out = self.work / "curl"
        out.mkdir()
        seconds, cpu = timed(curl_command(hub, ranges, out), self.ballast)
        shutil.rmtree(out)
        return {"seconds": seconds, "cpu": cpu}

    def mounted(self, hub: StaticHub, files: list[str], command: list[str], *flags: str) -> dict:
        with Mount(self.work / "mount", *flags, endpoint=hub.endpoint) as nexus:
            paths = [nexus.path / REPO / file for file in files]
            for path in paths:
                path.stat()
            (pid,) = processes_with(str(nexus.path))
            before = daemon_cpu(pid)
            seconds, _ = timed([*command, *map(str, paths)], self.ballast)
            cpu = daemon_cpu(pid) - before
        shutil.rmtree(self.work / "mount")
        return {"seconds": seconds, "cpu": cpu}

    def measure(self, line: Line, runs: int) -> dict[str, dict]:
        hub = StaticHub(self.work / "nginx", REPO, self.model.path, line.rate, line.delay_ms)
        reader = [sys.executable, str(Path(__file__).with_name("read_files.py"))]
        cases = {
            "first layer, curl": lambda: self.curl(hub, self.first),
            "first layer": lambda: self.mounted(hub, ["layer_0.pt"], reader),
            "curl": lambda: self.curl(hub, self.shards),
            "layers": lambda: self.mounted(hub, self.layers, reader),
            "shards": lambda: self.mounted(hub, self.model.shards(), reader),
            "mmap": lambda: self.mounted(hub, self.model.shards(), [sys.executable, "-c", MMAP_READER]),
        }
        if self.uring:
            flag = "--fuse-io-uring"
            mmap = [sys.executable, "-c", MMAP_READER]
            cases["shards, io_uring"] = lambda: self.mounted(hub, self.model.shards(), reader, flag)
            cases["mmap, io_uring"] = lambda: self.mounted(hub, self.model.shards(), mmap, flag)
        results: dict[str, list[dict]] = {name: [] for name in cases}
        try:
            for _ in range(runs):  # interleaved: a slow minute of the machine hits all alike
                for name, case in cases.items():
                    self.ballast.take()
                    results[name].append(case())
        finally:
            hub.close()
            shutil.rmtree(self.work / "nginx")
        return {name: {key: statistics.median(run[key] for run in many) for key in ("seconds", "cpu")}
                for name, many in results.items()}


def checks_of(name: str, median: dict) -> list[dict]:
    def check(what: str, value: float, least: float = 0, most: float = float("inf")) -> dict:
        bound = f">= {least}" if least else f"<= {most}"
        return {"what": f"{name}: {what}", "value": value, "bound": bound, "holds": least <= value <= most}

    checks = [check("first layer, time / curl's",
                    median["first layer"]["seconds"] / median["first layer, curl"]["seconds"], most=FIRST_LAYER_MAX)]
    for way in [case for case in median if case.split(",")[0] in LOOPBACK_MIN]:
        least = LOOPBACK_MIN[way.split(",")[0]] if name == "loopback" else LINE_MIN
        checks.append(check(f"{way}, rate / curl's", median["curl"]["seconds"] / median[way]["seconds"], least=least))
        checks.append(check(f"{way}, CPU / curl's", median[way]["cpu"] / median["curl"]["cpu"], most=CPU_MAX))
    return checks


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=parse_size, default=parse_size("2GB"), help="of the model, as 2GB or 500MB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--line", action="append", choices=list(LINES), help="only this one; may be repeated")
    parser.add_argument("--fuse-io-uring", action="store_true",
                        help="shards and mmap also with the mount's option of that name; root")
    parser.add_argument("--work", type=Path, help="an empty directory on the disk to measure (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--strict", action="store_true", help="exit 1 where a bound is missed")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="nexus-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    bench = Bench(work, options.size, options.fuse_io_uring)
    medians, checks = {}, []
    for name in options.line or LINES:
        with kernel_uring(True) if options.fuse_io_uring else contextlib.nullcontext():
            medians[name] = bench.measure(LINES[name], options.runs)
        for check in checks_of(name, medians[name]):
            print(f"{'ok  ' if check['holds'] else 'MISS'} {check['what']:46} {check['value']:6.2f}  {check['bound']}",
                  flush=True)
            checks.append(check)
    shutil.rmtree(work)
    if options.json:
        options.json.write_text(json.dumps({"median": medians, "checks": checks}, indent=2))
    if options.strict and not all(check["holds"] for check in checks):
        sys.exit(1)


if __name__ == "__main__":
    main()
