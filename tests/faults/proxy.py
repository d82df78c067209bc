"""A TCP proxy with bad weather: delays, throttles, splits, stalls, resets, refuses, and falls silent.

In a test: `async with FaultProxy("127.0.0.1:6379") as proxy`, then connect to `proxy.host:proxy.port`. Everything
may be changed while it runs, and concerns both directions.

It keeps at most 64 KiB per direction of a connection; then its reader waits, and TCP tells the sender.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from tests.faults.connection import Connection

Direction = Literal["up", "down"]
"""`up` is from whoever connected, `down` is to them."""


@dataclass
class Weather:
    """How data travels from now on; what is under way keeps the weather it left in."""

    delay_s: float = 0.0
    #: Up to this much is added to each delay, evenly spread. Order is kept.
    jitter_s: float = 0.0
    #: For each direction of each connection.
    bytes_per_s: float | None = None
    #: Nothing is written in larger pieces than this.
    split: int | None = None

    @property
    def is_calm(self) -> bool:
        return not (self.delay_s or self.jitter_s or self.bytes_per_s or self.split)


class FaultProxy:
    """`target` is `host:port` or the path of a unix socket; a new one counts for connections made from then on."""

    host = "127.0.0.1"

    def __init__(self, target: str, *, port: int = 0, seed: int = 0) -> None:
        self.target = target
        self.port = port
        self.weather = Weather()
        self.dice = random.Random(seed)
        #: How many were accepted, refused ones included.
        self.accepted = 0
        self.is_stalled = False
        self._is_refusing = False
        self._cut: tuple[Direction, int] | None = None
        self._live: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accepted, self.host, self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening; every connection is reset."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        lost = [connection.lost.wait() for connection in self._live]
        for connection in list(self._live):
            connection.reset()
        await asyncio.gather(*lost)
        if self._server is not None:
            await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connections(self) -> int:
        """How many are open, those that fell silent included."""
        return len(self._live)

    def reset(self) -> None:
        """RST to both sides of every connection, now; what was under way is lost."""
        for connection in list(self._live):
            connection.reset()

    def stall(self) -> None:
        """Read and forward nothing, until `resume`. Connections are accepted and stay silent."""
        self.is_stalled = True
        self._flowing.clear()
        for connection in self._live:
            connection.regulate()

    def resume(self) -> None:
        self.is_stalled = False
        self._flowing.set()
        for connection in list(self._live):
            connection.regulate()

    def refuse(self, is_refusing: bool = True) -> None:
        """Reset each new connection at once."""
        self._is_refusing = is_refusing

    def cut_after(self, n: int, direction: Direction = "down") -> None:
        """Reset the next connection as soon as `n` bytes went in this direction; not one more goes."""
        self._cut = (direction, n)

    def vanish(self) -> None:
        """Half-open: the present connections carry nothing any more, and neither side is told.

        Their sockets stay open here until the proxy is reset or closed.
        """
        for connection in self._live:
            connection.vanish()

    def _accepted(self) -> asyncio.BaseProtocol:
        return self.make_connection().client

    def make_connection(self) -> Connection:
        return Connection(self)

    def admit(self, connection: Connection) -> None:
        """Called by a connection whose client's side is there."""
        self.accepted += 1
        self._live.add(connection)
        if self._is_refusing:
            connection.unreachable()
            return
        if self._cut is not None:
            direction, n = self._cut
            self._cut = None
            (connection.up if direction == "up" else connection.down).cut_at = n
        task = asyncio.create_task(self._connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def dismiss(self, connection: Connection) -> None:
        """Called by a connection that both sides have left."""
        self._live.discard(connection)

    async def _connect(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._flowing.wait()
            host, _, port = self.target.rpartition(":")
            if host and "/" not in self.target:
                await loop.create_connection(lambda: connection.server, host, int(port))
            else:
                await loop.create_unix_connection(lambda: connection.server, self.target)
        except (OSError, asyncio.CancelledError) as error:
            connection.unreachable()
            if not isinstance(error, OSError):
                raise
