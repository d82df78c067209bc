"""The client's rules, frame by frame and with a clock of our own (docs/protocol.md §3, §4, §6, §8)."""

from __future__ import annotations

from typing import Literal

import pytest

from headrace.actions import Answered, Delivered, Moved, Postponed, Refused, TokenExpired
from headrace.attachment import REPAIRS
from headrace.connection import ANSWER_S, WELCOME_S, batches
from headrace.protocol.cursor import Cursor
from headrace.protocol.frames import Ack, Cancel, Generate, Hello, ListStreams, Message
from tests.clients.core_driver import CoreDriver, accepted, attached, delta


@pytest.fixture
def driver() -> CoreDriver:
    driver = CoreDriver()
    driver.open()
    return driver


# Asking again


def test_a_request_that_was_not_answered_is_repeated_with_the_same_key() -> None:
    driver = CoreDriver()
    driver.ask()
    (first,) = driver.open()
    driver.core.closed()
    (second,) = driver.open()
    assert first["type"] == second["type"] == "generate"
    assert first["request"] == second["request"] == "r1"
    assert first["id"] != second["id"]


def test_an_answered_request_is_resumed_from_its_cursor(driver: CoreDriver) -> None:
    driver.follow()
    driver.receive(delta(1, "a"), delta(2, "b", mark="m2"))
    driver.core.closed()
    (frame,) = driver.open()
    assert frame["type"] == "attach"
    assert (frame["stream"], frame["after"]) == ("g_1", {"offset": 2, "mark": "m2"})


def test_a_connection_lost_again_before_anything_came_resumes_at_the_same_place(driver: CoreDriver) -> None:
    driver.follow()
    driver.receive(delta(1, "a", mark="m2"))
    for _ in range(3):
        driver.core.closed()
        (frame,) = driver.open()
        assert frame["after"] == {"offset": 1, "mark": "m2"}
    driver.receive(attached(frame["id"], offset=1, mark="m2"), delta(2, "b"))
    assert driver.delivered() == ["a", "b"]


def test_a_connection_lost_before_the_first_entry_resumes_at_the_start(driver: CoreDriver) -> None:
    driver.follow()
    driver.core.closed()
    (frame,) = driver.open()
    assert (frame["type"], frame["after"]) == ("attach", {"offset": 0, "mark": "m1"})


def test_every_resume_carries_the_options_of_the_first_attach(driver: CoreDriver) -> None:
    driver.core.attach("g_1", None, 7, 100, driver.now)
    for _ in range(2):
        (frame,) = driver.sent() or driver.open()
        assert (frame["window"], frame["pace_ms"]) == (7, 100)
        driver.receive(attached(frame["id"], window=7))
        driver.core.closed()


def test_an_answer_that_is_given_twice_is_obeyed_once(driver: CoreDriver) -> None:
    driver.follow()
    driver.receive(delta(1, "a"))
    driver.core.closed()
    (frame,) = driver.open()
    answer = attached(frame["id"], offset=1)
    driver.receive(answer, answer, delta(2, "b"), answer, delta(3, "c"))
    assert driver.delivered() == ["a", "b", "c"]
    assert "attach" not in [frame["type"] for frame in driver.sent()]


def test_an_answer_to_an_older_connection_is_ignored(driver: CoreDriver) -> None:
    driver.ask()
    (asked,) = driver.sent()
    driver.core.closed()
    driver.open()
    assert driver.receive(accepted(asked["id"])) == []


def test_a_cancel_is_repeated_until_it_is_answered_and_not_after(driver: CoreDriver) -> None:
    id = driver.core.request(Cancel, stream="g_1")
    cancel = {"type": "cancel", "id": id, "stream": "g_1"}
    assert driver.sent() == [cancel]
    driver.core.closed()
    assert driver.open() == [cancel]
    (action,) = driver.receive({"type": "ok", "id": id})
    assert isinstance(action, Answered) and action.id == id
    driver.core.closed()
    assert driver.open() == []


def test_a_cancel_that_is_refused_is_not_repeated(driver: CoreDriver) -> None:
    id = driver.core.request(Cancel, stream="g_1")
    driver.sent()
    (action,) = driver.receive({"type": "error", "id": id, "code": "not_found", "message": "", "retry": "no"})
    assert isinstance(action, Answered) and action.id == id
    driver.core.closed()
    assert driver.open() == []


def test_a_withdrawn_list_is_not_repeated(driver: CoreDriver) -> None:
    driver.core.withdraw(driver.core.request(ListStreams))
    driver.core.closed()
    assert driver.open() == []


# Frames between asking and the answer


def test_frames_between_an_attach_and_its_answer_are_dropped(driver: CoreDriver) -> None:
    driver.follow()
    driver.receive(delta(1, "a"), delta(3, "hole"))
    (again,) = driver.sent()
    assert again["after"] == {"offset": 1, "mark": "m1"}
    driver.receive(delta(2, "stale"), attached(None, resumed=False), {"type": "live", "stream": "g_1"})
    driver.receive({"type": "status", "stream": "g_1", "state": "stalled"})
    driver.receive({"type": "error", "stream": "g_1", "code": "gone", "message": "", "retry": "no"})
    driver.receive(attached(again["id"], offset=1), delta(2, "b"))
    assert driver.delivered() == ["a", "b"]


def test_nothing_is_acked_between_an_attach_and_its_answer(driver: CoreDriver) -> None:
    attachment = driver.follow(window=2)
    driver.receive(delta(1, "a"), delta(3, "hole"))
    driver.core.consumed(attachment, 1, driver.now)
    driver.now = 10.0
    assert [frame["type"] for frame in driver.sent()] == ["attach"]


@pytest.mark.parametrize("frame", [delta(3, "cd"), delta(1, "a"), delta(3, "bc", first=1), delta(1, "x", first=3)])
def test_a_hole_or_an_overlap_attaches_again_from_the_cursor(driver: CoreDriver, frame: dict[str, object]) -> None:
    driver.follow()
    driver.receive(delta(1, "a"))
    assert driver.receive(frame) == []
    (again,) = driver.sent()
    assert (again["type"], again["after"]) == ("attach", {"offset": 1, "mark": "m1"})


def test_an_answer_that_does_not_continue_at_the_cursor_is_asked_for_again(driver: CoreDriver) -> None:
    driver.follow()
    driver.receive(delta(1, "a"))
    driver.core.closed()
    (frame,) = driver.open()
    assert driver.receive(attached(frame["id"], offset=7)) == []
    assert driver.sent()[0]["after"] == {"offset": 1, "mark": "m1"}


def test_a_hub_that_never_fits_is_given_up_and_not_asked_for_ever(driver: CoreDriver) -> None:
    driver.follow()
    for _ in range(REPAIRS):
        driver.receive(delta(5, "hole"))
        driver.receive(attached(driver.sent()[0]["id"]))
    (action,) = driver.receive(delta(5, "hole"))
    assert isinstance(action, Refused) and action.code == "protocol_violation"
    assert driver.sent() == [{"type": "detach", "stream": "g_1"}]


def test_a_bad_ack_attaches_again_because_credit_would_be_missing(driver: CoreDriver) -> None:
    driver.follow()
    driver.receive(delta(1, "a"))
    driver.receive({"type": "error", "stream": "g_1", "code": "bad_ack", "message": "", "retry": "no"})
    assert driver.sent()[0]["after"] == {"offset": 1, "mark": "m1"}


def test_frames_of_streams_that_nobody_follows_are_ignored(driver: CoreDriver) -> None:
    driver.follow()
    strange = [delta(1, "x"), {"type": "live"}, {"type": "status", "state": "running"}, attached(None)]
    for frame in strange:
        assert driver.receive(frame | {"stream": "g_2"}) == []
    assert driver.receive({"type": "pong"}, {"type": "ok", "id": 99}, {"type": "ok", "id": "x"}) == []


# Where a viewer is


def test_a_mark_holds_until_another_one_comes(driver: CoreDriver) -> None:
    attachment = driver.follow()
    driver.receive(delta(1, "a"), delta(2, "b", mark="m2"), delta(4, "cd", first=3))
    assert attachment.cursor == Cursor(4, "m2")


def test_another_history_starts_over_at_the_offset_of_the_answer(driver: CoreDriver) -> None:
    attachment = driver.follow()
    driver.receive(delta(1, "a"))
    driver.core.closed()
    (frame,) = driver.open()
    (moved,) = driver.receive(attached(frame["id"], resumed=False, mark="n1"))
    assert isinstance(moved, Moved) and moved.restarted and moved.reconnected
    driver.receive(delta(1, "A"))
    assert attachment.cursor == Cursor(1, "n1")
    assert driver.delivered() == ["a", "|", "A"]


def test_an_unsolicited_attached_is_obeyed_like_an_answer(driver: CoreDriver) -> None:
    driver.follow()
    driver.receive(delta(1, "a"), attached(None, resumed=False, mark="n1"), delta(1, "A"), delta(2, "B"))
    assert driver.delivered() == ["a", "|", "A", "B"]
    assert driver.sent() == []


def test_attaching_at_now_takes_the_offset_of_the_answer(driver: CoreDriver) -> None:
    attachment = driver.core.attach("g_1", "now", 256, 0, driver.now)
    (frame,) = driver.sent()
    assert frame["after"] == "now"
    (moved,) = driver.receive(attached(frame["id"], offset=90, mark="m9"))
    assert isinstance(moved, Moved) and not moved.restarted
    driver.receive(delta(91, "z"))
    assert attachment.cursor == Cursor(91, "m9")


def test_after_done_the_attachment_is_over(driver: CoreDriver) -> None:
    driver.follow()
    done = {"type": "entry", "stream": "g_1", "offset": 1, "kind": "done", "data": {}}
    assert isinstance(driver.receive(done)[0], Delivered)
    assert driver.receive(delta(2, "late")) == []
    driver.core.closed()
    assert driver.open() == []


def test_a_stream_read_again_starts_without_a_cursor(driver: CoreDriver) -> None:
    attachment = driver.follow()
    driver.receive({"type": "entry", "stream": "g_1", "offset": 1, "kind": "done", "data": {}})
    driver.core.replay(attachment, driver.now)
    (frame,) = driver.sent()
    assert frame["type"] == "attach" and "after" not in frame
    driver.receive(attached(frame["id"]), delta(1, "a"))
    assert driver.delivered() == ["done", "a"]


@pytest.mark.parametrize("after", ["now", Cursor(9, "m1")])
def test_whoever_comes_when_all_is_said_is_told_the_end(driver: CoreDriver, after: Cursor | Literal["now"]) -> None:
    """A hub says nothing on a finished stream to a viewer that is at its top: the last entry is asked for again."""
    attachment = driver.core.attach("g_1", after, 256, 0, driver.now)
    (frame,) = driver.sent()
    driver.receive(attached(frame["id"], offset=9, top=9, state="done"))
    (again,) = driver.sent()
    assert (again["type"], again["after"]) == ("attach", {"offset": 8, "mark": "m1"})
    driver.receive(attached(again["id"], offset=8, top=9, state="done"))
    done = {"type": "entry", "stream": "g_1", "offset": 9, "kind": "done", "data": {}}
    (action,) = driver.receive(done)
    assert isinstance(action, Delivered) and attachment.is_over
    assert driver.sent() == []


def test_only_starting_a_generation_follows_nothing(driver: CoreDriver) -> None:
    driver.ask(attach=False)
    (frame,) = driver.sent()
    assert frame["attach"] is False
    assert isinstance(driver.receive(accepted(frame["id"]))[0], Moved)
    assert driver.receive(delta(1, "x")) == []
    driver.core.closed()
    assert driver.open() == []


def test_a_second_follower_of_a_stream_supersedes_the_first(driver: CoreDriver) -> None:
    first = driver.follow()
    second = driver.core.attach("g_1", None, 256, 0, driver.now)
    (refused,) = driver.receive()
    assert isinstance(refused, Refused) and (refused.key, refused.code) == (first.key, "superseded")
    driver.receive(attached(driver.sent()[0]["id"]))
    (delivered,) = driver.receive(delta(1, "a"))
    assert isinstance(delivered, Delivered) and delivered.key == second.key


# Leaving


def test_a_detach_before_the_answer_also_ends_what_the_answer_begins(driver: CoreDriver) -> None:
    attachment = driver.ask()
    (asked,) = driver.sent()
    driver.core.detach(attachment)
    assert driver.sent() == []
    assert driver.receive(accepted(asked["id"])) == []
    assert driver.sent() == [{"type": "detach", "stream": "g_1"}]


def test_a_detach_that_changes_on_abandon_is_repeated_until_answered(driver: CoreDriver) -> None:
    attachment = driver.follow()
    id = driver.core.detach(attachment, "continue")
    detach = {"type": "detach", "stream": "g_1", "id": id, "on_abandon": "continue"}
    assert driver.sent() == [detach]
    driver.core.closed()
    assert driver.open() == [detach]


def test_a_detach_of_what_is_not_followed_any_more_says_nothing(driver: CoreDriver) -> None:
    attachment = driver.follow()
    driver.receive({"type": "entry", "stream": "g_1", "offset": 1, "kind": "done", "data": {}})
    assert driver.core.detach(attachment) is None
    assert driver.sent() == []


def test_an_abandoned_answer_ends_nothing_that_is_followed_anew(driver: CoreDriver) -> None:
    first = driver.core.attach("g_1", None, 256, 0, driver.now)
    (asked,) = driver.sent()
    driver.core.detach(first)
    driver.core.attach("g_1", None, 256, 0, driver.now)
    driver.sent()
    driver.receive(attached(asked["id"]))
    assert driver.sent() == [], "a detach here would end the new one"


def test_while_no_hub_is_there_nothing_is_said_and_nothing_is_due() -> None:
    driver = CoreDriver()
    attachment = driver.ask()
    driver.core.request(Cancel, stream="g_2")
    driver.core.refresh("fresh")
    assert driver.sent() == []
    assert driver.core.next_at(0.0) is None
    driver.core.detach(attachment)
    assert [frame["type"] for frame in driver.open()] == ["cancel"], "no refresh, and no request that nobody wants"


# Acks


def test_half_the_window_is_acked_at_once(driver: CoreDriver) -> None:
    attachment = driver.follow(window=8)
    driver.receive(*(delta(offset, "x") for offset in range(1, 5)))
    driver.core.consumed(attachment, 3, driver.now)
    assert driver.sent() == []
    driver.core.consumed(attachment, 4, driver.now)
    assert driver.core.next_at(driver.now) == 0.0
    assert driver.sent() == [{"type": "ack", "stream": "g_1", "offset": 4}]
    assert driver.sent() == []


def test_a_burst_is_acked_a_quarter_second_after_its_last_entry(driver: CoreDriver) -> None:
    attachment = driver.follow()
    driver.receive(delta(1, "x"), delta(2, "y"))
    driver.core.consumed(attachment, 1, 0.0)
    driver.core.consumed(attachment, 2, 0.1)
    assert driver.core.next_at(0.0) == pytest.approx(0.35)
    driver.now = 0.34
    assert driver.sent() == []
    driver.now = 0.35
    assert driver.sent() == [{"type": "ack", "stream": "g_1", "offset": 2}]


def test_a_flowing_stream_is_acked_two_seconds_after_the_first_entry(driver: CoreDriver) -> None:
    attachment = driver.follow()
    for offset in range(1, 21):
        driver.now = 0.1 * offset
        driver.receive(delta(offset, "x"))
        driver.core.consumed(attachment, offset, driver.now)
        assert driver.sent() == []
    driver.now = 2.1
    assert driver.sent() == [{"type": "ack", "stream": "g_1", "offset": 20}]


def test_one_due_ack_takes_along_those_of_all_streams(driver: CoreDriver) -> None:
    first = driver.follow()
    second = driver.ask()
    driver.receive(accepted(driver.sent()[0]["id"], stream="g_2"))
    driver.receive(delta(1, "x"), delta(1, "x") | {"stream": "g_2"})
    driver.core.consumed(first, 1, 0.0)
    driver.core.consumed(second, 1, 0.2)
    driver.now = 0.25
    assert [(frame["type"], frame["stream"]) for frame in driver.sent()] == [("ack", "g_1"), ("ack", "g_2")]
    assert driver.core.next_at(0.0) == pytest.approx(30.0)


def test_only_what_was_taken_is_acked(driver: CoreDriver) -> None:
    attachment = driver.follow(window=4)
    driver.receive(*(delta(offset, "x") for offset in range(1, 5)))
    driver.now = 60.0
    assert driver.sent() == []
    driver.core.consumed(attachment, 2, driver.now)
    assert driver.sent() == [{"type": "ack", "stream": "g_1", "offset": 2}]


def test_without_a_window_nothing_is_acked(driver: CoreDriver) -> None:
    attachment = driver.follow(window=None)
    driver.receive(*(delta(offset, "x") for offset in range(1, 500)))
    driver.core.consumed(attachment, 499, driver.now)
    driver.now = 60.0
    assert driver.sent() == []


def test_the_hubs_smaller_window_decides_when_to_ack(driver: CoreDriver) -> None:
    attachment = driver.ask(window=256)
    driver.receive(accepted(driver.sent()[0]["id"], window=4))
    driver.receive(delta(1, "x"), delta(2, "y"))
    driver.core.consumed(attachment, 2, driver.now)
    assert driver.sent() == [{"type": "ack", "stream": "g_1", "offset": 2}]
    driver.core.closed()
    assert driver.open()[0]["window"] == 4


def test_what_is_unread_counts_against_the_window_of_a_resume(driver: CoreDriver) -> None:
    attachment = driver.follow(window=8)
    driver.receive(*(delta(offset, "x") for offset in range(1, 7)))
    driver.core.consumed(attachment, 1, driver.now)
    driver.core.closed()
    (frame,) = driver.open()
    assert (frame["after"]["offset"], frame["window"]) == (6, 3)  # 1 taken + 8 = 6 received + 3
    driver.receive(attached(frame["id"], offset=6, window=3))
    driver.core.consumed(attachment, 5, driver.now)
    assert driver.sent() == [{"type": "ack", "stream": "g_1", "offset": 6, "window": 7}]
    driver.receive(delta(7, "x"), delta(8, "x"), delta(9, "x"))
    driver.core.consumed(attachment, 9, driver.now)
    assert driver.sent() == [{"type": "ack", "stream": "g_1", "offset": 9, "window": 8}]


# Errors


def test_a_rejected_request_is_refused_with_the_hubs_advice(driver: CoreDriver) -> None:
    driver.ask()
    error = {"type": "error", "code": "rate_limited", "message": "slow down", "retry": "after", "after_ms": 6000}
    (action,) = driver.receive(error | {"id": driver.sent()[0]["id"]})
    assert isinstance(action, Refused)
    assert (action.code, action.retry, action.after_ms) == ("rate_limited", "after", 6000)
    driver.core.closed()
    assert driver.open() == []


def test_a_resume_that_is_refused_for_now_is_repeated_later(driver: CoreDriver) -> None:
    driver.follow()
    driver.core.closed()
    (frame,) = driver.open()
    error = {"type": "error", "id": frame["id"], "code": "overloaded", "message": "", "retry": "after"}
    assert driver.receive(error | {"after_ms": 1000}, delta(1, "stale")) == []
    assert driver.core.next_at(0.0) == pytest.approx(1.25)
    assert driver.sent() == []
    driver.now = 1.25
    assert driver.sent()[0]["type"] == "attach"


@pytest.mark.parametrize("code", ["not_found", "gone", "forbidden"])
def test_a_stream_that_cannot_be_resumed_is_refused(driver: CoreDriver, code: str) -> None:
    driver.follow()
    (action,) = driver.receive({"type": "error", "stream": "g_1", "code": code, "message": "", "retry": "no"})
    assert isinstance(action, Refused) and action.code == code
    assert driver.receive(delta(1, "x")) == []


def test_an_expired_token_is_renewed_and_what_it_refused_stays_open(driver: CoreDriver) -> None:
    expired = {"type": "error", "code": "token_expired", "message": "", "retry": "reauth"}
    (pushed,) = driver.receive(expired)
    assert isinstance(pushed, TokenExpired) and not pushed.reconnect
    driver.core.refresh("fresh")
    (refresh,) = driver.sent()
    assert (refresh["type"], refresh["token"]) == ("refresh", "fresh")
    driver.ask()
    (answer,) = driver.receive(expired | {"id": driver.sent()[0]["id"]})
    assert isinstance(answer, TokenExpired) and answer.reconnect
    driver.core.closed()
    assert driver.open()[0]["type"] == "generate"


def test_a_status_of_the_connection_concerns_every_stream_and_one_of_a_stream_that_stream(driver: CoreDriver) -> None:
    attachment = driver.follow()
    all_, one = driver.receive({"type": "status", "state": "degraded"}, {"type": "live", "stream": "g_1"})
    assert isinstance(all_, Delivered) and all_.key is None
    assert isinstance(one, Delivered) and one.key == attachment.key


def test_an_error_of_a_stream_that_ends_nothing_is_passed_over(driver: CoreDriver) -> None:
    driver.follow()
    other = {"type": "error", "stream": "g_1", "code": "overloaded", "message": "", "retry": "after"}
    assert driver.receive(other, other | {"stream": "g_2"}) == []
    assert driver.receive({"type": "error", "code": "internal", "message": "", "retry": "backoff"}) == []
    assert [type(action) for action in driver.receive(delta(1, "a"))] == [Delivered]


def test_an_answer_that_no_generation_waits_for_is_passed_over(driver: CoreDriver) -> None:
    driver.ask()
    (frame,) = driver.core.frames_to_send(driver.now)
    assert isinstance(frame, Generate)
    driver.core.closed()
    driver.core.unsendable(frame, "too long")
    assert driver.receive() == [], "asked on a connection that is gone: the next one asks again"


def test_a_drain_and_an_error_of_the_connection_postpone_the_next_one(driver: CoreDriver) -> None:
    error = {"type": "error", "code": "overloaded", "message": "", "retry": "after", "after_ms": 500}
    assert driver.receive({"type": "drain", "after_ms": 3000}, error) == [Postponed(3.0), Postponed(0.5)]


def test_a_request_too_long_for_the_hub_is_refused_here(driver: CoreDriver) -> None:
    driver.ask()
    (frame,) = driver.core.frames_to_send(driver.now)
    assert isinstance(frame, Generate)
    driver.core.unsendable(frame, "too long")
    (action,) = driver.receive()
    assert isinstance(action, Refused) and action.code == "too_large"


# Deadlines


def test_a_hub_that_does_not_say_welcome_is_given_up() -> None:
    driver = CoreDriver()
    driver.core.opened(None, 0.0)
    assert driver.core.overdue(heard_at=9.0, now=WELCOME_S - 0.1) is None
    assert driver.core.overdue(heard_at=9.0, now=WELCOME_S) == "the hub did not say welcome"


def test_silence_of_heartbeat_and_ten_seconds_means_dead_and_any_byte_is_life(driver: CoreDriver) -> None:
    assert driver.core.overdue(heard_at=0.0, now=29.9) is None
    assert driver.core.overdue(heard_at=0.0, now=30.0) == "nothing was heard from the hub"
    assert driver.core.overdue(heard_at=5.0, now=34.9) is None


def test_a_request_without_an_answer_costs_the_connection(driver: CoreDriver) -> None:
    driver.now = 5.0
    driver.ask()
    driver.sent()
    assert driver.core.overdue(heard_at=30.0, now=5.0 + ANSWER_S) == "a request was not answered"


# Messages


def test_frames_travel_together_except_those_that_may_be_long() -> None:
    hello, ack = Hello(), Ack("g_1", 1)
    generate = Generate(id=1, request="r", messages=[Message(role="user", content="x")])
    frames = [hello, generate, *[ack] * 70, generate, ack]
    assert [len(batch) for batch in batches(frames)] == [1, 1, 64, 6, 1, 1]
    assert [frame for batch in batches(frames) for frame in batch] == frames
    assert batches([]) == []
