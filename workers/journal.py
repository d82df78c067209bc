"""One attempt's entries on their way into the log: offsets, the batch in flight, and all of them for repair.

Pure: no I/O. The log is told in batches, one outstanding: until it is answered the same batch is told again.
(mark, offset) → bytes never changes: what arrives meanwhile gets later offsets.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from headrace.protocol.entries import CONTENT_KINDS, Entry, TextDigest
from workers.batching import ENTRY_WEIGHT

#: A batch of text holds no more: with its names it fits one relay packet (64 KiB).
BATCH_BYTES = 56 * 1024


class Batch(msgspec.Struct, gc=False):
    """Frozen entries from offset `first` on, to be appended in one script call."""

    first: int
    entries: list[Entry]
    shown: str
    """`c` if content begins here, `r` if a reset voids what was shown, the later one counts; else empty: see
    scripts/append.lua.
    """
    ends: bool
    """The last entry is `done`."""


class Journal:
    """Bound: LOG_BYTES, which its owner keeps."""

    __slots__ = ("_flight", "_origin", "_shows", "_turns", "digest", "done_at", "entries", "logged", "size", "top")

    def __init__(self, first: int, size: int, digest: TextDigest) -> None:
        """The first entry gets the offset `first`; the log holds `size` bytes before it, `digest` is their fold."""
        self._origin = first
        #: Every entry with an offset.
        self.entries: list[Entry] = []
        #: The offset of the last of them …
        self.top = first - 1
        #: … and of the last that is in the log, and therefore relayed.
        self.logged = first - 1
        #: Of `done`; 0 before it has one: it may be in the log already, though no answer said so.
        self.done_at = 0
        #: Bytes of the whole log.
        self.size = size
        self.digest = digest
        self._flight: Batch | None = None
        self._shows = False
        self._turns: list[tuple[int, str]] = []  # where content begins and where it is reset: what `Batch.shown` says

    @property
    def has_batch(self) -> bool:
        """Whether `again` returns a batch."""
        return self._flight is not None or self.logged < self.top

    def again(self) -> Batch | None:
        """The batch that is not answered, or the next of what has an offset and is not in the log."""
        if self._flight is not None:
            return self._flight
        first = self.logged + 1
        entries: list[Entry] = []
        size = 0
        for entry in self.entries[first - self._origin : self.top - self._origin + 1]:
            size += len(entry[1]) + ENTRY_WEIGHT
            if entries and size > BATCH_BYTES:
                break
            entries.append(entry)
        return self._fly(first, entries) if entries else None

    def freeze(self, entries: list[Entry], done: Callable[[], bytes] | None) -> Batch | None:
        """Give these entries their offsets, behind them `done` if that follows. Nothing is in flight or missing."""
        first, top, digest = self.top + 1, self.top, self.digest
        for kind, data in entries:
            top += 1
            digest.add(kind, data)
            self.size += len(data)
            if kind in CONTENT_KINDS:
                if not self._shows:
                    self._shows = True
                    self._turns.append((top, "c"))
            elif kind == "reset":
                self._shows = False
                self._turns.append((top, "r"))
        if done is not None:
            top += 1
            self.done_at = top
            entries.append(("done", done()))
        self.entries += entries
        self.top = top
        return self._fly(first, entries) if entries else None

    def landed(self) -> Batch:
        """The batch in flight is answered, whatever the answer says."""
        assert self._flight is not None
        batch, self._flight = self._flight, None
        return batch

    def fall_back(self, top: int) -> bool:
        """The log holds entries up to `top` and no more. False: more of them are missing than there are here."""
        if top + 1 < self._origin:
            return False
        self.logged = top
        return True

    def _fly(self, first: int, entries: list[Entry]) -> Batch:
        last = first + len(entries) - 1
        shown = ""
        for at, turn in self._turns:
            if first <= at <= last:
                shown = turn  # the last one is how it stands after this batch
        self._flight = Batch(first, entries, shown, last == self.done_at)
        return self._flight
