"""Read-ahead by layers: what is fetched before it is asked for, counted in the hub's log."""
import concurrent.futures
import json
import mmap
import random
import threading

import models
import pytest
import tensorfiles
from nexus import poll, pread_exactly, read_range, same_bytes

MIB = 1 << 20
LAYERS = 12
HEADER_BYTES = 128 << 10
REPO = "org/walked"


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """About 3 MiB a layer, over two shards."""
    tensors = models.sized_llama(36 * MIB, LAYERS)
    return models.make_model(tmp_path_factory.mktemp("walked") / REPO, tensors=tensors, shards=2)


@pytest.fixture
def walk(hub, mount, walked):
    hub.commit(REPO, walked.path)
    return mount


def torch_layer(number: int) -> str:
    return f"{REPO}/layer_{number}.pt"


def weights(model) -> int:
    return sum((model.path / shard).stat().st_size for shard in model.shards())


def layer_bytes(model, number: int) -> int:
    return sum(t.nbytes for t in model.of_layer(number).values())


def here(nexus, path: str) -> bool:
    return nexus.xattr("state", path) == "resident"


def prefetcher(nexus) -> dict:
    return nexus.stats()["prefetcher"]


def quiet(nexus) -> dict:
    """Waits until nothing is fetched ahead any more; what is still to begin shows in other ways."""
    return poll(lambda: (now := prefetcher(nexus))["queue_depth"] == 0 and now, "read-ahead's end")


def seen(nexus, count: int) -> None:
    """Read-ahead has heard of `count` layers that readers came to."""
    poll(lambda: prefetcher(nexus)["total_requests"] >= count, f"{count} layers heard of")


def check_layer(nexus, model, number: int) -> None:
    assert tensorfiles.read_layer_pt(nexus / torch_layer(number)).keys() == model.of_layer(number).keys()


def test_a_walk_finds_each_next_layer_here_and_fetches_each_byte_once(walk, hub, walked):
    with walk() as nexus:
        for number in range(LAYERS):
            check_layer(nexus, walked, number)
            if number + 1 < LAYERS:
                poll(lambda: here(nexus, torch_layer(number + 1)), f"layer {number + 1} ahead of its reader")
        after = quiet(nexus)
        assert after["total_requests"] == LAYERS and after["cache_hits"] == LAYERS - 1
        assert after["wasted_bytes"] == 0 and after["used_bytes"] == after["issued_bytes"] > 0
        total = sum(layer_bytes(walked, number) for number in range(LAYERS))
        assert hub.bytes_sent("safetensors$") <= 1.02 * total + 2 * HEADER_BYTES
        hosts = {host["origin"]: host for host in nexus.stats()["downloader"]["hosts"]}
        assert hosts[hub.cdn]["bytes"] >= total and hosts[hub.cdn]["failed"] == 0


def test_two_layers_ahead_and_no_more(walk, hub, walked):
    with walk(config={"prefetch_lookahead": 2}) as nexus:
        for number in range(3):
            check_layer(nexus, walked, number)
        seen(nexus, 3)
        poll(lambda: here(nexus, torch_layer(4)), "layer 4")
        assert here(nexus, torch_layer(3)) and not here(nexus, torch_layer(LAYERS - 1))
        quiet(nexus)
        # Two ahead of layer 2; a link that looks slow may have earned it up to five.
        allowed = sum(layer_bytes(walked, number) for number in range(3 + 5))
        assert hub.bytes_sent("safetensors$") <= 1.02 * allowed + 2 * HEADER_BYTES


def test_switched_off_nothing_is_fetched_ahead(walk, hub, walked):
    for config in ({"enable_prefetch": False}, {"prefetch_lookahead": 0}):
        hub.reset_counters()
        with walk(config=config) as nexus:
            assert "no effect" not in nexus.log_text()
            for number in range(4):
                check_layer(nexus, walked, number)
            assert prefetcher(nexus)["issued_bytes"] == 0
            assert [number for number in range(LAYERS) if here(nexus, torch_layer(number))] == [0, 1, 2, 3]
            read = sum(layer_bytes(walked, number) for number in range(4))
            assert hub.bytes_sent("safetensors$") <= 1.02 * read + 2 * HEADER_BYTES


def test_a_first_access_elsewhere_fetches_nothing_ahead(walk, hub, walked):
    with walk() as nexus:
        check_layer(nexus, walked, 5)
        seen(nexus, 1)
        assert quiet(nexus)["issued_bytes"] == 0
        assert hub.bytes_sent("safetensors$") <= 1.02 * layer_bytes(walked, 5) + 2 * HEADER_BYTES


@pytest.mark.parametrize("order", [range(LAYERS - 1, -1, -1), range(1, LAYERS, 3)], ids=["reverse", "strided"])
def test_other_directions_are_followed(walk, hub, walked, order):
    order = list(order)
    with walk() as nexus:
        for place, number in enumerate(order):
            check_layer(nexus, walked, number)
            if 3 <= place + 1 < len(order):
                poll(lambda: here(nexus, torch_layer(order[place + 1])), f"layer {order[place + 1]} ahead")
        assert quiet(nexus)["wasted_bytes"] == 0
        read = sum(layer_bytes(walked, number) for number in order)
        assert hub.bytes_sent("safetensors$") <= 1.02 * read + 2 * HEADER_BYTES


def test_a_shuffled_order_wastes_little(walk, hub, walked):
    order = list(range(LAYERS))
    random.Random(7).shuffle(order)
    with walk() as nexus:
        for number in order:
            check_layer(nexus, walked, number)
        seen(nexus, LAYERS)
        after = quiet(nexus)
        assert after["wasted_bytes"] <= 0.1 * hub.bytes_sent("safetensors$")
        total = sum(layer_bytes(walked, number) for number in range(LAYERS))
        assert hub.bytes_sent("safetensors$") <= 1.1 * total + 2 * HEADER_BYTES


def test_an_order_that_was_walked_once_is_replayed_after_a_restart(walk, hub, walked):
    order = list(range(LAYERS))
    random.Random(3).shuffle(order)
    with walk() as nexus:
        for number in order:
            check_layer(nexus, walked, number)
        seen(nexus, LAYERS)
        quiet(nexus)
        assert json.loads(nexus.ctl("plan", "show", REPO, "--json").stdout)["order"] == order
        nexus.stop()
        for file in nexus.cache.rglob("zone_*/objects/*"):
            if file.is_file():
                file.unlink()  # the bytes go, the catalog's memory of the walk stays
        hub.reset_counters()
        nexus.start()
        for place, number in enumerate(order):
            check_layer(nexus, walked, number)
            if place + 1 < LAYERS:
                poll(lambda: here(nexus, torch_layer(order[place + 1])), f"layer {order[place + 1]} ahead")
        assert quiet(nexus)["wasted_bytes"] == 0
        total = sum(layer_bytes(walked, number) for number in range(LAYERS))
        assert hub.bytes_sent("safetensors$") <= 1.02 * total + 2 * HEADER_BYTES


def shard_spans(model, number: int) -> list[tuple[str, int, int]]:
    """(file, first, last) of every tensor of the layer in the shards."""
    result = []
    for shard in model.shards():
        in_file = tensorfiles.writer_order([t for t in model.tensors if model.weight_map[t.name] == shard])
        base = len(tensorfiles.encode_header(tensorfiles.header_of(in_file, {"format": "pt"})))
        offsets = tensorfiles.header_of(in_file)
        result += [(shard, base + offsets[t.name]["data_offsets"][0], base + offsets[t.name]["data_offsets"][1])
                   for t in in_file if t.layer == number]
    return result


def test_a_plan_is_shown_recorded_and_dropped(walk, walked):
    def order(action: str) -> list[int]:
        return json.loads(nexus.ctl("plan", action, REPO, "--json").stdout)["order"]

    with walk() as nexus:
        assert nexus.ctl("plan", "record", REPO).returncode == 1  # nobody mounted it yet
        assert "no order recorded" in nexus.ctl("plan", "show", REPO).stdout
        for number in range(LAYERS):
            check_layer(nexus, walked, number)
        poll(lambda: order("show") == list(range(LAYERS)), "the walk's record")
        order("record")
        for number in reversed(range(LAYERS)):
            check_layer(nexus, walked, number)
        poll(lambda: order("show") == list(reversed(range(LAYERS))), "the second walk's record")
        assert order("drop") == []
        assert nexus.ctl("plan", "forget", REPO).returncode != 0
    with walk(config={"enable_prefetch": False}) as nexus:
        assert nexus.ctl("plan", "show", REPO).returncode == 1


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    """Layers larger than the window within a file, and the file larger than all that is read."""
    tensors = models.sized_llama(160 * MIB, 8)
    return models.make_model(tmp_path_factory.mktemp("one_file") / "org/one", tensors=tensors)


def test_layers_read_out_of_a_shard_are_a_walk(mount, hub, one_file):
    hub.commit("org/one", one_file.path)
    with mount() as nexus:
        path = nexus / "org/one/model.safetensors"
        for number in range(3):
            for shard, first, last in shard_spans(one_file, number):
                assert read_range(path, first, last - first) == read_range(one_file.path / shard, first, last - first)
            seen(nexus, number + 1)
        # Layer 3 and more came without a reader, as part of the shard.
        ahead = sum(layer_bytes(one_file, number) for number in range(4))
        poll(lambda: hub.bytes_sent("safetensors$") > ahead, "the next layer's part of the shard")
        assert not here(nexus, "org/one/layer_3.pt")
        poll(lambda: prefetcher(nexus)["issued_bytes"] > 0, "read-ahead by layers")
        for shard, first, last in shard_spans(one_file, 3):
            read_range(path, first, last - first)
        assert prefetcher(nexus)["used_bytes"] > 0
        assert same_bytes(path, one_file.path / "model.safetensors")
        # However many wanted them: each byte once.
        assert hub.bytes_sent("safetensors$") <= 1.02 * weights(one_file) + HEADER_BYTES


def test_page_faults_of_a_mapping_are_a_walk(mount, hub, one_file):
    hub.commit("org/one", one_file.path)
    with mount() as nexus:
        with open(nexus / "org/one/model.safetensors", "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with open(one_file.path / "model.safetensors", "rb") as source:
                for number in range(2):
                    for _, first, last in shard_spans(one_file, number):
                        assert mapped[first:last] == pread_exactly(source.fileno(), last - first, first)
            seen(nexus, 2)
            poll(lambda: prefetcher(nexus)["issued_bytes"] > 0, "read-ahead by layers")
            mapped.close()


def test_a_layer_view_is_followed_in_its_own_format(walk, walked):
    with walk() as nexus:
        for number in range(3):
            assert (nexus / f"{REPO}/layers/layer_{number}.safetensors").read_bytes()
        poll(lambda: here(nexus, f"{REPO}/layers/layer_3.safetensors"), "the next layer of the view")
        assert not here(nexus, torch_layer(3))


def test_probes_of_headers_are_no_walk(walk, hub, walked):
    with walk() as nexus:
        for shard in walked.shards():
            with open(nexus / f"{REPO}/{shard}", "rb") as file:
                file.read(8)
        for number in range(3):
            path = nexus / f"{REPO}/layers/layer_{number}.safetensors"
            path.stat()
            read_range(path, 0, 8)
        check_layer(nexus, walked, 7)  # a real one behind them
        seen(nexus, 1)
        after = quiet(nexus)
        assert after["total_requests"] == 1 and after["issued_bytes"] == 0


def test_ranks_share_every_byte(walk, hub, walked):
    """Two ranks of a pipeline, each with two processes' worth of readers on the same files, in step."""
    step = threading.Barrier(4)

    def rank(first: int, last: int) -> None:
        for number in range(first, last):
            step.wait()
            check_layer(nexus, walked, number)

    half = LAYERS // 2
    with walk() as nexus, concurrent.futures.ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(rank, *span) for span in [(0, half), (half, LAYERS)] * 2]:
            job.result()
        seen(nexus, LAYERS)
        assert quiet(nexus)["wasted_bytes"] == 0
        total = sum(layer_bytes(walked, number) for number in range(LAYERS))
        assert hub.bytes_sent("safetensors$") <= 1.02 * total + 2 * HEADER_BYTES


def test_a_reader_takes_the_connections_of_stalled_read_ahead(walk, hub, walked):
    with walk(config={"max_connections": 2}) as nexus:
        check_layer(nexus, walked, 0)
        poll(lambda: here(nexus, torch_layer(1)), "layer 1")
        stall = hub.fault("safetensors", "stall", after=1000, server="cdn", count=2)
        check_layer(nexus, walked, 1)  # read-ahead of layer 2 begins, and stalls on both connections
        assert hub.wait_parked(stall, 2, 60)
        check_layer(nexus, walked, 9)
        assert hub.wait_parked(stall, 2, 60), "the reader came through while both still hang"
        for number in range(LAYERS):  # what gave way goes on, or is asked for anew
            check_layer(nexus, walked, number)
        hub.release(stall)
        for shard in walked.shards():
            assert same_bytes(nexus / f"{REPO}/{shard}", walked.path / shard)
