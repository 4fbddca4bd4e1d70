"""The clients while the cache's disk is in trouble, and after it: every load gives the true tensors."""
import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from disks import configured, mounted, run, small_disk
from failing_disk import FailingDisk
from nexus import HANG_S, poll

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
NAME = "llama"


@pytest.fixture(scope="module")
def clients():
    process = subprocess.Popen([sys.executable, Path(__file__).with_name("client_process.py")], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


class Story:
    """One mount over zones that a test chooses, and the clients on it."""

    def __init__(self, mount, hub, local: Path, clients, tmp_path: Path) -> None:
        self.mount, self.local, self.clients, self.tmp_path = mount, local, clients, tmp_path
        hub.add_root(local)

    def start(self, *zones: Path, **options):
        config = self.tmp_path / "zones.toml"
        config.write_text(configured([{"path": str(zone)} for zone in zones], enable_wear_leveling=False,
                                     scrub_interval="off", migrate_interval="off"))
        self.nexus = self.mount("--config", str(config), "--ram", "256MiB", **options).start()
        return self.nexus

    def loads(self, when: str) -> None:
        print(json.dumps([NAME, str(self.nexus / "org" / NAME), str(self.local / "org" / NAME)]),
              file=self.clients.stdin, flush=True)
        assert select.select([self.clients.stdout], [], [], 5 * HANG_S)[0], f"{when}: the clients hang"
        answer = self.clients.stdout.readline()
        assert answer, f"{when}: the clients died of {self.clients.wait()}"
        assert not json.loads(answer), f"{when}: {json.loads(answer)}\n{self.nexus.log_text()}"

    def forget(self) -> None:
        """Everything is asked for again."""
        assert self.nexus.ctl("invalidate", "--all").returncode == 0

    def end(self) -> None:
        assert self.nexus.ctl("verify").returncode == 0
        self.nexus.stop()


@pytest.fixture
def story(mount, hub, local, clients, tmp_path):
    return Story(mount, hub, local, clients, tmp_path)


def test_a_full_disk(story, tmp_path):
    with small_disk(tmp_path, 64 << 20) as disk:
        story.start(disk / "zone")
        story.loads("before")
        with open(disk / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        story.loads("full")
        story.forget()
        story.loads("full, and nothing cached")
        (disk / "ballast").unlink()
        story.forget()
        story.loads("after")
        story.end()


@pytest.mark.parametrize("what", [["writes"], ["reads"], ["reads", "writes"]], ids="-".join)
def test_a_failing_device(story, tmp_path, what):
    with FailingDisk(tmp_path / "failing", 64 << 20) as disk:
        nexus = story.start(disk.path / "zone")
        story.loads("before")
        assert nexus.ctl("flush").returncode == 0
        disk.forget_pages()
        disk.fail(*what)
        story.loads("failing")
        story.forget()
        story.loads("failing, and nothing cached")
        assert nexus.ctl("flush").returncode == 0
        disk.work_well()
        disk.forget_pages()
        story.loads("after")
        nexus.ctl("verify")  # drops what the disk did not keep and nobody has asked for since
        story.end()


def test_kill_9(story, tmp_path):
    nexus = story.start(tmp_path / "zone")
    for when in ("before", "after", "after two"):
        story.loads(when)
        nexus.kill()
        nexus.start()
    story.loads("after three")
    story.end()


def test_a_disk_that_turns_read_only(story, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "tmpfs") as disk:
        nexus = story.start(disk / "zone")
        story.loads("before")
        nexus.stop()  # else it cannot be remounted
        run("mount", "-o", "remount,ro", disk)
        nexus.start()
        story.loads("read-only")
        story.forget()
        story.loads("read-only, and nothing cached")
        nexus.stop()
        run("mount", "-o", "remount,rw", disk)
        nexus.start()
        story.loads("after")
        story.end()


def test_a_disk_that_hangs(story, tmp_path):
    with small_disk(tmp_path, 64 << 20) as disk, contextlib.ExitStack() as thaw:
        nexus = story.start(disk / "zone")
        story.loads("before")
        run("fsfreeze", "-f", disk)
        thaw.callback(run, "fsfreeze", "-u", disk)
        story.loads("hangs")
        story.forget()
        story.loads("hangs, and nothing cached")
        thaw.close()
        poll(lambda: json.loads(nexus.ctl("status", "--json").stdout)["zones"][0]["health"] == "ok", "the disk is used again")
        story.loads("after")
        story.end()
