"""An origin that stops answering parks its own readers and nobody else."""
import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import models
import pytest
from nexus import poll, processes_with, read_range, same_bytes

MIB = 1 << 20
READERS = 256


@pytest.fixture
def model(hub, repos):
    made = models.make_model(repos / "org/a", tensors=models.sized_llama(48 * MIB, 4), shards=2)
    hub.add_root(repos)
    return made


class Readers:
    """Threads that each pread somewhere in a file and keep what became of it.

    In its second half: the first chunk may be here from reading the header.
    """

    def __init__(self, path, count: int) -> None:
        self.outcomes: list[bytes | int] = []
        self.started = threading.Semaphore(0)
        fd = os.open(path, os.O_RDONLY)
        size = os.fstat(fd).st_size
        self._threads = [threading.Thread(target=self._read, args=(fd, size // 2 + i * size // 2 // (count + 1)),
                                          daemon=True)
                         for i in range(count)]
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self.started.acquire()

    def _read(self, fd: int, offset: int) -> None:
        self.started.release()
        try:
            self.outcomes.append(os.pread(fd, 4096, offset))
        except OSError as error:
            self.outcomes.append(error.errno)

    def parked(self) -> int:
        return sum(thread.is_alive() for thread in self._threads)

    def finished(self) -> bool:
        return self.parked() == 0


def test_everything_else_answers_with_256_readers_parked(hub, mount, model):
    stalled, cached = model.shards()
    with mount() as nexus:
        root = nexus / "org/a"
        assert same_bytes(root / cached, model.path / cached)
        (root / "config.json").read_bytes()
        (root / "layer_3.pt").stat()  # the headers of both shards are known from here on
        fault = hub.fault(f"{stalled}$", "stall", server="cdn")
        readers = Readers(root / stalled, READERS)
        assert hub.wait_parked(fault)
        assert len(os.listdir(root)) > 5
        assert (root / "layer_3.pt").stat().st_size > 0
        assert os.statvfs(root).f_blocks > 0
        assert (root / "config.json").read_bytes() == (model.path / "config.json").read_bytes()
        assert same_bytes(root / cached, model.path / cached)
        assert nexus.xattr("state", f"org/a/{stalled}") in ("absent", "fetching")
        assert nexus.ctl("status").returncode == 0
        # They still waited while all that was answered.
        assert readers.parked() > READERS // 2
        hub.release(fault)
        poll(readers.finished, "the readers' end")
        assert all(isinstance(outcome, bytes) and len(outcome) == 4096 for outcome in readers.outcomes)


# A check that runs in the background hands down an ignored SIGINT.
READ_ONE = ("import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "fd = os.open(sys.argv[1], os.O_RDONLY);"
            "os.pread(fd, 4096, os.fstat(fd).st_size // 2)")


@pytest.mark.parametrize("name", ["layer_3.pt", "shard"])
def test_interrupted_reader_ends_at_once(hub, mount, model, name):
    """A reader in open() of a layer, and one in read() of a shard, behind a stalled origin."""
    with mount() as nexus:
        root = nexus / "org/a"
        (root / "layer_3.pt").stat()
        fault = hub.fault("safetensors$", "stall", server="cdn")
        path = root / (model.shards()[-1] if name == "shard" else name)
        reader = subprocess.Popen([sys.executable, "-c", READ_ONE, str(path)], stderr=subprocess.DEVNULL)
        assert hub.wait_parked(fault)
        reader.send_signal(signal.SIGINT)
        assert reader.wait(timeout=60) != 0
        hub.release(fault)
        assert len(path.read_bytes()) == path.stat().st_size


def test_killed_reader_leaves_the_mount_usable(hub, mount, model):
    with mount() as nexus:
        path = nexus / "org/a" / model.shards()[0]
        (nexus / "org/a/layer_0.pt").stat()
        fault = hub.fault("safetensors$", "stall", server="cdn")
        readers = [subprocess.Popen([sys.executable, "-c", READ_ONE, str(path)]) for _ in range(8)]
        assert hub.wait_parked(fault)
        for reader in readers:
            reader.kill()
        for reader in readers:
            reader.wait(timeout=60)
        hub.release(fault)
        assert same_bytes(path, model.path / model.shards()[0])


def test_one_leaving_reader_does_not_cancel_the_others_flight(hub, mount, model):
    with mount() as nexus:
        path = nexus / "org/a/layer_2.pt"
        path.stat()
        fault = hub.fault("safetensors$", "stall", server="cdn", after=1000)
        script = "import sys; print(len(open(sys.argv[1], 'rb').read()))"
        stay, leave = (subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True) for _ in range(2))
        assert hub.wait_parked(fault)
        leave.kill()
        leave.communicate()
        hub.release(fault)
        assert int(stay.communicate()[0]) == path.stat().st_size


def test_unmount_ends_parked_readers_with_an_error(hub, mount, model):
    nexus = mount().start()
    (nexus / "org/a/layer_0.pt").stat()
    fault = hub.fault("safetensors$", "stall", server="cdn")
    readers = Readers(nexus / "org/a" / model.shards()[0], 32)
    assert hub.wait_parked(fault)
    nexus.stop()  # while the origin still stalls
    poll(readers.finished, "the readers' end")
    assert set(readers.outcomes) <= {errno.EIO, errno.ENOTCONN, errno.ECONNABORTED, errno.EINTR, errno.ENODEV}


def test_unmount_under_load_ends_every_reader_and_keeps_nothing_wrong(hub, mount, model):
    shards = model.shards()
    hub.fault("safetensors$", "rate", bytes_s=4_000_000)  # else all of it is here before the end
    nexus = mount().start()
    served, outcomes = threading.Semaphore(0), []

    def read(number: int) -> None:
        shard, choice = shards[number % len(shards)], random.Random(number)
        size = (model.path / shard).stat().st_size
        try:
            while True:
                if number % 4 == 0:
                    (nexus / f"org/a/layer_{choice.randrange(4)}.pt").read_bytes()
                else:
                    at = choice.randrange(size)
                    same = read_range(nexus / "org/a" / shard, at, 100_000) == read_range(model.path / shard, at, 100_000)
                    assert same, "wrong bytes"
                served.release()
        except (OSError, AssertionError) as error:
            outcomes.append(getattr(error, "errno", error))

    readers = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(16)]
    for reader in readers:
        reader.start()
    for _ in range(32):
        assert served.acquire(timeout=120)
    nexus.stop()  # while they read
    poll(lambda: not any(reader.is_alive() for reader in readers), "the readers' end")
    gone = {errno.EIO, errno.ENOTCONN, errno.ECONNABORTED, errno.EINTR, errno.ENODEV, errno.ENOENT}
    assert len(outcomes) == len(readers) and set(outcomes) <= gone, outcomes
    hub.clear_faults()
    with nexus:
        for shard in shards:
            assert same_bytes(nexus / "org/a" / shard, model.path / shard)


@pytest.mark.parametrize("where", ["/api/models/", "resolve/.*config.json"])
def test_stalled_metadata_parks_its_own_lookup_only(hub, mount, repos, model, where):
    models.make_model(repos / "org/slow", "gpt2")
    hub.commit("org/slow", repos / "org/slow")
    with mount() as nexus:
        assert same_bytes(nexus / "org/a/config.json", model.path / "config.json")
        fault = hub.fault(where.replace("models/", "models/org/slow").replace("resolve", "org/slow/resolve"),
                          "stall_request")
        reader = subprocess.Popen([sys.executable, "-c", READ_ONE, str(nexus / "org/slow/config.json")])
        assert hub.wait_parked(fault)
        assert "config.json" in os.listdir(nexus / "org/a")
        assert same_bytes(nexus / "org/a/model-00001-of-00002.safetensors",
                          model.path / "model-00001-of-00002.safetensors")
        hub.release(fault)
        assert reader.wait(timeout=120) == 0


def test_stalled_connection_is_given_up_and_tried_again(hub, mount, model):
    """One connection hangs half way and is never released: a new one brings the rest."""
    with mount() as nexus:
        path = nexus / "org/a" / model.shards()[0]
        (nexus / "org/a/layer_0.pt").stat()
        hub.fault("safetensors$", "stall", server="cdn", after=1000, count=1)
        assert same_bytes(path, model.path / model.shards()[0])


# A page of the second half, by a mapping: the kernel keeps it locked until the daemon answers.
TOUCH_ONE = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    print(mapped[len(mapped) * 3 // 4])
"""


def states_of(nexus, thread: str) -> bytes:
    """The states (R, S, D, ...) of the daemon's threads of that name."""
    states = b""
    for pid in processes_with(str(nexus.path)):
        for task in Path(f"/proc/{pid}/task").iterdir():
            name, state = (task / "stat").read_bytes().split(b"(", 1)[1].rsplit(b") ", 1)
            if name == thread.encode()[:15]:
                states += state[:1]
    return states


def test_readers_end_when_the_daemon_is_killed_while_it_waits_for_their_page(hub, mount, model):
    with mount() as nexus:
        path = nexus / "org/a" / model.shards()[0]
        read_range(path, 0, 4096)
        fault = hub.fault("safetensors$", "stall", server="cdn", after=1000)
        reader = subprocess.Popen([sys.executable, "-c", TOUCH_ONE, str(path)], stderr=subprocess.DEVNULL)
        assert hub.wait_parked(fault)
        # The dropped file's pages have to go, and that one is locked.
        assert nexus.ctl("invalidate", "org/a").returncode == 0
        poll(lambda: b"D" in states_of(nexus, "fuse-notify"), "the thread that tells the kernel")
        assert reader.poll() is None
        nexus.kill()
        assert reader.wait(timeout=120) != 0
        hub.release(fault)
    with nexus:
        assert same_bytes(path, model.path / model.shards()[0])
