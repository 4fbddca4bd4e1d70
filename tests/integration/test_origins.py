"""Origins other than a hub: pre-split layers at a URL, a local directory, an existing hub cache."""
import errno
import os
import shutil

import models
import pytest
import tensorfiles
from nexus import read_range, same_bytes
from tensorfiles import Tensor

MIB = 1 << 20


@pytest.mark.parametrize("autoindex", [True, False])
def test_base_url_layers_are_counted_by_listing_or_by_probing(hub, mount, tmp_path, autoindex):
    layers = models.write_base_url_layers(tmp_path / "plain", 12)
    hub.add_plain("layers", tmp_path / "plain", autoindex=autoindex)
    with mount("--base-url", f"m={hub.plain_url('layers')}") as nexus:
        names = [f"layer_{i}.pt" for i in range(12)]
        assert set(names) <= set(os.listdir(nexus / "m"))
        assert [(nexus / "m" / name).stat().st_size for name in names] == [len(data) for data in layers]
        assert hub.bytes_sent() == 0  # sizes come by HEAD
        for name, data in zip(names, layers):
            assert (nexus / "m" / name).read_bytes() == data, name
        assert not (nexus / "m/layer_12.pt").exists()


def test_base_url_with_a_trailing_slash_is_the_same(hub, mount, tmp_path):
    layers = models.write_base_url_layers(tmp_path / "plain", 2)
    hub.add_plain("layers", tmp_path / "plain")
    with mount("--base-url", f"m={hub.plain_url('layers')}/") as nexus:
        assert (nexus / "m/layer_1.pt").read_bytes() == layers[1]


def test_base_url_layer_is_downloaded_once_and_survives_a_restart(hub, mount, tmp_path):
    layers = models.write_base_url_layers(tmp_path / "plain", 3, nbytes=5 * MIB)
    hub.add_plain("layers", tmp_path / "plain")
    with mount("--base-url", f"m={hub.plain_url('layers')}") as nexus:
        assert (nexus / "m/layer_2.pt").read_bytes() == layers[2]
        assert (nexus / "m/layer_2.pt").read_bytes() == layers[2]
        assert hub.bytes_sent("layer_2.pt") <= 1.02 * len(layers[2])
        nexus.restart()
        hub.reset_counters()
        assert (nexus / "m/layer_2.pt").read_bytes() == layers[2]
        assert hub.bytes_sent() == 0


def test_base_url_without_any_layer_fails_with_a_reason(hub, mount, tmp_path):
    (tmp_path / "plain").mkdir()
    hub.add_plain("layers", tmp_path / "plain")
    with mount("--base-url", f"m={hub.plain_url('layers')}") as nexus:
        with pytest.raises(OSError) as failure:
            (nexus / "m/layer_0.pt").read_bytes()
        assert failure.value.errno in (errno.EIO, errno.ENOENT)


# --- a local directory ---

def cached_bytes(cache) -> int:
    return sum(path.stat().st_blocks * 512 for path in cache.rglob("*") if path.is_file())


def test_local_directory_gives_layers_and_is_served_in_place(hub, mount, tmp_path):
    model = models.make_model(tmp_path / "local", tensors=models.sized_llama(64 * MIB, 2), shards=2)
    with mount("--local", f"m={model.path}") as nexus:
        for name in model.files():
            assert same_bytes(nexus / "m" / name, model.path / name), name
        # 64 MiB were read and none of them copied; the catalog itself is small.
        assert cached_bytes(nexus.cache) < 8 * MIB
        for i in range(2):
            got = tensorfiles.read_layer_pt(nexus / f"m/layer_{i}.pt")
            assert {n: data for n, (_, _, data) in got.items()} == {
                n: t.bytes() for n, t in model.of_layer(i).items()}
    assert hub.requests() == 0


def test_local_directory_is_never_written_to(mount, tmp_path):
    model = models.make_model(tmp_path / "local", "llama")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in [model.path, *model.path.rglob("*")]}
    with mount("--local", f"m={model.path}") as nexus:
        for name in [*model.files(), "layer_0.pt", "non_layer.pt"]:
            (nexus / "m" / name).read_bytes()
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in [model.path, *model.path.rglob("*")]} == before


def test_local_links_stay_inside_the_directory(mount, tmp_path):
    model = models.make_model(tmp_path / "local", "llama")
    (tmp_path / "secret.txt").write_text("secret")
    (model.path / "inside.json").symlink_to("config.json")
    (model.path / "outside.txt").symlink_to("../secret.txt")
    with mount("--local", f"m={model.path}") as nexus:
        assert (nexus / "m/inside.json").read_bytes() == (model.path / "config.json").read_bytes()
        assert same_bytes(nexus / "m/model.safetensors", model.path / "model.safetensors")


def test_absent_local_directory_is_refused_at_mount(mount, tmp_path):
    nexus = mount("--local", f"m={tmp_path / 'absent'}")
    nexus.path.mkdir()
    result = nexus.try_start()
    assert result.returncode != 0 and "absent" in result.stderr


def test_local_torch_checkpoint_gives_layers(mount, tmp_path):
    tensors = [Tensor("h.0.w", "F32", (3, 4), 0), Tensor("h.1.w", "F16", (5,), 1), Tensor("wte.weight", "F32", (2, 2))]
    model = models.make_model(tmp_path / "local", tensors=tensors, torch_zip=True)
    with mount("--local", f"m={model.path}") as nexus:
        for i in range(2):
            assert tensorfiles.read_layer_pt(nexus / f"m/layer_{i}.pt") == {
                t.name: (t.dtype, t.shape, t.bytes()) for t in model.of_layer(i).values()}


# --- an existing huggingface_hub cache ---

def write_hub_cache(cache, hub, repo: str, model, without: tuple[str, ...] = ()) -> None:
    """As huggingface_hub leaves it: blobs by etag, a snapshot of links, the ref."""
    base, commit = cache / f"models--{repo.replace('/', '--')}", hub.commit_of(repo)
    for name in model.files():
        if name in without:
            continue
        blob = base / "blobs" / hub.etag_of(repo, name)
        link = base / "snapshots" / commit / name
        for folder in (blob.parent, link.parent, base / "refs"):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.path / name, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (base / "refs/main").write_text(commit)


def test_complete_hub_cache_is_used_without_the_network(hub, mount, repos, tmp_path):
    model = models.make_model(repos / "org/a", "llama", shards=2, hidden=256)
    hub.add_root(repos)
    write_hub_cache(tmp_path / "hf", hub, "org/a", model)
    before = sorted((p, p.lstat().st_mtime_ns) for p in (tmp_path / "hf").rglob("*"))
    hub.die()
    with mount("--hub-cache", str(tmp_path / "hf")) as nexus:
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
        for i in range(model.layer_count):
            assert set(tensorfiles.read_layer_pt(nexus / f"org/a/layer_{i}.pt")) == set(model.of_layer(i))
    hub.revive()
    assert hub.bytes_sent() == 0
    assert sorted((p, p.lstat().st_mtime_ns) for p in (tmp_path / "hf").rglob("*")) == before


def test_hub_cache_saves_the_download_of_the_files_it_has(hub, mount, repos, tmp_path):
    model = models.make_model(repos / "org/a", "llama", shards=2, hidden=256)
    hub.add_root(repos)
    absent, present = model.shards()
    write_hub_cache(tmp_path / "hf", hub, "org/a", model, without=(absent,))
    with mount("--hub-cache", str(tmp_path / "hf")) as nexus:
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
    assert hub.bytes_sent(absent) > 0
    assert hub.bytes_sent(present) == 0


def test_hub_cache_of_another_commit_is_not_mixed_in(hub, mount, repos, tmp_path):
    old = models.make_model(repos / "org/a", "llama", salt="old")
    hub.add_root(repos)
    write_hub_cache(tmp_path / "hf", hub, "org/a", old)
    new = models.make_model(tmp_path / "new", "llama", salt="new")
    commit = hub.commit("org/a", new.path)
    with mount("--hub-cache", str(tmp_path / "hf")) as nexus:
        served = nexus.xattr("revision", "org/a/config.json")
        truth = new if served == commit else old
        for name in new.files():
            assert same_bytes(nexus / "org/a" / name, truth.path / name), name


def test_hub_cache_that_lost_a_blob_falls_back_to_the_network(hub, mount, repos, tmp_path):
    model = models.make_model(repos / "org/a", "llama", shards=2)
    hub.add_root(repos)
    write_hub_cache(tmp_path / "hf", hub, "org/a", model)
    (tmp_path / "hf/models--org--a/blobs" / hub.etag_of("org/a", model.shards()[0])).unlink()
    with mount("--hub-cache", str(tmp_path / "hf")) as nexus:
        for shard in model.shards():
            assert read_range(nexus / "org/a" / shard, 0, 1 << 30) == (model.path / shard).read_bytes()
