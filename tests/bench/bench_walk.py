#!/usr/bin/env python3
"""A walk over a cold model's layers with computing in between, on a link of known speed.

    python3 tests/bench/bench_walk.py [--layers 16] [--rate 8] [--work DIR] [--json FILE] [--strict]

See README.md beside this file for what is measured and how to read it.
"""
from __future__ import annotations

import random
import shutil
import statistics
import sys
import time
from pathlib import Path

from bench_cold import CONNECTIONS, curl_command, layer_ranges, timed
from bench_run import argument_parser, verdict, work_directory
from static_hub import StaticHub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

import models  # noqa: E402
from nexus import Mount  # noqa: E402

REPO = "org/walk"

# Floors of the issue "Fetch engine and read-ahead".
WALL_MAX = 1.08
HIT_RATIO_MIN = 0.95
WASTE_MAX = 0.02
SHUFFLED_WASTE_MAX = 0.10
WARM_UP = 3  # layers before hits count


def read_file(path: Path, buffer: bytearray) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


class Bench:
    def __init__(self, work: Path, layers: int, fetch_s: float, rate_mib: int) -> None:
        self.work, self.layers = work, layers
        layer_bytes = int(fetch_s * CONNECTIONS * rate_mib * (1 << 20))
        tensors = models.sized_llama(layer_bytes * layers, layers)
        self.model = models.make_model(work / "repos" / REPO, tensors=tensors, shards=4)
        self.needed = [sum(last - first for _, first, last in layer_ranges(self.model, n)) for n in range(layers)]
        self.hub = StaticHub(work / "nginx", REPO, self.model.path, rate=f"{rate_mib}m")

    def curl_layer(self, number: int) -> float:
        out = self.work / "curl"
        out.mkdir()
        seconds = timed(curl_command(self.hub, layer_ranges(self.model, number), out))
        shutil.rmtree(out)
        return seconds

    def walk(self, order: list[int], compute_s: float) -> dict:
        with Mount(self.work / "mount", endpoint=self.hub.endpoint) as nexus:
            paths = [nexus.path / REPO / f"layer_{number}.pt" for number in order]
            for path in paths:
                path.stat()  # the metadata is known before the clock starts
            self.hub.traffic()
            buffer = bytearray(1 << 20)
            start = time.monotonic()
            for place, path in enumerate(paths):
                if place == WARM_UP:
                    before = nexus.stats()["prefetcher"]
                read_file(path, buffer)
                time.sleep(compute_s)
            seconds = time.monotonic() - start
            while (stats := nexus.stats()["prefetcher"])["queue_depth"] > 0:
                time.sleep(0.05)
            hits = stats["cache_hits"] - before["cache_hits"]
            asked = stats["total_requests"] - before["total_requests"]
        shutil.rmtree(self.work / "mount")
        downloaded = self.hub.traffic().body_bytes
        # What nobody read: dropped unread, still unread, or fetched twice.
        wasted = max(0, downloaded - sum(self.needed[number] for number in order))
        return {"seconds": seconds, "hit_ratio": hits / max(asked, 1), "downloaded": downloaded,
                "waste": wasted / downloaded, "prefetcher": stats}

    def close(self) -> None:
        self.hub.close()


def measure(bench: Bench) -> dict:
    for path in bench.model.path.iterdir():
        if path.is_file():
            path.read_bytes()
    fetch = statistics.median(bench.curl_layer(number) for number in (1, 5, 9))
    order, checks, walks = list(range(bench.layers)), [], {}

    def check(what: str, value: float, bound: str, holds: bool) -> None:
        checks.append({"what": what, "value": value, "bound": bound, "holds": holds})

    for factor in (0.5, 1.0, 2.0):
        compute = factor * fetch
        result = walks[f"C = {factor} F"] = bench.walk(order, compute)
        ideal = fetch + (bench.layers - 1) * max(compute, fetch) + compute
        ratio = result["seconds"] / ideal
        check(f"C = {factor} F, time / (F + (L-1) max(C, F) + C)", ratio, f"<= {WALL_MAX}", ratio <= WALL_MAX)
        check(f"C = {factor} F, hits after the third layer", result["hit_ratio"], f">= {HIT_RATIO_MIN}",
              result["hit_ratio"] >= HIT_RATIO_MIN)
        check(f"C = {factor} F, wasted / downloaded", result["waste"], f"<= {WASTE_MAX}", result["waste"] <= WASTE_MAX)
    shuffled = order.copy()
    random.Random(5).shuffle(shuffled)
    result = walks["shuffled"] = bench.walk(shuffled, 0.2 * fetch)
    check("shuffled, wasted / downloaded", result["waste"], f"<= {SHUFFLED_WASTE_MAX}",
          result["waste"] <= SHUFFLED_WASTE_MAX)
    return {"fetch_s": fetch, "layers": bench.layers, "layer_bytes": bench.needed[1], "walks": walks, "checks": checks}


def main() -> None:
    parser = argument_parser()
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--fetch", type=float, default=0.6, help="seconds that a layer should take to fetch")
    parser.add_argument("--rate", type=int, default=8, help="MiB/s of each connection")
    options = parser.parse_args()
    work = work_directory(options)
    bench = Bench(work, options.layers, options.fetch, options.rate)
    try:
        result = measure(bench)
    finally:
        bench.close()
    shutil.rmtree(work)
    print(f"{result['layers']} layers of {result['layer_bytes'] / 1e6:.1f} MB, curl fetches one in F = {result['fetch_s']:.3f} s")
    for name, one in result["walks"].items():
        print(f"{name:12} {one['seconds']:8.2f} s  {one['downloaded'] / 1e6:8.1f} MB downloaded  {one['prefetcher']}")
    verdict(options, result["checks"], result)


if __name__ == "__main__":
    main()
