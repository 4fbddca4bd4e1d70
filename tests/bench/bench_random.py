#!/usr/bin/env python3
"""8 threads of random 4 MiB preads over the shards of a cold model, against reading the same shards in order.

    python3 tests/bench/bench_random.py [--size 500MB] [--runs 3] [--work DIR] [--json FILE] [--strict]

See README.md beside this file.
"""
from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from bench_cold import LAYERS, REPO
from bench_run import argument_parser, at_least, at_most, verdict, work_directory
from static_hub import StaticHub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

import models  # noqa: E402
from nexus import Mount  # noqa: E402

RATE_MIN = 0.7   # of the sequential cold rate
READ_MAX_S = 2   # the slowest read
DOWNLOADED_MAX = 1.02  # of what was needed


class Bench:
    def __init__(self, work: Path, size: int) -> None:
        self.work = work
        self.model = models.make_model(work / "repos" / REPO, tensors=models.sized_llama(size, LAYERS, "F16"), shards=4)
        self.hub = StaticHub(work / "nginx", REPO, self.model.path)
        for path in self.model.path.iterdir():  # the server's page cache is warm
            if path.is_file():
                path.read_bytes()

    def cold(self, script: str) -> dict:
        with Mount(self.work / "mount", endpoint=self.hub.endpoint) as nexus:
            paths = [nexus.path / REPO / shard for shard in self.model.shards()]
            for path in paths:
                path.stat()
            self.hub.traffic()
            os.sync()
            printed = subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *map(str, paths)],
                                     check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        shutil.rmtree(self.work / "mount")
        return {"seconds": float(printed[0]), "slowest_s": float(printed[-1]), "bytes": self.hub.traffic().body_bytes}


def main() -> None:
    options = argument_parser(size="500MB", runs=3).parse_args()
    work = work_directory(options)
    bench = Bench(work, options.size)
    in_order, random = [], []
    try:
        for _ in range(options.runs):
            in_order.append(bench.cold("read_files.py"))
            random.append(bench.cold("random_reads.py"))
    finally:
        bench.hub.close()
    model_bytes = sum((bench.model.path / shard).stat().st_size for shard in bench.model.shards())
    shutil.rmtree(work)

    rate = statistics.median(run["seconds"] for run in in_order) / statistics.median(run["seconds"] for run in random)
    slowest = max(run["slowest_s"] for run in random)
    downloaded = max(run["bytes"] for run in random) / model_bytes
    verdict(options, [at_least("random 4 MiB reads, rate / sequential", rate, RATE_MIN),
                      at_most("slowest read, s", slowest, READ_MAX_S),
                      at_most("bytes downloaded / needed", downloaded, DOWNLOADED_MAX)],
            {"in_order": in_order, "random": random})


if __name__ == "__main__":
    main()
