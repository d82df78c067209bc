"""Merging live parts into a tail: each entry once, in order, or told what is wrong; never a splice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocol.cursor import Cursor, MarkRuns
from headrace.protocol.entries import Entry
from hub.recovery import Fresh, Outcome, merge, resume_at, same_history


def text(what: object) -> Entry:
    return ("text", str(what).encode())


@dataclass
class History:
    """A log: its entries and their marks, as runs."""

    entries: list[Entry] = field(default_factory=list)
    runs: MarkRuns = field(default_factory=MarkRuns)

    def attempt(self, mark: str, entries: list[Entry]) -> None:
        self.runs.add(len(self.entries) + 1, mark)
        self.entries += entries

    def part(self, first: int, last: int) -> tuple[str, int, list[Entry]]:
        """A part has one mark: it ends where the run ends."""
        end = self.runs.run_end(first) or last
        return self.runs.at(first), first, self.entries[first - 1 : min(last, end)]


def opened_at(history: History, top: int) -> History:
    """A tail as `attach` opens it: the facts of the log as they were when it had `top` entries."""
    return History(history.entries[:top], MarkRuns([run for run in history.runs if run[0] <= top]))


@st.composite
def histories(draw: Any) -> History:
    """A creation, then attempts: each opens with `started`, and the last may be done."""
    history = History()
    history.attempt("m0", [("queued", b"")])
    for number in range(draw(st.integers(0, 3))):
        written = draw(st.integers(0, 6))
        history.attempt(f"m{number + 1}", [("started", b""), *(text((number, index)) for index in range(written))])
    return history


@st.composite
def parts_of(draw: Any, history: History) -> list[tuple[str, int, list[Entry]]]:
    """Any split of a history, with repetitions, in any order."""
    top = len(history.entries)
    parts = []
    for _ in range(draw(st.integers(0, 12))):
        first = draw(st.integers(1, top))
        parts.append(history.part(first, draw(st.integers(first, top))))
    return parts


@given(st.data())
@settings(deadline=None)
def test_any_split_duplication_and_order_yields_each_entry_once_in_order_or_a_hole(data: Any) -> None:
    history = data.draw(histories())
    tail = opened_at(history, data.draw(st.integers(1, len(history.entries))))
    for mark, first, entries in data.draw(parts_of(history)):
        outcome = merge(len(tail.entries), tail.runs, mark, first, entries)
        if isinstance(outcome, Fresh):
            tail.attempt(mark, list(outcome.entries))
        elif outcome is Outcome.KNOWN:
            assert first + len(entries) - 1 <= len(tail.entries)
        else:
            assert outcome is Outcome.HOLE, "parts of one history never contradict it"
            is_new_attempt = first == len(tail.entries) + 1 and mark != tail.runs.last
            assert first > len(tail.entries) + 1 or is_new_attempt
        assert tail.entries == history.entries[: len(tail.entries)]
        assert [tail.runs.at(n) for n in range(1, len(tail.entries) + 1)] == [
            history.runs.at(n) for n in range(1, len(tail.entries) + 1)
        ]


@given(st.data())
@settings(deadline=None)
def test_parts_in_order_leave_no_hole_but_a_new_attempt_is_looked_up(data: Any) -> None:
    history = data.draw(histories())
    tail = opened_at(history, data.draw(st.integers(1, len(history.entries))))
    first = len(tail.entries) + 1
    while first <= len(history.entries):
        mark, start, entries = history.part(first, data.draw(st.integers(first, len(history.entries))))
        overlap = data.draw(st.integers(0, min(2, start - 1)))
        while overlap and history.runs.at(start - overlap) != mark:
            overlap -= 1  # parts do not cross marks
        entries = [*history.entries[start - 1 - overlap : start - 1], *entries]
        outcome = merge(len(tail.entries), tail.runs, mark, start - overlap, entries)
        if start > 2 and mark != tail.runs.last:
            assert outcome is Outcome.HOLE
            tail = opened_at(history, start)
        else:
            assert isinstance(outcome, Fresh)
            tail.attempt(mark, list(outcome.entries))
        first = len(tail.entries) + 1
    assert tail.entries == history.entries


@given(st.data())
@settings(deadline=None)
def test_two_histories_are_never_spliced(data: Any) -> None:
    """Redis lost the end of a log, and another attempt wrote there."""
    kept = data.draw(histories())
    fork = data.draw(st.integers(1, len(kept.entries)))
    other = opened_at(kept, fork)
    other.attempt("other", [("started", b""), *(text(("other", n)) for n in range(data.draw(st.integers(0, 6))))])
    tail = opened_at(kept, data.draw(st.integers(1, len(kept.entries))))
    for history in data.draw(st.lists(st.sampled_from([kept, other]), max_size=12)):
        first = data.draw(st.integers(1, len(history.entries)))
        mark, first, entries = history.part(first, data.draw(st.integers(first, len(history.entries))))
        outcome = merge(len(tail.entries), tail.runs, mark, first, entries)
        if isinstance(outcome, Fresh):
            tail.attempt(mark, list(outcome.entries))
        held = len(tail.entries)
        assert tail.entries in (kept.entries[:held], other.entries[:held])


@pytest.mark.parametrize(
    ("mark", "first", "entries", "outcome"),
    [
        ("p8", 6, [text("f")], Fresh([text("f")])),
        ("p8", 5, [text("e"), text("f")], Fresh([text("f")])),
        ("p8", 4, [text("d")], Outcome.KNOWN),
        ("p8", 4, [text("d"), text("e")], Outcome.KNOWN),
        ("p8", 6, [], Outcome.KNOWN),
        ("p8", 3, [], Outcome.KNOWN),
        ("p8", 7, [], Outcome.HOLE),
        ("p8", 7, [text("g")], Outcome.HOLE),
        ("Zq", 7, [text("g")], Outcome.HOLE),
        ("Zq", 5, [text("E")], Outcome.OTHER_HISTORY),
        ("Zq", 5, [text("E"), text("F")], Outcome.OTHER_HISTORY),
        ("k3", 1, [("queued", b""), text("b")], Outcome.OTHER_HISTORY),
        ("Zq", 6, [("started", b"")], Outcome.HOLE),
        ("Zq", 6, [("done", b"")], Outcome.HOLE),
        ("Zq", 6, [text("in the middle of an attempt")], Outcome.HOLE),
    ],
)
def test_a_part_is_judged_against_what_is_held(
    mark: str, first: int, entries: list[Entry], outcome: Fresh | Outcome
) -> None:
    assert merge(5, MarkRuns([(1, "k3"), (2, "p8")]), mark, first, entries) == outcome


def test_the_start_of_an_answer_is_taken_without_a_look() -> None:
    started = ("started", b"")
    assert merge(1, MarkRuns([(1, "k3")]), "p8", 2, [started, text("a")]) == Fresh([started, text("a")])
    assert merge(1, MarkRuns([(1, "k3")]), "p8", 2, [("done", b"")]) is Outcome.HOLE


@pytest.mark.parametrize(
    ("top", "log_top", "log_runs", "same"),
    [
        (5, 5, [(1, "k3"), (2, "p8")], True),
        (5, 9, [(1, "k3"), (2, "p8"), (6, "Zq")], True),
        (5, 4, [(1, "k3"), (2, "p8")], False),
        (5, 9, [(1, "k3"), (2, "p8"), (5, "Zq")], False),
        (0, 0, [], True),
        (0, 7, [(1, "other")], True),
    ],
)
def test_a_log_holds_what_a_tail_has_or_it_is_another(
    top: int, log_top: int, log_runs: list[tuple[int, str]], same: bool
) -> None:
    runs = MarkRuns([(1, "k3"), (2, "p8")]) if top else MarkRuns()
    assert same_history(top, runs, log_top, MarkRuns(log_runs)) is same


def test_without_a_cursor_a_viewer_starts_at_the_beginning() -> None:
    assert resume_at(None, 5, MarkRuns([(1, "k3")])) == (True, 0)


def test_a_cursor_that_fits_is_resumed_and_any_other_begins_again() -> None:
    runs = MarkRuns([(1, "k3"), (4, "p8")])
    assert resume_at(Cursor(4, "p8"), 5, runs) == (True, 4)
    assert resume_at(Cursor(4, "k3"), 5, runs) == (False, 0)
    assert resume_at(Cursor(6, "p8"), 5, runs) == (False, 0)
