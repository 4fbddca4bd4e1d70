#!/usr/bin/env python3
"""A Hugging Face compatible hub for tests, with a CDN on another host name and faults on demand.

    python3 hub.py --root DIR [--port 0] [--plain NAME=DIR] [--page-size N] [--token T]...

prints `PORT CDN_PORT CONTROL_PORT` on one line, then serves until a signal ends it. Repositories are DIR/org/name/<files> or DIR/name/<files>; pre-split layers stand
at http://127.0.0.1:PORT/plain/NAME/. `POST /_ctl {"op": .., "args": {..}}` calls a method of `Hub`
(hub_client.py wraps that); on CONTROL_PORT it answers even while the hub plays dead.

Tests run it as a process of its own: a page fault on the mount holds the interpreter's lock, and a
hub in the same interpreter could then never answer it.
"""
from __future__ import annotations

import argparse
import hashlib
import http.server
import inspect
import json
import re
import secrets
import socket
import sys
import threading
import time
import urllib.parse
from pathlib import Path

from faults import FaultTable
from handler import ControlHandler, HubHandler
from repos import Store


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def __init__(self, port: int, hub: "Hub", name: str, handler) -> None:
        self.hub, self.name = hub, name
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def process_request(self, request, client_address):
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """A client may leave at any time; anything else is a bug of the hub worth its traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """From now on connections are refused, the open ones are cut."""
        self.shutdown()
        self.server_close()
        with self._lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # already gone


class Hub:
    """Every public method may be called over the control door. Thread-safe."""

    def __init__(self, port: int = 0, page_size: int = 1000) -> None:
        self.store, self.faults = Store(), FaultTable()
        self.page_size = page_size
        self.tokens: set[str] = set()
        self.info_has_sizes = True
        self._lock = threading.Lock()
        self._log: list[dict] = []
        self._sent: dict[str, int] = {}
        self._active, self._max_active = 0, 0
        self._signing_key = secrets.token_hex(8)
        self._ports = {"hub": port, "cdn": 0}
        self._servers: dict[str, Server] = {}
        self._control = Server(0, self, "control", ControlHandler)
        self.revive()

    # --- life ---

    def die(self) -> None:
        """Refuses connections on both doors until revive()."""
        while self._servers:
            self._servers.popitem()[1].stop()

    def revive(self) -> None:
        for name in ("hub", "cdn"):
            server = self._servers[name] = Server(self._ports[name], self, name, HubHandler)
            self._ports[name] = server.server_address[1]

    def ports(self) -> list[int]:
        return [self._ports["hub"], self._ports["cdn"], self._control.server_address[1]]

    # --- content (see Store) ---

    def add_root(self, root: str) -> None:
        self.store.add_root(Path(root))

    def commit(self, repo: str, directory: str, refs: list = ("main",)) -> str:
        return self.store.commit(repo, directory, refs)

    def commit_of(self, repo: str, revision: str = "main") -> str:
        return self.store.repos[repo].resolve(revision).sha

    def etag_of(self, repo: str, file: str, revision: str = "main") -> str:
        return self.store.repos[repo].resolve(revision).files[file].etag

    def protect(self, repo: str, gated: str | None = None, private: bool = False) -> None:
        self.store.protect(repo, gated, private)

    def rename(self, old: str, new: str) -> None:
        self.store.rename(old, new)

    def add_plain(self, name: str, directory: str, autoindex: bool = False) -> None:
        self.store.add_plain(name, directory, autoindex)

    def lie(self, repo: str, file: str, **what) -> None:
        self.store.lie(repo, file, **what)

    def extra_siblings(self, repo: str, siblings: list) -> None:
        self.store.extra_siblings(repo, siblings)

    def allow_token(self, token: str) -> None:
        self.tokens.add(token)

    def set_page_size(self, entries: int) -> None:
        self.page_size = entries

    def set_info_has_sizes(self, value: bool) -> None:
        """False: as mirrors that ignore ?blobs=true, so that sizes come from the tree."""
        self.info_has_sizes = value

    # --- signed CDN addresses ---

    def cdn_url(self, path: str) -> str:
        query = urllib.parse.urlencode({"exp": int(time.time()) + 3600, "sig": self._sign(path)})
        return f"http://localhost:{self._ports['cdn']}{path}?{query}"

    def signature_valid(self, path: str, query: dict) -> bool:
        return query.get("sig") == [self._sign(path)]

    def _sign(self, path: str) -> str:
        return "SIG" + hashlib.sha256(f"{self._signing_key}{path}".encode()).hexdigest()[:24]

    def expire_signatures(self) -> None:
        """Every address handed out so far answers 403 from now on."""
        self._signing_key = secrets.token_hex(8)

    # --- faults (see faults.py) ---

    def fault(self, pattern: str, kind: str, **options) -> int:
        return self.faults.add(pattern, kind, **options)

    def release(self, fault_id: int) -> None:
        self.faults.release(fault_id)

    def clear_faults(self) -> None:
        self.faults.clear()

    def fault_hits(self, fault_id: int) -> int:
        return self.faults.hits(fault_id)

    def wait_parked(self, fault_id: int, count: int = 1, timeout_s: float = 60) -> bool:
        return self.faults.wait_parked(fault_id, count, timeout_s)

    def wait_hits(self, fault_id: int, count: int = 1, timeout_s: float = 60) -> bool:
        return self.faults.wait_hits(fault_id, count, timeout_s)

    # --- counters ---

    def begin(self, entry: dict) -> None:
        with self._lock:
            self._log.append(entry)
            self._active += 1
            self._max_active = max(self._max_active, self._active)

    def end(self, entry: dict) -> None:
        with self._lock:
            entry["end_s"] = time.time()
            self._active -= 1

    def count_sent(self, file: str, entry: dict, nbytes: int) -> None:
        with self._lock:
            self._sent[file] = self._sent.get(file, 0) + nbytes
            entry["sent"] += nbytes

    def log(self, pattern: str = "") -> list[dict]:
        """Requests as {server, method, path, range, status, sent, authorization, start_s, end_s}."""
        with self._lock:
            return [dict(entry) for entry in self._log if re.search(pattern, entry["path"])]

    def requests(self, pattern: str = "", method: str | None = None) -> int:
        return sum(method in (None, entry["method"]) for entry in self.log(pattern))

    def bytes_sent(self, pattern: str = "") -> int:
        """Bytes of file bodies, files as `org/name/path`."""
        with self._lock:
            return sum(sent for file, sent in self._sent.items() if re.search(pattern, file))

    def max_active(self) -> int:
        return self._max_active

    def cdn_saw_authorization(self) -> bool:
        return any(entry["server"] == "cdn" and entry["authorization"] for entry in self.log())

    def reset_counters(self) -> None:
        with self._lock:
            self._log, self._sent, self._max_active = [], {}, self._active


CONTROLS = {name for name, _ in inspect.getmembers(Hub, inspect.isfunction) if not name.startswith("_")}


def control(hub: Hub, request: bytes) -> dict:
    try:
        call = json.loads(request)
        if call["op"] not in CONTROLS:
            raise ValueError(f"no such operation: {call['op']}")
        return {"result": getattr(hub, call["op"])(*call.get("args", ()), **call.get("kwargs", {}))}
    except Exception as error:  # the caller is a test: it wants the reason, whatever it is
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--page-size", type=int, default=1000)
    parser.add_argument("--plain", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--token", action="append", default=[])
    parser.add_argument("--exit-with-stdin", action="store_true",
                        help="end when standard input does: a killed test run leaves no hub behind")
    options = parser.parse_args()
    hub = Hub(options.port, options.page_size)
    for plain in options.plain:
        hub.add_plain(*plain.split("=", 1))
    for token in options.token:
        hub.allow_token(token)
    if options.root:
        hub.add_root(str(options.root))
    print(*hub.ports(), flush=True)
    try:
        if options.exit_with_stdin:
            sys.stdin.read()
        else:
            threading.Event().wait()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
