"""uvicorn's WebSocket protocol, made to write ready frames and to let go of dead peers.

What differs from the base class, and why:

- whole messages go straight to the endpoint: no queue, no task switch, reading pauses when the endpoint says so
- ready frames go straight to the transport; its water marks tell the endpoint when to stop and go on
- any byte is a sign of life, and so is progress in what the peer's kernel took; a peer without either for two
  heartbeats is aborted: closing politely would wait for ever behind what it does not read
- fragments of a message are capped, an oversized control flood counts as a sign of flooding
- shutdown leaves connections to `Node.drain`
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from headrace.protocol.codes import CloseCode
from hub.endpoint import Endpoint

#: Fragments of one message.
MAX_FRAGMENTS = 64
#: Time for a peer to answer a close.
CLOSE_TIMEOUT_S = 2.0
_PING = b"\x89\x00"


class HubProtocol(WebSocketsSansIOProtocol):
    """One socket. `endpoint` is set by the ASGI application once the upgrade is accepted."""

    endpoint: Endpoint | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        now = self.loop.time()
        self.seen_at = now
        self.pinged_at = now
        self._acked = 0
        #: Where our newest ping ends, in bytes since the connection began.
        self._ping_end = 0
        self._held = False
        self._fragments = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=0)

    async def run_asgi(self) -> None:
        self.scope["headrace.socket"] = self  # type: ignore[typeddict-unknown-key]
        await super().run_asgi()

    # -- what the endpoint asks for ----------------------------------------------------------------------

    def close_with(self, code: int, reason: str) -> None:
        """Start the closing handshake; a peer that does not answer it is cut off after CLOSE_TIMEOUT_S."""
        if self.close_sent or self.disconnected:
            return
        self.close_sent = True
        self._stop_writing()
        if not self.writable.is_set():
            self.transport.abort()
            return
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.hold_reading(False)
        self.close_timer = self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    def hold_reading(self, held: bool) -> None:
        """Pause or resume reading from this peer."""
        if held is self._held or self.transport.is_closing():
            return
        self._held = held
        if held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def writer(self) -> Callable[[bytes], None]:
        """Writes one complete message to the socket; to be called only while the endpoint is writable."""
        return self.transport.write

    # -- what the socket tells ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self.seen_at = self.loop.time()
        super().data_received(data)

    def send_receive_event_to_app(self) -> None:
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        self._fragments = 0
        endpoint = self.endpoint
        if endpoint is None or self.close_sent:
            return
        is_text = self.curr_msg_data_type == "text"
        if is_text and not _is_utf8(data):
            self.close_with(1007, "not UTF-8")
            return
        endpoint.message_received(bytes(data), is_text)

    def handle_cont(self, event: Frame) -> None:
        self._fragments += 1
        if self._fragments > MAX_FRAGMENTS:
            self.close_with(CloseCode.FLOODING, "too many fragments")
            return
        super().handle_cont(event)

    def handle_close(self, event: Frame) -> None:
        self._stop_writing()
        super().handle_close(event)

    def handle_parser_exception(self) -> None:
        self._stop_writing()
        super().handle_parser_exception()

    def _stop_writing(self) -> None:
        """A close frame is on its way out: nothing may follow it."""
        if self.endpoint is not None:
            self.endpoint.stop_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.endpoint is not None:
            self.endpoint.not_writable()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.endpoint is not None and not self.close_sent:
            self.endpoint.writable_again()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.endpoint is not None:
            self.endpoint.closed()
            self.endpoint = None

    def start_keepalive(self) -> None:
        """`check_life` pings all sockets from one task: two timers a connection would cost more than the rest."""

    def shutdown(self) -> None:
        if self.handshake_complete:
            self.close_with(CloseCode.DRAIN, "drain")
        else:
            super().shutdown()

    # -- signs of life -----------------------------------------------------------------------------------

    def check_life(self, now: float, heartbeat_s: float) -> None:
        if self.close_sent or not self.handshake_complete:
            return
        if now - self.seen_at > 2 * heartbeat_s and not self._has_progressed(now):
            self.close_with(CloseCode.NO_SIGN_OF_LIFE, "no sign of life")
        elif now - max(self.seen_at, self.pinged_at) >= heartbeat_s:
            self.pinged_at = now
            if self.writable.is_set():
                self.transport.write(_PING)
                self._ping_end = _bytes_acked(self.transport) + _bytes_unacked(self.transport)

    def _has_progressed(self, now: float) -> bool:
        """Whether a slow link is still on its way to our ping: its kernel took more, but not the ping yet.

        A kernel that took the ping says nothing about its program, which must answer.
        """
        acked = _bytes_acked(self.transport)
        if acked >= self._ping_end and self.writable.is_set() or acked <= self._acked:
            return False
        self._acked = acked
        self.seen_at = now
        return True


def _bytes_acked(transport: asyncio.Transport) -> int:
    """What the peer's kernel acknowledged so far (Linux' tcpi_bytes_acked); 0 where the system does not tell."""
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        return int(struct.unpack_from("Q", info, 120)[0])
    except (OSError, AttributeError, struct.error):
        return 0


def _bytes_unacked(transport: asyncio.Transport) -> int:
    """What lies in the kernel's send queue, not acknowledged by the peer; 0 where the system does not tell."""
    try:
        number = transport.get_extra_info("socket").fileno()
        return int(struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, AttributeError):
        return 0


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
