"""A TCP connection until it is a WebSocket, and the hub's plain HTTP: uvicorn's protocol with deadlines and bounds."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from hub.gate import Gate, address_of
from hub.settings import HubSettings


class HttpProtocol(HttpToolsProtocol):
    """What uvicorn does not bound:

    - a request, head and body, arrives whole within `header_timeout_s` of the connection or of the answer before it
      plus the keep-alive time: 408, and closed. A socket that says nothing is closed without a word
    - a head is at most `header_bytes`: 431
    - one request at a time: what is pipelined behind an unanswered one is not read, and the connection ends with its
      answer; so it does after a request that brought a body, which only the paths of `body_paths` read
    - while it is no WebSocket a connection is a guest at the gate, which may turn it away

    The lifespan's state must hold `gate`, `settings` and `body_paths`. The scope's `headrace.guest` is this object:
    who finds out who is asking takes it out of the gate.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gate: Gate = self.app_state["gate"]
        self._settings: HubSettings = self.app_state["settings"]
        self._deadline: asyncio.TimerHandle | None = None
        #: Bytes of the head that is on its way.
        self._head_bytes = 0
        self._in_head = True
        #: Somebody waits for the body of this request.
        self._takes_body = False
        self._is_ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = self.client[0] if self.client else None
        self._gate.enter(self, address_of(peer, (), self._gate.trusted))
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._gate.leave(self)
        super().connection_lost(exc)

    def turn_away(self) -> None:
        self.transport.abort()

    # -- what arrives ------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_ending or self.transport.is_closing():
            return
        if self._deadline is None and not self._is_answering():
            self._arm()
        limit = self._settings.header_bytes
        while data and self._in_head:
            piece, data = data[: limit - self._head_bytes], data[limit - self._head_bytes :]
            self._head_bytes += len(piece)
            super().data_received(piece)
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            if self._in_head and self._head_bytes >= limit:
                self._refuse(431, b"the head of this request is too large")
                return
            if self._is_ending:
                return
        if data:
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if self._is_answering():
            self._end_with_answer()
            return
        super().on_headers_complete()
        self.scope["headrace.guest"] = self  # type: ignore[typeddict-unknown-key]
        self._takes_body = self.scope.get("path") in self.app_state["body_paths"]
        if self.cycle is not None and any(
            name in (b"transfer-encoding", b"content-length") and value != b"0" for name, value in self.headers
        ):
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if self._takes_body and not self._is_ending:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._disarm()
        self._in_head = True
        if not self._is_ending:
            super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        if self._is_ending:
            return
        self._disarm()
        self._gate.leave(self)
        super().handle_websocket_upgrade()

    # -- its end -----------------------------------------------------------------------------------------

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(self._settings.header_timeout_s, self._too_late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self._head_bytes and self._in_head:
            self._refuse(408, b"this request took too long to arrive")
        else:
            self.transport.abort()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _end_with_answer(self) -> None:
        self._is_ending = True
        self.cycle.keep_alive = False

    def _refuse(self, status: int, text: bytes) -> None:
        self._disarm()
        if self._is_answering():
            self._end_with_answer()
            return
        self._is_ending = True
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(text)
            + text
        )
        self.transport.close()
