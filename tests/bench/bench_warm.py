#!/usr/bin/env python3
"""Cached layers and shards through the mount against the same bytes in ext4 and in a tmpfs with huge pages.

    python3 tests/bench/bench_warm.py [--size 1GB] [--runs 5] [--work DIR] [--json FILE] [--strict]

Root, fio and a C++ compiler are needed. See README.md beside this file for what is measured and how to read it.
"""
from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from pathlib import Path

from ballast import Ballast
from bench_run import argument_parser, verdict, work_directory
from static_hub import StaticHub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

import models  # noqa: E402
from nexus import Mount, poll, processes_with  # noqa: E402

REPO = "org/bench"
LAYERS = 4
ROUNDS = 4  # of one run; the best counts: they take turns on the processors, the first also warms their caches
READERS = 64

# Floors of the issue "The cache".
WARM_MIN = 0.95
COLD_MIN = 0.9
OPEN_MAX_S = 100e-6
CPU_PER_GB_MAX_S = 1e-3  # "none": what a few opens cost
MEMORY_MAX_BYTES = 64 << 20


def drop_page_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1\n")


class Bench:
    def __init__(self, work: Path, size: int, runs: int) -> None:
        self.work, self.runs = work, runs
        self.reader = work / "read_rate"
        subprocess.run([os.environ.get("CXX", "c++"), "-O2", "-std=c++20", "-o", str(self.reader),
                        str(Path(__file__).with_name("read_rate.cc"))], check=True)
        self.model = models.make_model(work / "repos" / REPO, tensors=models.sized_llama(size, LAYERS), shards=2)
        self.files = ["layer_0.pt", "layers/layer_1.safetensors", "splitted_model/model.layers.2.safetensors",
                      self.model.shards()[0]]
        self.hub = StaticHub(work / "nginx", REPO, self.model.path)
        self.ext4, self.tmpfs = work / "ext4", work / "tmpfs"
        self.ext4.mkdir()
        self.tmpfs.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"huge=always,size={3 * size}", "bench", str(self.tmpfs)], check=True)
        # First without a RAM tier: what is used a second time would enter it.
        self.nexus = Mount(work / "mount", "--ram", "0", endpoint=self.hub.endpoint)
        self.with_ram = ["--ram", str(2 * size)]  # room for all four files, so that none is evicted while it is measured
        self.ballast = Ballast(2 * size)
        self.rates: dict[str, list[float]] = {}  # "case, file, place" -> GB/s, or seconds of an open

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.tmpfs)], check=False)
        self.nexus.clean_up()
        self.hub.close()

    def path(self, place: str, name: str) -> Path:
        if place == "mount":
            return self.nexus.path / REPO / name
        return (self.ext4 if place == "ext4" else self.tmpfs) / name.replace("/", "-")

    def seconds(self, mode: str, path: Path, rounds: int = 1) -> float:
        out = subprocess.run([str(self.reader), mode, str(rounds), str(path)], check=True, capture_output=True, text=True)
        return min(map(float, out.stdout.split()))

    def note(self, key: str, value: float) -> None:
        self.rates.setdefault(key, []).append(value)

    def fill(self) -> None:
        """Everything downloaded, complete, on disk, and copied to the rivals."""
        # Who writes first must not find more huge pages than who writes last.
        drop_page_cache()
        Path("/proc/sys/vm/compact_memory").write_text("1\n")
        for name in self.files:
            source = self.path("mount", name)
            self.seconds("read", source)
            poll(lambda s=source: os.getxattr(s, "user.nexus.state") == b"resident", f"{name} is complete")
            for place in ("ext4", "tmpfs"):
                subprocess.run(["cp", str(source), str(self.path(place, name))], check=True)
        os.sync()
        self.wait_for_digests()

    def wait_for_digests(self) -> None:
        """Idle work of the daemon, which takes a core while it lasts."""
        shard = self.path("mount", self.files[-1])
        poll(lambda: os.getxattr(shard, "user.nexus.verified") == b"sha256", "the shard's digest is checked")

    def warm(self, case: str, places: tuple[str, ...], modes: tuple[str, ...]) -> None:
        tiers = {os.getxattr(self.path("mount", name), "user.nexus.tier").decode() for name in self.files}
        assert tiers == {case.split()[0].lower()}, f"{case}: the files are in {tiers}"
        for _ in range(self.runs):  # interleaved: a slow minute of the machine hits all alike
            for name in self.files:
                for mode in modes:
                    for place in places:
                        if mode == "direct" and place == "tmpfs":
                            continue
                        path = self.path(place, name)
                        nbytes = 20000 * 4096 if mode == "random" else path.stat().st_size
                        self.note(f"{case} {mode}, {name}, {place}", nbytes / self.seconds(mode, path, ROUNDS) / 1e9)

    def opens(self, case: str) -> None:
        for _ in range(self.runs):
            for name in self.files:
                self.note(f"{case} open+close, {name}, mount", self.seconds("open", self.path("mount", name)))

    def disk_rate(self, path: Path) -> float:
        """fio's best, O_DIRECT."""
        best = 0.0
        for depth in (4, 16, 32):
            out = subprocess.run(["fio", "--name=read", f"--filename={path}", "--rw=read", "--bs=1M", "--direct=1",
                                  "--ioengine=io_uring", f"--iodepth={depth}", "--readonly", "--output-format=json"],
                                 check=True, capture_output=True, text=True).stdout
            best = max(best, json.loads(out[out.index("{"):])["jobs"][0]["read"]["bw_bytes"] / 1e9)
        return best

    def cold(self, case: str) -> None:
        for name in self.files:
            for place in ("mount", "ext4"):
                path = self.path(place, name)
                drop_page_cache()
                self.ballast.take()
                self.ballast.let_go()
                self.note(f"{case}, {name}, {place}", path.stat().st_size / self.seconds("read", path) / 1e9)
            self.note(f"{case}, {name}, fio", self.disk_rate(self.path("ext4", name)))

    def daemon_cpu_s(self) -> float:
        [pid] = processes_with(str(self.nexus.path))
        return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9

    def cpu_per_gb(self) -> float:
        path = self.path("mount", self.files[-1])
        before = self.daemon_cpu_s()
        self.seconds("read", path, 20)
        self.seconds("mmap", path, 20)
        return (self.daemon_cpu_s() - before) / (40 * path.stat().st_size / 1e9)

    def memory_of_cold_readers(self) -> int:
        """The daemon's own memory at most, beside files in memory, while 64 readers wait for cold bytes."""
        with Mount(self.work / "memory", "--ram", "0", endpoint=self.hub.endpoint) as nexus:
            paths = [nexus.path / REPO / shard for shard in self.model.shards()]
            sizes = [path.stat().st_size for path in paths]
            [pid] = processes_with(str(nexus.path))
            done, peak = threading.Event(), 0

            def read(number: int) -> None:
                path, size = paths[number % len(paths)], sizes[number % len(paths)]
                with open(path, "rb", buffering=0) as file:
                    for step in range(8):
                        os.pread(file.fileno(), 1 << 20, (number * 8 + step) * size // (READERS * 8) // 4096 * 4096)

            def watch() -> None:
                nonlocal peak
                while not done.wait(0.005):
                    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                        if line.startswith("RssAnon:"):
                            peak = max(peak, int(line.split()[1]) * 1024)

            watcher = threading.Thread(target=watch)
            readers = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
            for thread in [watcher, *readers]:
                thread.start()
            for thread in readers:
                thread.join()
            done.set()
            watcher.join()
        shutil.rmtree(self.work / "memory")
        return peak

    def measure(self) -> tuple[float, int]:
        self.nexus.start()
        self.fill()
        self.warm("SSD", ("mount", "ext4"), ("read", "mmap", "direct", "random"))
        self.opens("SSD")
        cpu = self.cpu_per_gb()
        for _ in range(self.runs):
            self.cold("SSD cold")
        self.nexus.flags = self.with_ram
        for _ in range(self.runs):
            self.nexus.restart()
            self.cold("SSD cold, unchecked")
        self.wait_for_digests()
        self.warm("RAM", ("mount", "ext4", "tmpfs"), ("read", "mmap", "random"))
        self.opens("RAM")
        self.nexus.stop()
        return cpu, self.memory_of_cold_readers()


def checks_of(median: dict[str, float], files: list[str], cpu: float, memory: int) -> list[dict]:
    checks = []

    def at_least(what: str, value: float, bound: float) -> None:
        checks.append({"what": what, "value": value, "bound": f">= {bound}", "holds": value >= bound})

    def at_most(what: str, value: float, bound: float, unit: str) -> None:
        checks.append({"what": what, "value": value, "bound": f"<= {bound:g} {unit}", "holds": value <= bound})

    for name in files:
        for mode in ("read", "mmap", "direct", "random"):
            at_least(f"SSD warm {mode} / ext4, {name}",
                     median[f"SSD {mode}, {name}, mount"] / median[f"SSD {mode}, {name}, ext4"], WARM_MIN)
        for mode in ("read", "mmap", "random"):
            mount = median[f"RAM {mode}, {name}, mount"]
            if mode != "random":
                at_least(f"RAM {mode} / tmpfs with huge pages, {name}", mount / median[f"RAM {mode}, {name}, tmpfs"], WARM_MIN)
            at_least(f"RAM {mode} / ext4, {name}", mount / median[f"RAM {mode}, {name}, ext4"], WARM_MIN)
        for case in ("SSD cold", "SSD cold, unchecked"):
            rival = max(median[f"{case}, {name}, ext4"], median[f"{case}, {name}, fio"])
            at_least(f"{case} open+read / best of fio and ext4, {name}", median[f"{case}, {name}, mount"] / rival, COLD_MIN)
        for tier in ("SSD", "RAM"):
            at_most(f"{tier} open+close, {name}", median[f"{tier} open+close, {name}, mount"] * 1e6, OPEN_MAX_S * 1e6, "us")
    at_most("daemon's CPU per GB of hits", cpu * 1e3, CPU_PER_GB_MAX_S * 1e3, "ms")
    at_most(f"daemon's memory under {READERS} cold readers", memory / (1 << 20), MEMORY_MAX_BYTES / (1 << 20), "MiB")
    return checks


def main() -> None:
    options = argument_parser(size="1GB", runs=5).parse_args()
    work = work_directory(options)
    bench = Bench(work, options.size, options.runs)
    try:
        cpu, memory = bench.measure()
    finally:
        bench.close()
    median = {key: statistics.median(values) for key, values in bench.rates.items()}
    checks = checks_of(median, bench.files, cpu, memory)
    shutil.rmtree(work)
    print(f"{'median GB/s':62} {'mount':>8} {'ext4':>8} {'tmpfs':>8} {'fio':>8}")
    for key in [key for key in median if key.endswith(", mount") and "open+close" not in key]:
        case = key.removesuffix(", mount")
        print(f"{case:62} " + " ".join(f"{median[f'{case}, {place}']:8.2f}" if f"{case}, {place}" in median else " " * 8
                                       for place in ("mount", "ext4", "tmpfs", "fio")))
    print()
    verdict(options, checks, {"cpus": os.cpu_count(), "runs": bench.rates, "median": median})


if __name__ == "__main__":
    main()
