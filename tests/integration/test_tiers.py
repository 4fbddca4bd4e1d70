"""Files that move between tiers, the background scrub, and a disk that hangs."""
import contextlib
import json
import os

import models
import pytest
from disks import configured, mounted, run, small_disk
from nexus import poll, same_bytes

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
def test_a_disk_that_hangs_at_the_start_costs_its_zone_alone(hub, mount, model, tmp_path):
    with small_disk(tmp_path, 400 << 20) as disk:
        zones = [{"path": str(disk / "zone")}, {"path": str(tmp_path / "other")}]
        config = config_file(tmp_path, zones, scrub_interval="off", migrate_interval="off", enable_prefetch=False)
        nexus = mount("--config", config, "--ram", "0").start()
        truth = (nexus / "org/a/layer_0.pt").read_bytes()
        assert nexus.xattr("zone", "org/a/layer_0.pt") == "0"
        nexus.stop()
        with contextlib.ExitStack() as thaw:
            run("fsfreeze", "-f", disk)
            thaw.callback(run, "fsfreeze", "-u", disk)
            nexus.start()  # making its directory hangs
            states = answer(nexus, "status")["zones"]
            assert [zone["health"] for zone in states] == ["down", "ok"]
            assert states[0]["unread"] and "unread" not in states[1]
            assert "did not answer at the start" in nexus.ctl("status").stdout
            assert "did not answer at the start" in nexus.log_text()
            assert (nexus / "org/a/layer_0.pt").read_bytes() == truth
            assert nexus.xattr("zone", "org/a/layer_0.pt") == "1"
            thaw.close()
            poll(lambda: answer(nexus, "status")["zones"][0]["health"] == "ok", "it was not used again")
            assert (nexus / "org/a/layer_2.pt").read_bytes()
            assert nexus.xattr("zone", "org/a/layer_2.pt") == "0"
            nexus.stop()
        nexus.start()
        assert all("unread" not in zone for zone in answer(nexus, "status")["zones"])
        assert (nexus / "org/a/layer_0.pt").read_bytes() == truth
        assert nexus.xattr("zone", "org/a/layer_0.pt") == "1", "the newer of two"
        assert nexus.ctl("verify").returncode == 0
        nexus.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="freezes a file system")
def test_a_disk_that_hangs_costs_no_read(mount, model, tmp_path):
    with small_disk(tmp_path, 400 << 20) as disk:
        zones = [{"path": str(disk / "zone")}, {"path": str(tmp_path / "other")}]
        config = config_file(tmp_path, zones, scrub_interval="off", migrate_interval="off")
        with mount("--config", config, "--ram", "256MiB") as nexus, contextlib.ExitStack() as thaw:
            first = (nexus / "org/a/layer_0.pt").read_bytes()
            assert nexus.xattr("zone", "org/a/layer_0.pt") == "0"
            os.sync()
            for file in (disk / "zone/objects").glob("*/*"):  # what a shard could be filled from is on the disk alone
                with contextlib.suppress(FileNotFoundError), open(file, "rb") as forget:  # a sidecar being written
                    os.posix_fadvise(forget.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
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


@pytest.mark.skipif(os.geteuid() != 0, reason="freezes a file system")
def test_a_cache_dir_that_hangs_costs_no_read(hub, mount, model, repos, tmp_path):
    """The catalog and the log lie on the disk that hangs, the zone on another."""
    other = models.make_model(repos / "org/b", "gpt2")
    hub.commit("org/b", repos / "org/b")
    with small_disk(tmp_path, 64 << 20) as disk:
        config = config_file(tmp_path, [{"path": str(tmp_path / "zone")}], scrub_interval="off", migrate_interval="off")
        nexus = mount("--config", config, "--ram", "256MiB", cache=disk / "cache")
        nexus.log = disk / "nexusfs.log"
        with nexus, contextlib.ExitStack() as thaw:
            first = (nexus / "org/a/layer_0.pt").read_bytes()
            run("fsfreeze", "-f", disk)
            thaw.callback(run, "fsfreeze", "-u", disk)
            pinned = nexus.ctl("pin", "org/a")  # must be written down
            assert pinned.returncode != 0 and "hangs" in pinned.stderr
            assert answer(nexus, "status")["cache_dir_hangs"]
            assert "its disk does not answer" in nexus.ctl("status").stdout
            for name in model.files():
                assert same_bytes(nexus / "org/a" / name, model.path / name), name
            for name in other.files():  # of which the catalog knows nothing
                assert same_bytes(nexus / "org/b" / name, other.path / name), name
            assert (nexus / "org/a/layer_0.pt").read_bytes() == first
            assert len((nexus / "org/a/layer_1.pt").read_bytes()) == (nexus / "org/a/layer_1.pt").stat().st_size
            assert nexus.ctl("ls").returncode == 0
            assert [zone["health"] for zone in answer(nexus, "status")["zones"]] == ["ok"]
            thaw.close()
            poll(lambda: not answer(nexus, "status")["cache_dir_hangs"], "it was not used again")
            poll(lambda: "hangs" in nexus.log_text(), "the log's lines")
            assert nexus.ctl("flush").returncode == 0
            nexus.kill()
        with nexus:
            assert (nexus / "org/a/layer_0.pt").read_bytes() == first
            assert nexus.ctl("verify").returncode == 0
            hub_asked = hub.bytes_sent("safetensors$")
            assert same_bytes(nexus / "org/a" / model.shards()[0], model.path / model.shards()[0])
            assert hub.bytes_sent("safetensors$") == hub_asked, "what came meanwhile was kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="freezes a file system")
def test_a_cache_dir_that_hangs_at_the_start_is_an_error(mount, model, tmp_path):
    with small_disk(tmp_path, 64 << 20) as disk:
        nexus = mount(cache=disk / "cache")
        nexus.start()
        truth = (nexus / "org/a/layer_0.pt").read_bytes()
        nexus.stop()
        with contextlib.ExitStack() as thaw:
            run("fsfreeze", "-f", disk)
            thaw.callback(run, "fsfreeze", "-u", disk)
            refused = nexus.try_start()
            assert refused.returncode != 0 and "its disk does not answer" in refused.stderr, refused
        nexus.wait_ended()  # a call that hung kept it
        nexus.start()
        assert (nexus / "org/a/layer_0.pt").read_bytes() == truth
        nexus.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_catalog_that_cannot_be_written_costs_no_read(hub, mount, model, tmp_path):
    """cache_dir's disk is full, the zone's is not."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=3m", "tmpfs") as disk:
        config = config_file(tmp_path, [{"path": str(tmp_path / "zone")}], scrub_interval="off", migrate_interval="off")
        nexus = mount("--config", config, "--ram", "0", cache=disk / "cache")
        nexus.start()
        ballast = disk / "ballast"
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
        truth = (nexus / "org/a/layer_0.pt").read_bytes()
        assert nexus.ctl("flush").returncode == 0
        assert "catalog" in nexus.log_text()
        nexus.stop()
        nexus.start()  # and so starts a daemon: from the sidecars
        sent = hub.bytes_sent("safetensors$")
        assert (nexus / "org/a/layer_0.pt").read_bytes() == truth
        for name in model.shards():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
        # The headers are asked for again, the tensors are not.
        assert hub.bytes_sent("safetensors$") - sent < 4 << 20
        ballast.unlink()
        nexus.stop()
        nexus.start()
        assert same_bytes(nexus / "org/a" / model.shards()[0], model.path / model.shards()[0])
        assert nexus.ctl("verify").returncode == 0
        nexus.stop()
