"""Log lines that are explained or not, and durations read from histories."""

from __future__ import annotations

import json

from tests.chaos.history import Answered, Asked, Event, Lost, Opened, Piece, Seen, Watch
from tests.chaos.logs import Findings
from tests.chaos.striker import Strike
from tests.chaos.timings import Timings, percentile

STREAM = "g_0000000000000000"


def line(event: str, level: str, **fields: str) -> str:
    return json.dumps({"event": event, "level": level, **fields})


def test_a_warning_that_faults_explain_is_no_finding() -> None:
    findings = Findings()
    findings.add("hub-0", line("redis out of reach", "warning", error="ConnectionError"))
    findings.add("hub-0", line("anything", "info"))
    assert findings.count == 0 and findings.explained == {"redis out of reach": 1}


def test_an_event_nobody_expected_is_a_finding_with_an_example() -> None:
    findings = Findings()
    findings.add("hub-0", line("hub broke", "critical"))
    assert findings.unexplained == {"hub broke": 1} and "hub-0" in findings.examples["hub broke"]


def test_a_traceback_is_never_explained() -> None:
    findings = Findings()
    findings.add("hub-0", line("redis out of reach", "warning", exception="Traceback …"))
    findings.add("worker-0", "Traceback (most recent call last):")
    assert findings.count == 2


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0] * 99 + [9.0], 0.99) == 1.0
    assert percentile([1.0] * 98 + [9.0, 9.0], 0.99) == 9.0


def watched(*after: Event) -> Watch:
    events: list[Event] = [
        Opened(0, 0),
        Asked(0, "generate", 0),
        Answered(0, STREAM, True, 0, "m0", 1, 256, True),
        Piece(9.9, 3, 3, "text", "one "),
        *after,
    ]
    return Watch("v1", "raw", "done", STREAM, "alice", events=events)


def timings(*strikes: Strike, workers: int = 2) -> Timings:
    return Timings(strikes, workers)


KILL = Strike(10.0, "worker kill", "worker-0", 12.0)


def test_a_takeover_lasts_from_the_kill_to_what_the_first_viewer_sees_next() -> None:
    measured = timings(KILL)
    for seen_at in (18.5, 18.0, 19.0):
        measured.add(watched(Seen(seen_at, 4, "started", "m2", {"attempt": 2})))
    assert measured.takeovers.calm == [8.0]


def test_a_takeover_without_any_worker_or_redis_is_counted_apart() -> None:
    began_anew = watched(Seen(18.0, 4, "started", "m2", {"attempt": 2}))
    for strikes, workers in (
        ((KILL,), 1),
        ((KILL, Strike(11.0, "redis restart", "redis", 13.0)), 2),
        ((KILL, Strike(11.0, "worker kill", "worker-1", 13.0)), 2),
    ):
        measured = timings(*strikes, workers=workers)
        measured.add(began_anew)
        assert (measured.takeovers.calm, measured.takeovers.all) == ([], [8.0])


def test_silence_without_a_kill_is_no_takeover() -> None:
    measured = timings(Strike(13.0, "worker kill", "worker-0", 14.0))
    measured.add(watched(Seen(18.0, 4, "started", "m2", {"attempt": 2})))
    assert not measured.takeovers.all


def test_a_viewer_of_a_killed_hub_is_elsewhere_once_it_is_answered() -> None:
    measured = timings(Strike(10.0, "hub kill", "hub-0", 12.0))
    back = (Opened(10.6, 1), Asked(10.6, "attach", 3, "m1"), Answered(10.8, STREAM, True, 3, "m1", 3, 256, True))
    measured.add(watched(Lost(10.1, 0, False), *back))
    assert [round(seconds, 1) for seconds in measured.moves.calm] == [0.8]
    assert [round(seconds, 1) for seconds in measured.resumes.calm] == [0.7]


def test_a_viewer_that_went_away_for_a_while_is_no_resume() -> None:
    measured = timings()
    back = (Opened(15.0, 1), Asked(15.0, "attach", 3, "m1"), Answered(15.1, STREAM, True, 3, "m1", 3, 256, True))
    measured.add(watched(Lost(10.1, -1, True), *back))
    assert not measured.resumes.all and not measured.moves.all
