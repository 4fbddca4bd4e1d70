#!/usr/bin/env python3
"""8 threads of random 4 MiB preads over the shards of a cold model, against reading the same shards in order.

    python3 tests/bench/bench_random.py [--size 500MB] [--runs 3] [--work DIR] [--json FILE] [--strict]

See README.md beside this file.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_cold import LAYERS, REPO, parse_size
from static_hub import StaticHub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

import models  # noqa: E402
from nexus import Mount  # noqa: E402

RATE_MIN = 0.7   # of the sequential cold rate
READ_MAX_S = 2   # the slowest read


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
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=parse_size, default=parse_size("500MB"), help="of the model, as 2GB or 500MB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, help="an empty directory on the disk to measure (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--strict", action="store_true", help="exit 1 where a bound is missed")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="nexus-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
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
    checks = [{"what": "random 4 MiB reads, rate / sequential", "value": rate, "bound": f">= {RATE_MIN}",
               "holds": rate >= RATE_MIN},
              {"what": "slowest read, s", "value": slowest, "bound": f"<= {READ_MAX_S}", "holds": slowest <= READ_MAX_S},
              {"what": "bytes downloaded / needed", "value": downloaded, "bound": "<= 1.02", "holds": downloaded <= 1.02}]
    for check in checks:
        print(f"{'ok  ' if check['holds'] else 'MISS'} {check['what']:46} {check['value']:6.2f}  {check['bound']}")
    if options.json:
        options.json.write_text(json.dumps({"in_order": in_order, "random": random, "checks": checks}, indent=2))
    if options.strict and not all(check["holds"] for check in checks):
        sys.exit(1)


if __name__ == "__main__":
    main()
