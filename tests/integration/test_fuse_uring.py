"""FUSE over io_uring, and the way without it where the kernel has it switched off."""
import contextlib
import errno
import json
import mmap
import os
import signal
import subprocess
import sys
import threading

import fuse_uring
import models
import pytest
from nexus import poll, read_range, same_bytes

MIB = 1 << 20
GONE = {errno.EIO, errno.ENOTCONN, errno.ECONNABORTED, errno.EINTR, errno.ENODEV}


@pytest.fixture
def model(hub, repos):
    made = models.make_model(repos / "org/a", tensors=models.sized_llama(48 * MIB, 4), shards=2)
    hub.add_root(repos)
    return made


def status_of(nexus) -> dict:
    return json.loads(nexus.ctl("status", "--json").stdout)


@pytest.fixture
def ring_mount(mount):
    """A mount that is served through rings; the test is skipped where the machine has none."""
    with contextlib.ExitStack() as stack:
        if fuse_uring.can_switch():
            stack.enter_context(fuse_uring.kernel_uring(True))

        def start(**config):
            nexus = mount("--fuse-io-uring", config=config).start()
            # INIT is answered before the first look into the mount.
            os.statvfs(nexus.path)
            status = status_of(nexus)
            if not status["fuse_io_uring"]:
                pytest.skip(status["fuse_io_uring_reason"])
            return nexus
        yield start


def requests_of(nexus) -> int:
    return status_of(nexus)["fuse_io_uring_requests"]


def test_is_off_unless_asked_for(hub, mount, model):
    with mount() as nexus:
        assert same_bytes(nexus / "org/a/config.json", model.path / "config.json")
        status = status_of(nexus)
        assert status["fuse_io_uring"] is False and status["fuse_io_uring_requests"] == 0
        assert status["fuse_io_uring_reason"] == "switched off"


def test_without_the_kernels_consent_the_device_serves(hub, mount, model):
    with contextlib.ExitStack() as stack:
        if fuse_uring.can_switch():
            stack.enter_context(fuse_uring.kernel_uring(False))
        elif fuse_uring.PARAMETER.exists() and fuse_uring.PARAMETER.read_text().strip() == "Y":
            pytest.skip("the kernel has it on, and only root may switch it")
        with mount("--fuse-io-uring") as nexus:
            assert same_bytes(nexus / "org/a" / model.shards()[0], model.path / model.shards()[0])
            status = status_of(nexus)
            assert status["fuse_io_uring"] is False and status["fuse_io_uring_requests"] == 0
            expected = str(fuse_uring.PARAMETER) if fuse_uring.PARAMETER.exists() else "Linux 6.14"
            assert expected in status["fuse_io_uring_reason"]
            assert "FUSE uring" in nexus.ctl("status").stdout
            assert "FUSE over io_uring is off" in nexus.log_text()
        if fuse_uring.can_switch():
            assert fuse_uring.PARAMETER.read_text().strip() == "N"  # nobody but root switches it


def test_every_way_of_reading_gives_the_true_bytes(hub, ring_mount, model):
    nexus = ring_mount()
    root = nexus / "org/a"
    assert set(os.listdir(root)) >= set(model.shards())
    shard, other = model.shards()
    truth = (model.path / shard).read_bytes()
    with open(root / shard, "rb") as file:
        # A part is here, the rest is not: small and unaligned reads through the daemon, hits and misses.
        for offset, count in ((0, 1), (8, 4096), (5 * MIB + 3, 100_001), (0, 3 * MIB), (len(truth) - 7, 100)):
            assert os.pread(file.fileno(), count, offset) == truth[offset:offset + count]
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert mapped[7 * MIB:7 * MIB + 5000] == truth[7 * MIB:7 * MIB + 5000]
        mapped.close()
    assert same_bytes(root / shard, model.path / shard)
    assert same_bytes(root / other, model.path / other)
    assert len((root / "layer_1.pt").read_bytes()) == (root / "layer_1.pt").stat().st_size
    with pytest.raises(FileNotFoundError):
        (root / "nothing").stat()
    with pytest.raises(OSError):
        (root / "new").touch()
    assert nexus.xattr("state", f"org/a/{shard}") in ("fetching", "resident")
    assert requests_of(nexus) > 10
    nexus.stop()


def test_many_readers_of_cold_shards(hub, ring_mount, model):
    nexus = ring_mount(fuse_io_uring_queue_depth=4)
    truth = {shard: (model.path / shard).read_bytes() for shard in model.shards()}
    wrong: list[str] = []

    def read(shard: str, first: int) -> None:
        descriptor = os.open(nexus / "org/a" / shard, os.O_RDONLY)
        size = len(truth[shard])
        for step in range(24):
            offset = (first + step * 7 * MIB // 3) % size
            if os.pread(descriptor, 300_000, offset) != truth[shard][offset:offset + 300_000]:
                wrong.append(f"{shard} at {offset}")
        os.close(descriptor)

    threads = [threading.Thread(target=read, args=(model.shards()[i % 2], i * MIB)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    nexus.stop()


READ_ONE = ("import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "fd = os.open(sys.argv[1], os.O_RDONLY);"
            "os.pread(fd, 4096, os.fstat(fd).st_size // 2)")


def test_parked_readers_hold_up_nobody_and_can_be_interrupted(hub, ring_mount, model):
    """Far more than the queues begin with: a queue grows by what is parked in it."""
    nexus = ring_mount(fuse_io_uring_queue_depth=2)
    root = nexus / "org/a"
    stalled, cached = model.shards()
    assert same_bytes(root / cached, model.path / cached)
    (root / "layer_3.pt").stat()  # the headers are known from here on
    fault = hub.fault(f"{stalled}$", "stall", server="cdn")
    size = (root / stalled).stat().st_size
    outcomes: list[int] = []

    def read(descriptor: int, offset: int) -> None:
        try:
            outcomes.append(len(os.pread(descriptor, 4096, offset)))
        except OSError as error:
            outcomes.append(-error.errno)

    descriptor = os.open(root / stalled, os.O_RDONLY)
    readers = [threading.Thread(target=read, args=(descriptor, size // 2 + i * 8192), daemon=True) for i in range(100)]
    for reader in readers:
        reader.start()
    assert hub.wait_parked(fault)
    # Those that waited in the kernel behind them come too, though nothing is answered.
    poll(lambda: status_of(nexus)["parked"] == len(readers), "all readers are parked")
    assert same_bytes(root / cached, model.path / cached)
    assert len(os.listdir(root)) > 5
    for kind in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen([sys.executable, "-c", READ_ONE, str(root / stalled)], stderr=subprocess.DEVNULL)
        poll(lambda: status_of(nexus)["parked"] == len(readers) + 1, "one more is parked")
        process.send_signal(kind)
        assert process.wait(timeout=120) != 0
        poll(lambda: status_of(nexus)["parked"] == len(readers), "it has gone")
    assert not outcomes
    hub.release(fault)
    for reader in readers:
        reader.join()
    assert outcomes == [4096] * len(readers)
    os.close(descriptor)
    nexus.stop()


@pytest.mark.parametrize("end", ["unmount", "kill"])
def test_readers_end_with_the_mount(hub, ring_mount, model, end):
    nexus = ring_mount()
    path = nexus / "org/a" / model.shards()[0]
    read_range(path, 0, 4096)
    fault = hub.fault("safetensors$", "stall", server="cdn")
    readers = [subprocess.Popen([sys.executable, "-c", READ_ONE, str(path)], stderr=subprocess.DEVNULL)
               for _ in range(8)]
    assert hub.wait_parked(fault)
    if end == "unmount":
        nexus.stop()  # while the origin still stalls
    else:
        nexus.kill()
    for reader in readers:
        assert reader.wait(timeout=120) != 0
    hub.release(fault)
    if end == "kill":
        with nexus:
            assert same_bytes(path, model.path / model.shards()[0])


def test_unmount_under_load(hub, ring_mount, model):
    nexus = ring_mount()
    path = nexus / "org/a" / model.shards()[0]
    size = path.stat().st_size
    read_range(path, 0, 4 * MIB)
    errors: list[int] = []

    def read() -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            while True:
                for offset in range(0, size, 64 << 10):
                    os.pread(descriptor, 4096, offset % (4 * MIB))
                    # Comes to the daemon also once read-ahead has completed the file.
                    os.getxattr(path, "user.nexus.state")
        except OSError as error:
            errors.append(error.errno)

    readers = [threading.Thread(target=read, daemon=True) for _ in range(8)]
    for reader in readers:
        reader.start()
    before = requests_of(nexus)
    poll(lambda: requests_of(nexus) > before + 1000, "readers at work")
    nexus.stop()
    for reader in readers:
        reader.join(timeout=120)
        assert not reader.is_alive()
    # ECANCELED: it was on its way to a queue's thread that ended.
    assert set(errors) <= GONE | {errno.ENOENT, errno.ECANCELED}
