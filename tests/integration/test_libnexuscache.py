"""libnexuscache: a project of its own that finds the installed package, against a mount and without one."""
import json
import os
import subprocess
import zipfile

import models
import pytest
from nexus import BIN, HANG_S, REPO, poll, same_bytes

LAYERS = 4
BUILD = BIN.parent


def run(*command, **options) -> str:
    result = subprocess.run([str(one) for one in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, timeout=5 * HANG_S, **options)
    assert result.returncode == 0, result.stdout
    return result.stdout


def build_setting(name: str) -> str:
    for line in (BUILD / "CMakeCache.txt").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.split("=", 1)[1]
    return ""


def readme_example() -> str:
    text = (REPO / "README.md").read_text()
    return text.split("<!-- libnexuscache example -->\n```cpp\n", 1)[1].split("```", 1)[0]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The directory with `consumer`, and `example` from README.md, built against an installed prefix."""
    work = tmp_path_factory.mktemp("consumer")
    (work / "example.cc").write_text(readme_example())
    run("cmake", "--install", BUILD, "--prefix", work / "prefix", "--component", "nexuscache")
    flags = []
    if sanitize := build_setting("NEXUS_SANITIZE"):
        flags.append(f"-DCMAKE_CXX_FLAGS=-fsanitize={sanitize}")
    run("cmake", "-G", build_setting("CMAKE_GENERATOR"), "-S", REPO / "tests/consumer", "-B", work / "build",
        f"-DCMAKE_PREFIX_PATH={work / 'prefix'}", f"-DCMAKE_CXX_COMPILER={build_setting('CMAKE_CXX_COMPILER')}",
        f"-DEXAMPLE={work / 'example.cc'}", *flags)
    run("cmake", "--build", work / "build")
    return work / "build"


@pytest.fixture
def model(hub, repos):
    made = models.make_model(repos / "org/a", tensors=models.sized_llama(16 << 20, LAYERS))
    hub.add_root(repos)
    return made


class Consumer:
    """Programs that use one cache_dir, in the environment of a mount's user."""

    def __init__(self, program, nexus) -> None:
        self.program, self.nexus = program, nexus

    def start(self, *words) -> subprocess.Popen:
        command = [self.program, self.nexus.cache, self.nexus.endpoint, *words]
        return subprocess.Popen([str(word) for word in command], env=self.nexus.env, stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __call__(self, *words, fails: bool = False) -> list[str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=HANG_S)
        assert process.returncode == (1 if fails else 0), out + err
        self.nexus.check_sanitizers()
        return out.splitlines()[-1:] if fails else out.splitlines()


@pytest.fixture
def unmounted(mount, model):
    """A mount that is not started: only its names are used."""
    return mount("--ram", "64MiB")


@pytest.fixture
def consumer(programs, unmounted):
    unmounted.work.mkdir(exist_ok=True)
    return Consumer(programs / "consumer", unmounted)


def is_zip(path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def test_layers_come_from_the_mount_that_owns_the_cache(consumer, unmounted, hub, tmp_path):
    out = tmp_path / "layer"
    with unmounted as nexus:
        first = consumer("where", "get", "org/a", 1, out)
        assert first[0] == "daemon"
        assert same_bytes(out, nexus / "org/a/layer_1.pt")
        sent = hub.bytes_sent("safetensors$")
        assert consumer("get", "org/a", 1, out)[0] == first[1]
        assert hub.bytes_sent("safetensors$") == sent
        assert consumer("many", "org/a", LAYERS) == ["many 0"]
        performance = nexus.stats()["performance"]
        assert performance["total_hits"] >= 8 * LAYERS
        stats = json.loads(consumer("stats")[0])
        assert stats["disk_cache_entries"] >= LAYERS and "cache_hit_ratio" in stats["performance"]
        assert any("data served from cache" in line for line in consumer("print"))
        assert consumer("verify", "optimize") == ["verify 0", "optimize 0"]


def test_without_a_mount_the_program_is_the_owner(consumer, unmounted, model, tmp_path):
    out, mine = tmp_path / "layer", tmp_path / "mine"
    said = consumer("where", "get", "org/a", 2, out, "many", "org/a", LAYERS)
    assert (said[0], said[2]) == ("in-process", "many 0")
    assert is_zip(out)
    # Another program uses the first one's cache while that lives.
    owner = consumer.start("hold", "org/a", 2, "where", "wait")
    assert owner.stdout.readline() == "hold\n" and owner.stdout.readline() == "in-process\n"
    assert consumer("where", "get", "org/a", 2, mine)[0] == "daemon"
    assert same_bytes(out, mine)
    owner.communicate("go on\n", timeout=HANG_S)
    assert owner.returncode == 0
    # What it cached is there for the mount.
    with unmounted as nexus:
        assert nexus.stats()["disk_cache_entries"] >= LAYERS
        assert same_bytes(out, nexus / "org/a/layer_2.pt")


def test_a_mount_refuses_a_cache_that_a_program_owns(consumer, unmounted):
    owner = consumer.start("where", "wait")
    assert owner.stdout.readline() == "in-process\n"
    refused = unmounted.try_start()
    unmounted.clean_up()
    assert refused.returncode != 0 and str(owner.pid) in refused.stderr, refused.stderr
    owner.communicate("\n", timeout=HANG_S)


def test_a_second_daemon_on_one_cache_is_refused_by_name(mount, unmounted):
    with unmounted as first:
        second = mount(cache=first.cache)
        refused = second.try_start()
        second.clean_up()
        assert refused.returncode != 0
        assert f"{first.cache} is in use by process" in refused.stderr, refused.stderr
        assert first.stats()["zones"], "the first goes on"


def test_what_is_put_in_appears_in_the_mount_and_survives_restarts(consumer, unmounted, tmp_path):
    out = tmp_path / "layer"
    with unmounted as nexus:
        assert not (nexus / "my/model/layer_0.pt").exists()  # and is remembered as absent
        assert consumer("put", "my/model", 0, 3, "a", "none")[0].startswith("put ")
        truth = (nexus / "my/model/layer_0.pt").read_bytes()
        assert truth.count(b"a" * (3 << 20)) == 1 and is_zip(nexus / "my/model/layer_0.pt")
        assert consumer("get", "my/model", 0, out) == [f"get 2 {(3 << 20) + 8}"]
        assert out.read_bytes() == truth
        assert os.listdir(nexus / "my/model") == ["layer_0.pt"]
        assert "my" in os.listdir(nexus.path) and "model" in os.listdir(nexus / "my")
        # A quantised one lies beside it.
        consumer("put", "my/model", 0, 1, "q", "nf4", "get-mode", "my/model", 0, "nf4", out)
        assert out.read_bytes() == (nexus / "my/model/layer_0.nf4.pt").read_bytes()
        assert consumer("get-mode", "my/model", 0, "int8", out, fails=True)[0].startswith("error: 0:")
        nexus.stop()
        nexus.start()
        assert (nexus / "my/model/layer_0.pt").read_bytes() == truth
        # In the place of what was there, also for those who have looked at it.
        consumer("put", "my/model", 0, 2, "b", "none")
        poll(lambda: (nexus / "my/model/layer_0.pt").read_bytes().count(b"b" * (2 << 20)) == 1, "the new layer")
        assert consumer("invalidate", "my/model", 0) == ["invalidate 1"]
        poll(lambda: not (nexus / "my/model/layer_0.pt").exists(), "the layer's end")
        assert consumer("get", "my/model", 0, out, fails=True)[0].startswith("error: 0:")
        assert (nexus / "my/model/layer_0.nf4.pt").exists()
        assert consumer("clear") == ["clear"]
        poll(lambda: not (nexus / "my/model/layer_0.nf4.pt").exists(), "the layer's end")


def test_a_layer_that_was_put_in_stands_before_the_hubs(consumer, unmounted, tmp_path):
    with unmounted as nexus:
        original = (nexus / "org/a/layer_1.pt").read_bytes()
        consumer("put", "org/a", 1, 1, "z", "none")
        poll(lambda: (nexus / "org/a/layer_1.pt").read_bytes() != original, "the layer that was put in")
        assert (nexus / "org/a/layer_1.pt").read_bytes().count(b"z" * (1 << 20)) == 1
        assert sorted(name for name in os.listdir(nexus / "org/a") if name.startswith("layer_")) == \
            [f"layer_{n}.pt" for n in range(LAYERS)]
        consumer("copy", "org/a", 2, "org/b", 0)
        assert is_zip(nexus / "org/b/layer_0.pt")
        consumer("invalidate", "org/a", 1)
        poll(lambda: (nexus / "org/a/layer_1.pt").read_bytes() == original, "the hub's layer")


def test_files_are_downloaded_into_a_model_of_ones_own(consumer, unmounted, model, tmp_path):
    out = tmp_path / "layer"
    shard = next(name for name in model.files() if name.endswith(".safetensors"))
    consumer("download", "mine", 0, "org/a", shard, "download", "mine", 1, "org/a", "layer_1.pt", "get", "mine", 0, out)
    assert is_zip(out)
    with unmounted as nexus:
        assert same_bytes(out, nexus / "mine/layer_0.pt")
        assert same_bytes(nexus / "mine/layer_1.pt", nexus / "org/a/layer_1.pt")
        assert consumer("download", "mine", 2, "org/a", "config.json", fails=True)[0].startswith("error: ")
        assert consumer("download", "mine", 2, "org/none", "x.pt", fails=True)[0].startswith("error: 0:")


def test_held_layers_are_not_evicted_and_are_let_go_with_their_process(consumer, programs, model, mount, tmp_path):
    size = max(path.stat().st_size for path in model.path.glob("*.safetensors")) // LAYERS
    nexus = mount("--ram", "1MiB", "--disk", str(2 * size), config={"enable_prefetch": False})
    with nexus:
        holders = Consumer(programs / "consumer", nexus)
        holder = holders.start("hold", "org/a", 0, "wait", "check-held")
        assert holder.stdout.readline() == "hold\n"
        for n in range(1, LAYERS):
            (nexus / f"org/a/layer_{n}.pt").read_bytes()
        states = {one["name"].split("/", 2)[2]: one["state"]
                  for one in json.loads(nexus.ctl("ls", "--json").stdout)["objects"]}
        assert states.get("layer_0.pt") == "resident"
        holder.communicate("\n", timeout=HANG_S)
        assert holder.returncode == 0

        def evicted() -> bool:
            for n in range(1, LAYERS):
                (nexus / f"org/a/layer_{n}.pt").read_bytes()
            return nexus.xattr("state", "org/a/layer_0.pt") == "absent"
        poll(evicted, "layer 0's eviction")


def test_device_tensors_and_wrong_names_are_refused(consumer, unmounted, tmp_path):
    with unmounted:
        out = tmp_path / "layer"
        assert "libnexusgpu" in consumer("device", "org/a", fails=True)[0]
        assert consumer("get", "org/a", 99, out, fails=True)[0].startswith("error: 0:")
        assert consumer("get", "org/a", -1, out, fails=True)[0].startswith("error: 5:")
        assert consumer("get", "../a", 0, out, fails=True)[0].startswith("error: 5:")
        assert consumer("put", "org/a@main", 0, 1, "x", "none", fails=True)[0].startswith("error: 5:")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_gets_nothing(consumer, unmounted, tmp_path):
    with unmounted as nexus:
        consumer("get", "org/a", 0, tmp_path / "layer")
        script = ("import os, socket, sys; os.setuid(65534)\n"
                  "try:\n socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n"
                  "except PermissionError: print('refused')\n")
        socket = os.readlink(nexus.cache / "control")
        refused = run("python3", "-c", script, socket)
        assert refused.strip() == "refused"


def test_the_readmes_example_runs(programs, consumer, unmounted):
    with unmounted as nexus:
        answer = run(programs / "example", nexus.cache, "org/a", env=nexus.env)
        assert "layer 0" in answer
