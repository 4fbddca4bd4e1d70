"""huggingface_hub's own client against the test hub: proof that the other tests' hub is one."""
import os
import subprocess
import sys
from pathlib import Path

import models
import pytest
from nexus import same_bytes

DOWNLOAD = """
import sys, huggingface_hub
print(huggingface_hub.snapshot_download(sys.argv[1], revision=sys.argv[2], cache_dir=sys.argv[3]))
"""


def download(hub, repo: str, cache, revision: str = "main", token: str | None = None) -> Path:
    """In a process of its own: the client reads its settings once, at import."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache / "home")} | ({"HF_TOKEN": token} if token else {})
    done = subprocess.run([sys.executable, "-c", DOWNLOAD, repo, revision, str(cache)], env=env, capture_output=True,
                          text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return Path(done.stdout.strip())


def expect_copy(snapshot: Path, model) -> None:
    for name in model.files():
        assert same_bytes(snapshot / name, model.path / name), name


@pytest.mark.parametrize("page_size", [1000, 3])
def test_snapshot_download_brings_every_file(hub, tmp_path, page_size):
    made = models.make_model(tmp_path / "repos/org/a", "llama", shards=3, hidden=128)
    hub.add_root(tmp_path / "repos")
    hub.set_page_size(page_size)
    expect_copy(download(hub, "org/a", tmp_path / "hf"), made)
    assert hub.requests("/cdn/") == 3


def test_revisions_and_one_component_names(hub, tmp_path):
    old = models.make_model(tmp_path / "old", "gpt2", salt="old")
    new = models.make_model(tmp_path / "new", "gpt2", salt="new")
    commit = hub.commit("gpt2", old.path)
    hub.commit("gpt2", new.path, refs=["refs/pr/1"])
    expect_copy(download(hub, "gpt2", tmp_path / "hf"), old)
    expect_copy(download(hub, "gpt2", tmp_path / "hf", "refs/pr/1"), new)
    expect_copy(download(hub, "gpt2", tmp_path / "hf", commit), old)


def test_renamed_repository(hub, tmp_path):
    made = models.make_model(tmp_path / "repos/org/old", "llama")
    hub.add_root(tmp_path / "repos")
    hub.rename("org/old", "org/new")
    expect_copy(download(hub, "org/old", tmp_path / "hf"), made)


def test_gated_repository_and_token(hub, tmp_path):
    made = models.make_model(tmp_path / "repos/org/gated", "llama")
    hub.add_root(tmp_path / "repos")
    hub.protect("org/gated", gated="resolve")
    hub.allow_token("hf_t")
    with pytest.raises(RuntimeError, match="GatedRepoError"):
        download(hub, "org/gated", tmp_path / "hf")
    expect_copy(download(hub, "org/gated", tmp_path / "hf2", token="hf_t"), made)
    assert not hub.cdn_saw_authorization()


@pytest.mark.parametrize("repo, revision, error", [("org/absent", "main", "RepositoryNotFoundError"),
                                                   ("org/a", "absent", "RevisionNotFoundError")])
def test_absent_things_are_told_apart(hub, tmp_path, repo, revision, error):
    models.make_model(tmp_path / "repos/org/a", "llama")
    hub.add_root(tmp_path / "repos")
    with pytest.raises(RuntimeError, match=error):
        download(hub, repo, tmp_path / "hf", revision)


def test_cache_left_by_the_real_client_is_an_origin(hub, mount, tmp_path):
    made = models.make_model(tmp_path / "repos/org/a", "llama", shards=2)
    hub.add_root(tmp_path / "repos")
    download(hub, "org/a", tmp_path / "hf")
    hub.die()
    with mount("--hub-cache", str(tmp_path / "hf")) as nexus:
        expect_copy(nexus / "org/a", made)
        assert (nexus / "org/a/layer_1.pt").stat().st_size == len((nexus / "org/a/layer_1.pt").read_bytes())
