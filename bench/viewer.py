"""One viewer of the load generator: a WebSocket client in one small class, some 5 µs a frame.

It checks as it goes that offsets follow on each other and keeps what arrived and when; all judging of that comes
after the measurement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, cast

import msgspec

from bench import wire
from headrace.protocol.cursor import Cursor
from headrace.protocol.frames import (
    Accepted,
    Ack,
    Attach,
    Attached,
    Drain,
    EntryFrame,
    ErrorFrame,
    Generate,
    Hello,
    Live,
    Message,
    Ok,
    Pong,
    StatusFrame,
    Welcome,
)
from headrace.protocol.window import AckSchedule

if TYPE_CHECKING:
    from bench.audience import Audience

#: Entries of credit that every viewer gives, as an SDK does by default.
WINDOW = 256


class Piece(msgspec.Struct, tag="delta", tag_field="type", gc=False):
    """What a load generator needs of a `delta`, and nothing that costs it time."""

    offset: int
    #: 0 where the frame holds one entry.
    first: int = 0
    kind: str = "text"
    text: str = ""
    mark: str | None = None


Received = Piece | EntryFrame | Welcome | Accepted | Attached | Live | StatusFrame | ErrorFrame | Drain | Pong | Ok


class Viewer(asyncio.Protocol):
    """Follows one stream over one connection at a time. Keeps all that it received until it is dropped."""

    def __init__(self, audience: Audience, name: str) -> None:
        self._audience = audience
        self.name = name
        self.stream = ""
        self.offset = 0
        self.mark = ""
        #: Per frame: when it arrived, and its text.
        self.arrivals: list[int] = []
        self.texts: list[str] = []
        self.done: dict[str, Any] | None = None
        self.live_at = 0
        self.schedule: AckSchedule | None = None
        self._decode = audience.decode
        self._first_byte = audience.first_byte
        self.begin()

    def begin(self) -> None:
        """Get ready for a new connection. What was received stays."""
        loop = asyncio.get_running_loop()
        self.welcomed: asyncio.Future[None] = loop.create_future()
        self.answered: asyncio.Future[None] = loop.create_future()
        self.live: asyncio.Future[None] = loop.create_future()
        self.finished: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.asked_at = 0
        self._opening: Sequence[msgspec.Struct] = ()
        self._is_open = False
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    # -- out

    async def connect(self, port: int, *opening: msgspec.Struct, host: str = "127.0.0.1") -> None:
        """Connect and, as soon as the socket is upgraded, say hello and what `opening` holds in the same flight."""
        self._opening = opening
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, host, port)
        self._write(wire.upgrade(host, port, self._audience.codec.subprotocol))

    def send(self, *frames: msgspec.Struct) -> None:
        audience = self._audience
        self.asked_at = monotonic_ns()
        self._write(b"".join(wire.message(audience.codec.encode(frame), audience.opcode) for frame in frames))

    def generate(self, model: str) -> Generate:
        """A request of its own, which runs on when its viewers are gone for a while."""
        return Generate(1, f"bench-{self.name}", [Message("user", "Measure.")], model=model, window=WINDOW)

    def attach(self, stream: str = "", after: Any = None) -> Attach:
        """Attach to `stream`, or again to its own stream from its cursor."""
        return Attach(1, stream or self.stream, after if stream else Cursor(self.offset, self.mark), WINDOW)

    def ack(self, schedule: AckSchedule) -> None:
        self._audience.acks += 1
        frame = self._audience.codec.encode(Ack(self.stream, schedule.take()))
        self._write(wire.message(frame, self._audience.opcode))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    # -- in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.schedule = None
        if not self.lost.done():
            self.lost.set_result(None)
        self._audience.connection_lost(self)

    def data_received(self, data: bytes) -> None:
        now = monotonic_ns()
        if self._rest:
            data = self._rest + data
        position, end = 0, len(data)
        if not self._is_open:
            position = self._upgraded(data)
        first_byte, decode = self._first_byte, self._decode
        while end - position >= 2:
            start = position + 2
            size = data[position + 1]
            if size >= 126:
                wide = 2 if size == 126 else 8
                size = int.from_bytes(data[start : start + wide])
                start += wide
            stop = start + size
            if stop > end:
                break
            if data[position] == first_byte:
                frame = decode(data[start:stop])
                if type(frame) is Piece:
                    self._delta(frame, now)
                else:
                    self._other(frame, now)
            else:
                self._control(data[position] & 15, data[start:stop])
            position = stop
        self._rest = data[position:]

    def _delta(self, frame: Piece, now: int) -> None:
        offset = frame.offset
        first = frame.first or offset
        if first != self.offset + 1:
            self._audience.torn(first - self.offset - 1)
        self.offset = offset
        if frame.mark is not None:
            self.mark = frame.mark
        if frame.kind == "text":
            self.arrivals.append(now)
            self.texts.append(frame.text)
        schedule = self.schedule
        if schedule is not None and schedule.received_through(offset, now * 1e-9):
            self.ack(schedule)

    def _other(self, frame: Any, now: int) -> None:
        if isinstance(frame, EntryFrame):
            self._entry(frame, now)
        elif isinstance(frame, Accepted | Attached):
            if isinstance(frame, Attached) and not frame.resumed:
                self._audience.restarts += 1
                self.arrivals, self.texts = [], []
            self.stream, self.offset, self.mark = frame.stream, frame.offset, frame.mark
            self.schedule = AckSchedule(frame.window, frame.offset)
            if not self.answered.done():
                self.answered.set_result(None)
        elif isinstance(frame, Live):
            self.live_at = now
            if not self.live.done():
                self.live.set_result(None)
        elif isinstance(frame, Welcome):
            self.welcomed.set_result(None)
        elif isinstance(frame, ErrorFrame):
            self._audience.fail(f"viewer {self.name} was answered {frame.code}: {frame.message}")
        elif isinstance(frame, Drain):
            self._audience.fail("the hub drains")

    def _entry(self, frame: EntryFrame, now: int) -> None:
        if frame.offset != self.offset + 1:
            self._audience.torn(frame.offset - self.offset - 1)
        self.offset = frame.offset
        if frame.mark is not None:
            self.mark = frame.mark
        if frame.kind == "reset":
            self._audience.resets += 1
            self.arrivals, self.texts = [], []
        if frame.kind == "done":
            assert isinstance(frame.data, dict)
            self.done = frame.data
            self.schedule = None
            if not self.finished.done():
                self.finished.set_result(None)
        elif self.schedule is not None and self.schedule.received_through(frame.offset, now * 1e-9):
            self.ack(self.schedule)

    def _upgraded(self, data: bytes) -> int:
        """Read the answer to the upgrade; returns where WebSocket messages begin."""
        head_end = data.find(b"\r\n\r\n")
        if head_end < 0:
            return 0
        if not data.startswith(b"HTTP/1.1 101 "):
            self._audience.fail(f"the hub refused the upgrade: {data[:60]!r}")
            return len(data)
        self._is_open = True
        self.send(Hello(client="headrace-bench"), *self._opening)
        return head_end + 4

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == wire.PING:
            self._write(wire.message(payload, wire.PONG))
        elif opcode == wire.CLOSE:
            self._audience.fail(f"the hub closed viewer {self.name}: {int.from_bytes(payload[:2])} {payload[2:]!r}")
        else:
            self._audience.fail(f"an unexpected WebSocket frame with opcode {opcode}")


class FloorViewer(Viewer):
    """The same receiver behind a bare sender: no upgrade, no hello, no acks."""

    def begin(self) -> None:
        super().begin()
        self._is_open = True
