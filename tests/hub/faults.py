"""Faults of the test hub: what goes wrong, for which requests, how often."""
from __future__ import annotations

import dataclasses
import re
import threading

# Decided when the request arrives, before anything is sent.
REQUEST_KINDS = {"stall_request", "drop", "status", "html", "redirect", "loop", "latency"}
# Decided when a file's bytes are about to be sent.
BODY_KINDS = {"stall", "short", "truncated", "long", "flip", "zero", "ignore_range", "wrong_range",
              "no_range", "wrong_total", "etag", "rate", "chunked"}


@dataclasses.dataclass
class Fault:
    """
    stall_request   nothing is sent until released      stall        `after` bytes, then as above
    drop            the connection closes unanswered    short        closes after half the body
    status          `status`, `headers`, `text`         truncated    Content-Length itself too small
    html            200 and an HTML page                long         `extra` bytes more than there are
    redirect        to `location` with `status`         flip         the file's byte at `at` is wrong
    loop            to itself for ever                  ignore_range 200 and the whole file
    latency         `ms` before the answer              wrong_range  Content-Range shifted by one
                                                        wrong_total  its total one too large
    zero            the file's bytes are 0 from             no_range     206 without Content-Range
                    `at` on                             chunked      no Content-Length, `less` bytes
                                                                     too few and `more` too many
                                                        etag         `etag` instead of the true one
                                                        rate         `bytes_s` on each connection
    """
    id: int
    pattern: str
    kind: str
    count: int | None = None  # None: until cleared
    method: str | None = None
    server: str | None = None  # "hub", "cdn" or both
    skip: int = 0  # requests to let pass first
    params: dict = dataclasses.field(default_factory=dict)
    hits: int = 0
    parked: int = 0
    released: threading.Event = dataclasses.field(default_factory=threading.Event)


class FaultTable:
    """Thread-safe. A parked request holds no lock."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._faults: dict[int, Fault] = {}
        self._next_id = 1

    def add(self, pattern: str, kind: str, *, count: int | None = None, method: str | None = None,
            server: str | None = None, skip: int = 0, **params) -> int:
        if kind not in REQUEST_KINDS | BODY_KINDS:
            raise ValueError(f"no such fault: {kind}")
        with self._changed:
            fault = Fault(self._next_id, pattern, kind, count, method, server, skip, params)
            self._faults[fault.id] = fault
            self._next_id += 1
            return fault.id

    def take(self, kinds: set[str], server: str, method: str, path: str) -> list[Fault]:
        with self._changed:
            taken = []
            for fault in self._faults.values():
                if (fault.kind not in kinds or fault.count == 0 or fault.method not in (None, method)
                        or fault.server not in (None, server) or not re.search(fault.pattern, path)):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.hits += 1
                if fault.count is not None:
                    fault.count -= 1
                taken.append(fault)
            self._changed.notify_all()
            return taken

    def park(self, fault: Fault) -> None:
        with self._changed:
            fault.parked += 1
            self._changed.notify_all()
        fault.released.wait()
        with self._changed:
            fault.parked -= 1

    def release(self, fault_id: int) -> None:
        """Lets the parked go on, and ends the fault."""
        with self._changed:
            fault = self._faults.pop(fault_id, None)
        if fault:
            fault.released.set()

    def clear(self) -> None:
        for fault_id in list(self._faults):
            self.release(fault_id)

    def hits(self, fault_id: int) -> int:
        with self._changed:
            return self._faults[fault_id].hits

    def wait_parked(self, fault_id: int, count: int = 1, timeout_s: float = 60) -> bool:
        """Until `count` requests hang in this fault: how a test knows that a reader waits."""
        with self._changed:
            return self._changed.wait_for(lambda: self._faults[fault_id].parked >= count, timeout_s)

    def wait_hits(self, fault_id: int, count: int = 1, timeout_s: float = 60) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._faults[fault_id].hits >= count, timeout_s)
