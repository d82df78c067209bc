"""Merging what arrives live with what a hub already has of a stream: pure, and the place where nothing gets lost.

Equal offset and equal mark mean equal history. A part may be new, known, ahead of us (a hole: read the log), or
of another history (Redis lost writes: begin again from the facts in meta).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from headrace.protocol.cursor import Cursor, MarkRuns
from headrace.protocol.entries import Entry


class Outcome(Enum):
    KNOWN = "known"
    HOLE = "hole"
    OTHER_HISTORY = "other history"


@dataclass(frozen=True, slots=True)
class Fresh:
    """Entries that follow directly on the top."""

    entries: Sequence[Entry]


def merge(top: int, runs: MarkRuns, mark: str, first: int, entries: Sequence[Entry]) -> Fresh | Outcome:
    """Judge one part against the tail it is for. A part without entries says "relayed up to first - 1"."""
    last = first + len(entries) - 1
    if first > top + 1:
        return Outcome.HOLE
    if not entries:
        return Outcome.KNOWN
    if first <= top and (runs.at(first) != mark or runs.at(min(last, top)) != mark):
        return Outcome.OTHER_HISTORY
    if last <= top:
        return Outcome.KNOWN
    if first == top + 1 and mark != runs.last and (top > 1 or entries[0][0] != "started"):
        # Other attempts may have passed us by, or ended ours earlier: look at the facts. Behind `queued` alone
        # nothing can have: so the start of an answer, the common case, costs no look.
        return Outcome.HOLE
    return Fresh(entries[top + 1 - first :])


def same_history(top: int, runs: MarkRuns, log_top: int, log_runs: MarkRuns) -> bool:
    """Whether a log holds everything that a tail with this top and these runs has."""
    return log_runs.fits(Cursor(top, runs.at(top)), log_top)


def resume_at(cursor: Cursor | None, top: int, runs: MarkRuns) -> tuple[bool, int]:
    """(resumed, offset) of an attach with `cursor`; None is from the start (protocol §4)."""
    if cursor is None:
        return True, 0
    if runs.fits(cursor, top):
        return True, cursor.offset
    return False, 0
