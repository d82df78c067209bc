"""`/v1/ws`: from an HTTP upgrade to an endpoint. Bare ASGI: a framework's route costs 5 KiB an idle connection."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from headrace.protocol.codec import CODECS, JSON, Codec
from headrace.protocol.codes import CloseCode
from hub.auth import bearer
from hub.endpoint import Endpoint
from hub.gate import Gate, address_of
from hub.node import Node


class WebSocketUpgrade:
    """The ASGI application at `/v1/ws`. Needs the protocol class of hub/server.py."""

    def __init__(self, node: Node, gate: Gate) -> None:
        self._node = node
        self._gate = gate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        node = self._node
        await receive()  # websocket.connect
        if node.is_draining:
            await _respond(send, 503, b"this hub is about to end; connect again, and another one takes you")
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        codec = _codec(scope["subprotocols"])
        if codec is None:
            await _respond(send, 400, b"offer headrace.v1.json or headrace.v1.msgpack")
            return
        if not self._may_come_from(headers):
            await _respond(send, 403, b"this origin is not allowed; see HEADRACE_ALLOWED_ORIGINS")
            return
        socket = scope.get("headrace.socket")
        if socket is None:
            await _respond(send, 500, b"run this application with `headrace hub`")
            return
        subprotocol = codec.subprotocol if scope["subprotocols"] else None
        token = bearer(headers.get(b"authorization", b"").decode("latin-1"))
        endpoint = Endpoint(node, socket, codec, node.new_connection_id(), token, self._gate)
        node.connect(endpoint)
        socket.serve(endpoint, node.settings.message_bytes)
        try:
            await send({"type": "websocket.accept", "subprotocol": subprotocol})
        except OSError:
            endpoint.closed()
            raise
        if node.is_draining:
            endpoint.close(CloseCode.DRAIN, "drain")
        elif len(node.connections) > node.settings.connections:
            endpoint.close(CloseCode.OVERLOADED, "too many connections on this hub")
        else:
            self._gate.enter(endpoint, self._address(socket, scope))
        del scope, headers, socket, endpoint, token
        await receive()  # messages go straight to the endpoint: the only event left is the disconnect

    def _address(self, socket: Any, scope: Any) -> str | None:
        """Of the socket itself: the scope's `client` may be what somebody claimed."""
        peer = socket.client[0] if socket.client else None
        claims = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"x-forwarded-for"]
        return address_of(peer, claims, self._gate.trusted)

    def _may_come_from(self, headers: dict[bytes, bytes]) -> bool:
        """Browsers send Origin: theirs must be allowed, or be the hub's own. CORS does not cover WebSockets."""
        origin = headers.get(b"origin")
        if origin is None or "*" in self._node.origins:
            return True
        text = origin.decode("latin-1")
        return text in self._node.origins or urlsplit(text).netloc == headers.get(b"host", b"").decode("latin-1")


def _codec(offered: list[str]) -> Codec | None:
    """The first subprotocol offered that we speak; JSON when none is offered."""
    if not offered:
        return JSON
    return next((CODECS[name] for name in offered if name in CODECS), None)


async def _respond(send: Any, status: int, text: bytes) -> None:
    await send(
        {"type": "websocket.http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]}
    )
    await send({"type": "websocket.http.response.body", "body": text})
