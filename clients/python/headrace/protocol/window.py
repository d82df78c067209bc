"""Flow control: how far a viewer may be sent, and when it acks (protocol §6). All values are absolute offsets."""

from __future__ import annotations

#: An SDK acks this long after the last entry of a burst …
ACK_IDLE_S = 0.25
#: … and at the latest this long after the first entry that is not acked yet.
ACK_LATEST_S = 2.0


class SendWindow:
    """How far past a viewer's last ack its hub may send.

    `size` None means that the viewer does not ack: what was written counts as acked, and `ahead` bounds
    what a hub asks of the worker on its behalf. A size of 0 pauses.
    """

    __slots__ = ("acked", "ahead", "limit", "sent", "size")

    def __init__(self, size: int | None, start: int, ahead: int) -> None:
        self.size = size
        self.acked = start
        self.sent = start
        self.ahead = ahead
        #: No entry above this offset may be sent.
        self.limit: float = float("inf") if size is None else start + size

    @property
    def demand(self) -> int:
        """The greatest offset that this viewer could be sent without a further ack."""
        return self.sent + self.ahead if self.size is None else self.acked + self.size

    @property
    def is_open(self) -> bool:
        return self.sent < self.limit

    def ack(self, offset: int, size: int | None = -1) -> bool:
        """Take an ack and, unless -1, a new size. False, and nothing changed, if it is past the last entry sent."""
        if offset > self.sent:
            return False
        self.acked = max(self.acked, offset)
        if size != -1:
            self.size = size
        self.limit = float("inf") if self.size is None else self.acked + self.size
        return True


class AckSchedule:
    """When a client acks one stream. Time is an argument, in seconds on any one clock."""

    __slots__ = ("_first_at", "_last_at", "acked", "received", "size")

    def __init__(self, size: int | None, start: int) -> None:
        self.size = size
        self.acked = start
        self.received = start
        self._first_at: float | None = None
        self._last_at = 0.0

    def received_through(self, offset: int, now: float) -> bool:
        """Note entries up to `offset`; True when the ack is due at once because half the window is used."""
        self.received = max(self.received, offset)
        self._last_at = now
        if self._first_at is None:
            self._first_at = now
        return self.size is not None and self.received - self.acked >= max(1, self.size // 2)

    def due_at(self) -> float | None:
        """When the next ack is due; None when there is nothing to ack, or this viewer never acks."""
        if self._first_at is None or self.size is None:
            return None
        return min(self._last_at + ACK_IDLE_S, self._first_at + ACK_LATEST_S)

    def take(self) -> int:
        """The offset to ack now."""
        self.acked = self.received
        self._first_at = None
        return self.acked
