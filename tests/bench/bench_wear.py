#!/usr/bin/env python3
"""What 20 times the cache's size of downloads writes to the disk, and how evenly over the zones.

    python3 tests/bench/bench_wear.py [--cache 512MB] [--times 20] [--work DIR] [--json FILE] [--strict]

See README.md beside this file for what is measured and how to read it.
"""
from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_run import argument_parser, at_most, verdict
from static_hub import StaticHub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

import models  # noqa: E402
from nexus import HANG_S, Mount  # noqa: E402

REPO = "org/wear"
SECTOR = 512
# Floors of the issue "The cache".
UNEVEN_MAX = 1.05
WRITTEN_MAX = 1.02


def run(*command) -> str:
    return subprocess.run([str(one) for one in command], check=True, capture_output=True, text=True,
                          timeout=HANG_S).stdout.strip()


def make_repository(path: Path, size: int) -> None:
    """Twice the cache's size: layers and shards of a model, and other files of 1 MiB to a sixteenth of the cache."""
    models.make_model(path, tensors=models.sized_llama(size, 16), shards=10)
    chance, left, number = random.Random(7), size, 0
    while left > 0:
        length = chance.randint(1 << 20, size // 16)
        (path / f"extra_{number:03}.bin").write_bytes(random.Random(number).randbytes(length))
        left, number = left - length, number + 1


def large_files(repository: Path) -> list[str]:
    names = [path.name for path in repository.iterdir() if path.stat().st_size >= 1 << 20]
    return names + [f"layer_{number}.pt" for number in range(16)]


class Disk:
    """A file with an ext4 of its own on it."""

    def __init__(self, work: Path, size: int) -> None:
        self.image, self.path = work / "disk.img", work / "disk"
        with open(self.image, "wb") as file:
            file.truncate(size)
        # What mkfs leaves for later would be counted.
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.image)
        self.loop = run("losetup", "--find", "--show", self.image)
        self.path.mkdir()
        run("mount", self.loop, self.path)

    def written(self) -> int:
        run("sync", "-f", self.path)
        return int(Path(f"/sys/block/{Path(self.loop).name}/stat").read_text().split()[6]) * SECTOR

    def close(self) -> None:
        run("umount", self.path)
        run("losetup", "--detach", self.loop)


def read_all(nexus: Mount, names: list[str], target: int) -> int:
    """Reads files in turn until `target` bytes of objects were absent before; returns how many were."""
    brought, buffer, chance = 0, bytearray(1 << 20), random.Random(3)
    while brought < target:
        chance.shuffle(names)
        for name in names:
            path = nexus.path / REPO / name
            absent = path.stat().st_size - int(nexus.xattr("bytes_cached", f"{REPO}/{name}"))
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
            brought += absent
            if brought >= target:
                break
    return brought


def measure(work: Path, cache: int, times: float) -> dict:
    repository = work / "repos" / REPO
    make_repository(repository, cache)
    hub = StaticHub(work / "nginx", REPO, repository)
    disk = Disk(work, 2 * cache + (256 << 20))
    try:
        nexus = Mount(work / "mount", "--ram", "64MiB", "--disk", str(cache), endpoint=hub.endpoint,
                      cache=disk.path / "cache", config={"enable_prefetch": False})
        with nexus:
            begin = disk.written()
            zones_before = nexus.stats()["zones"]
            brought = read_all(nexus, large_files(repository), int(times * cache))
            nexus.ctl("flush")
            stats = nexus.stats()
        device = disk.written() - begin
        zones = [after["bytes_written"] - before["bytes_written"]
                 for before, after in zip(zones_before, stats["zones"])]
    finally:
        disk.close()
        hub.close()
    return {"cache": cache, "objects_bytes": brought, "device_bytes": device, "zones_bytes": zones,
            "evictions": stats["performance"]["total_evictions"]}


def main() -> None:
    parser = argument_parser()
    parser.add_argument("--cache", type=int, default=512, help="MB")
    parser.add_argument("--times", type=float, default=20)
    parser.set_defaults(work=Path("/var/tmp"))
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root: it mounts a file system")
    work = Path(tempfile.mkdtemp(prefix="nexus-wear-", dir=options.work))
    try:
        result = measure(work, options.cache * 1_000_000, options.times)
    finally:
        shutil.rmtree(work)
    uneven = max(result["zones_bytes"]) / max(min(result["zones_bytes"]), 1)
    ratio = result["device_bytes"] / result["objects_bytes"]
    own = sum(result["zones_bytes"]) / result["objects_bytes"]
    print(f"{result['objects_bytes'] / 1e9:.2f} GB of objects, {result['evictions']} evictions; "
          f"{result['device_bytes'] / 1e9:.2f} GB written to the device; zones count {own:.4f} of the objects' bytes")
    verdict(options, [at_most("most / least worn zone", uneven, UNEVEN_MAX),
                      at_most("written to the device / bytes of objects", ratio, WRITTEN_MAX)],
            result | {"uneven": uneven, "written_ratio": ratio})


if __name__ == "__main__":
    main()
