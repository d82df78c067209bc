"""One followed stream: where it is, what it asks for, how far it lets the hub send (docs/protocol.md §4, §6)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from headrace.attachment import Attachment, Placed
from headrace.protocol.cursor import Cursor
from headrace.protocol.frames import Accepted, Attach, Attached, Delta, EntryFrame, Generate, Message

REQUEST = Generate(id=0, request="r1", messages=[Message(role="user", content="?")])


def answer(offset: int = 0, window: int | None = 8, resumed: bool = True, mark: str = "m1", **fields: Any) -> Attached:
    return Attached("g_1", resumed, offset, mark, 90, "running", window, **({"id": 1} | fields))


def following(window: int | None = 8, offset: int = 0) -> Attachment:
    attachment = Attachment(1, None, "g_1", Cursor(offset, "m1") if offset else None, window)
    attachment.ask(1, 0.0)
    attachment.placed(answer(offset, window), 0.0)
    return attachment


def test_a_request_is_asked_for_until_it_is_answered_and_its_stream_afterwards() -> None:
    attachment = Attachment(1, REQUEST, window=8)
    assert attachment.ask(7, 0.0) == msgspec.structs.replace(REQUEST, id=7, window=8)
    assert not attachment.is_following
    accepted = Accepted(7, "g_1", 0, "m1", 1, "queued", 8)
    assert attachment.placed(accepted, 0.0) is Placed.RESUMED
    assert attachment.is_following
    assert attachment.ask(8, 0.0) == Attach(8, "g_1", Cursor(0, "m1"), 8, 0)


def test_nothing_is_received_before_the_first_answer_and_now_is_no_place() -> None:
    attachment = Attachment(1, None, "g_1", "now")
    assert (attachment.received, attachment.is_following) == (0, False)
    frame = attachment.ask(1, 0.0)
    assert isinstance(frame, Attach) and frame.after == "now"


def test_entries_move_the_cursor_and_a_mark_holds_until_the_next() -> None:
    attachment = following()
    assert attachment.take(Delta("g_1", 1, text="a")) == Cursor(1, "m1")
    assert attachment.take(Delta("g_1", 3, first=2, text="bc", mark="m2")) == Cursor(3, "m2")
    assert attachment.take(EntryFrame("g_1", 4, "usage", {})) == Cursor(4, "m2")


@pytest.mark.parametrize(
    "frame",
    [
        Delta("g_1", 6, text="hole"),
        Delta("g_1", 4, text="again"),
        Delta("g_1", 6, first=4, text="overlap"),
        Delta("g_1", 4, first=5, text="backwards"),
        Delta("g_1", 0, text="before the first"),
        Delta("g_1", -1, text="negative"),
        Delta("g_1", 2**63, text="far"),
        EntryFrame("g_1", 6, "usage", {}),
    ],
)
def test_a_hole_and_an_overlap_change_nothing(frame: Delta | EntryFrame) -> None:
    attachment = following(offset=4)
    attachment.repairs = 2
    assert attachment.take(frame) is None
    assert (attachment.cursor, attachment.repairs) == (Cursor(4, "m1"), 2)


def test_an_entry_that_fits_forgives_the_repairs_before_it() -> None:
    attachment = following()
    attachment.repairs = 4
    attachment.take(Delta("g_1", 1, text="a"))
    assert attachment.repairs == 0


@pytest.mark.parametrize(
    ("cursor", "reply", "placed", "at"),
    [
        (Cursor(4, "m1"), answer(4), Placed.RESUMED, Cursor(4, "m1")),
        (Cursor(4, "m1"), answer(7), Placed.ASTRAY, Cursor(4, "m1")),
        (Cursor(4, "m1"), answer(0), Placed.ASTRAY, Cursor(4, "m1")),
        (Cursor(4, "m1"), answer(0, resumed=False, mark="n1"), Placed.RESTARTED, Cursor(0, "n1")),
        (Cursor(4, "m1"), answer(4, resumed=False, mark="n1"), Placed.RESTARTED, Cursor(4, "n1")),
        (None, answer(0), Placed.RESUMED, Cursor(0, "m1")),
        (None, answer(0, resumed=False), Placed.RESUMED, Cursor(0, "m1")),
        ("now", answer(90), Placed.RESUMED, Cursor(90, "m1")),
    ],
)
def test_an_answer_continues_restarts_or_leads_astray(
    cursor: Cursor | Literal["now"] | None, reply: Attached, placed: Placed, at: Cursor
) -> None:
    attachment = Attachment(1, None, "g_1", cursor)
    attachment.ask(1, 0.0)
    assert attachment.placed(reply, 0.0) is placed
    assert attachment.cursor == at


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
def test_what_is_unread_never_exceeds_the_window_whoever_clamps_it(
    window: int, received: int, taken: int, limit: int
) -> None:
    """Resumed at a hub with a limit of its own: its credit ends at taken + window, as before."""
    received = min(received, window)
    taken = min(taken, received)
    attachment = following(window)
    for offset in range(1, received + 1):
        attachment.take(Delta("g_1", offset, text="x"))
    for offset in range(1, taken + 1):
        attachment.consumed(offset, 0.0)
    frame = attachment.ask(2, 0.0)
    assert isinstance(frame, Attach) and frame.window is not UNSET and frame.window is not None
    granted = min(frame.window, limit)
    attachment.placed(answer(received, granted), 0.0)
    assert received + granted - taken <= window
    attachment.consumed(received, 99.0)
    ack = attachment.ack()
    assert ack.offset == received
    told = granted if ack.window is UNSET else ack.window
    assert told is not None and granted <= told <= window


def test_no_ack_is_below_what_attaching_acked_nor_past_what_was_received() -> None:
    attachment = following(window=8)
    for offset in range(1, 7):
        attachment.take(Delta("g_1", offset, text="x"))
    attachment.consumed(2, 0.0)
    attachment.ask(2, 0.0)
    attachment.placed(answer(6, 4), 0.0)
    attachment.consumed(3, 99.0)
    ack = attachment.ack()
    assert (ack.offset, ack.window) == (6, 5), "taken 3 + 8 = acked 6 + 5"


def test_an_unsolicited_answer_that_acks_the_unread_is_corrected_at_once() -> None:
    attachment = following(window=8)
    for offset in range(1, 7):
        attachment.take(Delta("g_1", offset, text="x"))
    attachment.consumed(1, 0.0)
    attachment.placed(answer(6, 8, id=UNSET), 0.0)
    assert attachment.owes_ack
    ack = attachment.ack()
    assert (ack.offset, ack.window) == (6, 3), "1 taken + 8 = 6 acked + 3"


@pytest.mark.parametrize(("asked", "given_"), [(None, None), (8, None), (None, 8)])
def test_without_a_window_on_either_side_nothing_is_due(asked: int | None, given_: int | None) -> None:
    attachment = Attachment(1, None, "g_1", None, asked)
    attachment.ask(1, 0.0)
    attachment.placed(answer(0, given_), 0.0)
    if given_ is None:
        assert not attachment.consumed(5, 0.0)
        assert attachment.schedule.due_at() is None
        frame = attachment.ask(2, 0.0)
        assert isinstance(frame, Attach) and frame.window is None
    else:
        assert attachment.consumed(5, 0.0), "a hub that wants acks gets them"


def test_stepping_back_brings_the_last_entry_once_more() -> None:
    attachment = following(offset=9)
    attachment.step_back()
    assert attachment.cursor == Cursor(8, "m1")
    frame = attachment.ask(2, 0.0)
    assert isinstance(frame, Attach) and (frame.after, frame.window) == (Cursor(8, "m1"), 8)


def test_restarting_reads_the_log_from_its_start() -> None:
    attachment = following(offset=9)
    attachment.is_over = True
    attachment.restart()
    frame = attachment.ask(2, 0.0)
    assert isinstance(frame, Attach) and (frame.after, frame.window) == (None, 8)
