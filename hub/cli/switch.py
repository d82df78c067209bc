"""A TCP switch, as a load balancer is one: a fixed address in front of hubs that come and go."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Self

_DIAL_S = 2.0
_READ_BYTES = 64 * 1024


class Switch:
    """Forwards every connection to the first hub that takes it. One viewer's: it knows where that viewer is.

    Holds at most one read of 64 KiB per direction; whoever does not read is not read from.
    """

    def __init__(self, hubs: Mapping[str, tuple[str, int]], moved: Callable[[str], None]) -> None:
        """`hubs` in the order they are tried; `moved` is told the name of the one that took a connection."""
        self._hubs = hubs
        self._moved = moved
        self._lines: set[asyncio.StreamWriter] = set()
        #: Name of the hub that took the last connection.
        self.hub = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Break all connections at once and without a word, as a network does (TCP RST)."""
        for line in list(self._lines):
            raw = line.get_extra_info("socket")
            if raw is not None and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            line.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = {writer}
        self._lines |= lines
        try:
            inward, outward = await self._dial()
            lines.add(outward)
            self._lines.add(outward)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(reader, outward))
                pumps.create_task(_pump(inward, writer))
        except* (OSError, _Over):
            pass
        finally:
            self._lines -= lines
            for line in lines:
                line.transport.abort()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for name, (host, port) in self._hubs.items():
            try:
                async with asyncio.timeout(_DIAL_S):
                    opened = await asyncio.open_connection(host, port)
            except (OSError, TimeoutError):
                continue
            self.hub = name
            self._moved(name)
            return opened
        raise ConnectionRefusedError("no hub takes connections")


class _Over(Exception):
    """One side ended, and with it the other."""


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_READ_BYTES):
        writer.write(data)
        await writer.drain()
    raise _Over
