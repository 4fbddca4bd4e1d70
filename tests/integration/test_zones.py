"""Zones on file systems of their own: a full disk, a read-only one, and the daily write budget."""
import os

import models
import pytest
from disks import configured, mounted, run
from nexus import same_bytes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
LAYERS = 4


@pytest.fixture
def model(hub, repos):
    made = models.make_model(repos / "org/a", tensors=models.sized_llama(48 << 20, LAYERS), shards=2)
    hub.add_root(repos)
    return made


def test_a_full_disk_costs_no_read(mount, model, tmp_path):
    image = tmp_path / "disk.img"
    with open(image, "wb") as file:
        file.truncate(24 << 20)
    run("mkfs.ext4", "-q", image)
    with mounted(tmp_path / "disk", "-o", "loop", image) as disk, \
            mount("--ram", "512MiB", cache=disk / "cache") as nexus:
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
        for n in range(LAYERS):
            assert len((nexus / f"org/a/layer_{n}.pt").read_bytes()) == (nexus / f"org/a/layer_{n}.pt").stat().st_size
        status = os.statvfs(disk)
        assert status.f_bavail > 0, "the reserve was used"
        assert nexus.ctl("verify").returncode == 0


def test_a_zone_that_turns_read_only_is_read_and_others_are_written(hub, mount, model, tmp_path):
    with mounted(tmp_path / "a", "-t", "tmpfs", "tmpfs") as disk:
        config = tmp_path / "zones.toml"
        zones = [{"path": str(disk / "zone"), "tier": "nvme"}, {"path": str(tmp_path / "b")}]
        # The first with room, and nothing is asked for but what is read.
        config.write_text(configured(zones, enable_wear_leveling=False, enable_prefetch=False))
        nexus = mount("--config", str(config)).start()
        truth = (nexus / "org/a/layer_0.pt").read_bytes()
        assert nexus.xattr("zone", "org/a/layer_0.pt") == "0"
        nexus.stop()
        run("mount", "-o", "remount,ro", disk)
        nexus.start()
        sent = hub.bytes_sent("safetensors$")
        assert (nexus / "org/a/layer_0.pt").read_bytes() == truth
        assert hub.bytes_sent("safetensors$") - sent < len(truth) // 2
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
        zones = nexus.stats()["zones"]
        assert zones[0]["health"] == "unstable" and zones[1]["health"] == "ok" and zones[1]["used"] > 0
        assert "unstable" in nexus.ctl("status").stdout
        nexus.stop()


def test_over_the_daily_budget_objects_stay_in_memory(mount, model):
    with mount("--ram", "512MiB", config={"daily_write_budget_gb": 0.02}) as nexus:
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
        stats = nexus.stats()
        assert stats["memory_cache_entries"] > 0
        assert sum(zone["bytes_written"] for zone in stats["zones"]) < 40_000_000


def test_the_daily_budget_goes_on_after_a_kill(mount, model):
    def written() -> int:
        return sum(zone["bytes_written"] for zone in nexus.stats()["zones"])

    with mount("--ram", "512MiB", config={"daily_write_budget_gb": 0.02, "enable_prefetch": False}) as nexus:
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
        assert nexus.ctl("flush").returncode == 0
        before = written()
        nexus.kill()
    with nexus:
        assert written() > before - 1_000_000, "but for the last sidecars"
        assert nexus.ctl("invalidate", "--all").returncode == 0
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
        assert nexus.stats()["memory_cache_entries"] > 0
        assert written() < before + 10_000_000, "half of the budget, and no other"


def test_over_the_daily_budget_and_out_of_memory_the_disk_serves_all_the_same(mount, model):
    with mount("--ram", "1MiB", config={"daily_write_budget_gb": 0.001}) as nexus:
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
