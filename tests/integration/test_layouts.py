"""Layer files of every family, dtype and container hold exactly the origin's tensors."""
import os
import zipfile

import models
import pytest
import tensorfiles
from nexus import read_range, same_bytes
from tensorfiles import Tensor, View


def expect_layers(directory, model) -> None:
    """Both formats of every layer file against the bytes that the generator wrote."""
    numbers = [*range(model.layer_count), None]
    for number in numbers:
        stem = "non_layer" if number is None else f"layer_{number}"
        expected = {name: (t.dtype, t.shape, t.bytes()) for name, t in model.of_layer(number).items()}
        assert tensorfiles.read_layer_pt(directory / f"{stem}.pt") == expected, stem
        view = (directory / f"layers/{stem}.safetensors").read_bytes()
        assert tensorfiles.read_safetensors(view) == expected, stem
    assert not (directory / f"layer_{model.layer_count}.pt").exists()


@pytest.fixture(scope="module")
def families(tmp_path_factory, module_hub, module_mount):
    """Every family once sharded safetensors, once one safetensors, once a torch zip checkpoint."""
    root, made = tmp_path_factory.mktemp("families"), {}
    for family in models.FAMILIES:
        for kind, options in {"sharded": {"shards": 3}, "single": {}, "bin": {"torch_zip": True},
                              "bins": {"torch_zip": True, "shards": 2}}.items():
            made[family, kind] = models.make_model(root / kind / family, family, layers=3, **options)
    module_hub.add_root(root)
    return module_mount().start(), made


@pytest.mark.parametrize("kind", ["sharded", "single", "bin", "bins"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_layers_of_family(families, family, kind):
    nexus, made = families
    expect_layers(nexus / kind / family, made[family, kind])


def test_every_dtype_zero_size_and_scalar_tensors(hub, mount, repos):
    made = {"st": models.make_model(repos / "org/st", tensors=models.odd_tensors()),
            "bin": models.make_model(repos / "org/bin", tensors=models.odd_tensors(), torch_zip=True)}
    hub.add_root(repos)
    with mount() as nexus:
        for name, model in made.items():
            expect_layers(nexus / "org" / name, model)


def test_tensors_at_odd_offsets(hub, mount, repos):
    tensors = [Tensor("model.layers.0.odd", "U8", (3,), 0), Tensor("model.layers.0.w", "BF16", (5, 7), 0),
               Tensor("model.layers.1.w", "F32", (11,), 1), Tensor("model.norm.weight", "F64", (3,))]
    model = models.make_model(repos / "org/a", tensors=tensors)
    tensorfiles.write_safetensors(model.path / "model.safetensors", tensors, as_given=True, align=0)
    hub.add_root(repos)
    with mount() as nexus:
        expect_layers(nexus / "org/a", model)


def test_more_than_ten_layers_keep_their_numbers(hub, mount, repos):
    model = models.make_model(repos / "org/a", "llama", layers=13, shards=4)
    hub.add_root(repos)
    with mount() as nexus:
        expect_layers(nexus / "org/a", model)


def test_names_that_need_escapes_in_json_and_pickle(hub, mount, repos):
    tensors = [Tensor('model.layers.0."quoted\\"', "F32", (3,), 0), Tensor("model.layers.0.größe\u2028", "F32", (2,), 0),
               Tensor("model.layers.1.w", "F32", (3,), 1), Tensor("other.\U0001f642", "F32", (3,))]
    model = models.make_model(repos / "org/a", tensors=tensors)
    hub.add_root(repos)
    with mount() as nexus:
        expect_layers(nexus / "org/a", model)


def test_model_without_layers_has_only_non_layer(hub, mount, repos):
    model = models.make_model(repos / "org/flat", tensors=[Tensor("weight", "F32", (4, 4)), Tensor("bias", "F32", (4,))])
    hub.add_root(repos)
    with mount() as nexus:
        expect_layers(nexus / "org/flat", model)
        assert "layer_0.pt" not in os.listdir(nexus / "org/flat")


def test_layer_pt_is_a_stored_zip_with_page_aligned_records(hub, mount, repos):
    models.make_model(repos / "org/a", "llama", hidden=128)
    hub.add_root(repos)
    with mount() as nexus:
        path = nexus / "org/a/layer_0.pt"
        raw = path.read_bytes()
        assert raw[:4] == b"PK\x03\x04"
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            for info in archive.infolist():
                assert info.compress_type == zipfile.ZIP_STORED
                # .format_version makes torch compute offsets by itself, assuming another layout
                assert not info.filename.endswith(".format_version")
                if "/data/" in info.filename:
                    name, extra = (int.from_bytes(raw[info.header_offset + at : info.header_offset + at + 2], "little")
                                   for at in (26, 28))
                    assert (info.header_offset + 30 + name + extra) % 4096 == 0, info.filename


def test_tied_and_sliced_tensors_of_a_torch_checkpoint(hub, mount, repos):
    tensors = [Tensor("model.layers.0.w", "F32", (4, 6), 0), Tensor("model.embed_tokens.weight", "F32", (5, 4))]
    model = models.make_model(repos / "org/a", tensors=tensors, torch_zip=True)
    tied = View("lm_head.weight", "model.embed_tokens.weight", 0, (5, 4), (4, 1))
    part = View("model.layers.1.row", "model.layers.0.w", 6, (6,), (1,))
    tensorfiles.write_torch_zip(model.path / "pytorch_model.bin", tensors, [tied, part])
    hub.add_root(repos)
    with mount() as nexus:
        embedding = tensors[1]
        got = tensorfiles.read_layer_pt(nexus / "org/a/non_layer.pt")
        assert got == {name: ("F32", (5, 4), embedding.bytes()) for name in (tied.name, embedding.name)}
        got = tensorfiles.read_layer_pt(nexus / "org/a/layer_1.pt")
        assert got == {part.name: ("F32", (6,), tensors[0].bytes()[24:48])}


def test_safetensors_win_where_a_repository_has_both(hub, mount, repos):
    model = models.make_model(repos / "org/both", "llama")
    models.write_weights(model.path, models.family_tensors("llama", 2, 16, salt="other"), torch_zip=True)
    hub.add_root(repos)
    with mount() as nexus:
        expect_layers(nexus / "org/both", model)
        assert same_bytes(nexus / "org/both/pytorch_model.bin", model.path / "pytorch_model.bin")


def test_index_decides_which_files_hold_the_model(hub, mount, repos):
    """A stray safetensors file beside the shards, as adapters or consolidated.safetensors are."""
    model = models.make_model(repos / "org/a", "llama", shards=2)
    tensorfiles.write_safetensors(model.path / "extra.safetensors", [Tensor("model.layers.9.w", "F32", (3,), 9)])
    hub.add_root(repos)
    with mount() as nexus:
        expect_layers(nexus / "org/a", model)
        assert same_bytes(nexus / "org/a/extra.safetensors", model.path / "extra.safetensors")


@pytest.fixture(scope="module")
def giant(tmp_path_factory, module_hub, module_mount):
    """One shard of 4.6 GiB, nearly all of it a hole on disk: layer 1 alone is over 4 GiB."""
    root = tmp_path_factory.mktemp("giant")
    tensors = [Tensor("model.layers.0.a", "U8", (100_000,), 0),
               Tensor("model.layers.1.big", "U8", (4_500_000_000,), 1, sparse=True),
               Tensor("model.layers.2.far", "U8", (70_000_001,), 2),
               Tensor("model.norm.weight", "U8", (33,))]
    model = models.make_model(root / "org/giant", tensors=tensors)
    module_hub.add_root(root)
    return module_mount("--disk", "20GB").start(), module_hub, model


def test_file_over_4_gib_reads_at_both_ends_and_around_the_limit(giant):
    nexus, hub, model = giant
    served, source = nexus / "org/giant/model.safetensors", model.path / "model.safetensors"
    size = source.stat().st_size
    assert served.stat().st_size == size > 1 << 32
    for offset in (0, 99_000, (1 << 31) - 7, (1 << 32) - 7, size - 70_000_100, size - 11):
        assert read_range(served, offset, 4096) == read_range(source, offset, 4096), offset
    assert hub.bytes_sent() < size // 10


def test_layer_behind_4_gib_has_its_own_bytes(giant):
    nexus, _, model = giant
    assert tensorfiles.read_layer_pt(nexus / "org/giant/layer_2.pt") == {
        "model.layers.2.far": ("U8", (70_000_001,), model.of_layer(2)["model.layers.2.far"].bytes())}


def test_layer_pt_over_4_gib_is_a_valid_zip64(giant):
    nexus, _, model = giant
    with zipfile.ZipFile(nexus / "org/giant/layer_1.pt") as archive:
        assert archive.testzip() is None
        (record,) = [info for info in archive.infolist() if "/data/" in info.filename]
        assert record.file_size == 4_500_000_000
        mark = tensorfiles.random_bytes("model.layers.1.big", 4096)
        with archive.open(record) as data:
            assert data.read(4096) == mark
            data.seek(-4096, os.SEEK_END)
            assert data.read() == mark
