"""uvicorn's WebSocket protocol, made to write ready frames and to let go of dead and hostile peers.

What differs from the base class, and why:

- whole messages go straight to the endpoint: no queue, no task switch, reading pauses when the endpoint says so
- ready frames go straight to the transport; its water marks tell the endpoint when to stop and go on
- any byte is a sign of life, and so is progress in what the peer's kernel took; a peer without either for two
  heartbeats is aborted: closing politely would wait for ever behind what it does not read
- what is read is parsed in slices, and `Framing` bounds frames: a flood fails at the frame that is one too many, with
  little more than a slice of it in memory
- a connection that failed says why, and goes on reading (and dropping) for a moment: closing a socket with
  unread bytes resets it, and the peer would never see the code
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

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.protocol import OPEN

from headrace.protocol.codes import CloseCode
from hub.endpoint import Endpoint
from hub.framing import SKIPPED, Framing

#: Time for a peer to answer a close.
CLOSE_TIMEOUT_S = 2.0
#: Time for the application to accept or refuse an upgrade: it waits for nothing.
UPGRADE_TIMEOUT_S = 10.0
#: Bytes parsed at a time. The smallest frame has six, and each costs some hundred bytes until it is obeyed.
SLICE_BYTES = 4096
_PING = b"\x89\x00"
#: Not looked at yet.
_UNKNOWN = -1


class HubProtocol(WebSocketsSansIOProtocol):
    """One socket. The ASGI application calls `serve` before it accepts the upgrade."""

    endpoint: Endpoint | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn: Framing = Framing(self.config.ws_max_size, self.logger)
        now = self.loop.time()
        self.seen_at = now
        self.pinged_at = now
        #: What the peer's kernel had acknowledged when we last looked, since the connection began.
        self._acked = 0
        #: Where our newest ping ends, in bytes since the connection began.
        self._ping_end = 0
        self._held = False
        #: What the kernel had received of the peer when we last looked; only while `_held`.
        self._received = _UNKNOWN
        #: Whole messages up to this size are kept.
        self._message_bytes = 0
        #: This connection failed: what still arrives is dropped.
        self._has_failed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=0)

    async def run_asgi(self) -> None:
        """As the base class does it, but for a refusal: that is an answer, and no error of ours to log."""
        self.scope["headrace.socket"] = self  # type: ignore[typeddict-unknown-key]
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except Exception:
            self.logger.exception("a connection failed")
            self.send_500_response()
        finally:
            if self.close_timer is None:
                self.transport.close()

    def serve(self, endpoint: Endpoint, message_bytes: int) -> None:
        """From now on messages go to `endpoint`; of one above `message_bytes` it is only told that it came."""
        self.endpoint = endpoint
        self._message_bytes = message_bytes
        self.conn.keep(message_bytes)
        self.conn.spend = endpoint.may_take_frame

    # -- what the endpoint asks for ----------------------------------------------------------------------

    def close_with(self, code: int, reason: str) -> None:
        """Start the closing handshake; a peer that does not answer it is cut off after CLOSE_TIMEOUT_S."""
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.close_sent = True
        self._stop_writing()
        if not self.writable.is_set():
            self.transport.abort()
            return
        if self.conn.state is OPEN:  # else the peer's own close is in the slice that is being obeyed
            self.conn.send_close(code, reason)
        self._say_last()

    def hold_reading(self, held: bool) -> None:
        """Pause or resume reading from this peer."""
        if held is self._held or self.transport.is_closing():
            return
        self._held = held
        self._received = _UNKNOWN
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
        if not self.handshake_complete:
            self._handshake_received(data)
        elif len(data) <= SLICE_BYTES:
            if not self._has_failed:
                super().data_received(data)
        else:
            view = memoryview(data)
            for start in range(0, len(view), SLICE_BYTES):
                if self._has_failed or self.transport.is_closing():
                    return
                super().data_received(view[start : start + SLICE_BYTES])  # type: ignore[arg-type]

    def _handshake_received(self, data: bytes) -> None:
        if self.handshake_initiated:
            self.transport.abort()  # a client that does not wait for our answer speaks something else
            return
        super().data_received(data)
        if not self.handshake_initiated:  # the library refused the request; the base class knows no such case
            self.handshake_complete = self.close_sent = True
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        frames, self.frames = self.frames, []
        endpoint = self.endpoint
        if endpoint is None or self.close_sent:
            return
        if frames[-1] is SKIPPED:
            endpoint.too_large_received()
            return
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        is_text = self.curr_msg_data_type == "text"
        if is_text and not _is_utf8(data):
            self.conn.fail(1007, "not UTF-8")
            self.handle_parser_exception()
            return
        endpoint.message_received(bytes(data), is_text)

    def handle_cont(self, event: Frame) -> None:
        kept = self.frames[-1]
        if (
            kept is SKIPPED
            or event.data is SKIPPED
            or sum(map(len, self.frames)) + len(event.data) > self._message_bytes
        ):
            self.frames = []
            event.data = SKIPPED
        super().handle_cont(event)

    def handle_ping(self) -> None:
        if not self._has_failed:
            super().handle_ping()

    def handle_close(self, event: Frame) -> None:
        self._stop_writing()
        super().handle_close(event)

    def handle_parser_exception(self) -> None:
        """The connection failed at what the peer sent; `conn` has the close ready, if none was sent before."""
        self._has_failed = True
        self._stop_writing()
        if self.transport.is_closing():
            return
        if not self.writable.is_set():
            self.transport.abort()
            return
        self.close_sent = True
        self._say_last()
        self.transport.write_eof()

    def _say_last(self) -> None:
        """Write the close, then give the peer some time to read it and to end the connection."""
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.hold_reading(False)
        if self.close_timer is None:
            self.close_timer = self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

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
        """To be called about once a second. Asks after one heartbeat of silence, lets go after another one."""
        if not self.handshake_complete:
            if now - self.seen_at > UPGRADE_TIMEOUT_S:
                self.transport.abort()
            return
        if self.close_sent:
            return
        if self._held:
            self._look_behind_the_hold(now)
        if self.pinged_at > self.seen_at:
            self._look_for_progress(now)
        if now - max(self.seen_at, self.pinged_at) < heartbeat_s:
            return
        if self.pinged_at <= self.seen_at:
            self._ask(now)
        elif not self._held and _bytes_unread(self.transport):
            self.seen_at = now  # it did answer: it is us who were slow, or stopped
        else:
            self.close_with(CloseCode.NO_SIGN_OF_LIFE, "no sign of life")

    def _ask(self, now: float) -> None:
        self.pinged_at = now
        self._acked = _bytes_acked(self.transport)
        if self.writable.is_set():
            self.transport.write(_PING)
            self._ping_end = self._acked + _bytes_unacked(self.transport)

    def _look_behind_the_hold(self, now: float) -> None:
        """We do not read from this peer: whether it speaks, its kernel's counterpart here knows."""
        received = _tcp_info(self.transport, _BYTES_RECEIVED)
        if received > self._received != _UNKNOWN:
            self.seen_at = now
        self._received = received

    def _look_for_progress(self, now: float) -> None:
        """No answer yet. A slow link may still be on its way to our ping: its kernel took more, but not the ping.

        A kernel that took the ping says nothing about its program, which must answer.
        """
        acked = _bytes_acked(self.transport)
        if acked > self._acked and (acked < self._ping_end or not self.writable.is_set()):
            self._acked = acked
            self.seen_at = now


#: Where Linux' tcp_info has tcpi_bytes_acked and tcpi_bytes_received.
_BYTES_ACKED, _BYTES_RECEIVED = 120, 128


def _bytes_acked(transport: asyncio.Transport) -> int:
    """What the peer's kernel acknowledged so far; 0 where the system does not tell."""
    return _tcp_info(transport, _BYTES_ACKED)


def _tcp_info(transport: asyncio.Transport, place: int) -> int:
    """A 64-bit counter of the connection; 0 where the system does not tell."""
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
        return int(struct.unpack_from("Q", info, place)[0])
    except (OSError, AttributeError, struct.error):
        return 0


def _bytes_unacked(transport: asyncio.Transport) -> int:
    """What lies in the kernel's send queue, not acknowledged by the peer; 0 where the system does not tell."""
    return _queued(transport, termios.TIOCOUTQ)


def _bytes_unread(transport: asyncio.Transport) -> int:
    """What the kernel received from the peer and we have not read; 0 where the system does not tell."""
    return _queued(transport, termios.FIONREAD)


def _queued(transport: asyncio.Transport, request: int) -> int:
    try:
        number = transport.get_extra_info("socket").fileno()
        return int(struct.unpack("i", fcntl.ioctl(number, request, bytes(4)))[0])
    except (OSError, AttributeError):
        return 0


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
