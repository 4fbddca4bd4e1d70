#!/usr/bin/env python3
"""nexus-tune against fio on the same file, and its own searches against each other.

    python3 tests/bench/bench_tune.py [--size 512MiB] [--rounds 5] [--work DIR] [--json FILE] [--strict]

See README.md beside this file for what is measured and how to read it.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
TUNE = Path(os.environ.get("NEXUS_BIN", REPO / "build" / "bin")).resolve() / "nexus-tune"
SETTINGS = ("block_size", "queue_depth", "threads", "overlap", "single_submit", "direct", "registered", "iopoll",
            "sqpoll")
FIO_CONFIGURATIONS = 4

# Floors of the issue "nexus-tune".
BEST_TO_FIO_MIN = 0.98
QUICK_TO_FULL_MIN = 0.95
LOAD_TO_BEST_MIN = 0.95


def tune(*arguments) -> dict:
    result = subprocess.run([str(TUNE), *map(str, arguments)], stdout=subprocess.PIPE, stderr=None, text=True)
    if result.returncode != 0:
        sys.exit(f"bench_tune: {' '.join(map(str, arguments))}: exit status {result.returncode}")
    return json.loads(result.stdout)


def make_cold(file: Path) -> None:
    os.sync()
    with open(file, "rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    Path("/proc/sys/vm/drop_caches").write_text("1")


def fio(file: Path, direction: str, settings: dict) -> float:
    """GB/s of the whole file by fio with these settings; a write is durable when the time ends."""
    make_cold(file)
    jobs = settings["threads"]
    share = file.stat().st_size // jobs // settings["block_size"] * settings["block_size"]
    command = ["fio", "--name=job", f"--filename={file}", f"--rw={direction}", "--ioengine=io_uring", "--direct=1",
               f"--bs={settings['block_size']}", f"--iodepth={settings['queue_depth']}", f"--numjobs={jobs}",
               f"--size={share}", f"--offset_increment={share}", "--group_reporting", "--thread",
               "--output-format=json"]
    if settings["registered"]:
        command.append("--fixedbufs=1")
    if direction == "write":
        command.append("--end_fsync=1")
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer["jobs"][0][direction]["bw_bytes"] / 1e9


def load(file: Path, direction: str, zone: Path) -> float:
    flags = ["--write"] if direction == "write" else []
    return tune("load", file, "--zone", zone, *flags)["throughput_gbps"]


def make_zone(zones: Path, name: str, template: dict, read: dict, write: dict) -> Path:
    """A directory with a tuning.json that holds these settings."""
    zone = zones / name
    zone.mkdir()
    stored = dict(template)
    for direction, settings in (("read", read), ("write", write)):
        stored[direction] = {key: settings[key] for key in SETTINGS} | {"throughput_gbps": 0, "cpu_s_per_gb": 0}
    (zone / "tuning.json").write_text(json.dumps(stored))
    return zone


def fastest(points: list[dict]) -> dict:
    """Of those measured most often, and with O_DIRECT over a ring: what fio does too."""
    usable = [p for p in points if p.get("runs_gbps")]
    most = max(len(p["runs_gbps"]) for p in usable)
    return max((p for p in usable if len(p["runs_gbps"]) == most), key=lambda p: p["throughput_gbps"])


def fio_candidates(points: list[dict], best: dict) -> list[dict]:
    """Block sizes, depths and jobs for fio: ours, and the next best of the sweep."""
    chosen: list[dict] = []
    ordered = sorted((p for p in points if p.get("runs_gbps") and p["overlap"] and p["direct"]),
                     key=lambda p: -p["throughput_gbps"])
    for point in [best, *ordered]:
        key = (point["block_size"], point["queue_depth"], point["threads"])
        if key not in [(c["block_size"], c["queue_depth"], c["threads"]) for c in chosen]:
            chosen.append(point)
        if len(chosen) == FIO_CONFIGURATIONS:
            break
    return chosen


def describe(settings: dict) -> str:
    return (f"{settings['block_size'] >> 10} KiB x {settings['queue_depth']}, {settings['threads']} thread(s), "
            f"{'overlapped' if settings['overlap'] else 'sequential'}, "
            f"{'direct' if settings['direct'] else 'buffered'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="512MiB", help="of the test file")
    parser.add_argument("--runs", type=int, default=2, help="of each configuration of --full")
    parser.add_argument("--rounds", type=int, default=5, help="of the interleaved comparison")
    parser.add_argument("--work", type=Path, help="a directory on the disk to measure (default: build/)")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a floor is missed")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it work, no more")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.size, arguments.runs, arguments.rounds = "16MiB", 1, 1

    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-tune-", dir=arguments.work or REPO / "build") as directory:
        work = Path(directory)
        zone, file = work / "zone", work / "scratch"
        zone.mkdir()
        sized = ["--zone", zone, "--size", arguments.size, "--scratch", file, "--json"]
        quick = tune("--quick", "--no-store", *sized)
        print(f"quick: {time.monotonic() - begin:.0f} s", flush=True)
        full = tune("--full", "--runs", arguments.runs, *sized)
        print(f"full: {time.monotonic() - begin:.0f} s", flush=True)
        template = json.loads((zone / "tuning.json").read_text())

        best = {d: fastest(full[d]["points"]) for d in ("read", "write")}
        of = {"best": best, "stored": {d: full[d]["best"] for d in best}, "quick": {d: quick[d]["best"] for d in best}}
        of["overlapped"] = {d: full[d]["best"] | {"overlap": True} for d in best}
        of["sequential"] = {d: full[d]["best"] | {"overlap": False} for d in best}
        zones = {name: make_zone(work, name, template, two["read"], two["write"]) for name, two in of.items()}
        candidates = {d: fio_candidates(full[d]["points"], best[d]) for d in best}

        rates: dict[str, dict[str, list[float]]] = {d: {} for d in best}
        for number in range(arguments.rounds):
            for direction in best:
                # Names that stand for the same settings share one measurement: they differ by nothing.
                names: dict[tuple, list[str]] = {}
                for name, settings in of.items():
                    names.setdefault(tuple(settings[direction][key] for key in SETTINGS), []).append(name)
                turns = [([f"fio {i}"], lambda s=settings: fio(file, direction, s))
                         for i, settings in enumerate(candidates[direction])]
                turns += [(same, lambda where=zones[same[0]]: load(file, direction, where))
                          for same in names.values()]
                random.Random(number).shuffle(turns)  # nobody always follows the same one
                for same, measure in turns:
                    value = measure()
                    for name in same:
                        rates[direction].setdefault(name, []).append(value)

    missed = 0
    figures: dict = {"rates": rates, "full": full, "quick": quick}
    for direction in best:
        rate = {name: statistics.median(values) for name, values in rates[direction].items()}
        fio_best = max(rate[name] for name in rate if name.startswith("fio"))
        # What the machine itself varies by: of the steadier of the two that are compared.
        noise = min((max(v) - min(v)) / statistics.median(v)
                    for v in (rates[direction]["overlapped"], rates[direction]["sequential"]))
        floors = [
            ("best of --full / fio's best", rate["best"] / fio_best, BEST_TO_FIO_MIN),
            ("--quick / --full", rate["quick"] / rate["stored"], QUICK_TO_FULL_MIN),
            ("load with stored settings / best", rate["stored"] / rate["best"], LOAD_TO_BEST_MIN),
            ("overlapped / sequential", rate["overlapped"] / rate["sequential"], 1 - max(noise, 0.03)),
        ]
        print(f"\n{direction}: fio {fio_best:.2f} GB/s, best {rate['best']:.2f} ({describe(best[direction])}),"
              f" stored {rate['stored']:.2f} ({describe(of['stored'][direction])}),"
              f" quick {rate['quick']:.2f} ({describe(of['quick'][direction])})")
        for name, ratio, floor in floors:
            met = ratio >= floor
            missed += not met
            print(f"  {'ok  ' if met else 'MISS'}  {name:34} {ratio:5.2f}  (floor {floor:.2f})")
        figures[direction] = {name: ratio for name, ratio, _ in floors} | {"fio_gbps": fio_best, "gbps": rate}
    print(f"\nin {time.monotonic() - begin:.0f} s, {missed} of 8 floors missed")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    return 1 if missed and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())
