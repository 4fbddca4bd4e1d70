"""Tokens, signatures, permissions: what must not leave the daemon, and who may read what."""
import errno
import os
import stat
import subprocess
import sys

import models
import pytest
from hub_client import HubClient
from nexus import same_bytes

TOKEN = "hf_secretTokenOfTheTests"
NOBODY = 65534


@pytest.fixture
def gated(hub, mount, repos, tmp_path):
    """A mount with a token of a gated model, for every user of the machine."""
    model = models.make_model(repos / "org/gated", "llama", shards=2)
    models.make_model(repos / "org/public", "llama")
    hub.add_root(repos)
    hub.protect("org/gated", gated="resolve")
    hub.allow_token(TOKEN)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != folder.parent:
            folder.chmod(folder.stat().st_mode | 0o755)
    with mount("--token-file", str(token), "--allow-other") as nexus:
        yield nexus, model


def test_token_goes_to_the_hub_and_never_to_the_cdn(gated, hub):
    nexus, model = gated
    for shard in model.shards():
        assert same_bytes(nexus / "org/gated" / shard, model.path / shard)
    assert any(entry["authorization"] for entry in hub.log() if entry["server"] == "hub")
    assert not hub.cdn_saw_authorization()


def test_token_is_not_sent_to_the_host_of_a_redirect(gated, hub):
    nexus, _ = gated
    other = HubClient()
    try:
        hub.fault("tokenizer.json$", "redirect", location=f"{other.endpoint}/steal/resolve/main/x")
        with pytest.raises(OSError):
            (nexus / "org/gated/tokenizer.json").read_bytes()
        assert other.requests() > 0
        # Another port of the same host is another server.
        assert not any(entry["authorization"] for entry in other.log())
    finally:
        other.close()


def every_xattr(root) -> list[str]:
    values = []
    for at, folders, files in os.walk(root):
        for name in [*folders, *files, "."]:
            path = os.path.join(at, name)
            values += [os.getxattr(path, key).decode(errors="replace") for key in os.listxattr(path)]
    return values


def test_neither_token_nor_signature_shows_in_log_xattrs_or_stats(gated, hub):
    nexus, model = gated
    hub.fault(model.shards()[1], "status", status=500, server="cdn")
    (nexus / "org/gated/layer_0.pt").read_bytes()
    with pytest.raises(OSError):
        (nexus / "org/gated" / model.shards()[1]).read_bytes()
    shown = [*every_xattr(nexus / "org"), nexus.log_text(), nexus.ctl("stats", "--json").stdout,
             nexus.ctl("status").stdout, nexus.ctl("ls").stdout]
    for text in shown:
        assert TOKEN not in text and "sig=" not in text and "=SIG" not in text
    assert any("cdn" in text or hub.endpoint in text for text in every_xattr(nexus / "org/gated")), "no source shown"


def test_nothing_on_disk_holds_the_token_or_a_signature(gated):
    nexus, model = gated
    (nexus / "org/gated/layer_0.pt").read_bytes()
    nexus.stop()
    for path in nexus.cache.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert TOKEN.encode() not in content and b"sig=SIG" not in content, path


def test_cache_is_private_to_its_owner(gated):
    nexus, _ = gated
    (nexus / "org/gated/layer_0.pt").read_bytes()
    (nexus / "org/gated/config.json").read_bytes()
    nexus.stop()  # what is being written under a temporary name has its own name then
    entries = [nexus.cache, *nexus.cache.rglob("*")]
    assert any(path.is_file() for path in entries)
    for path in entries:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), (path, oct(mode))


def read_as_nobody(path) -> int:
    return as_nobody(path, "open(sys.argv[1], 'rb').read(10)")


def as_nobody(path, attempt: str) -> int:
    """errno of another user's attempt, 0 where it could."""
    script = ("import os, sys\nos.setgid(65534); os.setuid(65534)\n"
              f"try: {attempt}\nexcept OSError as e: print(e.errno)\nelse: print(0)")
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_gated_files_are_readable_by_the_tokens_owner_only(gated):
    nexus, model = gated
    for name in ("config.json", "layer_0.pt", model.shards()[0], "layers/layer_1.safetensors"):
        assert (nexus / "org/gated" / name).read_bytes()
        assert read_as_nobody(nexus / "org/gated" / name) == errno.EACCES, name
    assert read_as_nobody(nexus / "org/public/config.json") == 0
    assert read_as_nobody(nexus / "org/public/layer_0.pt") == 0


def test_gated_files_stay_so_by_every_path_and_after_a_restart_without_the_hub(gated):
    nexus, model = gated
    shard = model.shards()[0]
    assert same_bytes(nexus / "org/gated" / shard, model.path / shard)
    assert (nexus / "org/gated/layer_0.pt").read_bytes()
    for flags in ([], ["--offline"]):
        if flags:
            nexus.restart(*flags)
        (commit,) = os.listdir(nexus / ".hub/models--org--gated/snapshots")
        snapshot = nexus / f".hub/models--org--gated/snapshots/{commit}"
        for path in (snapshot / shard, nexus / "org/gated" / shard, nexus / "org/gated/layer_0.pt",
                     nexus / f"org/gated@{commit}" / shard):
            assert path.read_bytes()
            assert read_as_nobody(path) == errno.EACCES, path
            assert as_nobody(path, "os.getxattr(sys.argv[1], 'user.nexus.xxh3')") == errno.EACCES, path
            assert as_nobody(path, "os.setxattr(sys.argv[1], 'user.nexus.pinned', b'1')") in (errno.EACCES, errno.EPERM)
        assert as_nobody(nexus / "org/gated", "os.listdir(sys.argv[1])") == errno.EACCES
        assert as_nobody(nexus.cache, "os.listdir(sys.argv[1])") == errno.EACCES, "nor the files below the mount"


def test_other_users_need_allow_other(hub, mount, repos, tmp_path):
    models.make_model(repos / "org/public", "llama")
    hub.add_root(repos)
    for folder in (tmp_path, *tmp_path.parents):
        if folder != folder.parent:
            folder.chmod(folder.stat().st_mode | 0o755)
    with mount() as nexus:
        (nexus / "org/public/config.json").read_bytes()
        assert read_as_nobody(nexus / "org/public/config.json") == errno.EACCES


def test_files_are_written_privately_whatever_the_umask(hub, mount, repos):
    models.make_model(repos / "org/a", "llama")
    hub.add_root(repos)
    before = os.umask(0)
    try:
        nexus = mount().start()
    finally:
        os.umask(before)
    (nexus / "org/a/model.safetensors").read_bytes()
    nexus.stop()  # files that are being written come and go
    loose = [path for path in [nexus.cache, *nexus.cache.rglob("*")] if path.stat().st_mode & 0o077]
    assert loose == []
