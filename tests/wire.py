"""A WebSocket client that says exactly what a test tells it to, valid or not, and waits with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, Self

import msgpack
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

JSON = "headrace.v1.json"
MSGPACK = "headrace.v1.msgpack"
#: A frame that did not come in this time will not come.
DEADLINE_S = 10.0

Map = dict[str, Any]


class Closed(AssertionError):
    """The hub closed the connection where a frame was expected."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"closed with {code} {reason!r}")
        self.code = code


class Wire:
    """One connection. Frames are plain maps; `msgpack`, not the code under test, speaks MessagePack."""

    def __init__(self, socket: ClientConnection, subprotocol: str) -> None:
        self.socket = socket
        self._is_text = subprotocol == JSON
        self._pending: list[Map] = []

    @classmethod
    async def open(cls, url: str, *, subprotocol: str | None = JSON, headers: dict[str, str] | None = None) -> Self:
        """Connect, and say nothing yet. Without a subprotocol none is offered."""
        offered = [Subprotocol(subprotocol)] if subprotocol else None
        socket = await connect(
            url,
            subprotocols=offered,
            additional_headers=headers,
            compression=None,
            max_size=None,
            proxy=None,
            ping_interval=None,
            close_timeout=1,
            open_timeout=DEADLINE_S,
        )
        return cls(socket, subprotocol or JSON)

    async def send(self, *frames: Any) -> None:
        """Each frame in a message of its own."""
        for frame in frames:
            await self.send_raw(self.encode(frame))

    async def batch(self, *frames: Any) -> None:
        """All frames in one message."""
        await self.send_raw(self.encode(list(frames)))

    async def send_raw(self, message: str | bytes) -> None:
        with contextlib.suppress(ConnectionClosed):  # the close that the test asks about came first
            await self.socket.send(message)

    def encode(self, value: Any) -> str | bytes:
        return json.dumps(value, ensure_ascii=False) if self._is_text else msgpack.packb(value)

    async def next(self, within: float = DEADLINE_S) -> Map:
        """The next frame. AssertionError if none comes in time, Closed if none can come."""
        while not self._pending:
            try:
                async with asyncio.timeout(within):
                    message = await self.socket.recv()
            except TimeoutError:
                raise AssertionError(f"no frame within {within:g} s") from None
            except ConnectionClosed as closed:
                raise Closed(self.socket.close_code, self.socket.close_reason or "") from closed
            assert isinstance(message, str) is self._is_text, "the message type does not fit the subprotocol"
            value = json.loads(message) if isinstance(message, str) else msgpack.unpackb(message)
            self._pending += value if isinstance(value, list) else [value]
        return self._pending.pop(0)

    async def expect(self, type_: str, /, **fields: Any) -> Map:
        """The next frame, which must be of this type and have these fields."""
        frame = await self.next()
        wanted = {"type": type_, **fields}
        assert {name: frame.get(name) for name in wanted} == wanted, frame
        return frame

    async def until(self, type_: str, /, **fields: Any) -> list[Map]:
        """All frames up to the first of this type that has these fields, itself included."""
        frames = []
        while True:
            frame = await self.next()
            frames.append(frame)
            if frame["type"] == type_ and all(frame.get(name) == value for name, value in fields.items()):
                return frames

    async def ping(self) -> list[Map]:
        """Frames that came before the answer to a ping: what the hub had to say up to now."""
        await self.send({"type": "ping", "id": "…now"})
        return (await self.until("pong", id="…now"))[:-1]

    async def close_code(self) -> int | None:
        """Wait for the hub to close, passing over frames, and return its code."""
        try:
            while True:
                await self.next()
        except Closed as closed:
            return closed.code

    async def close(self) -> None:
        await self.socket.close()

    def abort(self) -> None:
        """Vanish without a close, as a phone in a tunnel does."""
        self.socket.transport.abort()


def text_of(frames: list[Map]) -> str:
    """The folded text of `delta` and `entry` frames: a `reset` empties it."""
    text = ""
    for frame in frames:
        if frame["type"] == "delta" and frame.get("kind", "text") == "text":
            text += frame["text"]
        elif frame["type"] == "entry" and frame["kind"] == "reset":
            text = ""
    return text


def offsets_of(frames: list[Map]) -> list[int]:
    """Every offset that the frames cover, in the order in which they came."""
    offsets: list[int] = []
    for frame in frames:
        if frame["type"] in ("delta", "entry"):
            offsets += range(frame.get("first", frame["offset"]), frame["offset"] + 1)
    return offsets
