"""Bad answers from the hub: EIO for the one file, with its reason; nothing wrong is kept."""
import concurrent.futures
import errno
import os

import models
import pytest
from nexus import poll, same_bytes
from tensorfiles import random_bytes

SIZE = 3_000_000  # three chunks, through the CDN

# Faults of the body, on every request for the file named after them.
PERSISTENT = {
    "short": {}, "truncated": {}, "long": {}, "wrong_range": {}, "wrong_total": {},
    "html": {"server": "cdn"}, "drop": {"server": "cdn"},
    "loop": {"server": "cdn"}, "status-404": {"status": 404, "server": "cdn"},
    "status-500": {"status": 500, "server": "cdn"}, "status-416": {"status": 416, "server": "cdn"},
    "redirect-file": {"location": "file:///etc/passwd"},
    "redirect-ftp": {"location": "ftp://127.0.0.1/x"},
    "redirect-gopher": {"location": "gopher://127.0.0.1:1/x"},
    "redirect-nowhere": {"location": "http://127.0.0.1:1/x"},
    "redirect-loop": {"location": "/org/faulty/resolve/main/redirect-loop.onnx", "server": "hub", "method": None},
}
# A client may make the best of these, or refuse: but never serve other bytes.
LENIENT = {"ignore_range": {}, "etag": {"etag": "0" * 64, "server": "hub", "method": None}}
# One failure, then the truth: a reader never notices.
TRANSIENT = {
    "short": {}, "drop": {"server": "cdn"}, "status-500": {"status": 500}, "status-502": {"status": 502},
    "status-503": {"status": 503}, "status-408": {"status": 408},
    "status-429": {"status": 429, "headers": {"Retry-After": "1"}},
    "status-429-policy": {"status": 429, "headers": {"RateLimit": '"resolvers";r=0;t=1'}},
    "status-403": {"status": 403, "server": "cdn"},
}


def attempt(path) -> bytes | OSError:
    try:
        return path.read_bytes()
    except OSError as error:
        return error


class Faulty:
    """A repo with one file a fault. All are read at once: their retries' waits overlap."""

    def __init__(self, hub, nexus_factory, root) -> None:
        directory = root / "org/faulty"
        models.make_model(directory, "llama")
        self.truth = {}
        for name in [*PERSISTENT, *(f"once-{name}" for name in TRANSIENT), "good", *LENIENT]:
            self.truth[name] = random_bytes(name, SIZE)
            (directory / f"{name}.onnx").write_bytes(self.truth[name])
        hub.add_root(root)
        self.hub = hub
        for name, options in (PERSISTENT | LENIENT).items():
            self._add(name, name, options)
        for name, options in TRANSIENT.items():
            self._add(f"once-{name}", name, options | {"count": 1})
        self.mount = nexus_factory().start()
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            self.results = dict(zip(self.truth, pool.map(attempt, map(self.path, self.truth))))

    def _add(self, name: str, kind: str, options: dict) -> None:
        pattern = f"/{name}\\.onnx$"
        self.hub.fault(pattern, kind.split("-")[0], **{"method": "GET"} | options)

    def path(self, name: str):
        return self.mount / f"org/faulty/{name}.onnx"


@pytest.fixture(scope="module")
def faulty(module_hub, module_mount, tmp_path_factory):
    return Faulty(module_hub, module_mount, tmp_path_factory.mktemp("repos"))


@pytest.mark.parametrize("name", PERSISTENT)
def test_persistent_fault_is_eio_with_its_reason(faulty, name):
    result = faulty.results[name]
    assert isinstance(result, OSError) and result.errno == errno.EIO
    reason = faulty.mount.xattr("error", f"org/faulty/{name}.onnx")
    assert f"{name}.onnx" in reason and len(reason) > len(f"{name}.onnx") + 5
    assert f"{name}.onnx" in faulty.mount.log_text()
    assert "root:" not in reason  # /etc/passwd


@pytest.mark.parametrize("name", TRANSIENT)
def test_transient_fault_goes_unnoticed(faulty, name):
    assert faulty.results[f"once-{name}"] == faulty.truth[f"once-{name}"]


def test_file_without_a_fault_is_served_among_the_faulty(faulty):
    assert faulty.results["good"] == faulty.truth["good"]


@pytest.mark.parametrize("name", LENIENT)
def test_200_for_206_and_wrong_etag_never_serve_other_bytes(faulty, name):
    result = faulty.results[name]
    assert result == faulty.truth[name] or result.errno == errno.EIO


def test_truth_is_served_once_the_fault_is_gone(faulty, module_hub):
    """Last in the file's own order: nothing wrong was cached, and no failure is for ever."""
    module_hub.clear_faults()
    for name in faulty.truth:
        poll(lambda name=name: attempt(faulty.path(name)) == faulty.truth[name], f"{name} recovers")


# --- metadata ---

@pytest.mark.parametrize("kind, options", [
    ("html", {}), ("status", {"status": 500}), ("status", {"status": 200, "text": '{"siblings": ['}),
    ("status", {"status": 200, "text": "[]"}), ("status", {"status": 200, "text": '{"sha": 5, "siblings": {}}'}),
    ("status", {"status": 200, "text": "[" * 100_000}), ("drop", {}), ("loop", {}),
    ("redirect", {"location": "file:///etc/passwd"}), ("status", {"status": 401, "headers": {"X-Error-Message": "Invalid credentials"}}),
], ids=lambda value: str(value)[:40])
def test_bad_model_info_spoils_that_model_only(hub, mount, repos, kind, options):
    bad = models.make_model(repos / "org/bad", "llama")
    good = models.make_model(repos / "org/good", "llama")
    hub.add_root(repos)
    fault = hub.fault("/api/models/org/bad", kind, **options)
    with mount() as nexus:
        result = attempt(nexus / "org/bad/config.json")
        assert isinstance(result, OSError) and result.errno in (errno.EIO, errno.EACCES)
        assert same_bytes(nexus / "org/good/model.safetensors", good.path / "model.safetensors")
        hub.release(fault)
        poll(lambda: attempt(nexus / "org/bad/config.json") == (bad.path / "config.json").read_bytes(), "recovery")


@pytest.mark.parametrize("lie", [{"info_size": 1000}, {"info_size": 10_000_000}, {"head_size": 1000},
                                 {"info_size": -1}, {"info_size": 1 << 62}], ids=str)
def test_sizes_that_disagree_are_eio_for_that_file(hub, mount, repos, lie):
    model = models.make_model(repos / "org/a", "llama")
    (model.path / "liar.onnx").write_bytes(random_bytes("liar", 300_000))
    hub.add_root(repos)
    hub.lie("org/a", "liar.onnx", **lie)
    with mount() as nexus:
        result = attempt(nexus / "org/a/liar.onnx")
        if "head_size" in lie and result == (model.path / "liar.onnx").read_bytes():
            return  # never asked by HEAD: info and GET agree
        assert isinstance(result, OSError) and result.errno == errno.EIO
        assert "liar.onnx" in nexus.xattr("error", "org/a/liar.onnx")
        assert same_bytes(nexus / "org/a/model.safetensors", model.path / "model.safetensors")


def test_expired_signature_is_resolved_again(hub, mount, repos):
    model = models.make_model(repos / "org/a", "llama", layers=2, hidden=512)
    hub.add_root(repos)
    with mount() as nexus:
        (nexus / "org/a/layer_0.pt").read_bytes()
        hub.expire_signatures()
        assert same_bytes(nexus / "org/a/model.safetensors", model.path / "model.safetensors")


def test_signatures_that_never_work_are_eio_after_a_bounded_number_of_tries(hub, mount, repos):
    models.make_model(repos / "org/a", "llama")
    hub.add_root(repos)
    hub.fault("/cdn/", "status", status=403)
    with mount() as nexus:
        result = attempt(nexus / "org/a/model.safetensors")
        assert isinstance(result, OSError) and result.errno == errno.EIO
        assert hub.requests("resolve/.*model.safetensors") < 30


def test_signed_address_is_reused(hub, mount, repos):
    """Anonymous users have 3,000 resolves in 5 minutes: one a file, not one a range."""
    models.make_model(repos / "org/a", "llama", layers=2, hidden=512)
    hub.add_root(repos)
    with mount() as nexus:
        (nexus / "org/a/layer_0.pt").read_bytes()
        (nexus / "org/a/model.safetensors").read_bytes()
    assert hub.requests("resolve/.*model.safetensors") <= 2


def test_latency_and_slow_lines_change_nothing(hub, mount, repos):
    model = models.make_model(repos / "org/a", "llama", hidden=128)
    hub.add_root(repos)
    hub.fault("", "latency", ms=50)
    hub.fault("safetensors", "rate", bytes_s=2_000_000)
    with mount() as nexus:
        for name in model.files():
            assert same_bytes(nexus / "org/a" / name, model.path / name), name


@pytest.mark.parametrize("change", ["other-bytes", "longer", "shorter"])
def test_base_url_file_that_changes_is_estale_for_its_handle_and_new_for_the_next_lookup(hub, mount, tmp_path, change):
    first = models.write_base_url_layers(tmp_path / "plain", 3)
    hub.add_plain("layers", tmp_path / "plain")
    # Else layer 1 may be here before it changes.
    with mount("--base-url", f"m={hub.plain_url('layers')}", config={"enable_prefetch": False}) as nexus:
        kept = os.open(nexus / "m/layer_0.pt", os.O_RDONLY)
        path = os.open(nexus / "m/layer_1.pt", os.O_PATH)  # looked up, not opened
        changed = {"other-bytes": first[1][:-1] + b"\x7f", "longer": first[1] + b"more", "shorter": first[1][:1000]}[change]
        (tmp_path / "plain/layer_1.pt").write_bytes(changed)
        os.utime(tmp_path / "plain/layer_1.pt", (1, 1))  # another ETag for certain
        # What was looked up before is not the file that is there now: no walk to it, so no second try by the kernel.
        with pytest.raises(OSError) as failure:
            os.open(f"/proc/self/fd/{path}", os.O_RDONLY)
        assert failure.value.errno == errno.ESTALE
        os.close(path)
        assert (nexus / "m/layer_1.pt").read_bytes() == changed
        assert (nexus / "m/layer_1.pt").stat().st_size == len(changed)
        assert (nexus / "m/layer_2.pt").read_bytes() == first[2]
        # What was open goes on: its bytes are here.
        assert os.pread(kept, 1 << 24, 0) == first[0]
        os.close(kept)


def test_base_url_file_that_changes_between_two_opens_is_read_anew(hub, mount, tmp_path):
    """The kernel walks the path once more for ESTALE, by then to what is there now: a reader notices nothing."""
    first = models.write_base_url_layers(tmp_path / "plain", 3)
    hub.add_plain("layers", tmp_path / "plain")
    with mount("--base-url", f"m={hub.plain_url('layers')}", config={"enable_prefetch": False}) as nexus:
        assert (nexus / "m/layer_1.pt").stat().st_size == len(first[1])
        changed = first[1] + b"more"
        (tmp_path / "plain/layer_1.pt").write_bytes(changed)
        os.utime(tmp_path / "plain/layer_1.pt", (1, 1))
        assert (nexus / "m/layer_1.pt").read_bytes() == changed
