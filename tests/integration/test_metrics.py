"""The Prometheus endpoint: off by default, in the exposition format, the figures of `nexusctl stats`."""
import json
import re
import socket
import urllib.error
import urllib.request

import models
import pytest
from nexus import HANG_S, poll

SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)')


def parse(text: str) -> tuple[dict, dict, dict]:
    """Families' types and help, and (name, ((label, value), ...)) -> value; asserts that it is well formed."""
    types, helps, samples = {}, {}, {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, _, helps[name] = line[7:].partition(" ")
        elif line.startswith("# TYPE "):
            name, kind = line[7:].split(" ")
            assert name not in types, f"{name} stands twice"
            types[name] = kind
        else:
            match = SAMPLE.match(line)
            assert match, line
            labels = tuple(sorted(LABEL.findall(match[2] or "")))
            assert (match[1], labels) not in samples, line
            samples[match[1], labels] = float(match[3])
    return types, helps, samples


def listen_address(nexus) -> str:
    answer = nexus.ctl("status", "--json")
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)["metrics_listen"]


def scrape(nexus) -> str:
    with urllib.request.urlopen(f"http://{listen_address(nexus)}/metrics", timeout=HANG_S) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return answer.read().decode()


@pytest.fixture
def model(hub, repos):
    made = models.make_model(repos / "org/a", tensors=models.sized_llama(8 << 20, 4))
    hub.add_root(repos)
    return made


def test_there_is_no_listener_unless_one_is_configured(hub, mount):
    with mount() as nexus:
        assert listen_address(nexus) == ""


def test_metrics_are_those_of_stats(hub, mount, model):
    # What is retried counts for the host that failed. Read-ahead is off so that nothing moves while we compare.
    with mount(config={"metrics_listen": "127.0.0.1:0", "enable_prefetch": False}) as nexus:
        assert listen_address(nexus).startswith("127.0.0.1:")
        (nexus / "org/a/layer_0.pt").stat()
        hub.fault("safetensors$", "status", server="cdn", status=503, count=1)
        for _ in range(2):
            (nexus / "org/a/layer_0.pt").read_bytes()
        # A request may end a moment after its last byte was read.
        poll(lambda: not any(host["active"] for host in nexus.stats()["downloader"]["hosts"]), "the last request's end")
        stats = nexus.stats()
        types, helps, samples = parse(scrape(nexus))

    ours = {name for name in types if name.startswith("nexusfs_")}
    assert all(helps[name] for name in ours)
    assert all(name.endswith("_total") == (types[name] == "counter") for name in ours)

    performance, prefetcher = stats["performance"], stats["prefetcher"]
    assert performance["total_hits"] > 0 and performance["bytes_downloaded"] > 0
    expected = {
        ("cache_hits_total", ()): performance["total_hits"],
        ("cache_misses_total", ()): performance["total_misses"],
        ("cache_evictions_total", ()): performance["total_evictions"],
        ("cache_served_bytes_total", ()): performance["bytes_served_from_cache"],
        ("read_waits_total", ()): performance["reads_waited"],
        ("read_wait_seconds_total", ()): performance["read_wait_s"],
        ("downloaded_bytes_total", ()): performance["bytes_downloaded"],
        ("active_downloads", ()): stats["downloader"]["active_downloads"],
        ("cache_objects", (("tier", "disk"),)): stats["disk_cache_entries"],
        ("cache_bytes", (("tier", "disk"),)): stats["disk_cache_size_gb"] * 1e9,
        ("cache_bytes", (("tier", "memory"),)): stats["memory_cache_size_gb"] * 1e9,
        ("cache_limit_bytes", (("tier", "disk"),)): stats["max_disk_cache_size_gb"] * 1e9,
        ("prefetch_layers_total", ()): prefetcher["total_requests"],
        ("prefetch_hit_ratio", ()): prefetcher["prefetch_hit_ratio"],
        ("prefetch_issued_bytes", ()): prefetcher["issued_bytes"],
        ("prefetch_used_bytes_total", ()): prefetcher["used_bytes"],
        ("prefetch_wasted_bytes_total", ()): prefetcher["wasted_bytes"],
        ("prefetch_queue_depth", ()): prefetcher["queue_depth"],
    }
    for priority, waiting in stats["downloader"]["queue"].items():
        expected["queued_requests", (("priority", priority),)] = waiting
    hosts = stats["downloader"]["hosts"]
    assert len(hosts) == 2  # the hub and its CDN
    for host in hosts:
        labels = (("origin", host["origin"]),)
        expected["origin_requests_total", labels] = host["requests"]
        expected["origin_failed_requests_total", labels] = host["failed"]
        expected["origin_retries_total", labels] = host["retries"]
        expected["origin_hedges_total", labels] = host["hedges"]
        expected["origin_received_bytes_total", labels] = host["bytes"]
        expected["origin_round_trip_seconds", labels] = host["round_trip_ms"] / 1000
        expected["origin_first_byte_seconds", labels] = host["first_byte_ms"] / 1000
    found = {name: samples[f"nexusfs_{name[0]}", name[1]] for name in expected}
    # Stats are printed with 17 digits, metrics perhaps with fewer.
    assert found == pytest.approx(expected, rel=1e-5)
    assert sorted(host["retries"] for host in hosts) == [0, 1]
    assert any(name == "nexusfs_zone_written_bytes_total" for name, _ in samples)


def test_a_port_in_use_fails_the_mount_and_is_named(mount):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        nexus = mount(config={"metrics_listen": port})
        nexus.path.mkdir()
        result = nexus.try_start()
    assert result.returncode == 1
    assert f"metrics_listen: 127.0.0.1:{port}: cannot listen: Address already in use" in result.stdout + result.stderr


def test_only_the_metrics_are_served(mount):
    with mount(config={"metrics_listen": 0}) as nexus:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{listen_address(nexus)}/", timeout=HANG_S)
        caught.value.close()
        assert caught.value.code == 404
