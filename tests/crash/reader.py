"""One reader of the crash campaign: reads a mount and compares every byte with the truth.

reader.py MOUNT/MODEL TRUTH SEED REPORT

Runs until it is killed or the mount dies, in a process of its own: whoever runs it never touches
the mount and so cannot hang on it. REPORT gets one JSON line for each error and each wrong byte,
with the time of CLOCK_MONOTONIC, which is the same in every process.
"""
import json
import mmap
import os
import random
import sys
import time
from pathlib import Path

ERRORS_MAX = 50  # a dead mount answers at once, again and again


def read_whole(path: str, _: random.Random, truth: bytes) -> list:
    with open(path, "rb") as file:
        return [(0, file.read(), truth)]


def read_ranges(path: str, rng: random.Random, truth: bytes) -> list:
    fd = os.open(path, os.O_RDONLY)
    try:
        found = []
        for _ in range(8):
            offset = rng.randrange(len(truth))
            count = min(rng.choice((1, 4096, 1 << 17, 1 << 20)), len(truth) - offset)
            data = os.pread(fd, count, offset)
            found.append((offset, data, truth[offset:offset + len(data)]))
            if not data:
                raise AssertionError(f"{path}: no bytes at {offset}")
        return found
    finally:
        os.close(fd)


def read_mapped(path: str, rng: random.Random, truth: bytes) -> list:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        offset = rng.randrange(len(truth))
        return [(offset, mapped[offset:offset + (1 << 20)], truth[offset:offset + (1 << 20)])]


def main() -> int:
    mount, truth, seed, report = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    rng = random.Random(seed)
    files = {str(path.relative_to(truth)): path.read_bytes() for path in sorted(truth.rglob("*")) if path.is_file()}
    names = [name for name, data in files.items() if data]
    errors = 0
    with open(report, "w", buffering=1) as out:
        def tell(**what) -> None:
            out.write(json.dumps({"at": time.monotonic(), **what}) + "\n")

        tell(started=True)
        while errors < ERRORS_MAX:
            name = rng.choice(names)
            way = rng.choice((read_whole, read_whole, read_ranges, read_mapped))
            try:
                for offset, data, expected in way(f"{mount}/{name}", rng, files[name]):
                    if data != expected:
                        first = next((i for i, (a, b) in enumerate(zip(data, expected)) if a != b), len(data))
                        tell(wrong=name, offset=offset + first, length=len(data), way=way.__name__)
                        return 9
                    tell(read=len(data))
            except OSError as error:
                errors += 1
                tell(error=error.errno, name=name, way=way.__name__)
                time.sleep(0.01)
    return 0


if __name__ == "__main__":
    sys.exit(main())
