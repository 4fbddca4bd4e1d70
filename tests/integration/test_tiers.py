"""Files that move between tiers, the background scrub, and a disk that hangs."""
import contextlib
import json
import os

import models
import pytest
from nexus import poll, same_bytes
from test_zones import configured, mounted, run

LAYERS = 4


@pytest.fixture
def model(hub, repos):
    made = models.make_model(repos / "org/a", tensors=models.sized_llama(24 << 20, LAYERS), shards=2)
    hub.add_root(repos)
    return made


def answer(nexus, *arguments) -> dict:
    result = nexus.ctl(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def config_file(tmp_path, zones, **keys) -> str:
    path = tmp_path / "tiers.toml"
    path.write_text(configured(zones, enable_wear_leveling=False, **keys))  # the first with room
    return str(path)


def test_hot_files_go_to_the_faster_tier_and_are_found_there_after_a_restart(hub, mount, model, tmp_path):
    zones = [{"path": str(tmp_path / "slow"), "tier": "hdd"}, {"path": str(tmp_path / "fast"), "tier": "nvme"}]
    config = config_file(tmp_path, zones, migrate_interval="off", scrub_interval="off")
    nexus = mount("--config", config, "--ram", "0").start()
    truth = {name: (nexus / "org/a" / name).read_bytes() for name in ("layer_0.pt", "layer_1.pt")}
    for _ in range(6):
        assert (nexus / "org/a/layer_0.pt").read_bytes() == truth["layer_0.pt"]
    with open(nexus / "org/a/layer_0.pt", "rb") as held:
        held.read(10)
        assert answer(nexus, "migrate")["moved"] == [], "it is open"
        held.seek(0)
        assert held.read() == truth["layer_0.pt"]

    def moved():
        return any(one["name"].endswith("layer_0.pt") for one in answer(nexus, "migrate")["moved"])

    poll(moved, "layer_0.pt in the faster zone")  # RELEASE comes some time after close
    assert nexus.xattr("zone", "org/a/layer_0.pt") == "1"
    assert nexus.xattr("zone", "org/a/layer_1.pt") == "0"
    assert "0 files moved" in nexus.ctl("migrate").stdout
    sent = hub.bytes_sent("safetensors$")
    for name, content in truth.items():
        assert (nexus / "org/a" / name).read_bytes() == content, name
    assert nexus.ctl("verify").returncode == 0
    nexus.stop()
    nexus.start()
    for name, content in truth.items():
        assert (nexus / "org/a" / name).read_bytes() == content, name
    assert nexus.xattr("zone", "org/a/layer_0.pt") == "1"
    assert hub.bytes_sent("safetensors$") - sent < len(truth["layer_1.pt"]) // 2, "fetched again"
    assert nexus.ctl("optimize").returncode == 0
    nexus.stop()


def test_the_scrub_finds_what_rots(mount, model, tmp_path):
    config = config_file(tmp_path, [{"path": str(tmp_path / "zone")}], scrub_interval="1s", migrate_interval="off",
                         enable_prefetch=False)
    with mount("--config", config, "--ram", "0") as nexus:
        truth = (nexus / "org/a/layer_0.pt").read_bytes()
        poll(lambda: nexus.stats()["scrub"]["passes"] > 0, "no pass ended")
        assert nexus.stats()["scrub"]["corrupt"] == 0
        size = len(truth)
        (path,) = [path for path in (tmp_path / "zone").rglob("*")
                   if path.is_file() and path.stat().st_size == size]
        with open(path, "r+b") as file:
            file.seek(size // 2)
            byte = file.read(1)
            file.seek(size // 2)
            file.write(bytes([byte[0] ^ 1]))
        poll(lambda: nexus.stats()["scrub"]["corrupt"] == 1, "it was not found")
        poll(lambda: nexus.xattr("state", "org/a/layer_0.pt") == "absent", "it was not dropped")
        assert (nexus / "org/a/layer_0.pt").read_bytes() == truth
        status = nexus.ctl("status").stdout
        assert "scrub" in status and "1 corrupt since the mount" in status
        assert "corrupt" not in nexus.ctl("verify").stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="freezes a file system")
def test_a_disk_that_hangs_costs_no_read(mount, model, tmp_path):
    image = tmp_path / "disk.img"
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    run("mkfs.ext4", "-q", image)
    with mounted(tmp_path / "disk", "-o", "loop", image) as disk:
        zones = [{"path": str(disk / "zone")}, {"path": str(tmp_path / "other")}]
        config = config_file(tmp_path, zones, scrub_interval="off", migrate_interval="off")
        with mount("--config", config, "--ram", "256MiB") as nexus, contextlib.ExitStack() as thaw:
            first = (nexus / "org/a/layer_0.pt").read_bytes()
            assert nexus.xattr("zone", "org/a/layer_0.pt") == "0"
            run("fsfreeze", "-f", disk)
            thaw.callback(run, "fsfreeze", "-u", disk)
            # Making a file there hangs, and so does whoever waits for it.
            for name in model.files():
                assert same_bytes(nexus / "org/a" / name, model.path / name), name
            layer = (nexus / "org/a/layer_1.pt").read_bytes()
            assert len(layer) == (nexus / "org/a/layer_1.pt").stat().st_size
            assert (nexus / "org/a/layer_0.pt").read_bytes() == first
            states = answer(nexus, "status")["zones"]
            assert [zone["health"] for zone in states] == ["down", "ok"]
            assert states[1]["used"] > 0
            assert "hangs" in nexus.log_text()
            thaw.close()
            poll(lambda: answer(nexus, "status")["zones"][0]["health"] == "ok", "it was not used again")
            assert (nexus / "org/a/layer_2.pt").read_bytes()
            assert nexus.xattr("zone", "org/a/layer_2.pt") == "0"
            assert nexus.ctl("verify").returncode == 0
