"""An endpoint that sends back what it gets, in the place of the hub's own: the Autobahn cases speak to an echo server.

Everything beneath it is the hub's: its socket, its HTTP and WebSocket protocols, its server configuration.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import uvicorn
from websockets.frames import Frame, Opcode

from headrace.protocol.codec import JSON
from headrace.protocol.codes import CloseCode
from hub.connection import Connection
from hub.endpoint import Endpoint
from hub.gate import Gate
from hub.server import listen, make_config
from hub.settings import HubSettings
from hub.websocket import HubProtocol


class Echo:
    """What `HubProtocol` needs of an endpoint, with the hub's own frame rate."""

    def __init__(self, socket: HubProtocol, settings: HubSettings) -> None:
        self._socket = socket
        self._write = socket.writer()
        self._rate = Connection(JSON, settings.frames_per_second, settings.message_bytes, time.monotonic())
        self._is_writable = True
        self._waiting: list[bytes] = []

    def message_received(self, data: bytes, is_text: bool) -> None:
        answer = Frame(Opcode.TEXT if is_text else Opcode.BINARY, data).serialize(mask=False)
        if self._is_writable:
            self._write(answer)
        else:
            self._waiting.append(answer)

    def too_large_received(self) -> None:
        self._socket.close_with(1009, "too large")

    def may_take_frame(self) -> bool:
        return self._rate.spend(1, time.monotonic())

    def stop_writing(self) -> None:
        self._is_writable = False

    def not_writable(self) -> None:
        self._is_writable = False
        self._socket.hold_reading(True)

    def writable_again(self) -> None:
        self._is_writable = True
        self._socket.hold_reading(False)
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            self._write(answer)

    def closed(self) -> None:
        self._waiting.clear()

    def close(self, code: CloseCode, reason: str) -> None:
        self._socket.close_with(code, reason)


class EchoApplication:
    """The ASGI application; lifespan and upgrade as the hub's."""

    def __init__(self, settings: HubSettings) -> None:
        self._settings = settings

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            scope["state"].update(gate=Gate(100, 100), settings=self._settings, body_paths=frozenset())
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await receive()
        socket: HubProtocol = scope["headrace.socket"]
        socket.serve(cast(Endpoint, Echo(socket, self._settings)), self._settings.message_bytes)
        await send({"type": "websocket.accept"})
        await receive()


@asynccontextmanager
async def running_echo() -> AsyncIterator[str]:
    """The URL of an echo server over the hub's sockets, with the hub's default settings."""
    settings = HubSettings(auth="none")
    config = make_config(EchoApplication(settings), settings)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    sock = listen("127.0.0.1", 0)
    await server.startup(sockets=[sock])
    try:
        yield f"ws://127.0.0.1:{sock.getsockname()[1]}/"
    finally:
        await server.shutdown(sockets=[sock])
