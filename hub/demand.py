"""How far the viewers of one stream could be sent, as its owner is told (protocol §6). Pure."""

from __future__ import annotations


class Demand:
    """The greatest limit that any viewer reached: a high-water mark, because a maximum over all viewers for each
    ack was half of a hub's work. Withdrawn when nobody is left to take more.
    """

    __slots__ = ("limit", "spent_since", "told")

    def __init__(self) -> None:
        #: 0 when withdrawn.
        self.limit = 0
        #: What the owner was told last.
        self.told = 0
        #: When all viewers were first seen out of window; None while one is not.
        self.spent_since: float | None = None

    def rise(self, limit: int, step: int) -> bool:
        """A viewer reached `limit`. True when the owner must hear of it now, and not with a later `step`."""
        if limit <= self.limit:
            return False
        self.limit = limit
        return limit - self.told >= step or not self.told

    def withdraw(self) -> bool:
        """Nobody here can take more. True if the owner believes otherwise."""
        was_wanted, self.limit = bool(self.limit or self.told), 0
        return was_wanted
