"""One stream that this client follows: its cursor, its credit, and what to ask a hub for. No I/O, no clock.

It outlives connections. Two positions matter: *received* (what came in; resuming starts there) and *taken*
(what the application took; only that is acked). Between them lies the unread queue, which therefore never
holds more entries than the window.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from headrace.protocol.cursor import Cursor
from headrace.protocol.frames import (
    Accepted,
    Ack,
    Attach,
    Attached,
    Delta,
    EntryFrame,
    Generate,
)
from headrace.protocol.window import AckSchedule

#: The window this client asks for unless told otherwise, in entries (docs/protocol.md §6).
WINDOW: Final = 256
#: Re-attaching this often without one entry in between means that hub and client do not understand each other.
REPAIRS: Final = 5


class Placed(Enum):
    """What the answer of an attach means for what is shown."""

    RESUMED = "frames follow from the cursor"
    RESTARTED = "another history: drop everything shown"
    ASTRAY = "the answer does not continue at the cursor: attach again"


class Attachment:
    """Where this client is in one stream, and how far it lets the hub send.

    Attributes:
        key: What the application's side calls it; the stream's id is not known before the first answer.
        stream: The stream's id, once known.
        cursor: After which entry to resume; `"now"` for the top, None for the start.
        received: Offset of the last entry that came in.
        asked: Id of the unanswered `generate` or `attach` on this connection, None when there is none.
            While it is set, frames of the stream are dropped and nothing is acked (docs/protocol.md §4).
        is_over: Nothing more will come, or is wanted.
        only_starts: It asks for a generation without watching it: over with the first answer.
        connection: Number of the connection that last answered for it; 0 before the first.
        owes_ack: The hub's idea of the limit is off by too much: an ack is due at once.
        repairs: How often it was attached again since the last entry.
        refusals: How often a hub could not resume it for now, since it last could.
    """

    def __init__(
        self,
        key: int,
        request: Generate | None = None,
        stream: str | None = None,
        cursor: Cursor | Literal["now"] | None = None,
        window: int | None = WINDOW,
        pace_ms: int = 0,
    ) -> None:
        self.key = key
        self.request = request
        self.stream = stream
        self.cursor: Cursor | Literal["now"] | None = cursor
        self.asked: int | None = None
        self.asked_at = 0.0
        self.is_over = False
        self.only_starts = request is not None and not request.attach
        self.connection = 0
        self.repairs = 0
        self.refusals = 0
        self.owes_ack = False
        self._window = window
        self._pace_ms = pace_ms
        self._asked_window: int | None = window
        self._acked = self._taken = cursor.offset if isinstance(cursor, Cursor) else 0
        self._told: int | None = window
        self.schedule = AckSchedule(window, self._taken)

    @property
    def received(self) -> int:
        return self.cursor.offset if isinstance(self.cursor, Cursor) else 0

    @property
    def is_following(self) -> bool:
        """Whether frames of this stream are to be taken."""
        return self.asked is None and not self.is_over and isinstance(self.cursor, Cursor)

    def ask(self, id: int, now: float) -> Generate | Attach:
        """The frame that starts or resumes this stream on the current connection."""
        self.asked, self.asked_at = id, now
        if self.stream is None:
            assert self.request is not None, "an attachment has a stream or a request for one"
            return msgspec.structs.replace(self.request, id=id, window=self._window)
        # What is unread still counts against the window: the limit stays at taken + window.
        unread = max(0, self.received - self._taken)
        self._asked_window = None if self._window is None else max(0, self._window - unread)
        return Attach(id, self.stream, self.cursor, self._asked_window, self._pace_ms)

    def placed(self, answer: Accepted | Attached, now: float) -> Placed:
        """Take the answer of an ask, or an unsolicited `attached`. Sets `owes_ack`."""
        unsolicited = self.asked is None
        self.asked = None
        self.refusals = 0
        self.stream = answer.stream
        resumed = isinstance(answer, Accepted) or answer.resumed
        if resumed and isinstance(self.cursor, Cursor) and answer.offset != self.cursor.offset:
            return Placed.ASTRAY
        restarted = not resumed and self.cursor is not None
        if not isinstance(self.cursor, Cursor) or restarted:
            self._taken = answer.offset
        self.cursor = Cursor(answer.offset, answer.mark)
        self.request = None  # answered: from here on it is resumed by its cursor
        if not unsolicited:
            self._settle_window(answer.window)
        self._acked, self._told = answer.offset, answer.window
        self._schedule_acks(now)
        return Placed.RESTARTED if restarted else Placed.RESUMED

    def _settle_window(self, window: int | None) -> None:
        """Take over what the hub made of the window asked for: it clamps."""
        if window is None or self._asked_window is None or self._window is None:
            self._window = window
        elif window < self._asked_window:
            self._window -= self._asked_window - window

    def _schedule_acks(self, now: float) -> None:
        """Compare the limit that the hub knows now with ours, taken + window, and have an ack correct it.

        It may be lower (something was taken between asking and the answer), or higher (an unsolicited
        `attached` acks what is still unread).
        """
        self.owes_ack = False
        if self._window is None or self._told is None:
            self.schedule = AckSchedule(None, self._taken)
            return
        known = self._acked + self._told - self._window
        self.schedule = AckSchedule(self._window, min(known, self._taken))
        if self._taken != known:
            self.owes_ack = self.schedule.received_through(self._taken, now) or known > self._taken

    def take(self, frame: Delta | EntryFrame) -> Cursor | None:
        """Move the cursor over a frame; None, and nothing changed, for a hole or an overlap."""
        first: int | UnsetType = frame.first if isinstance(frame, Delta) else UNSET
        if first is UNSET:
            first = frame.offset
        assert isinstance(self.cursor, Cursor), "entries come after an answer"
        if first != self.cursor.offset + 1 or frame.offset < first:
            return None
        self.cursor = Cursor(frame.offset, self.cursor.mark if frame.mark is None else frame.mark)
        self.repairs = 0
        return self.cursor

    def step_back(self) -> None:
        """Move the cursor before the last entry, so that it comes once more.

        A stream that was done where this viewer already stood would say nothing at all: no `done`, no end (§4).
        An entry rarely has another mark than the one before it; where it has, the hub says so and begins again.
        """
        assert isinstance(self.cursor, Cursor) and self.cursor.offset > 0, "there is an entry to step back over"
        self.cursor = Cursor(self.cursor.offset - 1, self.cursor.mark)
        self._taken = min(self._taken, self.cursor.offset)

    def restart(self) -> None:
        """Forget the cursor: read the log again from its start."""
        self.cursor, self.is_over = None, False
        self._taken = 0

    def consumed(self, offset: int, now: float) -> bool:
        """The application took everything up to `offset`; True when an ack is due at once."""
        self._taken = max(self._taken, offset)
        return self.schedule.received_through(offset, now)

    def ack(self) -> Ack:
        """The ack for what was taken. Never below what attaching acked, nor past what was received."""
        assert self._window is not None and self.stream is not None, "an ack is due only with a window, after an answer"
        taken = self.schedule.take()
        self._acked = max(self._acked, taken)
        window = max(0, self._window - (self._acked - taken))
        changed = window != self._told
        self._told = window
        return Ack(self.stream, self._acked, window if changed else UNSET)
