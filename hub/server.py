"""The HTTP server of a hub: its listening socket, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import suppress
from typing import Any

import structlog
import uvicorn

from hub.node import Node
from hub.request import HttpProtocol
from hub.settings import HubSettings
from hub.websocket import HubProtocol

log_ = structlog.get_logger("hub")

#: Bytes that the kernel holds for a slow peer. The hub itself holds none beyond the message it was writing: it
#: stops as soon as the kernel takes no more, so that an unread socket costs no memory of the process.
HIGH_WATER = 64 * 1024
#: A message above `message_bytes` is answered; one above this many times that is cut off (1009).
HARD_SIZE_FACTOR = 4


#: What a drain may take beyond `drain_s`, and what the last closing handshakes and answers may take after it.
DRAIN_MARGIN_S = 2.0
CLOSING_S = 5
#: What the application's own end may take when the hub is told to end now.
HURRY_S = 1.0


class HubServer(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends it now.

    It has ended at the latest `drain_s` + DRAIN_MARGIN_S + CLOSING_S after the first, whatever its clients do.
    """

    def __init__(self, config: uvicorn.Config, node: Node) -> None:
        super().__init__(config)
        self._node = node
        self._drain: asyncio.Task[None] | None = None
        node.check_life = self._check_life

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._drain is None:
            log_.info("hub drains", connections=len(self._node.connections), seconds=self._node.settings.drain_s)
            self._drain = asyncio.get_running_loop().create_task(self._drain_then_exit())
        else:
            self._drain.cancel()
            self.force_exit = self.should_exit = True

    async def _drain_then_exit(self) -> None:
        try:
            async with asyncio.timeout(self._node.settings.drain_s + DRAIN_MARGIN_S):
                await self._node.drain()
        except TimeoutError:
            log_.warning("the drain took too long", connections=len(self._node.connections))
        finally:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.force_exit:
            self._cut_all()
        await super().shutdown(sockets)
        if self.force_exit:  # the base class leaves the application as it is
            self._cut_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(HURRY_S):
                    await self.lifespan.shutdown()

    def _cut_all(self) -> None:
        for protocol in list(self.server_state.connections):
            protocol.transport.abort()

    def _check_life(self, now: float) -> None:
        loop_now = asyncio.get_running_loop().time()
        heartbeat_s = self._node.settings.heartbeat_s
        for protocol in list(self.server_state.connections):
            if isinstance(protocol, HubProtocol):
                protocol.check_life(loop_now, heartbeat_s)

    def handle_signals(self) -> None:
        """From now on SIGTERM and SIGINT of this process drain the hub."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError):
                loop.add_signal_handler(number, self.handle_exit, number, None)

    async def serve_until_exit(self, sock: socket.socket) -> None:
        """Serve on a listening socket until drained or told to exit."""
        await self._serve([sock])


def make_config(app: Any, settings: HubSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        interface="asgi3",
        http=HttpProtocol,
        ws=HubProtocol,
        ws_per_message_deflate=False,
        ws_max_size=HARD_SIZE_FACTOR * settings.message_bytes,
        ws_ping_interval=None,
        ws_ping_timeout=None,
        lifespan="on",
        proxy_headers=False,  # whom a proxy speaks for is the gate's to decide
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSING_S,
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket whose connections keep little in the kernel: pings must not queue behind much data."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, HIGH_WATER)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
        sock.bind((host, port))
        sock.listen(4096)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
