"""Where a viewer is, and which history that place belongs to (protocol §1, §4)."""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated

import msgspec

#: Largest integer that JSON, JavaScript and MessagePack all carry exactly.
MAX_INT = 2**53 - 1

Offset = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
Mark = Annotated[str, msgspec.Meta(max_length=64)]


class Cursor(msgspec.Struct, frozen=True):
    """The offset of the last entry a viewer processed, and the mark of that entry."""

    offset: Offset
    mark: Mark = ""

    def __post_init__(self) -> None:
        if not 0 <= self.offset <= MAX_INT or len(self.mark) > 64:
            raise msgspec.ValidationError("a cursor is an offset below 2**53 and a mark of at most 64 characters")


class MarkRuns:
    """The marks of a stream, as contiguous runs of (first offset, mark).

    Equal offset and equal mark mean equal history up to there, so two run lists agree exactly as far as
    their marks do. An empty run (one that starts above the top) belongs to an attempt that wrote nothing.
    """

    __slots__ = ("_firsts", "_marks", "last", "last_first")

    def __init__(self, runs: list[tuple[int, str]] | None = None) -> None:
        self._firsts: list[int] = []
        self._marks: list[str] = []
        #: The mark of the newest run, and the offset of its first entry; empty and 0 when there is none.
        self.last = ""
        self.last_first = 0
        for first, mark in runs or []:
            self.add(first, mark)

    @classmethod
    def parse(cls, text: str) -> MarkRuns:
        """Read the form kept in a stream's meta: `1:mark 58:mark`."""
        runs = cls()
        for item in text.split():
            first, _, mark = item.partition(":")
            runs.add(int(first), mark)
        return runs

    def __str__(self) -> str:
        return " ".join(f"{first}:{mark}" for first, mark in self)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(zip(self._firsts, self._marks, strict=True))

    def add(self, first: int, mark: str) -> None:
        """Open a run at `first`; runs at or above it never held an entry and are replaced."""
        while self._firsts and self._firsts[-1] >= first:
            self._firsts.pop()
            self._marks.pop()
        if not self._marks or self._marks[-1] != mark:
            self._firsts.append(first)
            self._marks.append(mark)
        self.last, self.last_first = self._marks[-1], self._firsts[-1]

    def at(self, offset: int) -> str:
        """The mark of the entry at `offset`; at 0, before the first entry, the mark of the first run."""
        if not self._firsts:
            return ""
        index = bisect_right(self._firsts, max(offset, 1)) - 1
        return self._marks[max(index, 0)]

    def run_end(self, offset: int) -> int | None:
        """The last offset that shares the mark of `offset`, None while that run is the newest."""
        index = bisect_right(self._firsts, max(offset, 1))
        return self._firsts[index] - 1 if index < len(self._firsts) else None

    def fits(self, cursor: Cursor, top: int) -> bool:
        """Whether a log with these runs and this top holds the entry that `cursor` names."""
        if cursor.offset == 0:
            return True
        return cursor.offset <= top and self.at(cursor.offset) == cursor.mark
