"""The kernel's own switch of FUSE over io_uring, for tests and benches that are root."""
from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

PARAMETER = Path("/sys/module/fuse/parameters/enable_uring")


def can_switch() -> bool:
    return PARAMETER.exists() and os.geteuid() == 0 and os.access(PARAMETER, os.W_OK)


@contextlib.contextmanager
def kernel_uring(on: bool):
    """For as long as mounts are made; a mount keeps what it was made with. One at a time on the whole machine."""
    with open(PARAMETER) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = PARAMETER.read_text().strip()
        PARAMETER.write_text("Y" if on else "N")
        try:
            yield
        finally:
            PARAMETER.write_text(before)
