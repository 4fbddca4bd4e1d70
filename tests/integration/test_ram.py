"""The RAM tier on a real mount: copies come, are bounded, go, and are always the true bytes."""
import hashlib
import json
import mmap
import os
from pathlib import Path

import models
import pytest
from nexus import Mount, poll

MIB = 1 << 20
REPO = "org/ram"
LAYERS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """96 MiB in 6 layers of about 16 MiB."""
    return models.make_model(tmp_path_factory.mktemp("ram") / REPO, tensors=models.sized_llama(96 * MIB, LAYERS), shards=2)


@pytest.fixture
def nexus_ram(hub, mount, model):
    """Without read-ahead: what is in memory is what a test read."""
    hub.commit(REPO, model.path)
    return lambda *flags, config=None, **rest: mount(*flags, config={"enable_prefetch": False} | (config or {}), **rest)


def digest(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else \
            hashlib.sha256(file.read()).hexdigest()


def layer(nexus: Mount, number: int):
    return nexus / REPO / f"layer_{number}.pt"


def tier(nexus: Mount, path) -> str:
    return os.getxattr(path, "user.nexus.tier").decode()


def cached_run(nexus: Mount, names: list[str]) -> dict[str, str]:
    """Downloads the files; what they are, by name. Durable when it returns."""
    found = {name: digest(nexus / REPO / name) for name in names}
    for name in names:
        poll(lambda n=name: nexus.xattr("state", f"{REPO}/{n}") == "resident", f"{name} is complete")
    return found


def all_layers() -> list[str]:
    return [f"layer_{n}.pt" for n in range(LAYERS)]


def memory(nexus: Mount) -> tuple[float, float]:
    stats = nexus.stats()
    return stats["memory_cache_size_gb"], stats["max_memory_cache_size_gb"]


def passthrough(nexus: Mount) -> bool:
    return json.loads(nexus.ctl("status", "--json").stdout)["passthrough"]


def object_files(nexus: Mount) -> list:
    return [file for file in nexus.cache.glob("zone_*/objects/*/*") if file.suffix != ".meta"]


def test_what_an_earlier_run_left_is_served_from_memory(nexus_ram, hub, model):
    shard = model.shards()[0]
    names = ["layer_0.pt", "layers/layer_1.safetensors", shard, "config.json"]
    with nexus_ram("--ram", "500MB") as nexus:
        before = cached_run(nexus, names)
        assert before[shard] == digest(model.path / shard)
        assert tier(nexus, nexus / REPO / shard) == "ssd"
        nexus.restart()
        hub.reset_counters()
        for name in names:
            path = nexus / REPO / name
            assert digest(path) == before[name], name
            assert tier(nexus, path) == "ram", name
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                assert hashlib.sha256(mapped).hexdigest() == before[name], name
        assert hub.bytes_sent("safetensors$") == 0
        stats = nexus.stats()
        assert stats["memory_cache_entries"] == len(names)
        assert 0 < stats["memory_cache_size_gb"] <= stats["max_memory_cache_size_gb"] <= 0.5
        status = json.loads(nexus.ctl("status", "--json").stdout)
        assert status["ram_tier"] in ("tmpfs with huge pages", "tmpfs", "memfd")
        assert "RAM tier" in nexus.ctl("status").stdout


def test_o_direct_reads_of_a_copy_are_true(nexus_ram):
    with nexus_ram("--ram", "500MB") as nexus:
        before = cached_run(nexus, ["layer_0.pt"])
        nexus.restart()
        path = layer(nexus, 0)
        assert digest(path) == before["layer_0.pt"] and tier(nexus, path) == "ram"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError:
            pytest.skip("no O_DIRECT on this kernel's tmpfs")
        buffer, found = mmap.mmap(-1, MIB), hashlib.sha256()
        while (count := os.readv(fd, [buffer])) > 0:
            found.update(buffer[:count])
        os.close(fd)
        assert found.hexdigest() == before["layer_0.pt"]


def test_the_limit_holds_and_every_byte_is_right(nexus_ram):
    with nexus_ram("--ram", "40MB") as nexus:
        before = cached_run(nexus, all_layers())
        nexus.restart()
        for _ in range(2):
            for name in all_layers():
                assert digest(nexus / REPO / name) == before[name], name
                used, limit = memory(nexus)
                assert used <= limit <= 0.04
        tiers = [tier(nexus, nexus / REPO / name) for name in all_layers()]
        assert 1 <= tiers.count("ram") <= 2 and tiers.count("ssd") >= LAYERS - 2, tiers


def test_a_mapping_keeps_its_copy_while_others_come_and_go(nexus_ram):
    with nexus_ram("--ram", "40MB") as nexus:
        if not passthrough(nexus):
            pytest.skip("without passthrough nobody maps the copies")
        before = cached_run(nexus, all_layers())
        nexus.restart()
        path = layer(nexus, 0)
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert tier(nexus, path) == "ram"
        for name in all_layers()[1:]:
            assert digest(nexus / REPO / name) == before[name], name
            assert tier(nexus, path) == "ram"
        assert hashlib.sha256(mapped).hexdigest() == before["layer_0.pt"]
        mapped.close()


def test_a_corrupt_chunk_is_found_on_its_way_into_memory(nexus_ram, hub):
    with nexus_ram("--ram", "500MB") as nexus:
        before = cached_run(nexus, ["layer_0.pt"])
        nexus.stop()
        largest = max(object_files(nexus), key=lambda file: file.stat().st_size)
        with open(largest, "r+b") as file:
            file.seek(5 * MIB + 11)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0x40]))
        hub.reset_counters()
        nexus.start()
        assert digest(layer(nexus, 0)) == before["layer_0.pt"]
        assert hub.bytes_sent("safetensors$") > 0
        assert "is not what it was" in nexus.log_text()


def test_a_kill_loses_nothing(nexus_ram, hub):
    with nexus_ram("--ram", "500MB") as nexus:
        before = cached_run(nexus, all_layers())
        nexus.restart()
        for name in all_layers():
            digest(nexus / REPO / name)
        assert nexus.stats()["memory_cache_entries"] == LAYERS
        nexus.kill()
        hub.reset_counters()
        nexus.start()
        assert nexus.stats()["memory_cache_entries"] == 0
        for name in all_layers():
            assert digest(nexus / REPO / name) == before[name], name
        assert hub.bytes_sent("safetensors$") == 0


def test_a_limit_of_nothing_turns_the_tier_off(nexus_ram):
    with nexus_ram(config={"max_memory_cache_size_gb": 0}) as nexus:
        before = cached_run(nexus, ["layer_0.pt"])
        nexus.restart()
        path = layer(nexus, 0)
        assert digest(path) == before["layer_0.pt"]
        assert tier(nexus, path) == "ssd"
        status = json.loads(nexus.ctl("status", "--json").stdout)
        assert status["ram_tier"] == "off" and "max_memory_cache_size_gb" in status["ram_tier_reason"]


@pytest.fixture
def memory_group():
    """A control group of the memory controller with 1 GiB, of either version; its files by what they are."""
    root = Path("/sys/fs/cgroup/memory")
    limit = "memory.limit_in_bytes"
    if not (root / limit).exists():
        root, limit = Path("/sys/fs/cgroup"), "memory.max"
    group = root / f"nexusfs-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        (group / limit).write_text(str(1 << 30))
        yield group
    except OSError as error:
        pytest.skip(f"no memory limit can be set: {error}")
    finally:
        def removed() -> bool:
            try:
                group.rmdir()
                return True
            except OSError:
                return False
        poll(removed, "the end of what ran in the control group")


def test_the_tier_keeps_within_its_control_groups_memory(nexus_ram, memory_group):
    nexus = nexus_ram("--ram", "64GiB")
    arguments = nexus.arguments()
    nexus.arguments = lambda: ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(memory_group / "cgroup.procs"), *arguments]
    with nexus:
        assert memory(nexus)[1] <= 0.75 * (1 << 30) / 1e9
        assert "control group" in nexus.log_text()
        truth = cached_run(nexus, all_layers())
        nexus.restart()
        assert {name: digest(nexus / REPO / name) for name in truth} == truth
