"""A viewer of a stream: a cursor, a window and a pace (protocol §4, §6)."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.protocol.cursor import Cursor, MarkRuns
from hub.attachment import Attachment


def attachment(start: int = 0, size: int | None = 4, pace_s: float = 0.0) -> Attachment:
    nobody: Any = None
    return Attachment(nobody, nobody, "g_x", Cursor(start, "m1"), size, 4096, pace_s)


def test_attaching_sets_acked_and_sent_to_where_it_starts() -> None:
    viewer = attachment(start=57)
    assert (viewer.acked, viewer.sent, viewer.limit, viewer.is_live) == (57, 57, 61, False)


@pytest.mark.parametrize(("size", "top", "through"), [(4, 3, 3), (4, 4, 4), (4, 9, 4), (0, 9, 0), (None, 9, 9)])
def test_a_viewer_is_sent_through_the_top_or_the_end_of_its_window(size: int | None, top: int, through: int) -> None:
    viewer = attachment(size=size)
    assert viewer.through(top) == through
    assert isinstance(viewer.through(top), int)


@pytest.mark.parametrize("size", [4, 0, None])
def test_a_restart_goes_back_to_an_offset_with_the_same_window(size: int | None) -> None:
    viewer = attachment(start=57, size=size)
    viewer.sent = 60
    viewer.is_live = True
    viewer.restart(Cursor(0, "m0"))
    assert (viewer.sent, viewer.acked, viewer.is_live, viewer.size) == (0, 0, False, size)
    assert viewer.limit == (float("inf") if size is None else size)
    assert viewer.demand == (4096 if size is None else size)


def test_a_viewer_that_was_sent_nothing_yet_is_where_it_said_it_is() -> None:
    """Its hub's tail may not reach that far: the marks of the tail say nothing about it."""
    viewer = attachment(start=57)
    assert viewer.cursor(MarkRuns([(1, "m0"), (40, "another")])) == Cursor(57, "m1")
    viewer.sent = 58
    assert viewer.cursor(MarkRuns([(1, "m0"), (40, "m2")])) == Cursor(58, "m2")
    viewer.restart(Cursor(0, "m0"))
    assert viewer.cursor(MarkRuns([(1, "m9")])) == Cursor(0, "m0")


def test_an_ack_that_crossed_a_restart_is_no_bad_ack_and_no_credit_either() -> None:
    viewer = attachment(size=4)
    viewer.sent = 4
    viewer.restart(Cursor(0, "m0"))
    viewer.sent = 2
    assert viewer.ack(4) and (viewer.acked, viewer.limit) == (0, 4)
    assert viewer.ack(4, 8) and (viewer.acked, viewer.limit) == (0, 8), "its new window counts"
    assert not viewer.ack(5), "nobody was ever sent that"
    assert viewer.ack(2) and viewer.acked == 2
