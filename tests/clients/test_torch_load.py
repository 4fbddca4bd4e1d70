"""torch.load of layer files, in every way torch offers."""
import mmap
import zipfile

import models
import pytest
import torch
from made_models import LAYERS, expect_same, origin_tensors, raw_bytes


def layer_files(nexus, name: str) -> list:
    return [nexus / f"org/{name}/layer_{i}.pt" for i in range(LAYERS[name])] + [nexus / f"org/{name}/non_layer.pt"]


@pytest.mark.parametrize("mapped", [False, True])
def test_layer_files_together_are_the_whole_model(served, local, name, mapped):
    got = {}
    for path in layer_files(served, name):
        tensors = torch.load(path, weights_only=True, mmap=mapped)
        assert type(tensors) is dict and not set(tensors) & set(got)
        got |= tensors
    expect_same(got, origin_tensors(local / "org" / name))


def test_each_layer_file_holds_its_own_layer(served):
    for i in range(4):
        tensors = torch.load(served / f"org/llama/layer_{i}.pt", weights_only=True)
        assert len(tensors) == 9 and all(key.startswith(f"model.layers.{i}.") for key in tensors)


def test_t5_numbers_the_encoder_then_the_decoder(served):
    owners = [{key.split(".")[0] for key in torch.load(served / f"org/t5/layer_{i}.pt", weights_only=True)}
              for i in range(5)]
    assert owners == [{"encoder"}, {"encoder"}, {"decoder"}, {"decoder"}, {"decoder"}]


def test_zip_directories_and_checksums_are_clean(served, name):
    for path in layer_files(served, name):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None


def test_shared_mappings_are_refused_as_torch_opens_them_for_writing(served):
    before = torch.serialization.get_default_mmap_options()
    torch.serialization.set_default_mmap_options(mmap.MAP_SHARED)
    try:
        with pytest.raises(RuntimeError, match="Read-only file system"):
            torch.load(served / "org/llama/layer_2.pt", weights_only=True, mmap=True)
    finally:
        torch.serialization.set_default_mmap_options(before)


def test_writing_to_a_private_mapping_leaves_the_file_alone(served, local):
    path = served / "org/llama/layer_1.pt"
    tensors = torch.load(path, weights_only=True, mmap=True)
    for tensor in tensors.values():
        tensor.zero_()
    origin = origin_tensors(local / "org/llama")
    expect_same(torch.load(path, weights_only=True), {key: origin[key] for key in tensors})


def test_meta_and_fake_loads_give_shapes(served, local):
    origin = origin_tensors(local / "org/llama")
    path = served / "org/llama/layer_3.pt"
    on_meta = torch.load(path, weights_only=True, map_location="meta")
    with torch._subclasses.fake_tensor.FakeTensorMode():
        fake = torch.load(path, weights_only=True)
    for tensors in (on_meta, fake):
        assert {key: (t.shape, t.dtype) for key, t in tensors.items()} == {
            key: (origin[key].shape, origin[key].dtype) for key in tensors}


def test_load_from_an_open_file_and_pickle_module_free(served, local):
    origin = origin_tensors(local / "org/gpt2")
    with open(served / "org/gpt2/layer_0.pt", "rb") as file:
        tensors = torch.load(file, weights_only=True)
    expect_same(tensors, {key: origin[key] for key in tensors})


@pytest.mark.parametrize("mapped", [False, True])
def test_every_dtype_zero_size_and_scalar_tensors(hub, mount, tmp_path, mapped):
    made = models.make_model(tmp_path / "repos/org/odd", tensors=models.odd_tensors())
    hub.add_root(tmp_path / "repos")
    with mount() as nexus:
        for number in (0, 1):
            got = torch.load(nexus / f"org/odd/layer_{number}.pt", weights_only=True, mmap=mapped)
            expected = made.of_layer(number)
            assert set(got) == set(expected)
            for key, tensor in expected.items():
                assert tuple(got[key].shape) == tensor.shape, key
                assert raw_bytes(got[key]) == tensor.bytes(), key
