"""Many viewers that stay: light clients over several hubs, which come back from their cursors and count what they see.

A viewer costs some 15 µs a frame, so that thousands of them fit one process. It trusts nobody: every offset is
counted, and the text is held against the digest in `done`.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from bench import wire
from headrace.protocol.codec import JSON

#: Entries of credit; an ack goes out at half of it.
WINDOW = 256
#: A hub that does not answer the upgrade in this time is left.
ANSWER_S = 10.0
#: Delays between tries, as protocol §8 wants them: random(0, min(LONGEST_S, SHORTEST_S · 2ⁿ)).
SHORTEST_S, LONGEST_S = 0.5, 20.0

_decode = msgspec.json.Decoder().decode


class Line(asyncio.Protocol):
    """One connection of one viewer."""

    def __init__(self, viewer: Viewer, port: int) -> None:
        self._viewer = viewer
        self._port = port
        self._rest = b""
        self._is_open = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: The code of the hub's close; None while none came.
        self.code: int | None = None
        self.is_live = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(wire.upgrade("127.0.0.1", self._port, JSON.subprotocol))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def say(self, **frame: Any) -> None:
        self.transport.write(wire.message(msgspec.json.encode(frame), 1))

    def data_received(self, data: bytes) -> None:
        data, position = self._rest + data, 0
        if not self._is_open:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._rest = data
                return
            if not data.startswith(b"HTTP/1.1 101 "):
                self.transport.abort()  # it drains, or is full
                return
            self._is_open = True
            self._viewer.opened(self)
            position = end + 4
        while len(data) - position >= 2:
            start, size = position + 2, data[position + 1]
            if size >= 126:
                wide = 2 if size == 126 else 8
                size = int.from_bytes(data[start : start + wide])
                start += wide
            if start + size > len(data):
                break
            self._take(data[position] & 15, data[start : start + size])
            position = start + size
        self._rest = data[position:]

    def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == 1:
            self._viewer.receive(self, _decode(payload))
        elif opcode == wire.PING:
            self.transport.write(wire.message(payload, wire.PONG))
        elif opcode == wire.CLOSE:
            self.code = int.from_bytes(payload[:2])
            self.transport.write(wire.message(payload[:2], wire.CLOSE))
            self.transport.close()


class Viewer:
    """Follows one stream to its `done`, over as many connections as it takes."""

    def __init__(self, crowd: Crowd, stream: str, turn: int) -> None:
        self._crowd = crowd
        self.stream = stream
        self._turn = turn
        self.offset = self._acked = 0
        self.mark = ""
        self._digest = hashlib.sha256()
        #: Connections on which the stream was followed.
        self.connections = 0
        self._lost_at = 0.0
        self.live: asyncio.Event = asyncio.Event()
        self.done: asyncio.Event = asyncio.Event()
        self.line: Line | None = None

    async def stay(self) -> None:
        """Until `done` came."""
        crowd, loop, failures = self._crowd, asyncio.get_running_loop(), 0
        while not self.done.is_set():
            port = crowd.ports[self._turn % len(crowd.ports)]
            line = Line(self, port)
            try:
                async with asyncio.timeout(ANSWER_S):
                    await loop.create_connection(lambda line=line: line, "127.0.0.1", port)  # type: ignore[misc]
                self.line = line
                await line.closed
            except (OSError, TimeoutError):
                pass
            if self.done.is_set():
                return
            if line.is_live:
                crowd.codes[line.code] += 1
                self._lost_at, failures = loop.time(), 0
            self.live.clear()
            self._turn += 1
            await asyncio.sleep(random.random() * min(LONGEST_S, SHORTEST_S * 2**failures))
            failures += 1

    def opened(self, line: Line) -> None:
        after = {"offset": self.offset, "mark": self.mark} if self.offset else None
        line.say(type="hello", token=self._crowd.token)
        line.say(type="attach", id=1, stream=self.stream, after=after, window=WINDOW)

    def receive(self, line: Line, frame: dict[str, Any]) -> None:
        crowd, kind = self._crowd, frame["type"]
        if kind in ("delta", "entry"):
            self._advance(line, frame)
        elif kind == "attached":
            self.connections += "id" in frame
            if not frame["resumed"]:
                crowd.restarts += 1
                self._digest = hashlib.sha256()
            self.offset, self.mark, self._acked = frame["offset"], frame["mark"], frame["offset"]
        elif kind == "live":
            line.is_live = True
            self.live.set()
            if self._lost_at:
                crowd.absences.append(asyncio.get_running_loop().time() - self._lost_at)
                self._lost_at = 0.0
        elif kind == "error":
            crowd.errors[frame["code"]] += 1
            if frame["retry"] == "no":
                self.done.set()
            line.transport.abort()
        elif kind == "drain":
            crowd.drains += 1

    def _advance(self, line: Line, frame: dict[str, Any]) -> None:
        first, last = frame.get("first", frame["offset"]), frame["offset"]
        if first > self.offset + 1:
            self._crowd.lost += first - self.offset - 1
        elif first <= self.offset:
            self._crowd.doubled += self.offset + 1 - first
        self.offset, self.mark = last, frame.get("mark", self.mark)
        if frame["type"] == "delta":
            if frame.get("kind", "text") == "text":
                self._digest.update(frame["text"].encode())
        elif frame["kind"] == "done":
            self._crowd.mismatches += frame["data"]["text_sha256"] != self._digest.hexdigest()
            self._crowd.statuses[frame["data"]["status"]] += 1
            self.done.set()
            line.transport.abort()
            return
        if last - self._acked >= WINDOW // 2:
            self._acked = last
            line.say(type="ack", stream=self.stream, offset=last)


@dataclass
class Crowd:
    """Viewers over the hubs at `ports`, each beginning with another one; and what all of them counted."""

    ports: list[int]
    token: str
    viewers: list[Viewer] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    mismatches: int = 0
    restarts: int = 0
    drains: int = 0
    #: From a dropped connection to the next `live`, in seconds, jitter included.
    absences: list[float] = field(default_factory=list)
    codes: Counter[int | None] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def join(self, stream: str) -> Viewer:
        """One more viewer, from the start of a stream."""
        viewer = Viewer(self, stream, len(self.viewers))
        self.viewers.append(viewer)
        self._tasks.append(asyncio.create_task(viewer.stay()))
        return viewer

    async def all_live(self) -> None:
        """Until every viewer is live or has got it all."""
        for viewer in self.viewers:
            waits = [asyncio.ensure_future(event.wait()) for event in (viewer.live, viewer.done)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    async def all_done(self) -> None:
        """Until every viewer got `done`, or was told that there is none."""
        await asyncio.gather(*self._tasks)

    async def leave(self) -> None:
        """End all viewers, wherever they are."""
        for viewer in self.viewers:
            if viewer.line is not None:
                viewer.line.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def on(self, port: int) -> list[Viewer]:
        """Viewers that are connected to this hub."""
        return [v for v in self.viewers if v.line is not None and not v.line.closed.done() and v.line._port == port]

    def figures(self) -> dict[str, Any]:
        """Everything counted, as plain values."""
        return {
            "viewers": len(self.viewers),
            "lost": self.lost,
            "doubled": self.doubled,
            "mismatches": self.mismatches,
            "restarts": self.restarts,
            "drains": self.drains,
            "reconnects": [max(0, viewer.connections - 1) for viewer in self.viewers],
            "absences": [round(absence, 4) for absence in self.absences],
            "codes": {str(code): count for code, count in self.codes.items()},
            "errors": dict(self.errors),
            "statuses": dict(self.statuses),
        }


def percentile(values: list[float], share: float) -> float:
    """Of sorted or unsorted values; 0 of none."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=1000, method="inclusive")[min(998, int(share * 1000) - 1)]
