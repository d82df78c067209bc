"""Marks as runs against the naive model: one mark written beside every entry (protocol §1, §4)."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.cursor import MAX_INT, Cursor, MarkRuns

#: A history: attempts one after the other, each with its mark and how many entries it wrote.
histories = st.lists(st.tuples(st.sampled_from(["k3", "p8", "Zq", "x_-"]), st.integers(0, 4)), min_size=1, max_size=8)


def written(history: list[tuple[str, int]]) -> tuple[MarkRuns, list[str]]:
    """The runs that these attempts leave, and the mark of every entry."""
    runs, marks = MarkRuns(), []
    for mark, count in history:
        runs.add(len(marks) + 1, mark)
        marks += [mark] * count
    return runs, marks


@given(histories)
def test_each_entry_has_the_mark_it_was_written_under(history: list[tuple[str, int]]) -> None:
    runs, marks = written(history)
    assert [runs.at(offset) for offset in range(1, len(marks) + 1)] == marks
    assert runs.last == history[-1][0]


@given(histories)
def test_a_run_ends_where_the_next_mark_begins(history: list[tuple[str, int]]) -> None:
    runs, marks = written(history)
    for offset in range(1, len(marks) + 1):
        end = runs.run_end(offset)
        if end is not None:
            assert offset <= end
        assert set(marks[offset - 1 : end]) == {marks[offset - 1]}
        if end is not None and end < len(marks):
            assert marks[end] != marks[offset - 1]


@given(histories)
def test_the_text_form_reads_back_the_same(history: list[tuple[str, int]]) -> None:
    runs, _ = written(history)
    assert list(MarkRuns.parse(str(runs))) == list(runs)
    assert list(MarkRuns(list(runs))) == list(runs)


@given(histories, st.integers(0, 40), st.sampled_from(["k3", "p8", "Zq", "x_-", ""]))
def test_a_cursor_fits_where_the_log_holds_that_entry(history: list[tuple[str, int]], offset: int, mark: str) -> None:
    runs, marks = written(history)
    expected = offset == 0 or (offset <= len(marks) and marks[offset - 1] == mark)
    assert runs.fits(Cursor(offset, mark), len(marks)) is expected


def test_before_the_first_entry_the_first_mark_counts() -> None:
    assert MarkRuns([(1, "k3"), (58, "p8")]).at(0) == "k3"


def test_a_run_list_that_begins_late_answers_with_its_first_mark() -> None:
    assert MarkRuns([(5, "k3")]).at(2) == "k3"


def test_without_runs_there_is_no_mark() -> None:
    runs = MarkRuns()
    assert (runs.at(1), runs.last, str(runs), runs.run_end(1)) == ("", "", "", None)
    assert not runs.fits(Cursor(1, "k3"), 0)


def test_an_attempt_that_wrote_nothing_is_replaced() -> None:
    runs = MarkRuns([(1, "k3"), (58, "p8"), (58, "Zq")])
    assert list(runs) == [(1, "k3"), (58, "Zq")]


@pytest.mark.parametrize(("offset", "mark"), [(-1, "a"), (MAX_INT + 1, "a"), (1.0, "a"), (True, "a"), (1, "a" * 65)])
def test_a_cursor_that_no_client_can_have_is_not_decoded(offset: object, mark: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"offset": offset, "mark": mark}, Cursor)


@pytest.mark.parametrize(("offset", "mark"), [(-1, "a"), (MAX_INT + 1, "a"), (1, "a" * 65)])
def test_nor_constructed(offset: int, mark: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        Cursor(offset, mark)
