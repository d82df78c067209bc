"""The hub's plain HTTP: alive, ready, metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hub.node import Node


def routes(node: Node) -> list[Route]:
    async def healthz(_: Request) -> Response:
        """The process answers."""
        return JSONResponse({"status": "alive"})

    async def readyz(_: Request) -> Response:
        """New connections may be sent here: Redis answers and the hub is not draining."""
        if node.is_draining:
            return JSONResponse({"status": "draining"}, 503)
        if not node.relay.ready.is_set() or not await node.broker.is_reachable():
            return JSONResponse({"status": "redis out of reach"}, 503)
        return JSONResponse({"status": "ready"})

    async def metrics(_: Request) -> Response:
        return Response(node.counts.exposition(), media_type="text/plain; version=0.0.4")

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
