"""Weights that break their format's rules: EIO with a reason for that file, the rest works."""
import errno
import json
import os
import struct

import models
import pytest
import tensorfiles
from nexus import same_bytes
from tensorfiles import Tensor


def entry(first: int, last: int, dtype: str = "F32", shape: list | None = None) -> dict:
    return {"dtype": dtype, "shape": [(last - first) // 4] if shape is None else shape, "data_offsets": [first, last]}


A, B = "model.layers.1.a", "model.layers.1.b"
# name -> (header, data bytes, declared header length)
MALFORMED = {
    "not_json": (b"{this is not json}", 8, None),
    "not_an_object": (b'["a"]', 8, None),
    "json_cut_off": (b'{"a": {"dtype": "F32"', 8, None),
    "deep_nesting": (b'{"a":' * 50_000, 8, None),
    "hole": ({A: entry(0, 8), B: entry(16, 24)}, 24, None),
    "hole_at_start": ({A: entry(8, 16)}, 16, None),
    "overlap": ({A: entry(0, 16), B: entry(8, 24)}, 24, None),
    "past_the_end": ({A: entry(0, 800)}, 8, None),
    "trailing_bytes": ({A: entry(0, 8)}, 100, None),
    "reversed_offsets": ({A: entry(8, 0, shape=[2])}, 8, None),
    "negative_offset": ({A: entry(-8, 0, shape=[2])}, 8, None),
    "offset_over_64_bits": ({A: entry(0, 1 << 65, shape=[2])}, 8, None),
    "overflowing_shape": ({A: entry(0, 8, shape=[1 << 33, 1 << 33, 4])}, 8, None),
    "negative_shape": ({A: entry(0, 8, shape=[-2])}, 8, None),
    "shape_disagrees": ({A: entry(0, 8, shape=[3])}, 8, None),
    "unknown_dtype": ({A: entry(0, 8, dtype="F33")}, 8, None),
    "dtype_not_text": ({A: {"dtype": 5, "shape": [2], "data_offsets": [0, 8]}}, 8, None),
    "no_offsets": ({A: {"dtype": "F32", "shape": [2]}}, 8, None),
    "half_a_byte": ({A: entry(0, 1, dtype="F4", shape=[3])}, 1, None),
    "metadata_not_text": ({"__metadata__": {"a": 5}, A: entry(0, 8)}, 8, None),
    "duplicate_tensor": (f'{{"{A}":{json.dumps(entry(0, 8))},"{A}":{json.dumps(entry(8, 16))}}}'.encode(), 16, None),
    "header_longer_than_file": ({A: entry(0, 8)}, 8, 1_000_000),
    "header_over_100_mb": ({A: entry(0, 8)}, 8, 100_000_001),
    "header_length_wraps": ({A: entry(0, 8)}, 8, (1 << 64) - 4),
}


def broken_model(path, header, data_bytes: int, declared: int | None) -> models.Model:
    """Layer 0 in a good shard, layer 1 in the malformed one."""
    model = models.make_model(path, tensors=[Tensor("model.layers.0.w", "F32", (64,), 0),
                                             Tensor("model.norm.weight", "F32", (8,))])
    good, bad = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    (path / "model.safetensors").rename(path / good)
    tensorfiles.write_raw_safetensors(path / bad, header, bytes(data_bytes), declared=declared)
    model.weight_map = {t.name: good for t in model.tensors} | {A: bad, B: bad}
    models.write_index(path, "model", "safetensors", model.tensors, model.weight_map)
    return model


def expect_eio(nexus, name: str, reason_names: str) -> None:
    with pytest.raises(OSError) as failure:
        (nexus / name).read_bytes()
    assert failure.value.errno == errno.EIO, name
    reason = nexus.xattr("error", name)
    assert reason_names in reason and len(reason) > len(reason_names) + 5, reason


@pytest.fixture(scope="module")
def malformed(module_hub, module_mount, tmp_path_factory):
    root = tmp_path_factory.mktemp("malformed")
    made = {name: broken_model(root / "bad" / name, *what) for name, what in MALFORMED.items()}
    module_hub.add_root(root)
    return module_mount().start(), made


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_shard_is_eio_and_the_other_shard_works(malformed, name):
    nexus, made = malformed
    bad = f"bad/{name}/model-00002-of-00002.safetensors"
    expect_eio(nexus, bad, "model-00002-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors" in nexus.log_text()
    good = made[name].path / "model-00001-of-00002.safetensors"
    assert same_bytes(nexus / f"bad/{name}/{good.name}", good)
    assert same_bytes(nexus / f"bad/{name}/config.json", made[name].path / "config.json")
    assert set(tensorfiles.read_layer_pt(nexus / f"bad/{name}/layer_0.pt")) == {"model.layers.0.w"}
    with pytest.raises(OSError) as failure:
        (nexus / f"bad/{name}/layer_1.pt").read_bytes()
    assert failure.value.errno == errno.EIO


def test_listing_a_model_with_a_malformed_shard_works(malformed):
    nexus, made = malformed
    for name, model in made.items():
        assert {path.split("/")[0] for path in model.files()} <= set(os.listdir(nexus / "bad" / name))


@pytest.mark.parametrize("nbytes", [0, 1, 7, 8, 9])
def test_file_too_short_for_a_header(hub, mount, repos, nbytes):
    model = models.make_model(repos / "org/a", "llama")
    (model.path / "model.safetensors").write_bytes(struct.pack("<Q", 100)[:nbytes].ljust(nbytes, b"{"))
    hub.add_root(repos)
    with mount() as nexus:
        expect_eio(nexus, "org/a/model.safetensors", "model.safetensors")
        assert same_bytes(nexus / "org/a/config.json", model.path / "config.json")


def test_header_over_100_mb_is_not_downloaded(hub, mount, repos):
    model = models.make_model(repos / "org/a", "llama")
    with open(model.path / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", 300_000_000) + b'{"a":')
        out.truncate(400_000_000)
    hub.add_root(repos)
    with mount() as nexus:
        expect_eio(nexus, "org/a/model.safetensors", "model.safetensors")
    assert hub.bytes_sent("safetensors$") < 2_000_000


INDEXES = {
    "absent_file": {"weight_map": {"model.layers.0.w": "absent.safetensors"}},
    "absent_tensor": {"weight_map": {"model.layers.0.nope": "model-00001-of-00001.safetensors"}},
    "outside": {"weight_map": {"model.layers.0.w": "../../../etc/passwd"}},
    "no_map": {"metadata": {}},
    "map_of_numbers": {"weight_map": {"model.layers.0.w": 5}},
}


@pytest.mark.parametrize("name", INDEXES)
def test_index_that_lies_is_an_error_and_plain_files_work(hub, mount, repos, name):
    model = models.make_model(repos / "org/a", tensors=[Tensor("model.layers.0.w", "F32", (64,), 0)])
    shard = model.path / "model-00001-of-00001.safetensors"
    (model.path / "model.safetensors").rename(shard)
    index = model.path / "model.safetensors.index.json"
    index.write_text(json.dumps(INDEXES[name]))
    hub.add_root(repos)
    with mount() as nexus:
        assert same_bytes(nexus / "org/a" / shard.name, shard)
        assert same_bytes(nexus / "org/a" / index.name, index)
        assert same_bytes(nexus / "org/a/config.json", model.path / "config.json")
        assert "index.json" in nexus.xattr("error", f"org/a/{index.name}")


def test_index_that_is_not_json(hub, mount, repos):
    model = models.make_model(repos / "org/a", "llama", shards=2)
    (model.path / "model.safetensors.index.json").write_bytes(b"\x00{")
    hub.add_root(repos)
    with mount() as nexus:
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
        assert "index.json" in nexus.xattr("error", "org/a/model.safetensors.index.json")


def test_pickle_that_runs_code_is_a_plain_file_and_runs_nothing(hub, mount, repos, tmp_path):
    model = models.make_model(repos / "org/a", "llama", torch_zip=True)
    marker, weights = tmp_path / "it-ran", model.path / "pytorch_model.bin"
    tensorfiles.write_torch_zip(weights, [], pickled=tensorfiles.evil_pickle(marker))
    hub.add_root(repos)
    with mount() as nexus:
        assert same_bytes(nexus / "org/a/pytorch_model.bin", weights)
        assert "layer_0.pt" not in os.listdir(nexus / "org/a")
        assert "pytorch_model.bin" in nexus.xattr("error", "org/a/pytorch_model.bin")
    assert not marker.exists()


@pytest.mark.parametrize("write, name", [(tensorfiles.write_legacy_pickle, "pytorch_model.bin"),
                                         (tensorfiles.write_gguf, "model.gguf")])
def test_legacy_pickle_and_gguf_are_plain_files_with_the_reason(hub, mount, repos, write, name):
    model = models.make_model(repos / "org/a", "llama")
    (model.path / "model.safetensors").unlink()
    write(model.path / name)
    hub.add_root(repos)
    with mount() as nexus:
        assert same_bytes(nexus / "org/a" / name, model.path / name)
        assert "layer_0.pt" not in os.listdir(nexus / "org/a")
        assert name in nexus.xattr("error", f"org/a/{name}")


@pytest.mark.parametrize("cut", [4, 22, 1000])
def test_torch_checkpoint_cut_off_is_a_plain_file_with_the_reason(hub, mount, repos, cut):
    model = models.make_model(repos / "org/a", "llama", torch_zip=True)
    weights = model.path / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:-cut])
    hub.add_root(repos)
    with mount() as nexus:
        assert same_bytes(nexus / "org/a/pytorch_model.bin", weights)
        assert "layer_0.pt" not in os.listdir(nexus / "org/a")
        assert "pytorch_model.bin" in nexus.xattr("error", "org/a/pytorch_model.bin")
