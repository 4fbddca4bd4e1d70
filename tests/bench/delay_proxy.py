#!/usr/bin/env python3
"""A TCP line that is long: every byte, both ways, arrives DELAY_MS / 2 after it was sent. This kernel has no netem.

    python3 delay_proxy.py TARGET_PORT DELAY_MS       prints its own port, then serves until a signal ends it
"""
from __future__ import annotations

import asyncio
import collections
import sys

# Bytes under way at most, each direction of each connection: what fits into the line at the speeds measured here.
UNDER_WAY_MAX = 64 << 20


class End(asyncio.Protocol):
    """One end of a connection; what it receives leaves by its `other` end, later."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s, self.other = delay_s, None
        self.transport: asyncio.Transport | None = None
        self._queue: collections.deque[bytes] = collections.deque()
        self._under_way = 0
        self._early: list[bytes] = []  # before the other end is connected

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=4 << 20)

    def data_received(self, data: bytes) -> None:
        self._queue.append(data)
        self._under_way += len(data)
        if self._under_way > UNDER_WAY_MAX:
            self.transport.pause_reading()
        asyncio.get_running_loop().call_later(self.delay_s, self._arrive)

    def _arrive(self) -> None:
        data = self._queue.popleft()
        if self._under_way > UNDER_WAY_MAX >= self._under_way - len(data):
            self.transport.resume_reading()
        self._under_way -= len(data)
        if self.other is None:
            self._early.append(data)
        elif not self.other.transport.is_closing():
            self.other.transport.write(data)

    def join(self, other: "End") -> None:
        self.other = other
        for data in self._early:
            other.transport.write(data)

    def connection_lost(self, _error) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            asyncio.get_running_loop().call_later(self.delay_s, self.other.transport.close)


async def serve(target_port: int, delay_ms: float) -> None:
    loop = asyncio.get_running_loop()
    tasks = set()

    class Door(End):
        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            task = loop.create_task(self._connect())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        async def _connect(self) -> None:
            await asyncio.sleep(2 * self.delay_s)  # the handshake takes a round trip, too
            _, inner = await loop.create_connection(lambda: End(self.delay_s), "127.0.0.1", target_port)
            inner.join(self)
            self.join(inner)

    server = await loop.create_server(lambda: Door(delay_ms / 2000), "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
