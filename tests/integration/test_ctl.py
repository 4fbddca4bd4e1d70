"""Control over the cache: what nexusctl and setfattr change on a real mount."""
import errno
import json
import mmap
import os
import re
import subprocess

import models
import pytest
from nexus import BIN, HANG_S, poll, same_bytes

LAYERS = 4


@pytest.fixture
def model(hub, repos):
    made = models.make_model(repos / "org/a", tensors=models.sized_llama(8 << 20, LAYERS))
    hub.add_root(repos)
    return made


def objects(nexus) -> dict:
    """Path in the model -> what `ls --json` says."""
    answer = nexus.ctl("ls", "--json")
    assert answer.returncode == 0, answer.stderr
    return {one["name"].split("/", 2)[2]: one for one in json.loads(answer.stdout)["objects"]}


def resident(nexus) -> set[str]:
    return {name for name, one in objects(nexus).items() if one["state"] == "resident"}


def ok(result: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def object_files(cache) -> list:
    return [path for path in cache.glob("zone_*/objects/??/*") if not path.name.endswith(".meta")]


def flip_a_byte(path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_warm_brings_layers_and_waits_for_them(hub, mount, model):
    with mount() as nexus:
        answer = json.loads(ok(nexus.ctl("warm", "org/a", "0-1,3", "--wait", "--json")).stdout)
        assert answer["files"] == 3 and answer["failed"] == []
        assert resident(nexus) >= {"layer_0.pt", "layer_1.pt", "layer_3.pt"}
        assert "layer_2.pt" not in resident(nexus)
        before = nexus.stats()["performance"]["bytes_downloaded"]
        (nexus / "org/a/layer_1.pt").read_bytes()
        assert nexus.stats()["performance"]["bytes_downloaded"] == before


def test_warm_without_layers_brings_the_models_own_files(mount, model):
    with mount() as nexus:
        assert "being fetched" in ok(nexus.ctl("warm", "org/a", "0")).stdout
        ok(nexus.ctl("warm", "a", "--wait"))  # the only one of that name
        assert resident(nexus) | {"empty.txt"} >= set(model.files())  # of no bytes: never listed
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name)


def test_warm_all_brings_every_layer(mount, model):
    with mount() as nexus:
        ok(nexus.ctl("warm", "org/a", "all", "--wait"))
        assert resident(nexus) >= {f"layer_{n}.pt" for n in range(LAYERS)} | {"non_layer.pt"}


def test_warm_that_nobody_waits_for_any_more_ends(hub, mount, model):
    with mount() as nexus:
        (nexus / "org/a/layer_0.pt").stat()
        fault = hub.fault("safetensors$", "stall", server="cdn", after=1000)
        warming = subprocess.Popen([str(BIN / "nexusctl"), "--mount", str(nexus.path), "warm", "org/a", "all", "--wait"],
                                   env=nexus.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert hub.wait_parked(fault)
        warming.terminate()  # as Ctrl-C does
        warming.wait(timeout=HANG_S)
        poll(lambda: nexus.stats()["downloader"]["active_downloads"] == 0, "the end of what was warmed")
        hub.release(fault)


def test_warm_reports_what_it_could_not_fetch(hub, mount, model):
    with mount() as nexus:
        (nexus / "org/a/layer_0.pt").stat()
        hub.fault("safetensors$", "status", server="cdn", code=404, times=1000)
        result = nexus.ctl("warm", "org/a", "1", "--wait")
        assert result.returncode == 1 and "layer_1.pt" in result.stdout + result.stderr
        hub.clear_faults()


@pytest.mark.parametrize("arguments, named", [
    (["warm", "org/absent"], "org/absent"), (["warm", "org/a", "99"], "layer_99.pt"), (["warm", "org/a", "3-1"], "3-1"),
    (["pin", "org/a", "99"], "layer_99.pt"), (["unpin", "org/a"], "org/a"), (["invalidate", "org/b"], "org/b"),
    (["invalidate", "org/a", "2"], "layer_2.pt"), (["invalidate"], "model"), (["pin", "twin"], "one/twin, two/twin"),
], ids=lambda value: "-".join(value) if isinstance(value, list) else "")
def test_what_cannot_be_meant_fails_and_is_named(module_ctl, arguments, named):
    result = module_ctl.ctl(*arguments)
    assert result.returncode == 1 and named in result.stderr, result.stderr


@pytest.fixture(scope="module")
def module_ctl(module_hub, module_mount, tmp_path_factory):
    repos = tmp_path_factory.mktemp("repos")
    for name in ("org/a", "one/twin", "two/twin"):
        models.make_model(repos / name, "llama")
    module_hub.add_root(repos)
    nexus = module_mount().start()
    for name in ("org/a", "one/twin", "two/twin"):
        (nexus / name / "config.json").read_bytes()
    return nexus


def test_pin_survives_eviction_pressure_and_restart(mount, model):
    with mount("--disk", "5MB") as nexus:  # a layer is 2.1 MB
        ok(nexus.ctl("pin", "org/a", "0"))
        for _ in range(2):
            for n in range(LAYERS):
                (nexus / f"org/a/layer_{n}.pt").read_bytes()
            assert "layer_0.pt" in resident(nexus)
            nexus.restart()
        assert nexus.stats()["disk_cache_entries"] > 0
        assert objects(nexus)["layer_0.pt"]["pinned"]
        assert "org/a/layer_0.pt" in ok(nexus.ctl("status")).stdout
        ok(nexus.ctl("unpin", "org/a", "0"))
        for n in range(1, LAYERS):
            (nexus / f"org/a/layer_{n}.pt").read_bytes()
        poll(lambda: "layer_0.pt" not in resident(nexus), "the eviction of what was unpinned")


def test_invalidate_leaves_open_mappings_their_bytes(mount, model):
    with mount() as nexus:
        path = nexus / "org/a/layer_1.pt"
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            truth = bytes(mapped)
            answer = json.loads(ok(nexus.ctl("invalidate", "org/a", "1", "--json")).stdout)
            assert answer["objects"] == 1 and answer["bytes"] == len(truth)
            assert nexus.xattr("state", "org/a/layer_1.pt") == "absent"
            assert bytes(mapped) == truth and os.pread(file.fileno(), len(truth), 0) == truth
            assert path.read_bytes() == truth  # fetched again
        ok(nexus.ctl("invalidate", "--all"))
        assert nexus.stats()["disk_cache_entries"] == 0


def test_verify_finds_a_flipped_byte_and_the_next_read_is_true_again(mount, model):
    shard = max(model.files(), key=lambda name: (model.path / name).stat().st_size)
    with mount() as nexus:
        (nexus / "org/a" / shard).read_bytes()
        ok(nexus.ctl("flush"))
        assert "all sound" in ok(nexus.ctl("verify")).stdout
        poll(lambda: nexus.xattr("verified", f"org/a/{shard}") == "sha256", "the digest")
        assert json.loads(ok(nexus.ctl("verify", "--origin", "--json")).stdout)["matched_origin"] >= 1
        flip_a_byte(max(object_files(nexus.cache), key=lambda path: path.stat().st_size))
        found = nexus.ctl("verify", "--json")
        assert found.returncode == 1
        assert [shard in text for text in json.loads(found.stdout)["corrupt"]] == [True]
        assert nexus.xattr("state", f"org/a/{shard}") == "absent"
        assert same_bytes(nexus / "org/a" / shard, model.path / shard)
        ok(nexus.ctl("verify", "org/a"))


def test_optimize_removes_what_belongs_to_nobody(mount, model):
    with mount() as nexus:
        truth = (nexus / "org/a/layer_0.pt").read_bytes()
        orphan = object_files(nexus.cache)[0].with_name("f" * 32)
        orphan.write_bytes(b"rubbish")
        answer = json.loads(ok(nexus.ctl("optimize", "--json")).stdout)
        assert answer["orphan_files"] == 1 and answer["corrupt"] == [] and not orphan.exists()
        nexus.restart()
        assert (nexus / "org/a/layer_0.pt").read_bytes() == truth


def test_clear_leaves_a_cache_as_new(mount, model):
    with mount() as nexus:
        ok(nexus.ctl("warm", "org/a", "0-1", "--wait"))
        ok(nexus.ctl("pin", "org/a"))
        answer = json.loads(ok(nexus.ctl("clear", "--json")).stdout)
        assert answer["objects"] >= 2
        assert objects(nexus) == {} and nexus.stats()["disk_cache_size_gb"] == 0
        assert object_files(nexus.cache) == []
        assert "pinned" not in ok(nexus.ctl("status")).stdout
        assert (nexus / "org/a/layer_0.pt").stat().st_size == len((nexus / "org/a/layer_0.pt").read_bytes())


def test_a_lost_or_damaged_catalog_is_rebuilt(hub, mount, model):
    with mount(config={"enable_prefetch": False}) as nexus:
        truth = (nexus / "org/a/layer_0.pt").read_bytes()
        for damage in ("deleted", "overwritten"):
            ok(nexus.ctl("flush"))
            nexus.stop()
            if damage == "deleted":
                (nexus.cache / "catalog.db").unlink()
            else:
                (nexus.cache / "catalog.db").write_bytes(b"no database" * 1000)
            nexus.start()
            assert "layer_0.pt" in resident(nexus)
            before = hub.bytes_sent("safetensors$")
            assert (nexus / "org/a/layer_0.pt").read_bytes() == truth
            # The headers were in the catalog alone and are asked for again, the layer is not.
            assert hub.bytes_sent("safetensors$") - before < len(truth) // 2


def test_top_shows_one_view_and_ends(mount, model):
    with mount() as nexus:
        (nexus / "org/a/layer_0.pt").read_bytes()
        shown = ok(nexus.ctl("top", "--once")).stdout
        assert str(nexus.path) in shown and "requests" in shown and "zone_0" in shown
        assert re.search(r"^scrub +(off|no pass yet|last pass|.* checked)", shown, re.M), shown
        assert re.search(r"^migration +0 files moved", shown, re.M), shown
        assert re.search(r"^latency .* ms for the [1-9]\d* that waited, [\d.]+ s together$", shown, re.M), shown
        assert re.search(r"^read-ahead .* asked for, .* used, .* wasted$", shown, re.M), shown
        assert re.search(r"^downloads .* for readers, .* ahead of them, .* for later layers$", shown, re.M), shown
        assert re.search(r"^ +ORIGIN +NOW +RECEIVED +ROUND TRIP +FIRST BYTE +REQUESTS +FAILED +RETRIES +HEDGES$",
                         shown, re.M), shown
        assert len(re.findall(r"^ +http://\S+ .* ms ", shown, re.M)) == 2, shown  # the hub and its CDN
        assert ok(nexus.ctl("stats")).stdout.count("http://") == 2


def test_pinned_and_prefetch_are_set_by_setfattr(mount, model):
    with mount() as nexus:
        path = nexus / "org/a/layer_2.pt"
        assert nexus.xattr("pinned", path) == "0"
        os.setxattr(path, "user.nexus.pinned", b"1")
        assert nexus.xattr("pinned", path) == "1"
        os.setxattr(path, "user.nexus.prefetch", b"1")
        poll(lambda: nexus.xattr("state", path) == "resident", "the prefetch")
        os.setxattr(path, "user.nexus.pinned", b"0")
        os.setxattr(path, "user.nexus.pinned", b"0")
        assert nexus.xattr("pinned", path) == "0"
        os.setxattr(nexus / "org/a", "user.nexus.pinned", b"1")
        assert nexus.xattr("pinned", path) == "1"
        for name, value, expected in (("user.nexus.pinned", b"maybe", errno.EINVAL), ("user.nexus.tier", b"ram", errno.EROFS),
                                      ("user.other", b"1", errno.EROFS)):
            with pytest.raises(OSError) as failure:
                os.setxattr(path, name, value)
            assert failure.value.errno == expected, name
        with pytest.raises(OSError) as failure:
            os.setxattr(nexus / "org", "user.nexus.prefetch", b"1")
        assert failure.value.errno == errno.EOPNOTSUPP


@pytest.mark.skipif(os.geteuid() != 0, reason="takes the part of another user")
def test_other_users_change_nothing(mount, model):
    with mount("--allow-other") as nexus:
        path = nexus / "org/a/layer_0.pt"
        path.stat()
        os.chmod(nexus.work, 0o755)
        script = ("import os, sys\n"
                  "for name in ('pinned', 'prefetch'):\n"
                  "  try: os.setxattr(sys.argv[1], 'user.nexus.' + name, b'1')\n"
                  "  except PermissionError: continue\n"
                  "  sys.exit(name + ' was set')\n")
        # From `/`: the test's own directories are private.
        other = lambda *command: subprocess.run(command, user=65534, group=65534, extra_groups=[], cwd="/",
                                                capture_output=True, text=True, timeout=HANG_S)
        with_access = subprocess.run(["test", "-r", str(path)], user=65534, group=65534, extra_groups=[], cwd="/")
        if with_access.returncode == 0:
            assert ok(other("python3", "-c", script, str(path)))
        assert other(str(BIN / "nexusctl"), "--mount", str(nexus.path), "clear").returncode != 0
        assert nexus.xattr("pinned", path) == "0" and nexus.xattr("state", path) == "absent"
