"""One HTTP request that watches one generation: what `hub.endpoint.Endpoint` is for a socket, without a socket.

Verbs, attachments and the relay use it as they use an endpoint. What it is sent are the frames of any viewer; they
wait here until the response has taken them, and only then are they acked: the window bounds them.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import msgspec

from headrace.protocol.codec import MSGPACK, Codec
from headrace.protocol.codes import CloseCode
from headrace.protocol.frames import Accepted, Attached, Delta, EntryFrame, ErrorFrame
from hub.attachment import Attachment
from hub.auth import Identity
from hub.completions.problem import Problem
from hub.node import Node

if TYPE_CHECKING:
    from hub.endpoint import Endpoint

#: Entries on their way to one response: at most half a MiB.
WINDOW = 256
#: What a client that reads nothing may hold up the end of its response, when the hub ends it.
CLOSING_S = 1.0


class ClientGone(Exception):
    """Nobody is there to answer."""


class Viewer:
    """To be joined with `join` and, whatever happens, ended with `leave`."""

    __slots__ = (
        "__weakref__", "_frames", "_news", "_problem", "_taken", "_was_left", "attachments", "codec", "connected_at",
        "device", "id", "identity", "is_writable", "node", "patience", "stream",
    )  # fmt: skip

    def __init__(self, node: Node, identity: Identity) -> None:
        self.node = node
        self.identity: Identity | None = identity
        self.id = node.new_connection_id()
        self.device: str | None = None
        self.codec: Codec = MSGPACK
        self.attachments: dict[str, Attachment] = {}
        self.connected_at = node.now()
        self.is_writable = True
        #: The generation; empty until it was accepted.
        self.stream = ""
        #: Ends the response; `close` brings it forward.
        self.patience: asyncio.Timeout | None = None
        self._frames: list[msgspec.Struct] = []
        self._news = asyncio.Event()
        #: The last entry that `take` gave out.
        self._taken = 0
        self._problem: Problem | None = None
        self._was_left = False

    @property
    def endpoint(self) -> Endpoint:
        """This viewer, for those who are written for sockets."""
        return cast("Endpoint", self)

    # -- what the relay and the node ask of an endpoint ----------------------------------------------------

    def write(self, message: bytes) -> None:
        """A complete WebSocket message with one frame."""
        size = message[1]
        self._frames += MSGPACK.decode_hub(message[2 if size < 126 else 4 if size == 126 else 10 :])
        self._news.set()

    def send(self, frame: msgspec.Struct) -> None:
        if isinstance(frame, Accepted):
            self.stream = frame.stream
        elif isinstance(frame, Attached | ErrorFrame):
            self._frames.append(frame)
            self._news.set()

    def clamp(self, window: Any) -> int:
        """Whatever the request says: a response has no say in its window."""
        return min(WINDOW, self.node.settings.window)

    def close(self, code: CloseCode, reason: str) -> None:
        """The hub drains."""
        if self._was_left:
            return
        self.is_writable = False
        self._problem = Problem(
            "overloaded", "this hub is about to end; repeat the request, and another one takes it", is_final=False
        )
        self._news.set()
        if self.patience is not None and not self.patience.expired():
            self.patience.reschedule(asyncio.get_running_loop().time() + CLOSING_S)

    def check_clock(self, now: float, unix_now: float) -> None:
        """A token is good for the answer that was begun with it: a run has its own limit."""

    # -- what the response asks ----------------------------------------------------------------------------

    def join(self) -> None:
        """Be counted among the hub's connections. Raises Problem."""
        node = self.node
        if node.is_draining or len(node.connections) >= node.settings.connections:
            what = "is about to end" if node.is_draining else "has too many connections"
            raise Problem("overloaded", f"this hub {what}; repeat the request", is_final=False, after_ms=1000)
        node.connect(self.endpoint)

    async def take(self, until: float | None = None) -> list[msgspec.Struct]:
        """The frames that came since the last time, in order; none if there are none `until` the loop's time.

        Raises ClientGone, and Problem when the hub ends this response.
        """
        if not self._news.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._news.wait()
        if self._was_left:
            raise ClientGone
        self._news.clear()
        frames, self._frames = self._frames, []
        if not frames and self._problem is not None:
            raise self._problem
        for frame in frames:
            if isinstance(frame, Delta | EntryFrame | Attached):
                self._taken = frame.offset
        return frames

    def ack(self) -> None:
        """All that was taken is written."""
        attachment = self.attachments.get(self.stream)
        if attachment is not None and attachment.ack(self._taken):
            self.node.relay.acked(attachment)

    def leave(self) -> None:
        """Watch no more; the generation goes on or ends as its request says. Leaving twice is nothing."""
        self._was_left = True
        self.is_writable = False
        self._news.set()
        for attachment in list(self.attachments.values()):
            self.node.relay.remove(attachment)
        self.attachments.clear()
        self._frames.clear()
        self.node.forget(self.endpoint)
