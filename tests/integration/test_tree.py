"""The tree of names: what is listed, what resolves, what is refused."""
import errno
import os
import subprocess

import models
import pytest
import tensorfiles
from nexus import mount_device, poll, processes_with, same_bytes


def error_of(action) -> int | None:
    try:
        action()
    except OSError as error:
        return error.errno
    return None


def origin_files(root) -> dict[str, str]:
    return {str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return models.make_model(tmp_path_factory.mktemp("llama"), "llama", layers=3, hidden=64, shards=2)


@pytest.fixture(scope="module")
def tree(module_hub, module_mount, llama):
    """A mount of org/llama, under the alias `m` too, that the read-only tests share."""
    module_hub.commit("org/llama", llama.path)
    return module_mount("--model", "m=org/llama").start()


def test_root_lists_alias_and_org_lists_model_once_looked_up(tree):
    (tree / "org/llama").stat()
    assert "m" in os.listdir(tree.path)
    assert "org" in os.listdir(tree.path)
    assert "llama" in os.listdir(tree / "org")


def test_model_directory_lists_origin_files_and_layer_files(tree, llama):
    top = {name.split("/")[0] for name in llama.files()}
    assert set(os.listdir(tree / "m")) == top | {"layer_0.pt", "layer_1.pt", "layer_2.pt", "non_layer.pt"}


def test_origin_files_are_served_byte_for_byte_with_nested_directories(tree, llama):
    for name, source in origin_files(llama.path).items():
        served = tree / "org/llama" / name
        assert served.stat().st_size == source.stat().st_size, name
        assert served.read_bytes() == source.read_bytes(), name
    assert os.listdir(tree / "m/original/deep/er") == ["params.json"]


def test_alias_and_org_name_show_the_same_bytes(tree):
    assert (tree / "m/config.json").read_bytes() == (tree / "org/llama/config.json").read_bytes()
    assert (tree / "m/layer_1.pt").read_bytes() == (tree / "org/llama/layer_1.pt").read_bytes()


def test_layer_sizes_are_exact_before_any_weight_is_downloaded(hub, mount, repos):
    models.make_model(repos / "org/a", "llama", layers=3, hidden=256, shards=2)
    hub.add_root(repos)
    with mount() as nexus:
        sizes = {name: (nexus / "org/a" / name).stat().st_size
                 for name in ("layer_0.pt", "layer_2.pt", "non_layer.pt")}
        # 2 shards: the first 100,000 bytes of each, or what the header needs.
        assert hub.bytes_sent("safetensors$") <= 2 * (128 << 10)
        for name, size in sizes.items():
            assert len((nexus / "org/a" / name).read_bytes()) == size


def test_unlisted_layouts_resolve_by_name(tree, llama):
    for view in ("layers", "splitted_model"):
        assert view not in os.listdir(tree / "m")
        assert (tree / "m" / view).is_dir()
    got = tensorfiles.read_safetensors((tree / "m/layers/layer_1.safetensors").read_bytes())
    assert set(got) == set(llama.of_layer(1))
    got = tensorfiles.read_safetensors((tree / "m/layers/non_layer.safetensors").read_bytes())
    assert set(got) == set(llama.of_layer(None))


def test_airllm_modules_and_done_markers_resolve(tree, llama):
    modules = ["model.embed_tokens", "model.norm", "lm_head"] + [f"model.layers.{i}" for i in range(3)]
    for module in modules:
        got = tensorfiles.read_safetensors((tree / f"m/splitted_model/{module}.safetensors").read_bytes())
        assert set(got) == {t.name for t in llama.tensors if t.name.startswith(module + ".")}, module
        assert (tree / f"m/splitted_model/{module}.safetensors.done").stat().st_size == 0
    # A module that also answered to .mmap would be taken for an n-gram table.
    for absent in ("model.absent.safetensors", "model.layers.0.mmap", "model.layers.0.mmap.done"):
        assert not (tree / "m/splitted_model" / absent).exists()


def test_splitted_model_of_tied_model_has_no_lm_head(hub, mount, repos):
    models.make_model(repos / "org/tied", "llama-tied")
    hub.add_root(repos)
    with mount() as nexus:
        assert (nexus / "org/tied/splitted_model/model.norm.safetensors").exists()
        assert not (nexus / "org/tied/splitted_model/lm_head.safetensors").exists()


def test_list_views_lists_the_other_layouts(hub, mount, repos):
    models.make_model(repos / "org/a", "llama", layers=2)
    hub.add_root(repos)
    with mount(config={"list_views": True}) as nexus:
        assert {"layers", "splitted_model", "layer_0.pt"} <= set(os.listdir(nexus / "org/a"))
        assert set(os.listdir(nexus / "org/a/layers")) == {
            "layer_0.safetensors", "layer_1.safetensors", "non_layer.safetensors"}
        assert {"model.layers.0.safetensors", "model.layers.0.safetensors.done"} <= set(
            os.listdir(nexus / "org/a/splitted_model"))


def test_one_component_model_is_mounted_on_demand(hub, mount, repos):
    model = models.make_model(repos / "gpt2", "gpt2")
    hub.add_root(repos)
    with mount() as nexus:
        assert (nexus / "gpt2/config.json").read_bytes() == (model.path / "config.json").read_bytes()
        assert (nexus / "gpt2/layer_1.pt").stat().st_size > 0


def test_absent_model_is_enoent(tree):
    assert error_of((tree / "org/absent").stat) == errno.ENOENT
    assert error_of((tree / "org/absent/config.json").read_bytes) == errno.ENOENT
    assert error_of((tree / "m/absent.json").stat) == errno.ENOENT
    assert error_of((tree / "m/layer_3.pt").stat) == errno.ENOENT
    assert error_of((tree / "m/layer_00.pt").stat) == errno.ENOENT


def test_dot_names_at_the_root_are_enoent_without_asking_the_hub(hub, mount):
    with mount() as nexus:
        before = hub.requests()
        for name in (".Trash", ".git", ".hidden"):
            assert error_of((nexus / name).stat) == errno.ENOENT
        assert hub.requests() == before


def test_revisions_by_branch_tag_pull_request_and_commit(hub, mount, repos):
    old = models.make_model(repos / "org/a", "llama", salt="old")
    new = models.make_model(repos / "new", "llama", salt="new")
    old_sha = hub.commit("org/a", old.path, refs=["main", "v1.0"])
    hub.commit("org/a", new.path, refs=["dev", "refs/pr/1"])
    with mount("--model", "pinned=org/a@dev", "--model", f"exact=org/a@{old_sha}") as nexus:
        for name, model in {"org/a": old, "org/a@v1.0": old, f"org/a@{old_sha}": old, "exact": old,
                            "org/a@dev": new, "org/a@refs%2Fpr%2F1": new, "pinned": new}.items():
            assert (nexus / name / "config.json").read_bytes() == (model.path / "config.json").read_bytes(), name
        assert error_of((nexus / "org/a@nope").stat) == errno.ENOENT
        assert nexus.xattr("revision", "org/a@v1.0/config.json") == old_sha


def test_hub_layout_holds_ref_and_snapshot(tree, module_hub, llama):
    commit = module_hub.commit_of("org/llama")
    base = tree / ".hub/models--org--llama"
    assert (base / "refs/main").read_text() == commit
    assert commit in os.listdir(base / "snapshots")
    for name, source in origin_files(llama.path).items():
        assert (base / "snapshots" / commit / name).read_bytes() == source.read_bytes(), name
    assert error_of((tree / ".hub/models--org--absent/refs/main").read_text) == errno.ENOENT


def test_airllm_layout_resolves_below_the_snapshot(tree, module_hub):
    commit = module_hub.commit_of("org/llama")
    split = tree / ".hub/models--org--llama/snapshots" / commit / "splitted_model"
    for name in ("model.layers.0.safetensors", "model.layers.0.safetensors.done"):
        assert (split / name).read_bytes() == (tree / "m/splitted_model" / name).read_bytes()


def test_origin_file_wins_over_the_virtual_one(hub, mount, repos):
    model = models.make_model(repos / "org/a", "llama", layers=2)
    (model.path / "layer_0.pt").write_bytes(b"the origin's own")
    (model.path / "layers").mkdir()
    (model.path / "layers/layer_1.safetensors").write_bytes(b"also the origin's")
    hub.add_root(repos)
    with mount() as nexus:
        assert (nexus / "org/a/layer_0.pt").read_bytes() == b"the origin's own"
        assert os.listdir(nexus / "org/a").count("layer_0.pt") == 1
        assert (nexus / "org/a/layers/layer_1.safetensors").read_bytes() == b"also the origin's"
        assert set(tensorfiles.read_layer_pt(nexus / "org/a/layer_1.pt")) == set(model.of_layer(1))


def test_stat_is_that_of_a_read_only_file_with_whole_blocks(tree):
    for name in ("config.json", "empty.txt", "layer_0.pt", "model-00001-of-00002.safetensors"):
        stat = (tree / "m" / name).stat()
        assert stat.st_blocks == (stat.st_size + 511) // 512, name
    assert (tree / "m").stat().st_nlink >= 1


def test_inode_numbers_and_mtimes_survive_a_restart(hub, mount, repos):
    models.make_model(repos / "org/a", "llama")
    hub.add_root(repos)
    names = ["org/a", "org/a/config.json", "org/a/layer_0.pt", "org/a/model.safetensors",
             "org/a/1_Pooling/config.json"]
    with mount() as nexus:
        identity = lambda: [(s.st_ino, s.st_mtime_ns) for s in ((nexus / n).stat() for n in names)]  # noqa: E731
        before = identity()
        assert len({inode for inode, _ in before}) == len(names)
        nexus.restart()
        assert identity() == before


CHANGES = {
    "write": lambda d: os.open(d / "config.json", os.O_WRONLY),
    "append": lambda d: os.open(d / "config.json", os.O_RDWR | os.O_APPEND),
    "create": lambda d: os.open(d / "new.txt", os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda d: os.mkdir(d / "new"),
    "rmdir": lambda d: os.rmdir(d / "original"),
    "unlink": lambda d: os.unlink(d / "config.json"),
    "rename": lambda d: os.rename(d / "config.json", d / "other.json"),
    "link": lambda d: os.link(d / "config.json", d / "other.json"),
    "symlink": lambda d: os.symlink("config.json", d / "other.json"),
    "truncate": lambda d: os.truncate(d / "config.json", 0),
    "chmod": lambda d: os.chmod(d / "config.json", 0o777),
    "chown": lambda d: os.chown(d / "config.json", 1, 1),
    "utime": lambda d: os.utime(d / "config.json", (0, 0)),
    "mknod": lambda d: os.mknod(d / "new.txt"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_erofs(tree, change):
    assert error_of(lambda: CHANGES[change](tree / "m")) == errno.EROFS
    assert error_of(lambda: os.setxattr(tree / "m/config.json", "user.nexus.state", b"x")) is not None


def test_statfs_answers(tree):
    answer = os.statvfs(tree / "m")
    assert answer.f_namemax >= 255 and answer.f_blocks > 0


def test_stale_mountpoint_of_a_killed_daemon_is_recovered(hub, mount, repos):
    model = models.make_model(repos / "org/a", "llama")
    hub.add_root(repos)
    nexus = mount().start()
    assert (nexus / "org/a/config.json").exists()
    nexus.kill()
    # ECONNABORTED for requests that the kernel still holds while the connection goes down
    poll(lambda: error_of(lambda: os.listdir(nexus.path)) == errno.ENOTCONN, "the dead mount")
    with nexus:
        assert same_bytes(nexus / "org/a/model.safetensors", model.path / "model.safetensors")
    assert mount_device(nexus.path) is None


def test_second_mount_on_a_live_mountpoint_is_refused_and_leaves_it_alone(hub, mount, repos):
    models.make_model(repos / "org/a", "llama")
    hub.add_root(repos)
    with mount() as nexus:
        (nexus / "org/a").stat()
        again = nexus.try_start()
        assert again.returncode != 0 and str(nexus.path) in again.stderr
        assert (nexus / "org/a/config.json").exists()


def test_plain_umount_of_an_idle_mount_ends_the_daemon(hub, mount, repos):
    models.make_model(repos / "org/a", "llama")
    hub.add_root(repos)
    nexus = mount().start()
    (nexus / "org/a/layer_0.pt").read_bytes()
    subprocess.run(["umount", str(nexus.path)], check=True)
    nexus.wait_ended()
    assert processes_with(str(nexus.path)) == []
    nexus.check_sanitizers()


@pytest.mark.parametrize("door", ["resolve", "all"])
def test_gated_model_is_eacces_without_a_token_and_open_with_one(hub, mount, repos, tmp_path, door):
    model = models.make_model(repos / "org/gated", "llama")
    hub.add_root(repos)
    hub.protect("org/gated", gated=door)
    hub.allow_token("hf_testtoken")
    with mount() as nexus:
        assert error_of((nexus / "org/gated/config.json").read_bytes) == errno.EACCES
        assert error_of((nexus / "org/gated/model.safetensors").read_bytes) == errno.EACCES
    token = tmp_path / "token"
    token.write_text("hf_testtoken\n")
    for flags, env in ((["--token-file", str(token)], {}), ([], {"HF_TOKEN": "hf_testtoken"}),
                       ([], {"HF_TOKEN_PATH": str(token)})):
        with mount(*flags, env=env) as nexus:
            assert same_bytes(nexus / "org/gated/model.safetensors", model.path / "model.safetensors")


def test_private_model_without_a_token_looks_absent(hub, mount, repos):
    models.make_model(repos / "org/secret", "llama")
    hub.add_root(repos)
    hub.protect("org/secret", private=True)
    with mount() as nexus:
        assert error_of((nexus / "org/secret/config.json").read_bytes) in (errno.ENOENT, errno.EACCES)


def test_renamed_repository_is_followed(hub, mount, repos):
    model = models.make_model(repos / "org/old", "llama")
    hub.add_root(repos)
    hub.rename("org/old", "other/new")
    with mount() as nexus:
        for name in ("config.json", "model.safetensors"):
            assert same_bytes(nexus / "org/old" / name, model.path / name)
        assert set(tensorfiles.read_layer_pt(nexus / "org/old/layer_0.pt")) == set(model.of_layer(0))


def test_sizes_come_from_the_paged_tree_where_model_info_has_none(hub, mount, repos):
    model = models.make_model(repos / "org/a", "llama", layers=4, shards=5)
    hub.add_root(repos)
    hub.set_info_has_sizes(False)
    hub.set_page_size(3)
    with mount() as nexus:
        for name in model.files():
            assert (nexus / "org/a" / name).stat().st_size == (model.path / name).stat().st_size
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
    assert hub.requests("/tree/") >= len(model.files()) // 3


def test_endpoint_comes_from_the_environment_too(hub, mount, repos):
    model = models.make_model(repos / "org/a", "llama")
    hub.add_root(repos)
    with mount(endpoint=None, env={"HF_ENDPOINT": hub.endpoint}) as nexus:
        assert same_bytes(nexus / "org/a/config.json", model.path / "config.json")


EVIL_NAMES = ["../escape.txt", "a/../../escape.txt", "/etc/escape", "nul\0byte", "control\x01char", "new\nline",
              "a//b", "./dot", "..", ".", "", "config.json/child", "trailing/", "dir/./x", "long" * 100]


def test_evil_names_are_dropped_and_the_rest_is_usable(hub, mount, repos):
    model = models.make_model(repos / "org/a", "llama", layers=2)
    hub.add_root(repos)
    hub.extra_siblings("org/a", [{"rfilename": name, "size": 5} for name in EVIL_NAMES]
                       + [{"rfilename": "config.json", "size": 999}])
    with mount() as nexus:
        seen = [os.path.relpath(os.path.join(at, name), nexus / "org/a")
                for at, _, names in os.walk(nexus / "org/a") for name in names]
        assert set(seen) == set(model.files()) | {"layer_0.pt", "layer_1.pt", "non_layer.pt"}
        assert os.listdir(nexus / "org/a").count("config.json") == 1
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name
        # Any legal name is a directory below the root (an organisation); a file it must not be.
        assert not (nexus / "escape.txt").is_file()
    assert not list(nexus.cache.rglob("*escape*"))
