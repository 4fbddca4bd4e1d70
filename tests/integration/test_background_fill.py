"""background_fill: the rest of a used model comes while nobody reads, and only where there is room."""
import json

import models
import pytest
from nexus import poll, read_range, same_bytes

MIB = 1 << 20


@pytest.fixture
def model(hub, repos):
    made = models.make_model(repos / "org/a", tensors=models.sized_llama(24 * MIB, 4), shards=2)
    models.make_model(repos / "org/unused", tensors=models.sized_llama(4 * MIB, 2))
    hub.add_root(repos)
    return made


def objects(nexus) -> dict:
    answer = nexus.ctl("ls", "--json")
    assert answer.returncode == 0, answer.stderr
    return {(one["model"], one["name"].split("/", 2)[2]): one for one in json.loads(answer.stdout)["objects"]}


def test_the_rest_of_a_used_model_comes_while_nobody_reads(mount, model):
    with mount(config={"background_fill": True, "enable_prefetch": False}) as nexus:
        for name in model.shards():
            (nexus / "org/a" / name).stat()
        (nexus / "org/unused/model.safetensors").stat()
        read_range(nexus / "org/a" / model.shards()[0], MIB, 4096)

        def filled():
            now = objects(nexus)
            return all(now.get(("org/a", name), {}).get("state") == "resident" for name in model.shards())

        poll(filled, "the fill")
        assert not [name for repo, name in objects(nexus) if repo == "org/unused"]
        assert nexus.stats()["prefetcher"]["issued_bytes"] == 0
        downloaded = nexus.stats()["performance"]["bytes_downloaded"]
        for name in model.shards():
            assert same_bytes(nexus / "org/a" / name, model.path / name)
        # Small files of the model may still come.
        assert nexus.stats()["performance"]["bytes_downloaded"] - downloaded < MIB


def test_strict_reads_ahead_too(mount, model, hub):
    with mount("--integrity", "strict") as nexus:
        for number in range(4):
            (nexus / f"org/a/layer_{number}.pt").read_bytes()
        # Both shards and every layer are here, each byte once.
        poll(lambda: nexus.stats()["prefetcher"]["total_requests"] >= 4, "every layer heard of")
        poll(lambda: nexus.stats()["downloader"]["active_downloads"] == 0, "the end of what that began")
        stats = nexus.stats()
        shards = sum((model.path / name).stat().st_size for name in model.shards())
        assert stats["performance"]["bytes_downloaded"] <= shards * 1.05
        for name in model.shards():
            assert same_bytes(nexus / "org/a" / name, model.path / name)
