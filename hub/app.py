"""The hub as an ASGI application: routes and lifespan, nothing else."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from starlette.applications import Starlette
from starlette.routing import BaseRoute, WebSocketRoute

from hub import http
from hub.broker.broker import Broker
from hub.node import Node
from hub.settings import HubSettings
from hub.upgrade import WebSocketUpgrade


def create_app(settings: HubSettings, broker: Broker) -> Starlette:
    """A hub over `broker`, which the caller closes. Raises auth.Unconfigured. `app.state.node` is its Node."""
    node = Node(settings, broker)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        running = asyncio.create_task(node.run())
        running.add_done_callback(_end_process)
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    routes: list[BaseRoute] = [*http.routes(node), WebSocketRoute("/v1/ws", WebSocketUpgrade(node))]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.node = node
    return app


def _end_process(running: asyncio.Task[None]) -> None:
    """A hub whose own tasks broke must not go on looking alive."""
    if not running.cancelled() and running.exception() is not None:
        structlog.get_logger(__name__).critical("hub broke", exc_info=running.exception())
        signal.raise_signal(signal.SIGTERM)
