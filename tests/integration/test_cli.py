"""Command lines, configuration, control socket and extended attributes."""
import errno
import json
import os
import re
import signal
import subprocess

import models
import pytest
from nexus import BIN, HANG_S, mount_device, poll, processes_with, same_bytes

STATS_KEYS = {"disk_cache_entries", "memory_cache_entries", "disk_cache_size_gb", "memory_cache_size_gb",
              "max_disk_cache_size_gb", "max_memory_cache_size_gb", "performance", "prefetcher", "downloader", "zones"}
PERFORMANCE_KEYS = {"total_hits", "total_misses", "total_evictions", "cache_hit_ratio", "total_requests",
                    "avg_latency_ms", "bytes_downloaded", "bytes_served_from_cache"}
PREFETCHER_KEYS = {"cache_hits", "total_requests", "prefetch_hit_ratio", "avg_latency_ms", "queue_depth", "wasted_bytes"}
ZONE_KEYS = {"path", "tier", "bytes_written", "size", "used", "health"}


def run(program: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(BIN / program), *arguments], capture_output=True, text=True, timeout=HANG_S, **options)


@pytest.fixture
def nexus(hub, mount, repos):
    models.make_model(repos / "org/a", "llama", layers=3, hidden=128, shards=2)
    hub.add_root(repos)
    with mount("--disk", "3GB", "--ram", "1GB") as running:
        yield running


def test_version():
    for program in ("nexusfs", "nexusctl"):
        result = run(program, "--version")
        assert result.returncode == 0 and re.search(r"\d+\.\d+", result.stdout), program


def test_help_names_every_flag_of_mount():
    text = run("nexusfs", "mount", "--help").stdout
    for flag in ("config", "endpoint", "base-url", "local", "model", "hub-cache", "cache-dir", "ram", "disk",
                 "token-file", "integrity", "offline", "allow-other", "foreground", "log-file"):
        assert f"--{flag}" in text, flag


@pytest.mark.parametrize("flags, named", [
    (["--no-such-flag"], "no-such-flag"), (["--ram", "lots"], "lots"), (["--disk", "5Q"], "5Q"),
    (["--integrity", "sometimes"], "sometimes"), (["--model", "alias-only"], "alias-only"),
    (["--local", "no-equals"], "no-equals"), (["--model", ".hub=org/a"], ".hub"),
    (["--model", "a/b=org/a"], "a/b"), (["--endpoint", "ftp://x"], "ftp://x"),
    (["--config", "/absent/config.toml"], "/absent/config.toml"), (["--token-file", "/absent/token"], "/absent/token"),
], ids=lambda value: str(value[0]) if isinstance(value, list) else "")
def test_bad_flag_fails_and_names_it(mount, flags, named):
    nexus = mount(*flags, endpoint=None)
    nexus.path.mkdir()
    result = nexus.try_start()
    assert result.returncode != 0
    assert named in result.stderr
    assert mount_device(nexus.path) is None and processes_with(str(nexus.path)) == []


@pytest.mark.parametrize("config, named", [
    ({"no_such_key": 1}, "no_such_key"), ({"enable_compression": True}, "enable_compression"),
    ({"max_cache_size_gb": "big"}, "max_cache_size_gb"), ({"compression_level": 12}, "compression_level"),
    ({"integrity": "none"}, "integrity"), ({"num_zones": -1}, "num_zones"), ({"profile": "fast"}, "profile"),
], ids=lambda value: "" if isinstance(value, str) else str(value))
def test_bad_configuration_fails_and_names_the_key(mount, config, named):
    nexus = mount(config=config)
    nexus.path.mkdir()
    result = nexus.try_start()
    assert result.returncode != 0 and named in result.stderr
    assert mount_device(nexus.path) is None


def test_configuration_that_is_not_toml_fails_with_its_line(mount, tmp_path):
    (tmp_path / "bad.toml").write_text("max_cache_size_gb = 5\nthis is not toml\n")
    nexus = mount("--config", str(tmp_path / "bad.toml"))
    nexus.path.mkdir()
    result = nexus.try_start()
    assert result.returncode != 0 and "bad.toml" in result.stderr and "2" in result.stderr


def test_mountpoint_whose_parent_is_absent_fails_clearly(mount):
    nexus = mount()
    nexus.path = nexus.path.parent / "absent" / "mnt"
    result = nexus.try_start()
    assert result.returncode != 0 and str(nexus.path.parent) in result.stderr


def test_mountpoint_is_made_where_its_parent_exists(hub, mount):
    nexus = mount()
    result = nexus.try_start()
    assert result.returncode == 0, result.stderr
    assert nexus.path.is_mount()
    nexus.stop()


def test_every_key_of_the_configuration_is_accepted(hub, mount, repos, tmp_path):
    model = models.make_model(repos / "org/a", "llama")
    hub.add_root(repos)
    config = {"cache_dir": str(tmp_path / "from-config"), "max_cache_size_gb": 3, "max_memory_cache_size_gb": 0.5,
              "num_zones": 2, "enable_wear_leveling": False, "max_connections": 4, "enable_prefetch": False,
              "prefetch_lookahead": 3, "enable_compression": False, "compression_level": 9, "persist_metadata": True,
              "integrity": "strict", "list_views": False, "background_fill": True, "metrics_listen": "127.0.0.1:0",
              "eviction_policy": "lirs"}
    with mount(config=config) as nexus:
        shown = json.loads(nexus.ctl("config", "--json").stdout)["config"]
        assert set(config) - {"compression_level"} <= set(shown)
        assert same_bytes(nexus / "org/a/model.safetensors", model.path / "model.safetensors")
        stats = nexus.stats()
        assert stats["max_disk_cache_size_gb"] == pytest.approx(3)
        assert stats["max_memory_cache_size_gb"] == pytest.approx(0.5)
        assert len(stats["zones"]) >= 2
    assert not (tmp_path / "from-config").exists()  # the flag --cache-dir overrides the file


def test_flags_override_the_configuration(mount):
    with mount("--disk", "5GB", "--ram", "512MiB", config={"max_cache_size_gb": 3}) as nexus:
        assert nexus.stats()["max_disk_cache_size_gb"] == pytest.approx(5)
        assert nexus.stats()["max_memory_cache_size_gb"] == pytest.approx((512 << 20) / 1e9)


def test_configuration_is_found_in_the_home_directory(mount):
    nexus = mount()
    file = nexus.work / ".config/nexus/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("max_cache_size_gb = 7\n")
    with nexus:
        assert nexus.stats()["max_disk_cache_size_gb"] == pytest.approx(7)


def test_stats_have_every_key(nexus):
    (nexus / "org/a/layer_0.pt").read_bytes()
    (nexus / "org/a/layer_0.pt").read_bytes()
    stats = nexus.stats()
    assert STATS_KEYS <= set(stats)
    assert PERFORMANCE_KEYS <= set(stats["performance"])
    assert PREFETCHER_KEYS <= set(stats["prefetcher"])
    assert "active_downloads" in stats["downloader"]
    assert stats["zones"] and all(ZONE_KEYS <= set(zone) for zone in stats["zones"])
    layer = (nexus / "org/a/layer_0.pt").stat().st_size
    assert stats["performance"]["bytes_downloaded"] > 0.9 * layer
    assert stats["performance"]["total_hits"] >= 1
    assert 0 <= stats["performance"]["cache_hit_ratio"] <= 1
    assert stats["max_disk_cache_size_gb"] == pytest.approx(3)


def test_status_ls_and_stats_speak_to_people(nexus):
    (nexus / "org/a/layer_0.pt").read_bytes()
    status = nexus.ctl("status")
    assert status.returncode == 0 and str(nexus.path) in status.stdout
    assert "passthrough" in status.stdout.lower()  # whether it is on, or why not
    assert "org/a" in nexus.ctl("ls").stdout
    assert nexus.ctl("stats").returncode == 0


def test_nexusctl_without_a_mount_takes_the_only_one_or_names_them(nexus):
    result = run("nexusctl", "status", env=nexus.env)
    # Another test run may have mounts of its own on this machine.
    assert str(nexus.path) in (result.stdout if result.returncode == 0 else result.stderr)


def test_nexusctl_fails_clearly(nexus, tmp_path):
    for arguments in (["--mount", str(tmp_path), "status"], ["--mount", str(nexus.path), "nonsense"],
                      ["--mount", str(nexus.path), "refresh", "org/absent"]):
        result = run("nexusctl", *arguments, env=nexus.env)
        assert result.returncode != 0 and result.stderr.strip(), arguments


def test_unmount_of_something_else_fails_clearly(tmp_path):
    result = run("nexusfs", "unmount", str(tmp_path))
    assert result.returncode != 0 and str(tmp_path) in result.stderr


def test_refresh_moves_to_the_new_commit_and_not_before(hub, mount, repos, tmp_path):
    old = models.make_model(repos / "org/a", "llama", salt="old", hidden=64)
    new = models.make_model(tmp_path / "new", "llama", salt="new", hidden=64)
    hub.add_root(repos)
    with mount("--model", "m=org/a") as nexus:
        assert same_bytes(nexus / "m/config.json", old.path / "config.json")
        commit = hub.commit("org/a", new.path)
        for name in old.files():  # one revision, also for what was never read before
            assert same_bytes(nexus / "m" / name, old.path / name), name
        with open(nexus / "m/model.safetensors", "rb") as early:
            result = nexus.ctl("refresh", "m")
            assert result.returncode == 0, result.stderr
            poll(lambda: nexus.xattr("revision", "m/config.json") == commit, "the new revision")
            for name in new.files():
                assert same_bytes(nexus / "m" / name, new.path / name), name
            assert early.read() == (old.path / "model.safetensors").read_bytes()
        assert (nexus / ".hub/models--org--a/refs/main").read_text() == commit


def test_restart_keeps_the_commit(hub, mount, repos, tmp_path):
    old = models.make_model(repos / "org/a", "llama", salt="old")
    new = models.make_model(tmp_path / "new", "llama", salt="new")
    first = hub.commit("org/a", old.path)
    with mount() as nexus:
        assert nexus.xattr("revision", "org/a/config.json") == first
        hub.commit("org/a", new.path)
        nexus.restart()
        served = nexus.xattr("revision", "org/a/config.json")
        truth = old if served == first else new
        for name in old.files():
            assert same_bytes(nexus / "org/a" / name, truth.path / name), name


def test_xattrs_of_a_file_tell_its_state(nexus, hub):
    shard = "org/a/model-00001-of-00002.safetensors"
    (nexus / shard).stat()
    assert nexus.xattr("state", shard) == "absent"
    data = (nexus / shard).read_bytes()
    poll(lambda: nexus.xattr("state", shard) == "resident", "residency")
    assert int(nexus.xattr("bytes_cached", shard)) == len(data)
    assert nexus.xattr("tier", shard) in ("ssd", "ram")
    assert nexus.xattr("revision", shard) == hub.commit_of("org/a")
    assert nexus.xattr("etag", shard) == hub.etag_of("org/a", "model-00001-of-00002.safetensors")
    assert nexus.xattr("verified", shard) in ("none", "sha256")
    assert nexus.xattr("source", shard).startswith("http") and "?" not in nexus.xattr("source", shard)
    (nexus / "org/a/layer_2.pt").read_bytes()
    assert nexus.xattr("layer", "org/a/layer_2.pt") == "2"
    assert nexus.xattr("tensors", "org/a/layer_2.pt") == "9"
    assert int(nexus.xattr("hits", "org/a/layer_2.pt")) >= 0
    listed = {name.removeprefix("user.nexus.") for name in os.listxattr(nexus / "org/a/layer_2.pt")}
    assert {"state", "tier", "bytes_cached", "hits", "verified", "revision", "layer", "tensors", "source"} <= listed


def test_listed_xattrs_can_all_be_read(nexus):
    for name in ("", "org/a", "org/a/config.json", "org/a/layer_0.pt", "org/a/layers/layer_0.safetensors"):
        for key in os.listxattr(nexus / name):
            os.getxattr(nexus / name, key)
    with pytest.raises(OSError) as failure:
        os.getxattr(nexus / "org/a/config.json", "user.nexus.nonsense")
    assert failure.value.errno == errno.ENODATA
    with pytest.raises(OSError) as failure:
        os.getxattr(nexus / "org/a/config.json", "security.capability")
    assert failure.value.errno in (errno.ENODATA, errno.EOPNOTSUPP)


def test_stats_xattr_of_root_and_model_is_json(nexus):
    assert STATS_KEYS <= set(json.loads(nexus.xattr("stats", "")))
    assert isinstance(json.loads(nexus.xattr("stats", "org/a")), dict)


@pytest.fixture
def foreground(hub, mount, repos):
    """(mount, process) of a daemon in the foreground."""
    models.make_model(repos / "org/a", tensors=models.sized_llama(32 << 20, 2))
    hub.add_root(repos)
    nexus = mount("--foreground")
    nexus.path.mkdir()
    with open(nexus.work / "progress", "w") as out:
        daemon = subprocess.Popen(nexus.arguments(), env=nexus.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    poll(lambda: mount_device(nexus.path) or daemon.poll() is not None, "the mount")
    yield nexus, daemon
    nexus.clean_up()
    daemon.wait()


def test_foreground_shows_progress_and_ends_with_unmount(foreground, hub):
    nexus, daemon = foreground
    (nexus / "org/a/layer_1.pt").read_bytes()
    poll(lambda: "layer_1.pt" in (nexus.work / "progress").read_text(), "a progress line")
    nexus.stop()
    assert daemon.wait(timeout=HANG_S) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_unmounts_a_foreground_daemon(foreground, number):
    nexus, daemon = foreground
    (nexus / "org/a/config.json").read_bytes()
    daemon.send_signal(number)
    assert daemon.wait(timeout=HANG_S) == 0
    assert mount_device(nexus.path) is None
    nexus.check_sanitizers()


def test_ls_shows_what_is_being_fetched(hub, mount, repos):
    models.make_model(repos / "org/a", tensors=models.sized_llama(32 << 20, 2))
    hub.add_root(repos)
    with mount() as nexus:
        path = nexus / "org/a/layer_1.pt"
        path.stat()
        fault = hub.fault("safetensors$", "stall", server="cdn", after=1000)
        reader = subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL)
        assert hub.wait_parked(fault)
        assert "layer_1.pt" in nexus.ctl("ls").stdout
        assert nexus.stats()["downloader"]["active_downloads"] >= 1
        assert nexus.xattr("state", "org/a/layer_1.pt") == "fetching"
        hub.release(fault)
        assert reader.wait() == 0
