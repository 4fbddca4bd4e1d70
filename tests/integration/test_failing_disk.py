"""A zone on a device that fails: reads come from the origin, bytes are true, and it is used again when it is well."""
import json
import os

import models
import pytest
from disks import configured
from failing_disk import FailingDisk
from nexus import poll, same_bytes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
LAYERS = 4


@pytest.fixture
def model(hub, repos):
    made = models.make_model(repos / "org/a", tensors=models.sized_llama(24 << 20, LAYERS), shards=2)
    hub.add_root(repos)
    return made


@pytest.fixture
def disk(tmp_path):
    with FailingDisk(tmp_path / "failing", 400 << 20) as failing:
        yield failing


@pytest.fixture
def started(mount, model, disk, tmp_path):
    """A mount whose first zone lies on the failing disk, and its second, if there is one, elsewhere."""
    made = []

    def start(zones: int = 2):
        config = tmp_path / "zones.toml"
        directories = [disk.path / "zone", tmp_path / "other"][:zones]
        # The first zone with room, and nothing is asked for but what is read.
        config.write_text(configured([{"path": str(path)} for path in directories], enable_wear_leveling=False,
                                     enable_prefetch=False, scrub_interval="off", migrate_interval="off"))
        made.append(mount("--config", str(config), "--ram", "256MiB").start())
        return made[0]

    yield start
    disk.work_well()  # else the daemon's end waits for its retries
    for nexus in made:
        nexus.stop()


def layer_names() -> list[str]:
    return [f"layer_{n}.pt" for n in range(LAYERS)]


def read_all(nexus, model, layers: dict[str, bytes]) -> None:
    """Every file, against the origin's and against what its layer was the first time."""
    for name in model.files():
        assert same_bytes(nexus / "org/a" / name, model.path / name), name
    for name in layer_names():
        got = (nexus / "org/a" / name).read_bytes()
        assert got == layers.setdefault(name, got), name


def health(nexus) -> list[str]:
    return [zone["health"] for zone in nexus.stats()["zones"]]


def flush(nexus) -> None:
    assert nexus.ctl("flush").returncode == 0


@pytest.mark.parametrize("what", [["writes"], ["writes", "reads"]], ids="-".join)
def test_a_zone_that_takes_no_writes_is_unstable_and_others_are_used(started, disk, model, what):
    nexus, layers = started(), {}
    disk.fail(*what)
    for _ in range(3):  # what the disk did not keep comes again
        read_all(nexus, model, layers)
        flush(nexus)
    assert health(nexus) == ["unstable", "ok"]
    assert "unstable" in nexus.ctl("status").stdout
    assert nexus.ctl("invalidate", "--all").returncode == 0
    read_all(nexus, model, layers)
    flush(nexus)
    assert nexus.stats()["zones"][1]["used"] > 0
    disk.forget_pages()
    read_all(nexus, model, layers)


def test_what_a_disk_did_not_keep_is_not_served_from_it(started, disk, model):
    nexus, layers = started(zones=1), {}
    disk.fail("writes")
    read_all(nexus, model, layers)
    flush(nexus)  # hears of it
    disk.work_well()
    disk.forget_pages()
    read_all(nexus, model, layers)
    poll(lambda: json.loads(nexus.ctl("verify", "--json").stdout)["corrupt"] == [], "all is right")


def test_a_zone_that_cannot_be_read_costs_no_read(started, disk, model, hub):
    nexus, layers = started(), {}
    read_all(nexus, model, layers)
    flush(nexus)
    disk.forget_pages()
    disk.fail("reads")
    read_all(nexus, model, layers)
    # Unstable or not: what is fetched again may be written there, and then the zone is well.
    assert "will be fetched again" in nexus.log_text()


def test_a_zone_that_cannot_be_read_after_a_restart_costs_no_read(started, disk, model):
    nexus, layers = started(), {}
    read_all(nexus, model, layers)
    nexus.stop()
    disk.forget_pages()
    nexus.start()
    disk.fail("reads")
    read_all(nexus, model, layers)
    assert "Input/output error" in nexus.log_text()


def test_a_zone_that_comes_back_is_used_again(started, disk, model, hub):
    nexus, layers = started(zones=1), {}
    for what in (["writes"], ["reads"], ["reads", "writes"]):
        read_all(nexus, model, layers)
        flush(nexus)
        disk.fail(*what)
        disk.forget_pages()
        read_all(nexus, model, layers)
        assert nexus.ctl("invalidate", "--all").returncode == 0
        read_all(nexus, model, layers)
        flush(nexus)
        disk.work_well()
        assert nexus.ctl("invalidate", "--all").returncode == 0
        read_all(nexus, model, layers)
        flush(nexus)
        assert health(nexus) == ["ok"], what
        assert nexus.xattr("zone", "org/a/layer_0.pt") == "0"
    disk.forget_pages()
    sent = hub.bytes_sent("safetensors$")
    read_all(nexus, model, layers)
    assert hub.bytes_sent("safetensors$") - sent < 1 << 20, "nothing was fetched again"
    assert nexus.ctl("verify").returncode == 0
