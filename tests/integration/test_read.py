"""Reads: true bytes under every access pattern, and no more downloaded than the contract allows."""
import concurrent.futures
import errno
import mmap
import os
import random
import subprocess
import sys
import time

import models
import pytest
import tensorfiles
from nexus import poll, pread_exactly, read_range, same_bytes

MIB = 1 << 20
CHUNK = MIB
# One small range request a shard reads its header; rounded up for its HTTP buffer.
HEADER_BYTES = 128 << 10
# Bound of the read-ahead window that one reader may cause beyond what it asked for.
READ_AHEAD_BYTES = 8 * MIB  # what a read that begins no long walk may cost beyond its chunks
WALK_WINDOW_BYTES = 16 * MIB  # prefetch/sequential.h: kWindowEasy


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """About 190 MiB in 8 layers over 3 shards: a layer is much larger than a read-ahead window."""
    tensors = models.sized_llama(192 * MIB, 8)
    return models.make_model(tmp_path_factory.mktemp("big") / "org/big", tensors=tensors, shards=3)


@pytest.fixture
def nexus_big(hub, mount, big):
    hub.commit("org/big", big.path)
    return mount


def shard_range(model, layer) -> list[tuple[str, int, int]]:
    """(file, first, last) of every tensor of the layer in the shards."""
    result = []
    for shard in model.shards():
        here = tensorfiles.writer_order([t for t in model.tensors if model.weight_map[t.name] == shard])
        base = len(tensorfiles.encode_header(tensorfiles.header_of(here, {"format": "pt"})))
        offsets = tensorfiles.header_of(here)
        result += [(shard, base + offsets[t.name]["data_offsets"][0], base + offsets[t.name]["data_offsets"][1])
                   for t in here if t.layer == layer]
    return result


def check_random_preads(served, source, count: int, seed: int) -> None:
    rng, size = random.Random(seed), source.stat().st_size
    with open(served, "rb", buffering=0) as a, open(source, "rb", buffering=0) as b:
        for _ in range(count):
            length = rng.choice((1, 17, 512, 4096, 70_001, 300_000))
            offset = rng.randrange(-100, size) if rng.random() < 0.95 else size - rng.randrange(1, 5000)
            offset = max(0, offset)
            assert pread_exactly(a.fileno(), length, offset) == pread_exactly(b.fileno(), length, offset), (
                served, offset, length)


def test_ten_thousand_random_preads_cold_and_warm(nexus_big, big):
    shard = big.shards()[1]
    with nexus_big() as nexus:
        for seed in (1, 2):  # cold, then warm
            check_random_preads(nexus / "org/big" / shard, big.path / shard, 5000, seed)


def test_sixteen_concurrent_readers_cold_and_warm(nexus_big, hub, big):
    with nexus_big() as nexus, concurrent.futures.ThreadPoolExecutor(16) as pool:
        for seed in (100, 200):
            jobs = [pool.submit(check_random_preads, nexus / "org/big" / shard, big.path / shard, 300, seed + i)
                    for i in range(16) for shard in [big.shards()[i % 3]]]
            for job in jobs:
                job.result()
        # Each byte once, however many readers wanted it.
        assert hub.bytes_sent("safetensors$") <= 1.02 * sum((big.path / s).stat().st_size for s in big.shards())


def test_reads_past_and_at_the_end_are_short(nexus_big, big):
    shard = big.shards()[0]
    size = (big.path / shard).stat().st_size
    with nexus_big() as nexus:
        tail = read_range(big.path / shard, size - 5, 5)
        assert read_range(nexus / "org/big" / shard, size - 5, 100) == tail
        assert read_range(nexus / "org/big" / shard, size, 100) == b""
        assert read_range(nexus / "org/big" / shard, size + (1 << 33), 100) == b""


def test_mapping_of_a_cold_shard_shows_true_bytes(nexus_big, big):
    shard = big.shards()[2]
    with nexus_big() as nexus, open(nexus / "org/big" / shard, "rb") as a, open(big.path / shard, "rb") as b:
        left = mmap.mmap(a.fileno(), 0, prot=mmap.PROT_READ)
        right = mmap.mmap(b.fileno(), 0, prot=mmap.PROT_READ)
        rng = random.Random(5)
        for offset in [rng.randrange(len(right)) for _ in range(300)] + [0, len(right) - 1]:
            assert left[offset : offset + 5000] == right[offset : offset + 5000], offset


def test_middle_layer_pt_downloads_its_own_bytes_only(nexus_big, hub, big):
    with nexus_big() as nexus:
        layer = tensorfiles.read_layer_pt(nexus / "org/big/layer_4.pt")
        assert {name: data for name, (_, _, data) in layer.items()} == {
            name: t.bytes() for name, t in big.of_layer(4).items()}
        needed = sum(t.nbytes for t in big.of_layer(4).values())
        assert hub.bytes_sent("safetensors$") <= 1.02 * needed + len(big.shards()) * HEADER_BYTES
        assert hub.max_active() <= 9  # 8 connections, and one for metadata


def test_middle_layer_through_shards_downloads_little_more(nexus_big, hub, big):
    ranges = shard_range(big, 4)
    with nexus_big() as nexus:
        for shard, first, last in ranges:
            assert read_range(nexus / "org/big" / shard, first, last - first) == read_range(
                big.path / shard, first, last - first)
    needed = sum(last - first for _, first, last in ranges)
    files = len({shard for shard, _, _ in ranges})
    allowed = 1.02 * needed + len(big.shards()) * HEADER_BYTES + files * (2 * CHUNK + WALK_WINDOW_BYTES)
    assert hub.bytes_sent("safetensors$") <= allowed


def test_file_opened_anew_for_each_piece_asks_for_no_byte_twice(nexus_big, hub, big):
    shard = big.shards()[1]
    step, pieces = 3 * MIB, 6
    with nexus_big() as nexus:
        assert (nexus / "org/big" / shard).stat().st_size > pieces * step
        hub.reset_counters()
        # Slow enough that read-ahead is on its way whenever the file is closed.
        hub.fault("safetensors$", "rate", bytes_s=2 * MIB, server="cdn")
        for i in range(pieces):
            assert read_range(nexus / "org/big" / shard, i * step, step) == read_range(
                big.path / shard, i * step, step)
        asked = [entry["range"] for entry in hub.log() if entry["server"] == "cdn" and entry["range"]]
    asked = sorted(tuple(int(end) for end in text.removeprefix("bytes=").split("-")) for text in asked)
    assert len(asked) > 3
    assert all(left[1] < right[0] for left, right in zip(asked, asked[1:])), asked


def test_one_small_read_of_a_shard_fetches_a_window_not_the_shard(nexus_big, hub, big):
    shard = big.shards()[0]
    offset = (big.path / shard).stat().st_size // 2
    with nexus_big() as nexus:
        assert read_range(nexus / "org/big" / shard, offset, 100) == read_range(big.path / shard, offset, 100)
    assert hub.bytes_sent("safetensors$") <= len(big.shards()) * HEADER_BYTES + 2 * CHUNK + READ_AHEAD_BYTES


def test_single_tensor_of_a_layer_view_is_fetched_alone(nexus_big, hub, big):
    with nexus_big() as nexus:
        path = nexus / "org/big/layers/layer_3.safetensors"
        header = read_range(path, 0, 8 + int.from_bytes(read_range(path, 0, 8), "little"))
        fields = tensorfiles.json.loads(header[8:])
        name = "model.layers.3.self_attn.o_proj.weight"
        first, last = fields[name]["data_offsets"]
        got = read_range(path, len(header) + first, last - first)
        assert got == big.of_layer(3)[name].bytes()
    assert hub.bytes_sent("safetensors$") <= (
        last - first + len(big.shards()) * HEADER_BYTES + 2 * (2 * CHUNK + READ_AHEAD_BYTES))


READ_ALL = "import sys; open(sys.argv[1], 'rb').read()"


def test_two_concurrent_openers_download_a_layer_once(nexus_big, hub, big):
    with nexus_big() as nexus:
        hub.fault("safetensors$", "latency", ms=200, server="cdn")
        readers = [subprocess.Popen([sys.executable, "-c", READ_ALL, str(nexus / "org/big/layer_2.pt")])
                   for _ in range(2)]
        assert [reader.wait() for reader in readers] == [0, 0]
    needed = sum(t.nbytes for t in big.of_layer(2).values())
    assert hub.bytes_sent("safetensors$") <= 1.02 * needed + len(big.shards()) * HEADER_BYTES


def test_layer_and_shard_share_their_bytes(nexus_big, hub, big):
    with nexus_big() as nexus:
        for shard in big.shards():
            assert same_bytes(nexus / "org/big" / shard, big.path / shard)
        before = hub.bytes_sent("safetensors$")
        assert len(tensorfiles.read_layer_pt(nexus / "org/big/layer_4.pt")) == len(big.of_layer(4))
        assert hub.bytes_sent("safetensors$") == before


def read_everything(root, model) -> None:
    for name in model.files():
        assert same_bytes(root / name, model.path / name), name
    for i in range(model.layer_count):
        tensorfiles.read_layer_pt(root / f"layer_{i}.pt")


def test_restart_refetches_nothing(hub, mount, repos):
    model = models.make_model(repos / "org/a", "llama", layers=4, hidden=256, shards=2)
    hub.add_root(repos)
    with mount() as nexus:
        read_everything(nexus / "org/a", model)
        nexus.restart()
        hub.reset_counters()
        read_everything(nexus / "org/a", model)
        assert hub.bytes_sent() == 0


def test_chunks_of_an_incomplete_shard_survive_a_restart(nexus_big, hub, big):
    shard = big.shards()[0]
    with nexus_big() as nexus:
        expected = read_range(big.path / shard, 20 * MIB, 3 * MIB)
        assert read_range(nexus / "org/big" / shard, 20 * MIB, 3 * MIB) == expected
        nexus.restart()
        hub.reset_counters()
        assert read_range(nexus / "org/big" / shard, 20 * MIB, 3 * MIB) == expected
        # The kernel may read ahead of the last byte; what was here does not come again.
        assert hub.bytes_sent("safetensors$") <= READ_AHEAD_BYTES


@pytest.mark.parametrize("how", ["offline", "dead"])
def test_cached_files_work_and_uncached_are_eio_without_the_hub(nexus_big, hub, big, how):
    cached, uncached = big.shards()[0], big.shards()[2]
    with nexus_big(config={"enable_prefetch": False}) as nexus:  # it may come as far as the last layer
        assert same_bytes(nexus / "org/big" / cached, big.path / cached)
        (nexus / "org/big/config.json").read_bytes()
        layer = (nexus / "org/big/layer_1.pt").read_bytes()
        listing = os.listdir(nexus / "org/big")
        hub.die()
        nexus.restart(*(["--offline"] if how == "offline" else []))
        assert set(os.listdir(nexus / "org/big")) == set(listing)
        assert same_bytes(nexus / "org/big" / cached, big.path / cached)
        assert (nexus / "org/big/layer_1.pt").read_bytes() == layer
        assert (nexus / "org/big/layer_7.pt").stat().st_size == len(layer)
        start = time.monotonic()
        for name in (uncached, "layer_7.pt"):
            with pytest.raises(OSError) as failure:
                (nexus / "org/big" / name).read_bytes()
            assert failure.value.errno == errno.EIO
            assert nexus.xattr("error", f"org/big/{name}")
        assert time.monotonic() - start < 60  # an answer, not a hang
        hub.revive()


def test_offline_asks_the_network_nothing(nexus_big, hub, big):
    with nexus_big() as nexus:
        (nexus / "org/big/layer_1.pt").read_bytes()
        nexus.restart("--offline")
        hub.reset_counters()
        (nexus / "org/big/layer_1.pt").read_bytes()
        with pytest.raises(OSError):
            (nexus / "org/big/layer_5.pt").read_bytes()
        with pytest.raises(OSError):
            (nexus / "org/never-seen/config.json").read_bytes()
        assert hub.requests() == 0


def test_hub_dying_under_a_running_mount_leaves_cached_files_readable(nexus_big, hub, big):
    with nexus_big() as nexus:
        layer = (nexus / "org/big/layer_1.pt").read_bytes()
        hub.die()
        assert (nexus / "org/big/layer_1.pt").read_bytes() == layer
        with pytest.raises(OSError) as failure:
            (nexus / "org/big/layer_5.pt").read_bytes()
        assert failure.value.errno == errno.EIO
        hub.revive()
        # The failure is not remembered for long.
        poll(lambda: readable(nexus / "org/big/layer_5.pt"), "recovery after the hub's return")


def readable(path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_mapping_survives_completion_eviction_and_refetch(nexus_big, big):
    """The cache holds about two layers; the mapping's object comes under pressure all the time."""
    shard = big.shards()[0]
    with nexus_big("--disk", "64MiB", "--ram", "32MiB") as nexus:
        root = nexus / "org/big"
        with open(root / shard, "rb") as a, open(big.path / shard, "rb") as b, open(root / "layer_0.pt", "rb") as c:
            sparse = mmap.mmap(a.fileno(), 0, prot=mmap.PROT_READ)
            truth = mmap.mmap(b.fileno(), 0, prot=mmap.PROT_READ)
            layer = mmap.mmap(c.fileno(), 0, prot=mmap.PROT_READ)
        before = layer[:]
        assert sparse[10 * MIB : 12 * MIB] == truth[10 * MIB : 12 * MIB]
        for i in range(1, 8):
            (root / f"layer_{i}.pt").read_bytes()
            assert layer[:] == before, i
            assert sparse[i * 5 * MIB : (i * 5 + 1) * MIB] == truth[i * 5 * MIB : (i * 5 + 1) * MIB], i
        assert same_bytes(root / shard, big.path / shard)  # completes it, or passes it through
        assert sparse[:] == truth[:]
        layer.close()
        for i in range(8):
            (root / f"layer_{i}.pt").read_bytes()
        assert (root / "layer_0.pt").read_bytes() == before


def test_model_larger_than_the_cache_still_reads_whole(nexus_big, big):
    with nexus_big("--disk", "48MiB", "--ram", "16MiB") as nexus:
        for shard in big.shards():
            assert same_bytes(nexus / "org/big" / shard, big.path / shard)


def test_old_handles_keep_reading_while_the_file_completes(nexus_big, big):
    """A handle opened on a sparse file, and one opened when it is whole, side by side."""
    shard = big.shards()[1]
    with nexus_big() as nexus, open(nexus / "org/big" / shard, "rb", buffering=0) as early:
        assert early.read(100) == read_range(big.path / shard, 0, 100)
        assert same_bytes(nexus / "org/big" / shard, big.path / shard)
        poll(lambda: nexus.xattr("state", f"org/big/{shard}") == "resident", "completion")
        check_random_preads(nexus / "org/big" / shard, big.path / shard, 200, 3)
        assert pread_exactly(early.fileno(), 5 * MIB, 7 * MIB) == read_range(big.path / shard, 7 * MIB, 5 * MIB)


def test_resident_inode_number_is_that_of_the_sparse_file(nexus_big, big):
    shard = big.shards()[1]
    with nexus_big() as nexus:
        before = (nexus / "org/big" / shard).stat().st_ino
        assert same_bytes(nexus / "org/big" / shard, big.path / shard)
        assert (nexus / "org/big" / shard).stat().st_ino == before


@pytest.mark.parametrize("file", ["model.safetensors", "layer_0.pt", "layers/layer_1.safetensors"])
def test_strict_integrity_never_serves_a_flipped_byte(hub, mount, repos, file):
    model = models.make_model(repos / "org/a", "llama", hidden=128)
    hub.add_root(repos)
    with mount() as nexus:
        truth = (nexus / "org/a" / file).read_bytes()
    at = (model.path / "model.safetensors").stat().st_size // 2
    fault = hub.fault("model.safetensors$", "flip", at=at)
    with mount("--integrity", "strict") as nexus:
        with pytest.raises(OSError) as failure:
            (nexus / "org/a" / file).read_bytes()
        assert failure.value.errno == errno.EIO
        assert "model.safetensors" in nexus.xattr("error", f"org/a/{file}")
        hub.release(fault)
        poll(lambda: readable(nexus / "org/a" / file), "recovery from a wrong digest")
        assert (nexus / "org/a" / file).read_bytes() == truth
        assert nexus.xattr("verified", "org/a/model.safetensors") == "sha256"


def test_default_integrity_drops_what_fails_its_digest_later(hub, mount, repos):
    """Served once as the transport delivered it; then found out, dropped and refetched."""
    model = models.make_model(repos / "org/a", "llama", hidden=128)
    hub.add_root(repos)
    source = model.path / "model.safetensors"
    fault = hub.fault("model.safetensors$", "flip", at=source.stat().st_size - 1, server="cdn")
    with mount() as nexus:
        served = nexus / "org/a/model.safetensors"
        readable(served)
        poll(lambda: "model.safetensors" in error_xattr(nexus, "org/a/model.safetensors"), "the digest's failure")
        hub.release(fault)
        poll(lambda: readable(served) and same_bytes(served, source), "the true bytes")
        poll(lambda: nexus.xattr("verified", "org/a/model.safetensors") == "sha256", "the digest")


def error_xattr(nexus, name: str) -> str:
    try:
        return nexus.xattr("error", name)
    except OSError:
        return ""
