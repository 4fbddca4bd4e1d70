"""A disk that fails on command: a loop device whose file is served by us, with an ext4 of its own. Root only.

Read and write errors are thus those of a real device: they come up through the block layer, the page cache and the file
system, also where a reader is served in passthrough. The kernel's dm-flakey does the same, where there is one.
"""
from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

from disks import run
from nexus import HANG_S

# linux/fuse.h
LOOKUP, GETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT = 1, 3, 14, 15, 16, 17, 18, 20, 25, 26
FORGET, INTERRUPT, BATCH_FORGET = 2, 36, 42
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
ROOT, DISK = 1, 2
DIRECT_IO = 1  # FOPEN_DIRECT_IO
MAX_WRITE = 1 << 20
MAX_PAGES, BIG_WRITES = 1 << 22, 1 << 5


class Server:
    """The file `disk` in a file system of one file: the bytes of `image`. What fails is asked for each request."""

    def __init__(self, device: int, image: str, faults: str) -> None:
        self.device = device
        self.image = os.open(image, os.O_RDWR)
        self.faults = os.open(faults, os.O_RDONLY)
        self.size = os.fstat(self.image).st_size

    def attributes(self, node: int) -> bytes:
        mode, size = (stat.S_IFDIR | 0o755, 0) if node == ROOT else (stat.S_IFREG | 0o600, self.size)
        return ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def fails(self, what: bytes) -> bool:
        return what in os.pread(self.faults, 64, 0)

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | int:
        if opcode == INIT:
            _, minor, readahead, flags = struct.unpack_from("<IIII", body)
            return struct.pack("<IIIIHHIIHHI", 7, min(minor, 31), readahead, flags & (MAX_PAGES | BIG_WRITES), 16, 12,
                               MAX_WRITE, 1, MAX_WRITE // 4096, 0, 0) + bytes(28)
        if opcode == LOOKUP:
            if node != ROOT or body.rstrip(b"\0") != b"disk":
                return -errno.ENOENT
            return struct.pack("<QQQQII", DISK, 0, 3600, 3600, 0, 0) + self.attributes(DISK)
        if opcode == GETATTR:
            return struct.pack("<QII", 3600, 0, 0) + self.attributes(node)
        if opcode == OPEN:
            return struct.pack("<QII", 0, DIRECT_IO, 0)
        if opcode == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return -errno.EIO if self.fails(b"reads") else os.pread(self.image, size, offset)
        if opcode == WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            if self.fails(b"writes"):
                return -errno.EIO
            return struct.pack("<II", os.pwrite(self.image, body[40:40 + size], offset), 0)
        if opcode == FSYNC:
            return -errno.EIO if self.fails(b"writes") else b""
        if opcode in (FLUSH, RELEASE):
            return b""
        return -errno.ENOSYS

    def run(self) -> None:
        while True:
            try:
                request = os.read(self.device, MAX_WRITE + 4096)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                if error.errno == errno.ENODEV:  # unmounted
                    return
                raise
            _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
            if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            result = self.answer(opcode, node, request[IN_HEADER.size:])
            body, error = (b"", result) if isinstance(result, int) else (result, 0)
            with contextlib.suppress(FileNotFoundError):  # interrupted
                os.write(self.device, OUT_HEADER.pack(OUT_HEADER.size + len(body), error, unique) + body)


class FailingDisk:
    """Mounted at `path` while in a `with`."""

    def __init__(self, work: Path, size: int) -> None:
        self.work, self.path, self._server = work, work / "disk", work / "served"
        for directory in (self.work, self.path, self._server):
            directory.mkdir(parents=True, exist_ok=True)
        self._image, self._faults = work / "image", work / "faults"
        self._image.touch()
        os.truncate(self._image, size)
        self.work_well()
        self._stack = contextlib.ExitStack()

    def fail(self, *what: str) -> None:
        """What fails from now on: "reads", "writes"."""
        self._faults.write_text(" ".join(what).ljust(64))

    def work_well(self) -> None:
        self.fail()

    def forget_pages(self) -> None:
        """The page cache of its files goes, so that reads are reads of the disk."""
        os.sync()
        for directory, inner, names in os.walk(self.path):
            if "lost+found" in inner:
                inner.remove("lost+found")  # which nobody has read yet, and is now not readable
            for name in names:
                with open(os.path.join(directory, name), "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def __enter__(self) -> "FailingDisk":
        with self._stack as stack:
            device = os.open("/dev/fuse", os.O_RDWR)
            stack.callback(os.close, device)
            libc = ctypes.CDLL(None, use_errno=True)
            options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
            if libc.mount(b"disk", bytes(self._server), b"fuse", 0, options) != 0:
                raise OSError(ctypes.get_errno(), "mount")
            stack.callback(run, "umount", "-l", self._server)
            server = subprocess.Popen([sys.executable, __file__, str(device), self._image, self._faults],
                                      pass_fds=[device], stdin=subprocess.DEVNULL)
            stack.callback(server.wait, HANG_S)
            stack.callback(server.kill)
            # No journal, which ends for good with its first error: such a disk never comes back.
            run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=0", self._image)
            loop = run("losetup", "--find", "--show", self._server / "disk")
            stack.callback(run, "losetup", "-d", loop)
            run("mount", "-o", "errors=continue", loop, self.path)
            stack.callback(self._unmount)
            self._stack = stack.pop_all()
        return self

    def _unmount(self) -> None:
        self.work_well()
        run("umount", "-l", self.path)

    def __exit__(self, *_) -> None:
        self._stack.close()


if __name__ == "__main__":
    Server(int(sys.argv[1]), sys.argv[2], sys.argv[3]).run()
