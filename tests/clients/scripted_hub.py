"""A real WebSocket server in this process that plays a hub: one script, a coroutine, for each connection."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

Frame = dict[str, Any]
Script = Callable[["Peer"], Awaitable[None]]

LIMITS = {
    "message_bytes": 262144,
    "prompt_bytes": 131072,
    "window": 4096,
    "attachments": 64,
    "frames_per_second": 400,
}
WELCOME: Frame = {
    "type": "welcome",
    "connection": "c_1",
    "user": "alice",
    "heartbeat_ms": 20000,
    "limits": LIMITS,
}


class Peer:
    """The client of one connection, as the hub sees it. JSON and MessagePack are written by other libraries."""

    def __init__(self, socket: ServerConnection, number: int) -> None:
        self.socket = socket
        self.number = number
        self.messages: list[list[Frame]] = []
        self._frames: deque[Frame] = deque()

    async def send(self, *frames: Frame) -> None:
        """Send frames as one message."""
        data = frames[0] if len(frames) == 1 else list(frames)
        packed = self.socket.subprotocol == "headrace.v1.msgpack"
        await self.socket.send(msgpack.packb(data) if packed else json.dumps(data))

    async def receive(self) -> Frame:
        """The next frame, whatever it is."""
        while not self._frames:
            data = await self.socket.recv()
            decoded = msgpack.unpackb(data) if isinstance(data, bytes) else json.loads(data)
            message = decoded if isinstance(decoded, list) else [decoded]
            self.messages.append(message)
            self._frames.extend(message)
        return self._frames.popleft()

    async def expect(self, type: str) -> Frame:
        """The next frame, which must be of this type."""
        frame = await self.receive()
        assert frame["type"] == type, f"expected {type}, got {frame}"
        return frame

    async def welcome(self, **changes: Any) -> Frame:
        """Take `hello` and answer it."""
        hello = await self.expect("hello")
        await self.send(WELCOME | changes)
        return hello

    async def close(self, code: int, reason: str = "") -> None:
        await self.socket.close(code, reason)

    def cut(self) -> None:
        """Drop the connection without a word."""
        self.socket.transport.abort()

    async def until_closed(self) -> None:
        """Read on until the client leaves."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed:
            pass


class ScriptedHub:
    """`async with ScriptedHub(first, second) as hub:` plays `first` to the first connection, and so on.

    The last script serves all further connections. What fails in a script fails the test.
    """

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self._server: Server | None = None
        self._failure: BaseException | None = None
        self.peers: list[Peer] = []

    @property
    def url(self) -> str:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"ws://{host}:{port}"

    async def _play(self, socket: ServerConnection) -> None:
        peer = Peer(socket, len(self.peers))
        self.peers.append(peer)
        try:
            await self._scripts[min(peer.number, len(self._scripts) - 1)](peer)
        except ConnectionClosed:
            pass
        except BaseException as failure:
            self._failure = self._failure or failure
            await socket.close(4400, "the script failed")  # or the client would come back for ever

    async def __aenter__(self) -> ScriptedHub:
        self._server = await serve(
            self._play,
            "127.0.0.1",
            0,
            subprotocols=["headrace.v1.json", "headrace.v1.msgpack"],  # type: ignore[list-item]
            select_subprotocol=lambda _, offered: offered[0] if offered else None,
            compression=None,
            ping_interval=None,
            close_timeout=1,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        if isinstance(self._failure, Exception) and not isinstance(self._failure, asyncio.CancelledError):
            raise self._failure
