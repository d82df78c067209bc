"""One viewer of one stream: a cursor and a window, no queue and no I/O (protocol §4, §6).

A live frame is *offered*; an attachment that cannot take it as it is (behind, ahead of this hub's tail, inside the
frame, out of window, paced, socket full) is *pumped* later from the entries held or the log, as soon as it has room.
Progress never depends on a later ack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.protocol.cursor import Cursor, MarkRuns
from headrace.protocol.window import SendWindow

if TYPE_CHECKING:
    from hub.endpoint import Endpoint
    from hub.tail import Tail


class Attachment(SendWindow):
    """`sent` is the cursor: the last offset written to this viewer's socket."""

    __slots__ = (
        "crossing",
        "endpoint",
        "is_live",
        "is_reading",
        "is_stalled",
        "mark",
        "next_delta_at",
        "pace_s",
        "start",
        "stream",
        "tail",
        "timer",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        tail: Tail,
        stream: str,
        start: Cursor,
        size: int | None,
        ahead: int,
        pace_s: float,
    ) -> None:
        super().__init__(size, start.offset, ahead)
        self.endpoint = endpoint
        #: Where it began, and the mark there: this hub's tail may not reach that far yet.
        self.start = start.offset
        self.mark = start.mark
        self.tail = tail
        self.stream = stream
        self.pace_s = pace_s
        #: The last entry sent of a history before this one.
        self.crossing = 0
        #: A paced viewer gets no delta before this time.
        self.next_delta_at = 0.0
        #: The `live` frame went out.
        self.is_live = False
        #: A log read for this viewer is under way; it will pump again.
        self.is_reading = False
        #: Out of window, and counted.
        self.is_stalled = False
        #: Set while a paced delta waits for its time.
        self.timer = False

    @property
    def is_attached(self) -> bool:
        """False once it was detached, replaced, or its connection is gone."""
        return self.endpoint.attachments.get(self.stream) is self

    def through(self, top: int) -> int:
        """The last offset that may be sent now, given the stream's top."""
        return top if top <= self.limit else int(self.limit)

    def cursor(self, runs: MarkRuns) -> Cursor:
        """Where this viewer is; `runs` are those of the tail that it was sent from."""
        return Cursor(self.sent, self.mark if self.sent == self.start else runs.at(self.sent))

    def fits(self, runs: MarkRuns) -> bool:
        """Whether a tail that reaches this viewer's place has the entry there that it has."""
        return self.sent != self.start or not self.sent or runs.at(self.sent) == self.mark

    def ack(self, offset: int, size: int | None = -1) -> bool:
        """As SendWindow's. An ack for the history before the last `restart` may have crossed it: it tells nothing of
        this one.
        """
        return super().ack(self.acked if self.sent < offset <= self.crossing else offset, size)

    def restart(self, start: Cursor) -> None:
        """Begin again at `start`, as an `attached` push says."""
        self.crossing = max(self.crossing, self.sent)
        self.sent = self.acked = self.start = start.offset
        self.mark = start.mark
        self.limit = float("inf") if self.size is None else start.offset + self.size
        self.is_live = False
