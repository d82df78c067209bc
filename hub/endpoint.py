"""The shell of one WebSocket: obeys what `connection` judged, owns the tasks it starts, and nothing else.

An ack does no I/O and starts no task. `attach`, `generate`, `cancel`, `list`, `refresh` and a `detach` that changes
the abandon rule run as bounded tasks and are answered when they are ready (protocol §4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Protocol

import msgspec
import structlog

from headrace.protocol.codec import Codec
from headrace.protocol.codes import CloseCode
from headrace.protocol.frames import (
    Ack,
    Attach,
    Cancel,
    Detach,
    ErrorFrame,
    Generate,
    Hello,
    Id,
    Limits,
    ListStreams,
    Ok,
    Ping,
    Pong,
    Refresh,
    Welcome,
)
from hub.attachment import Attachment
from hub.auth import Identity, TokenExpired, TokenInvalid
from hub.broker.connections import Unreachable
from hub.connection import Close, Connection, Instruction, State
from hub.errors import Rejected, overloaded
from hub.gate import Gate
from hub.node import Node
from hub.tail import prepare
from hub.verbs import Verbs

log_ = structlog.get_logger(__name__)

#: Verbs under way on one connection; reading pauses until one ends.
VERBS_AT_ONCE = 64
#: A verb that Redis does not answer in this time is answered `overloaded`.
VERB_TIMEOUT_S = 10.0


class Socket(Protocol):
    """What an endpoint needs of the server's protocol object (hub/server.py)."""

    def writer(self) -> Callable[[bytes], None]: ...
    def close_with(self, code: int, reason: str) -> None: ...
    def hold_reading(self, held: bool) -> None: ...


class Endpoint:
    """Made when the socket opens, `closed` when it ends. All methods run on the hub's loop."""

    __slots__ = (
        "__weakref__", "_connection", "_gate", "_grace_until", "_header_token", "_socket", "_tasks", "_verbs",
        "attachments", "codec", "connected_at", "device", "id", "identity", "is_writable", "node", "write",
    )  # fmt: skip

    def __init__(
        self, node: Node, socket: Socket, codec: Codec, id_: str, header_token: str | None, gate: Gate
    ) -> None:
        self.node = node
        self.codec = codec
        self.id = id_
        self.identity: Identity | None = None
        self.device: str | None = None
        self.attachments: dict[str, Attachment] = {}
        self.connected_at = node.now()
        #: False while the socket's buffer is above its high-water mark, and for ever once it is closing.
        self.is_writable = True
        #: Write one complete WebSocket message. Only while `is_writable`, but for the small frames of `send`.
        self.write = socket.writer()
        self._socket = socket
        self._header_token = header_token
        self._gate = gate
        self._grace_until: float | None = None
        settings = node.settings
        self._connection = Connection(codec, settings.frames_per_second, settings.message_bytes, self.connected_at)
        self._tasks: set[asyncio.Task[None]] | None = None
        self._verbs: Verbs | None = None

    # -- what the socket tells ---------------------------------------------------------------------------

    def message_received(self, data: bytes, is_text: bool) -> None:
        """One whole message from the client."""
        self._follow(self._connection.receive(data, is_text, self.node.now()))

    def too_large_received(self) -> None:
        """One whole message from the client, which was too large to be kept."""
        self._follow(self._connection.receive_too_large(self.node.now()))

    def may_take_frame(self) -> bool:
        """Whether the client's rate allows one more frame of the WebSocket layer: a ping, a fragment."""
        return self._connection.spend(1, self.node.now())

    def turn_away(self) -> None:
        """There are too many that have not said who they are, and this one has waited longest."""
        self.close(CloseCode.OVERLOADED, "too many connections wait to say hello")

    def _follow(self, instructions: Iterator[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Ack):
                self._ack(instruction)
            elif isinstance(instruction, Ping):
                self.send(Pong(instruction.id))
            elif isinstance(instruction, ErrorFrame):
                self.node.counts.rejected += 1
                self.send(instruction)
            elif isinstance(instruction, Close):
                self.close(instruction.code, instruction.reason)
            elif isinstance(instruction, Hello):
                self._hello(instruction)
            else:
                self._obey(instruction)

    def writable_again(self) -> None:
        """The socket's buffer fell below its low-water mark."""
        if self._connection.is_closed:
            return
        self.is_writable = True
        self._socket.hold_reading(self._is_busy())
        for attachment in list(self.attachments.values()):
            self.node.relay.pump(attachment)

    def not_writable(self) -> None:
        """The socket's buffer is full: nothing more is written, nothing more is read."""
        self.is_writable = False
        self._socket.hold_reading(True)

    def stop_writing(self) -> None:
        """A close frame is on its way: nothing may follow it."""
        self.is_writable = False
        self._connection.state = State.CLOSED

    def closed(self) -> None:
        """The socket is gone. A disconnect never cancels a generation by itself."""
        self.stop_writing()
        for attachment in list(self.attachments.values()):
            self.node.relay.remove(attachment)
        self.attachments.clear()
        self._gate.leave(self)
        self.node.forget(self)
        for task in self._tasks or ():
            task.cancel()

    # -- out ---------------------------------------------------------------------------------------------

    def send(self, frame: msgspec.Struct) -> None:
        """Send an answer or a push at once, in order with what `write` wrote."""
        if self._connection.state is not State.CLOSED:
            self.write(prepare(self.codec.encode(frame), self.codec.is_text))

    def close(self, code: CloseCode, reason: str) -> None:
        self.stop_writing()
        self._gate.leave(self)
        self._socket.close_with(code, reason)

    def check_clock(self, now: float, unix_now: float) -> None:
        """Deadlines of this connection: `hello`, and the token's expiry. Called about once a second."""
        settings = self.node.settings
        if self._connection.state is State.CONNECTING:
            if now - self.connected_at > settings.hello_timeout_s:
                self.close(CloseCode.NO_HELLO, "no hello in time")
            return
        expires_at = self.identity.expires_at if self.identity else None
        if expires_at is None or unix_now < expires_at:
            self._grace_until = None
        elif self._grace_until is None:
            self._grace_until = now + settings.token_grace_s
            self.send(Rejected("token_expired", "the token expired; send refresh with a new one").frame())
        elif now >= self._grace_until:
            self.close(CloseCode.TOKEN_EXPIRED, "token expired")

    # -- frames ------------------------------------------------------------------------------------------

    def _hello(self, hello: Hello) -> None:
        try:
            self.identity = self.node.auth.identify(hello.token or self._header_token)
        except TokenExpired:
            self.send(Rejected("token_expired", "the token expired; reconnect with a new one").frame())
            self.close(CloseCode.TOKEN_EXPIRED, "token expired")
            return
        except TokenInvalid:
            self.close(CloseCode.UNAUTHENTICATED, "no valid token")
            return
        self._header_token = None
        self._gate.leave(self)
        self.device = hello.device
        self.node.welcome(self)
        settings = self.node.settings
        self.send(
            Welcome(
                self.id,
                self.identity.user,
                int(settings.heartbeat_s * 1000),
                Limits(
                    settings.message_bytes,
                    settings.prompt_bytes,
                    settings.window,
                    settings.attachments,
                    settings.frames_per_second,
                ),
            )
        )

    def _ack(self, ack: Ack) -> None:
        attachment = self.attachments.get(ack.stream)
        if attachment is None:
            return  # also the normal end: `done` closed the attachment before the last ack came
        size = -1 if ack.window is msgspec.UNSET else self.clamp(ack.window)
        if attachment.ack(ack.offset, size):
            self.node.relay.acked(attachment)
        else:
            self.send(Rejected("bad_ack", "the ack is past the last entry sent").frame(stream=ack.stream))

    def clamp(self, window: Any) -> int | None:
        """The effective window: the default when absent, at most the limit; None is no acks, 0 pauses."""
        if window is msgspec.UNSET:
            return min(256, self.node.settings.window)
        return None if window is None else min(window, self.node.settings.window)

    def _obey(self, frame: Any) -> None:
        if self._verbs is None:
            self._verbs = Verbs(self, self.node)
        verbs = self._verbs
        if isinstance(frame, Detach):
            verbs.supersede(frame.stream)
            attachment = self.attachments.pop(frame.stream, None)
            if attachment is not None:
                self.node.relay.remove(attachment)
            if frame.on_abandon is None:
                if frame.id is not None:
                    self.send(Ok(frame.id))
                return
            self._start(partial(verbs.detach, frame), frame.id, frame.stream)
        elif isinstance(frame, Attach):
            self._start(verbs.attach(frame), frame.id, frame.stream)
        elif isinstance(frame, Generate):
            self._start(partial(verbs.generate, frame), frame.id, None)
        elif isinstance(frame, Cancel):
            self._start(partial(verbs.cancel, frame), frame.id, frame.stream)
        elif isinstance(frame, ListStreams):
            self._start(partial(verbs.list, frame), frame.id, None)
        elif isinstance(frame, Refresh):
            self._start(partial(verbs.refresh, frame), frame.id, None)

    def _start(self, work: Callable[[], Awaitable[None]], id_: Id | None, stream: str | None) -> None:
        if self._tasks is None:
            self._tasks = set()
        task = asyncio.ensure_future(self._answer(work, id_, stream))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        self._socket.hold_reading(self._is_busy())

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._tasks is not None:
            self._tasks.discard(task)
        if self._connection.state is not State.CLOSED:
            self._socket.hold_reading(self._is_busy())

    def _is_busy(self) -> bool:
        return not self.is_writable or len(self._tasks or ()) >= VERBS_AT_ONCE

    async def _answer(self, work: Callable[[], Awaitable[None]], id_: Id | None, stream: str | None) -> None:
        """Run a verb; whatever goes wrong becomes one `error` frame. Cancelled before it began, there is no verb."""
        try:
            async with asyncio.timeout(VERB_TIMEOUT_S):
                await work()
            return
        except Rejected as rejected:
            error = rejected
        except (*Unreachable, TimeoutError) as unreachable:
            self.node.missed_redis(unreachable)
            error = overloaded()
        except Exception:
            log_.exception("a request failed")
            error = Rejected("internal", "something broke here; try again")
        self.node.counts.rejected += 1
        self.send(error.frame(id_, stream))
