#!/usr/bin/env python3
"""Cold reads through the mount against 8 parallel curl range requests for the same bytes.

    python3 tests/bench/bench_cold.py [--size 2GB] [--runs 5] [--work DIR] [--json FILE]

See README.md beside this file for what is measured and how to read it.
"""
from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_run import argument_parser, at_least, at_most, parse_size, verdict, work_directory  # noqa: F401
from static_hub import StaticHub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

import models  # noqa: E402
import tensorfiles  # noqa: E402
from hub_client import HubClient  # noqa: E402
from nexus import Mount  # noqa: E402

REPO = "org/bench"
CONNECTIONS = 8
LAYERS = 8
LATENCY_MS = 250  # of each metadata request: far more than what the daemon computes in between

# Bounds of the issue "A model at a path".
LAYER_TIME_MAX = 1.15
WHOLE_RATE_MIN = 0.5
LAYER_BYTES_MAX = 1.02
METADATA_DEPTH_MAX = 3


def timed(command: list[str]) -> float:
    os.sync()  # nobody pays for the write-back of the one before
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def layer_ranges(model: models.Model, layer: int) -> list[tuple[str, int, int]]:
    """The layer's bytes as [first, last) ranges of shards, neighbours joined."""
    ranges: list[tuple[str, int, int]] = []
    for shard in model.shards():
        tensors = tensorfiles.writer_order([t for t in model.tensors if model.weight_map[t.name] == shard])
        offset = len(tensorfiles.encode_header(tensorfiles.header_of(tensors, {"format": "pt"})))
        for tensor in tensors:
            if tensor.layer == layer:
                if ranges and ranges[-1][0] == shard and ranges[-1][2] == offset:
                    ranges[-1] = (shard, ranges[-1][1], offset + tensor.nbytes)
                else:
                    ranges.append((shard, offset, offset + tensor.nbytes))
            offset += tensor.nbytes
    return ranges


def curl_command(hub: StaticHub, ranges: list[tuple[str, int, int]], out: Path) -> list[str]:
    """One curl, 8 transfers at a time: each range cut into 8, each part into a file."""
    common = ["--no-progress-meter", "--fail"]  # --next forgets them
    command = ["curl", "--no-progress-meter", "--parallel", "--parallel-immediate", "--parallel-max", str(CONNECTIONS)]
    for number, (shard, first, last) in enumerate(ranges):
        step = -(-(last - first) // CONNECTIONS)
        for start in range(first, last, step):
            next_one = ["--next"] if command[-1].startswith("http") else []
            command += [*next_one, *common, "--range", f"{start}-{min(start + step, last) - 1}",
                        "--output", str(out / f"{number}-{start}"), hub.cdn_url(shard)]
    return command


class Bench:
    def __init__(self, work: Path, size: int, runs: int) -> None:
        self.work, self.runs = work, runs
        self.model = models.make_model(work / "repos" / REPO, tensors=models.sized_llama(size, LAYERS), shards=4)
        self.hub = StaticHub(work / "nginx", REPO, self.model.path)
        self.first_layer = layer_ranges(self.model, 0)
        self.shards = [(shard, 0, (self.model.path / shard).stat().st_size) for shard in self.model.shards()]

    def curl(self, ranges) -> dict:
        out = self.work / "curl"
        out.mkdir()
        seconds = timed(curl_command(self.hub, ranges, out))
        shutil.rmtree(out)
        return {"seconds": seconds, "bytes": self.hub.traffic().body_bytes}

    def mounted(self, files: list[str], command: list[str], prefetch: bool = True) -> dict:
        """Cold bytes, known metadata: an empty cache directory, then a stat of what will be read."""
        with Mount(self.work / "mount", endpoint=self.hub.endpoint, config={"enable_prefetch": prefetch}) as nexus:
            paths = [nexus.path / REPO / file for file in files]
            for path in paths:
                path.stat()
            self.hub.traffic()
            seconds = timed([*command, *map(str, paths)])
        shutil.rmtree(self.work / "mount")
        return {"seconds": seconds, "bytes": self.hub.traffic().body_bytes}

    def layer(self) -> dict:
        """The time with read-ahead on; the bytes without it, or the next layer would count."""
        seconds = self.mounted(["layer_0.pt"], ["cat"])["seconds"]
        return {"seconds": seconds, "bytes": self.mounted(["layer_0.pt"], ["cat"], prefetch=False)["bytes"]}

    def measure(self) -> dict:
        reader = [sys.executable, str(Path(__file__).with_name("read_files.py"))]
        cases = {
            "layer_0.pt, curl": lambda: self.curl(self.first_layer),
            "layer_0.pt, mount": self.layer,
            "whole model, curl": lambda: self.curl(self.shards),
            "whole model, mount": lambda: self.mounted(self.model.shards(), reader),
        }
        for path in self.model.path.iterdir():  # the server's page cache is warm for everybody
            if path.is_file():
                path.read_bytes()
        runs: dict[str, list[dict]] = {name: [] for name in cases}
        for _ in range(self.runs):  # interleaved: a slow minute of the machine hits all alike
            for name, case in cases.items():
                runs[name].append(case())
        return runs

    def close(self) -> None:
        self.hub.close()


def chain_depth(log: list[dict]) -> int:
    """The longest chain of requests of which each began after the one before had ended."""
    depths: list[tuple[float, int]] = []  # (end, depth)
    for entry in sorted(log, key=lambda e: e["start_s"]):
        depths.append((entry["end_s"], 1 + max((d for end, d in depths if end <= entry["start_s"]), default=0)))
    return max((depth for _, depth in depths), default=0)


def measure_metadata(work: Path) -> dict:
    """`ls -l` of a 32-layer model in 7 shards behind a slow hub: how many requests wait for each other."""
    root = work / "metadata"
    models.make_model(root / REPO, "llama", layers=32, hidden=64, shards=7)
    hub = HubClient("--root", str(root))
    try:
        hub.fault("", "latency", ms=LATENCY_MS)
        with Mount(work / "mount", endpoint=hub.endpoint) as nexus:
            hub.reset_counters()
            seconds = timed(["ls", "-l", str(nexus.path / REPO)])
            log = hub.log()
    finally:
        hub.close()
    shutil.rmtree(work / "mount")
    return {"seconds": seconds, "latency_ms": LATENCY_MS, "requests": len(log), "depth": chain_depth(log),
            "round_trips": seconds * 1000 / LATENCY_MS}


def summarise(runs: dict, layer_bytes: int, model_bytes: int, metadata: dict) -> dict:
    median = {name: statistics.median(run["seconds"] for run in many) for name, many in runs.items()}
    most = {name: max(run["bytes"] for run in many) for name, many in runs.items()}
    layer_ratio = median["layer_0.pt, mount"] / median["layer_0.pt, curl"]
    whole_ratio = median["whole model, curl"] / median["whole model, mount"]
    layer_bytes_ratio = most["layer_0.pt, mount"] / layer_bytes
    return {
        "cpus": os.cpu_count(), "layer_bytes": layer_bytes, "model_bytes": model_bytes, "runs": runs,
        "median_s": median, "max_bytes_downloaded": most, "metadata": metadata,
        "checks": [
            at_most("layer_0.pt cold, time / curl's", layer_ratio, LAYER_TIME_MAX),
            at_most("layer_0.pt cold, bytes downloaded / needed", layer_bytes_ratio, LAYER_BYTES_MAX),
            at_least("whole model, rate / curl's", whole_ratio, WHOLE_RATE_MIN),
            at_most("whole model, bytes downloaded / needed", most["whole model, mount"] / model_bytes, LAYER_BYTES_MAX),
            at_most("metadata of 32 layers, requests deep", metadata["depth"], METADATA_DEPTH_MAX),
        ],
    }


def print_table(result: dict) -> None:
    sizes = {"layer": result["layer_bytes"], "whole": result["model_bytes"]}
    print(f"{'case':24} {'median s':>9} {'GB/s':>7} {'downloaded MB':>14}")
    for name, seconds in result["median_s"].items():
        nbytes = sizes["layer" if name.startswith("layer") else "whole"]
        print(f"{name:24} {seconds:9.3f} {nbytes / seconds / 1e9:7.2f} {result['max_bytes_downloaded'][name] / 1e6:14.1f}")
    metadata = result["metadata"]
    print(f"{'metadata, 32 layers':24} {metadata['seconds']:9.3f}   {metadata['requests']} requests, "
          f"{metadata['round_trips']:.1f} x {metadata['latency_ms']} ms\n")


def main() -> None:
    options = argument_parser(size="2GB", runs=5).parse_args()
    work = work_directory(options)
    bench = Bench(work, options.size, options.runs)
    try:
        runs = bench.measure()
    finally:
        bench.close()
    layer_bytes = sum(last - first for _, first, last in bench.first_layer)
    model_bytes = sum(last for _, _, last in bench.shards)
    result = summarise(runs, layer_bytes, model_bytes, measure_metadata(work))
    shutil.rmtree(work)
    print_table(result)
    verdict(options, result["checks"], result)


if __name__ == "__main__":
    main()
