"""The tools people use on directories: cp, sha256sum, rsync, tar, find, getfattr, dd."""
import filecmp
import hashlib
import os
import subprocess

import pytest
from nexus import same_bytes


def run(*command, **options) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True, **options).stdout


def files_below(root) -> list[str]:
    return sorted(os.path.relpath(os.path.join(at, name), root) for at, _, names in os.walk(root) for name in names)


def expect_copy(copy, served, local) -> None:
    """Every file that the mount lists, its bytes, and the origin's own among them."""
    assert files_below(copy) == files_below(served)
    for name in files_below(served):
        assert same_bytes(copy / name, served / name), name
    for name in files_below(local):
        assert same_bytes(copy / name, local / name), name


def test_cp_r_and_sha256sum(served, local, tmp_path):
    run("cp", "-r", served / "org/llama", tmp_path / "copy")
    expect_copy(tmp_path / "copy", served / "org/llama", local / "org/llama")
    for path in (local / "org/llama").iterdir():
        assert run("sha256sum", served / "org/llama" / path.name).split()[0] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_cp_sparse_and_reflink_modes(served, local, tmp_path):
    for option in ("--sparse=auto", "--sparse=always", "--reflink=auto"):
        run("cp", option, served / "org/llama/layer_1.pt", tmp_path / "copy.pt")
        assert filecmp.cmp(tmp_path / "copy.pt", served / "org/llama/layer_1.pt", shallow=False), option


def test_rsync_copies_and_then_finds_nothing_to_do(served, local, tmp_path):
    run("rsync", "-a", f"{served / 'org/gpt2'}/", f"{tmp_path / 'copy'}/")
    expect_copy(tmp_path / "copy", served / "org/gpt2", local / "org/gpt2")
    again = run("rsync", "-a", "--checksum", "--itemize-changes", f"{served / 'org/gpt2'}/", f"{tmp_path / 'copy'}/")
    assert [line for line in again.splitlines() if line.startswith(">f")] == []


@pytest.mark.parametrize("options", [["-c"], ["-c", "-S"]])
def test_tar(served, local, tmp_path, options):
    run("tar", *options, "-f", tmp_path / "t.tar", "-C", served / "org", "t5")
    run("tar", "-x", "-f", tmp_path / "t.tar", "-C", tmp_path)
    expect_copy(tmp_path / "t5", served / "org/t5", local / "org/t5")


def test_tar_s_of_a_model_that_nobody_has_read(hub, mount, local, tmp_path):
    """GNU tar believes st_blocks: 0 there would archive zeros."""
    hub.add_root(local)
    with mount() as nexus:
        run("tar", "-c", "-S", "-f", tmp_path / "t.tar", "-C", nexus / "org", "gpt2")
        run("tar", "-x", "-f", tmp_path / "t.tar", "-C", tmp_path)
        expect_copy(tmp_path / "gpt2", nexus / "org/gpt2", local / "org/gpt2")


def test_find_sees_files_sizes_and_times(served, local):
    found = {}
    for line in run("find", served / "org/llama", "-type", "f", "-printf", "%P %s %T@\n").splitlines():
        name, size, time = line.split()
        found[name] = int(size)
        assert float(time) > 0
    for path in (local / "org/llama").rglob("*"):
        if path.is_file():
            assert found[str(path.relative_to(local / "org/llama"))] == path.stat().st_size
    assert run("find", served / "org/llama", "-name", "layer_*.pt", "-empty") == ""


def test_getfattr_dumps_the_state(served):
    run("cat", served / "org/llama/layer_0.pt", encoding="latin-1")
    text = run("getfattr", "-d", served / "org/llama/layer_0.pt")
    assert 'user.nexus.state="resident"' in text and 'user.nexus.layer="0"' in text
    assert run("getfattr", "--only-values", "-n", "user.nexus.tensors", served / "org/llama/layer_0.pt") == "9"
    assert "user.nexus.stats" in run("getfattr", "-d", served / "org/llama")


def test_direct_io_reads_true_bytes(served, tmp_path):
    run("dd", f"if={served / 'org/llama/layer_2.pt'}", f"of={tmp_path / 'copy'}", "bs=4096", "iflag=direct", "status=none")
    assert same_bytes(tmp_path / "copy", served / "org/llama/layer_2.pt")


def test_df_and_du_answer(served):
    assert str(served.path) in run("df", served.path)
    assert int(run("du", "--apparent-size", "-sb", served / "org/llama").split()[0]) > 1_000_000


def test_grep_through_small_files(served):
    assert "llama" in run("grep", "-r", "model_type", served / "org/llama", "--include=*.json")
