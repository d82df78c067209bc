"""The checker, with hand-made histories: one that is right, and for each rule one that breaks it and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from tests.chaos.checker import check_requests, check_stream
from tests.chaos.history import (
    Acked,
    Answered,
    Asked,
    Cancelled,
    Event,
    Kept,
    Live,
    Log,
    Lost,
    Opened,
    Piece,
    Seen,
    Told,
    Watch,
)
from tests.chaos.verdict import Rules, Verdict

STREAM = "g_0000000000000000"
CALM, LOSSY = Rules(), Rules(loses_writes=True)


def done(text: str, **fields: object) -> dict[str, object]:
    data = text.encode()
    return {
        "status": "completed", "stop_reason": "stop", "text_bytes": len(data),
        "text_sha256": hashlib.sha256(data).hexdigest(), **fields,
    }  # fmt: skip


def opening(at: float = 0.0) -> list[Event]:
    """A request is accepted and a worker begins; entries 1 and 2."""
    return [
        Opened(at, 0),
        Asked(at, "generate", 0),
        Answered(at, STREAM, True, 0, "m0", 1, 256, True),
        Seen(at, 1, "queued"),
        Seen(at, 2, "started", "m1", {"attempt": 1}),
    ]


def history() -> list[Event]:
    """A whole and rightful one: cut once, resumed, to the end."""
    return [
        *opening(),
        Live(0.1),
        Piece(0.2, 3, 4, "text", "one "),
        Acked(0.3, 4),
        Lost(0.4, 0, True),
        Opened(0.5, 1),
        Asked(0.5, "attach", 4, "m1"),
        Answered(0.6, STREAM, True, 4, "m1", 5, 256, True),
        Live(0.6),
        Piece(0.7, 5, 5, "text", "two "),
        Seen(0.8, 6, "done", "", done("one two ")),
    ]


def watch(events: list[Event] | None = None, viewer: str = "v1", **fields: object) -> Watch:
    made = Watch(viewer, "raw", "done", STREAM, "alice", "r1", events=history() if events is None else events)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def log() -> Log:
    entries = [
        Kept(1, "queued", {}),
        Kept(2, "started", {"attempt": 1}),
        Kept(3, "text", {"text": "one"}),
        Kept(4, "text", {"text": " "}),
        Kept(5, "text", {"text": "two "}),
        Kept(6, "done", done("one two ")),
    ]
    return Log(STREAM, "done", "1:m0 2:m1", entries)


def verdict_of(*watches: Watch, kept: Log | None = None, rules: Rules = CALM) -> Verdict:
    verdict = Verdict()
    check_stream(watches, kept, rules, verdict)
    return verdict


def without(event: int) -> list[Event]:
    events = history()
    del events[event]
    return events


def put(at: int, *events: Event) -> list[Event]:
    """The history with event `at` replaced by others."""
    made = history()
    made[at : at + 1] = events
    return made


def test_a_rightful_history_breaks_no_rule() -> None:
    verdict = verdict_of(watch(), watch(viewer="v2"), kept=log())
    assert verdict.is_clean, verdict.violations
    assert verdict.sums["entries"] == 12
    assert verdict.sums["resumes"] == 2


SIX = 14
#: Rule → a history that breaks it.
BROKEN: dict[str, Callable[[], Watch]] = {
    "no hole": lambda: watch(put(6, Piece(0.2, 4, 4, "text", "one "))),
    "no double": lambda: watch(put(13, Piece(0.7, 4, 5, "text", "two "))),
    "window": lambda: watch(put(2, Answered(0, STREAM, True, 0, "m0", 1, 1, True)), window=1),
    "after done": lambda: watch([*history(), Seen(0.9, 7, "notice", "", {})]),
    "one done": lambda: watch([*history(), Seen(0.9, 7, "done", "", done("one two "))]),
    "text": lambda: watch(put(13, Piece(0.7, 5, 5, "text", "TWO "))),
    "answer first": lambda: watch(
        put(10, Asked(0.5, "attach", 4, "m1"), Piece(0.5, 5, 5, "text", "two "))[:12], outcome="left"
    ),
    "live once": lambda: watch(put(12, Live(0.6), Live(0.6))),
    "resume": lambda: watch(put(11, Answered(0.6, STREAM, True, 4, "m0", 5, 256, True))),
    "marks in runs": lambda: watch(put(13, Piece(0.7, 5, 5, "text", "two ", "m0"))),
    "cursor honoured": lambda: watch(
        [*history()[:11], Answered(0.6, STREAM, False, 0, "m0", 1, 256, True), *opening()[3:]], outcome="left"
    ),
    "nothing gone": lambda: watch([*history()[:9], Told(0.5, "gone", True)], outcome="told"),
    "no error": lambda: watch([*history()[:9], Told(0.5, "request_conflict", True)], outcome="left"),
    "convergence": lambda: watch(history()[:9], outcome="unfinished"),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_history_that_breaks_a_rule_is_found(rule: str) -> None:
    assert set(verdict_of(BROKEN[rule]()).broken) == {rule}


def test_an_early_frame_that_was_dropped_is_found() -> None:
    events = put(10, Asked(0.5, "attach", 4, "m1"), Told(0.5, "early frame", True))
    assert set(verdict_of(watch(events)).broken) == {"answer first"}


def test_a_resume_elsewhere_than_at_the_cursor_is_found() -> None:
    verdict = verdict_of(watch(put(11, Answered(0.6, STREAM, True, 3, "m1", 5, 256, True)), is_whole=False))
    assert "resume" in verdict.broken


def test_a_watch_that_ended_without_done_is_found() -> None:
    assert set(verdict_of(watch(history()[:9])).broken) == {"one done"}


def test_a_hub_that_says_nothing_more_to_one_who_has_not_seen_the_end_is_found() -> None:
    assert set(verdict_of(watch(history()[:9], outcome="over")).broken) == {"one done"}


def test_a_request_that_is_refused_for_good_is_found() -> None:
    assert set(verdict_of(watch(history()[:9], outcome="rejected")).broken) == {"no error"}


def test_what_the_client_says_of_its_own_text_counts() -> None:
    assert set(verdict_of(watch(verified=False)).broken) == {"text"}


def test_a_client_whose_text_is_not_the_sum_of_its_events_is_found() -> None:
    right = hashlib.sha256(b"one two ").hexdigest()
    assert verdict_of(watch(kind="client", text_bytes=8, text_sha256=right)).is_clean
    assert set(verdict_of(watch(kind="client", text_bytes=8, text_sha256="?")).broken) == {"text"}


def test_a_viewer_that_joins_at_the_top_has_no_hole_below() -> None:
    events: list[Event] = [
        Opened(0, -1), Asked(0, "attach", -2), Lost(1, 0, False), Opened(2, -1),
        Answered(3, STREAM, True, 4, "m1", 0, None, True), Piece(3, 0, 5, "text", "two ", "m1"),
    ]  # fmt: skip
    end = Seen(3, 6, "done", "m1", done("one two "))
    joined = watch([*events, end], kind="client", is_whole=False)
    assert verdict_of(joined, kept=log()).is_clean
    raw = watch([Opened(0, 0), events[1], events[4], Piece(3, 5, 5, "text", "two "), end], is_whole=False)
    assert verdict_of(raw, kept=log()).is_clean


def test_an_answer_after_the_end_is_found() -> None:
    again: list[Event] = [Asked(0.9, "attach", 6, "m1"), Answered(0.9, STREAM, True, 6, "m1", 6, 256, True)]
    assert set(verdict_of(watch([*history(), *again])).broken) == {"after done"}


def test_the_window_moves_with_acks() -> None:
    asked = Answered(0, STREAM, True, 0, "m0", 1, 4, True)
    again = Answered(0.6, STREAM, True, 4, "m1", 5, 4, True)
    events = put(2, asked)
    events[11] = again
    assert verdict_of(watch(events, window=4)).is_clean
    events[11] = Answered(0.6, STREAM, True, 4, "m1", 5, 1, True)
    assert set(verdict_of(watch(events, window=1)).broken) == {"window"}
    events[SIX - 1 : SIX - 1] = [Acked(0.65, 4, 2)]
    assert verdict_of(watch(events, window=1)).is_clean
    events[SIX - 1] = Acked(0.65, 4, -2)
    assert verdict_of(watch(events, window=1)).is_clean


def test_a_loss_that_was_told_is_counted_where_redis_may_lose() -> None:
    gone = watch([*history()[:9], Told(0.5, "gone", True)], outcome="told")
    begun_anew = watch(
        [
            *history()[:11],
            Answered(0.6, STREAM, False, 0, "n0", 1, 256, True),
            Seen(0.7, 1, "queued"),
            Seen(0.7, 2, "started", "n1", {"attempt": 1}),
            Seen(0.8, 3, "done", "", done("")),
        ],
        viewer="v2",
    )
    verdict = verdict_of(gone, begun_anew, kept=Log(STREAM), rules=LOSSY)
    assert verdict.is_clean, verdict.violations
    assert (verdict.sums["gone"], verdict.sums["resumed: false"], verdict.sums["streams lost"]) == (1, 1, 1)


def test_a_reset_empties_the_screen() -> None:
    events = [
        *history()[:9],
        Opened(1, 1),
        Asked(1, "attach", 4, "m1"),
        Answered(1, STREAM, True, 4, "m1", 7, 256, True),
    ]
    events += [
        Seen(1, 5, "started", "m2", {"attempt": 2}),
        Seen(1, 6, "reset", "", {"reason": "worker_lost"}),
        Piece(1, 7, 7, "text", "anew"),
        Seen(1, 8, "done", "", done("anew")),
    ]
    verdict = verdict_of(watch(events))
    assert verdict.is_clean, verdict.violations
    assert verdict.sums["resets"] == 1


def test_two_viewers_of_one_place_must_see_one_text() -> None:
    other = put(6, Piece(0.2, 3, 4, "text", "1"))
    other[-1] = Seen(0.8, 6, "done", "", done("1two "))
    verdict = verdict_of(watch(), watch(other, viewer="v2"))
    assert set(verdict.broken) == {"one history", "one done"}


def test_a_viewer_must_see_what_the_log_holds() -> None:
    other = put(6, Piece(0.2, 3, 4, "text", "1"))
    verdict = verdict_of(watch(other[:8], outcome="left"), kept=log())
    assert set(verdict.broken) == {"one history"}


def test_two_ends_are_found() -> None:
    longer = [*history()[:14], Seen(0.8, 6, "usage"), Seen(0.9, 7, "done", "", done("one two "))]
    assert set(verdict_of(watch(), watch(longer, viewer="v2")).broken) == {"one done"}


def test_viewers_must_agree_on_how_it_ended() -> None:
    failed = put(14, Seen(0.8, 6, "done", "", done("one two ", status="failed")))
    assert set(verdict_of(watch(), watch(failed, viewer="v2")).broken) == {"one done"}


def cancelled(late_s: float, status: str) -> Watch:
    events = [*history()[:13], Cancelled(0.6, 0.6), Piece(0.6 + late_s, 5, 5, "text", "two ")]
    return watch([*events, Seen(40, 6, "done", "", done("one two ", status=status))])


def test_content_long_after_a_cancel_is_found() -> None:
    assert verdict_of(cancelled(1.0, "completed")).is_clean, "it had ended, or was about to"
    assert verdict_of(cancelled(20.0, "cancelled")).is_clean
    assert set(verdict_of(cancelled(20.0, "completed")).broken) == {"cancel"}


def kept_log(change: Callable[[Log], None]) -> Log:
    made = log()
    change(made)
    return made


def begin_second_run_with_text(kept: Log) -> None:
    kept.runs = "1:m0 2:m1 5:m2"


def forget_the_end(kept: Log) -> None:
    kept.entries.pop()
    kept.state = "running"


def end_twice(kept: Log) -> None:
    kept.entries.append(Kept(7, "done", done("one two ")))


def leave_a_hole(kept: Log) -> None:
    kept.entries[3] = Kept(3, "text", {"text": " "})


def change_the_text(kept: Log) -> None:
    kept.entries[4] = Kept(5, "text", {"text": "TWO "})


def let_an_older_attempt_write(kept: Log) -> None:
    kept.entries[2:5] = [
        Kept(3, "started", {"attempt": 3}), Kept(4, "text", {"text": "one two "}), Kept(5, "started", {"attempt": 2}),
    ]  # fmt: skip
    kept.runs = "1:m0 2:m1 3:m3 5:m2"


def use_a_mark_twice(kept: Log) -> None:
    kept.runs = "1:m0 2:m0"


LOGS = {
    "log dense": leave_a_hole,
    "marks in runs": begin_second_run_with_text,
    "terminated": forget_the_end,
    "one done": end_twice,
    "text": change_the_text,
    "one writer": let_an_older_attempt_write,
}


@pytest.mark.parametrize("rule", LOGS)
def test_a_log_that_breaks_a_rule_is_found(rule: str) -> None:
    assert set(verdict_of(kept=kept_log(LOGS[rule])).broken) == {rule}


def test_a_mark_that_stands_for_two_runs_is_found() -> None:
    assert set(verdict_of(kept=kept_log(use_a_mark_twice)).broken) == {"marks in runs"}


def test_a_log_whose_end_nobody_wrote_into_its_state_is_found() -> None:
    assert set(verdict_of(kept=kept_log(lambda kept: setattr(kept, "state", "running"))).broken) == {"terminated"}


def test_a_stream_that_is_not_there_any_more_is_found() -> None:
    assert set(verdict_of(watch(), kept=Log(STREAM)).broken) == {"nothing gone"}
    assert verdict_of(watch(), kept=Log(STREAM), rules=LOSSY).is_clean


def test_one_request_key_is_one_stream() -> None:
    twice, verdict = [("alice", "r1", "g_1"), ("alice", "r1", "g_2"), ("bob", "r1", "g_3")], Verdict()
    check_requests(twice[::2] + twice[::2], CALM, verdict)
    assert verdict.is_clean
    check_requests(twice, CALM, verdict)
    assert set(verdict.broken) == {"one stream a key"}
    verdict = Verdict()
    check_requests(twice, LOSSY, verdict)
    assert verdict.is_clean and verdict.sums["requests begun anew"] == 1
