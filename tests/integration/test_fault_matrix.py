"""Every fault of the origin x cold and warm x layer file and shard x both integrity modes: true bytes or a clean error,
nothing wrong is kept, and the truth comes once the fault is gone.

One hub, and one repository a case, so that no case sees the bytes of another; all of a mode's cases are read at once,
since most of their time is waiting.
"""
import concurrent.futures
import dataclasses
import email.utils
import errno
import os
import time

import models
import pytest
from nexus import HANG_S, poll, read_range

CDN, HUB = {"server": "cdn"}, {"server": "hub", "method": None}
LAYER = "layer_2.pt"

# Until they are cleared: (kind, options), one or several.
LASTING = {
    "drop": [("drop", CDN)], "short": [("short", {})], "truncated": [("truncated", {})], "long": [("long", {})],
    "chunked": [("chunked", {})], "chunked-short": [("chunked", {"less": 1000})],
    "chunked-long": [("chunked", {"more": 1000})], "chunked-200": [("chunked", {}), ("ignore_range", {})],
    "ignore-range": [("ignore_range", {})], "wrong-range": [("wrong_range", {})], "wrong-total": [("wrong_total", {})],
    "no-range": [("no_range", {})], "html": [("html", CDN)], "html-of-the-hub": [("html", HUB)],
    "etag": [("etag", HUB | {"etag": "0" * 64})], "flip": [("flip", {})], "zero": [("zero", {})],
    "status-403": [("status", CDN | {"status": 403})], "status-404": [("status", CDN | {"status": 404})],
    "status-416": [("status", CDN | {"status": 416})], "status-500": [("status", CDN | {"status": 500})],
    "storm": [("status", {"status": 429, "headers": {"Retry-After": "1"}})],
    "loop": [("loop", CDN)], "loop-of-the-hub": [("loop", HUB)],
    "refused": [("redirect", HUB | {"location": "http://127.0.0.1:1/x"})],
    "no-such-host": [("redirect", HUB | {"location": "http://nowhere.invalid/x"})],
    "tls": [("redirect", HUB | {"location": "https://localhost:{cdn_port}/x"})],
    "scheme": [("redirect", HUB | {"location": "file:///etc/passwd"})],
}
# Of the first requests; a reader never notices.
PASSING = {
    "drop": [("drop", CDN)], "short": [("short", {})], "chunked-short": [("chunked", {"less": 1000})],
    "stall": [("stall", {"after": 1000})], "stalled-request": [("stall_request", CDN)],
    "status-403": [("status", CDN | {"status": 403})], "status-408": [("status", {"status": 408})],
    "status-500": [("status", {"status": 500})], "status-502": [("status", CDN | {"status": 502})],
    "retry-after-seconds": [("status", {"status": 429, "headers": {"Retry-After": "1"}})],
    "retry-after-date": [("status", {"status": 503, "headers": {"Retry-After": "{soon}"}})],
    "rate-limit": [("status", {"status": 429, "headers": {"RateLimit": '"resolvers";r=0;t=1'}})],
}
# What only a digest can tell: `default` serves it until the file is complete (docs/architecture.md, Integrity).
UNSEEN = {"flip", "zero"}


@dataclasses.dataclass(frozen=True)
class Case:
    fault: str
    lasting: bool
    warm: bool
    target: str  # "layer" or "shard"

    def __str__(self) -> str:
        return f"{'' if self.lasting else 'once-'}{self.fault}-{'warm' if self.warm else 'cold'}-{self.target}"

    @property
    def repo(self) -> str:
        return f"org/{self}"


CASES = [Case(fault, lasting, warm, target) for lasting, faults in ((True, LASTING), (False, PASSING))
         for fault in faults for warm in (False, True) for target in ("layer", "shard")]


def attempt(path) -> bytes | OSError:
    try:
        return path.read_bytes()
    except OSError as error:
        return error


def everywhere(function, cases) -> dict:
    with concurrent.futures.ThreadPoolExecutor(48) as pool:
        return dict(zip(cases, pool.map(function, cases, timeout=5 * HANG_S)))


@pytest.fixture(scope="module")
def repositories(module_hub, tmp_path_factory):
    root = tmp_path_factory.mktemp("matrix")
    # Three layers of 1 MB: the shard has four chunks, the header in the first of them.
    made = {case: models.make_model(root / case.repo, layers=3, hidden=192, salt=str(case)) for case in CASES}
    module_hub.add_root(root)
    return made


@pytest.fixture(scope="module")
def truth(repositories, module_mount):
    """Of every layer file, by a mount that meets no fault."""
    def layers(case):
        served = [(nexus / case.repo / f"layer_{number}.pt").read_bytes() for number in range(3)]
        for number, layer in enumerate(served):
            assert all(tensor.bytes() in layer for tensor in repositories[case].of_layer(number).values())
        return served

    with module_mount(config={"enable_prefetch": False}) as nexus:
        return everywhere(layers, CASES)


class Matrix:
    def __init__(self, hub, nexus_factory, repositories, truth, integrity: str) -> None:
        self.hub, self.repositories, self.truth, self.integrity = hub, repositories, truth, integrity
        # Else a layer may be here before its fault is.
        self.nexus = nexus_factory("--integrity", integrity, config={"enable_prefetch": False}).start()
        everywhere(self.prepare, [case for case in CASES if case.warm])
        faults = {case: self.break_origin(case) for case in CASES}
        self.outcomes = everywhere(lambda case: attempt(self.path(case)), CASES)
        self.kept = everywhere(self.read_warm, [case for case in CASES if case.warm])
        self.hits = {case: min(map(hub.fault_hits, faults[case])) for case in CASES}

    def path(self, case: Case, name: str | None = None):
        return self.nexus / case.repo / (name or (LAYER if case.target == "layer" else "model.safetensors"))

    def true_bytes(self, case: Case) -> bytes:
        return self.truth[case][2] if case.target == "layer" else self.source(case).read_bytes()

    def source(self, case: Case):
        return self.repositories[case].path / "model.safetensors"

    def prepare(self, case: Case) -> None:
        """Warm: the headers and a part are here, the connections are open."""
        self.path(case, LAYER).stat()
        self.read_warm(case)

    def read_warm(self, case: Case) -> bytes:
        if case.target == "layer":
            return self.path(case, "layer_0.pt").read_bytes()
        return read_range(self.path(case), 0, 4096)

    def break_origin(self, case: Case) -> list[int]:
        at = self.source(case).stat().st_size * 3 // 4  # in the last layer
        made = []
        for kind, options in (LASTING if case.lasting else PASSING)[case.fault]:
            if case.warm and options.get("server") == "hub":  # the location it has expires, else nobody asks the hub again
                self.hub.fault(f"/{case.repo}/.*safetensors$", "status", server="cdn", status=403, count=1)
            options = {"method": "GET", "at": at} | options | ({} if case.lasting else {"count": 1})
            if "location" in options:
                options["location"] = options["location"].format(cdn_port=self.hub.ports()[1])
            if "headers" in options:
                soon = email.utils.formatdate(time.time() + 2, usegmt=True)
                options["headers"] = {name: text.replace("{soon}", soon) for name, text in options["headers"].items()}
            made.append(self.hub.fault(f"/{case.repo}/.*safetensors$", kind, **options))
        return made


@pytest.fixture(scope="module", params=["default", "strict"])
def matrix(request, module_hub, module_mount, repositories, truth):
    module_hub.clear_faults()
    return Matrix(module_hub, module_mount, repositories, truth, request.param)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_true_bytes_or_a_clean_error(matrix, case):
    outcome = matrix.outcomes[case]
    # A layer that strict has is made of a verified shard: what is warm asks for nothing any more.
    assert matrix.hits[case] > 0 or (case.warm and matrix.integrity == "strict"), "the fault was never met"
    if case.warm:  # whatever the origin does
        expected = matrix.truth[case][0] if case.target == "layer" else read_range(matrix.source(case), 0, 4096)
        assert matrix.kept[case] == expected
    if outcome == matrix.true_bytes(case):
        return
    if case.fault in UNSEEN and matrix.integrity == "default":
        assert len(outcome) == len(matrix.true_bytes(case)) if isinstance(outcome, bytes) else outcome.errno == errno.EIO
        return
    assert case.lasting, f"a reader noticed: {outcome}"
    assert isinstance(outcome, OSError), "other bytes than the true ones"
    # A cold layer's file is not known before the header is: its lookup fails, with the same errno.
    assert outcome.errno == errno.EIO
    assert "safetensors" in matrix.nexus.log_text()


def test_the_truth_comes_once_the_faults_are_gone(matrix, module_hub):
    """Last in the file's own order, for each mode: nothing wrong was kept, and no failure is for ever."""
    module_hub.clear_faults()

    def check(case: Case) -> None:
        # Whole, so that what a layer file was made from is checked by its digest.
        shard = matrix.path(case, "model.safetensors")
        poll(lambda: attempt(shard) == matrix.source(case).read_bytes(), f"{case}: the shard")
        poll(lambda: os.getxattr(shard, "user.nexus.verified") == b"sha256", f"{case}: its digest")
        for number, layer in enumerate(matrix.truth[case]):
            poll(lambda: attempt(matrix.path(case, f"layer_{number}.pt")) == layer, f"{case}: layer {number}")
        assert attempt(shard) == matrix.source(case).read_bytes()

    everywhere(check, CASES)
