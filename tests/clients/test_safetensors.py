"""The safetensors library and numpy over layers/, splitted_model/ and the shards."""
import json

import numpy as np
import safetensors
import safetensors.torch
from made_models import LAYERS, expect_same, origin_tensors


def test_layer_views_together_are_the_whole_model(served, local, name):
    got = {}
    for stem in [*(f"layer_{i}" for i in range(LAYERS[name])), "non_layer"]:
        with safetensors.safe_open(served / f"org/{name}/layers/{stem}.safetensors", framework="pt") as file:
            got |= {key: file.get_tensor(key) for key in file.keys()}
    expect_same(got, origin_tensors(local / "org" / name))


def test_slices_of_a_tensor_read_alone(served, local):
    origin = origin_tensors(local / "org/llama")
    with safetensors.safe_open(served / "org/llama/layers/layer_1.safetensors", framework="pt") as file:
        key = "model.layers.1.mlp.down_proj.weight"
        part = file.get_slice(key)
        assert part.get_shape() == list(origin[key].shape)
        expect_same({"part": part[5:9, 3:]}, {"part": origin[key][5:9, 3:]})


def test_load_file_of_airllm_modules(served, local):
    origin = origin_tensors(local / "org/llama")
    for module in ("model.embed_tokens", "model.layers.2", "model.norm", "lm_head"):
        got = safetensors.torch.load_file(served / f"org/llama/splitted_model/{module}.safetensors")
        expect_same(got, {key: t for key, t in origin.items() if key.startswith(module + ".")})


def test_shards_load_as_on_disk(served, local):
    for shard in (local / "org/llama").glob("*.safetensors"):
        expect_same(safetensors.torch.load_file(served / "org/llama" / shard.name), safetensors.torch.load_file(shard))


def test_numpy_maps_a_shard(served, local):
    for shard in (local / "org/llama").glob("*.safetensors"):
        mapped = np.memmap(served / "org/llama" / shard.name, mode="r", dtype=np.uint8)
        assert np.array_equal(mapped, np.fromfile(shard, dtype=np.uint8))


def test_numpy_maps_one_tensor_inside_a_layer_view(served, local):
    path = served / "org/llama/layers/layer_0.safetensors"
    length = int(np.fromfile(path, dtype="<u8", count=1)[0])
    header = json.loads(np.memmap(path, mode="r", dtype=np.uint8, offset=8, shape=(length,)).tobytes())
    key = "model.layers.0.self_attn.q_proj.weight"
    entry = header[key]
    got = np.memmap(path, mode="r", dtype="<f4", offset=8 + length + entry["data_offsets"][0], shape=tuple(entry["shape"]))
    assert np.array_equal(got, origin_tensors(local / "org/llama")[key].numpy())
