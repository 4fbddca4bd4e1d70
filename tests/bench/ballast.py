"""Memory that is really there, for what is timed and fills the page cache.

A virtual machine may report its free memory to the host (`/sys/module/page_reporting`), 2 s after it was freed. The next
touch of such a page is a fault of the host, 1 ms and more for 2 MiB: several times the cost of what is measured, and on
whoever comes after the longest pause. Ballast holds memory from one measurement to the next and lets go of it as fast as
the measured program uses it up. On other machines it changes nothing.
"""
from __future__ import annotations

import mmap
import threading

MADV_POPULATE_WRITE = 23
STEP = 32 << 20
FREE_AT_ONCE = 128 << 20  # bytes: what a report may catch
PERIOD_S = 0.01
SHARE_MAX = 0.5  # of what is available


def meminfo(name: str) -> int:
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/meminfo without {name}")


class Ballast:
    def __init__(self, size: int) -> None:
        self._steps = min(size, int(meminfo("MemAvailable") * SHARE_MAX)) // STEP
        self._held: list[mmap.mmap] = []
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Ends what let_go() began. Quick where the memory was freed a moment before."""
        if self._thread is not None:
            self._ending.set()
            self._thread.join()
            self._thread = None
        while len(self._held) < self._steps:
            memory = mmap.mmap(-1, STEP, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
            memory.madvise(MADV_POPULATE_WRITE)
            self._held.append(memory)

    def let_go(self) -> None:
        """From now on, as free memory is used up."""
        self._ending.clear()
        self._thread = threading.Thread(target=self._follow, args=(meminfo("MemFree"),), daemon=True)
        self._thread.start()

    def _follow(self, free: int) -> None:
        while self._held:
            while self._held and meminfo("MemFree") < free + FREE_AT_ONCE:
                self._held.pop().close()
            if self._ending.wait(PERIOD_S):
                return
