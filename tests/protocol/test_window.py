"""Flow control: never past acked + window (protocol §6), and when a client acks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.window import ACK_IDLE_S, ACK_LATEST_S, AckSchedule, SendWindow

sizes = st.none() | st.integers(0, 20)
steps = st.lists(
    st.tuples(st.just("send"), st.integers(1, 10), st.none())
    | st.tuples(st.just("ack"), st.integers(0, 60), st.just(-1) | sizes),
    max_size=40,
)


@given(sizes, st.integers(0, 10), steps)
def test_nothing_is_ever_sent_past_acked_plus_window(size: int | None, start: int, steps: list) -> None:
    window = SendWindow(size, start, ahead=100)
    acked = start
    for verb, number, new_size in steps:
        if verb == "send":
            # A sender takes what the limit allows and nothing when the window is closed.
            if window.is_open:
                window.sent = int(min(window.sent + number, window.limit))
        else:
            before = (window.acked, window.size, window.limit)
            if window.ack(number, new_size):
                assert number <= window.sent
                acked = max(acked, number)
                size = size if new_size == -1 else new_size
            else:
                assert number > window.sent
                assert (window.acked, window.size, window.limit) == before
        assert (window.acked, window.size) == (acked, size)
        if size is None:
            assert window.is_open
            assert window.demand == window.sent + 100
        else:
            assert window.demand == window.limit == acked + size
            assert window.is_open is (window.sent < acked + size)


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_same_ack_twice_changes_nothing_and_an_older_one_takes_nothing_back(new: int, old: int) -> None:
    window = SendWindow(10, 0, ahead=0)
    window.sent = 30
    for offset in (new, new, min(old, new)):
        assert window.ack(offset)
        assert (window.acked, window.limit) == (new, new + 10)


def test_a_window_of_0_pauses_and_null_does_not() -> None:
    paused, unbounded = SendWindow(0, 5, ahead=7), SendWindow(None, 5, ahead=7)
    assert not paused.is_open
    assert paused.demand == 5
    assert unbounded.is_open
    assert unbounded.demand == 12


def test_an_ack_may_pause_resume_and_turn_acks_off() -> None:
    window = SendWindow(4, 0, ahead=0)
    window.sent = 4
    assert window.ack(4, 0) and not window.is_open
    assert window.ack(4, 2) and window.limit == 6
    assert window.ack(4, None) and window.is_open and window.size is None


def test_an_ack_is_due_at_half_the_window() -> None:
    schedule = AckSchedule(8, start=10)
    assert not schedule.received_through(13, now=0.0)
    assert schedule.received_through(14, now=0.0)
    assert schedule.take() == 14
    assert schedule.due_at() is None
    assert not schedule.received_through(17, now=1.0)


def test_an_ack_is_due_soon_after_the_last_entry_of_a_burst() -> None:
    schedule = AckSchedule(256, start=0)
    schedule.received_through(1, now=10.0)
    schedule.received_through(2, now=10.1)
    assert schedule.due_at() == 10.1 + ACK_IDLE_S


def test_an_ack_is_due_at_the_latest_a_while_after_the_first_entry() -> None:
    schedule = AckSchedule(256, start=0)
    for tenth in range(30):
        schedule.received_through(tenth + 1, now=tenth / 10)
    assert schedule.due_at() == ACK_LATEST_S


def test_nothing_is_due_without_entries_or_for_a_viewer_that_never_acks() -> None:
    assert AckSchedule(256, start=0).due_at() is None
    silent = AckSchedule(None, start=0)
    assert not silent.received_through(1000, now=0.0)
    assert silent.due_at() is None


@given(st.integers(0, 3), st.integers(1, 5))
def test_a_tiny_or_paused_window_still_gets_its_ack(size: int, received: int) -> None:
    schedule = AckSchedule(size, start=0)
    assert schedule.received_through(received, now=0.0) is (received >= max(1, size // 2))


def test_entries_that_come_again_move_nothing_back() -> None:
    schedule = AckSchedule(256, start=0)
    schedule.received_through(9, now=0.0)
    schedule.received_through(4, now=0.1)
    assert schedule.take() == 9
