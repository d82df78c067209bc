"""The hub as an ASGI application: routes and lifespan, nothing else."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.routing import BaseRoute, WebSocketRoute

from hub import http
from hub.auth import Unconfigured
from hub.broker.broker import Broker
from hub.broker.usage import UsageQueue
from hub.completions.routes import BODY_PATHS
from hub.completions.routes import routes as completions
from hub.gate import Gate, networks
from hub.ledger import WrongLedger
from hub.ledger.books import Books
from hub.node import Node
from hub.settings import HubSettings
from hub.upgrade import WebSocketUpgrade


def create_app(settings: HubSettings, broker: Broker) -> Starlette:
    """A hub over `broker`, which the caller closes. Raises auth.Unconfigured. `app.state.node` is its Node."""
    node = Node(settings, broker)
    try:
        books = Books(settings.ledger, UsageQueue(broker.connections.control))
    except WrongLedger as error:
        raise Unconfigured(f"HEADRACE_LEDGER: {error}") from None
    node.counts.gauges["headrace_usage_waiting"] = ("Usage rows in Redis that the ledger lacks.", lambda: books.waiting)
    gate = Gate(settings.unauthenticated, settings.unauthenticated_per_address, networks(settings.trusted_proxies))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        running = asyncio.create_task(node.run())
        keeping = asyncio.create_task(books.run())
        for task in (running, keeping):
            task.add_done_callback(partial(_end_process, node))
        try:
            yield {"gate": gate, "settings": settings, "body_paths": BODY_PATHS}  # what hub.request.HttpProtocol needs
        finally:
            for task in (running, keeping):
                task.cancel()
            for task in (running, keeping):
                with suppress(asyncio.CancelledError):
                    await task

    routes: list[BaseRoute] = [
        *http.routes(node, books),
        *completions(node, gate),
        WebSocketRoute("/v1/ws", WebSocketUpgrade(node, gate)),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.node = node
    return app


def _end_process(node: Node, running: asyncio.Task[None]) -> None:
    """A hub whose own tasks broke must not go on looking alive."""
    if not running.cancelled() and running.exception() is not None:
        structlog.get_logger(__name__).critical("hub broke", exc_info=running.exception())
        node.is_broken = True
        signal.raise_signal(signal.SIGTERM)
