"""How long a mount takes to start over a cache of many objects.

  bench_start.py [--objects 100000] [--runs 5] [--work DIR] [--json FILE] [--strict]

Measured from the command's start to its end, which comes when the mount answers. The floor is 2 s for 100,000 objects.
What the daemon's main thread, which does most of it, waited for a processor that others used is shown beside it.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_run import argument_parser, at_most, verdict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

from nexus import BIN, Mount, processes_with  # noqa: E402

START_MAX_S = 2  # for 100,000 objects


def main() -> None:
    parser = argument_parser(runs=5)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.set_defaults(work=Path("/var/tmp"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        mount = Mount(Path(work), "--offline")
        begin = time.monotonic()
        subprocess.run([BIN / "make_objects", mount.cache, str(options.objects)], check=True)
        print(f"{options.objects} objects made in {time.monotonic() - begin:.1f} s", flush=True)
        queued = []
        times = {"page cache warm": [], "page cache dropped": []}
        for _ in range(options.runs):
            for state, taken in times.items():
                if state == "page cache dropped":
                    os.sync()
                    Path("/proc/sys/vm/drop_caches").write_text("3")
                begin = time.monotonic()
                mount.start()
                taken.append(time.monotonic() - begin)
                daemon = processes_with(str(mount.path))[0]
                queued.append(int(Path(f"/proc/{daemon}/schedstat").read_text().split()[1]) / 1e9)
                entries = mount.stats()["disk_cache_entries"]
                assert entries == options.objects, f"{entries} objects were found"
                mount.stop()
        for state, taken in times.items():
            print(f"start, {state}: median {statistics.median(taken):.2f} s of {len(taken)}, "
                  f"{min(taken):.2f} to {max(taken):.2f}")
        print(f"waited for a processor: median {statistics.median(queued):.2f} s")
    verdict(options, [at_most(f"start, {state}, median, s", statistics.median(taken), START_MAX_S)
                      for state, taken in times.items()], {"objects": options.objects, "seconds": times, "queued_s": queued})


if __name__ == "__main__":
    main()
