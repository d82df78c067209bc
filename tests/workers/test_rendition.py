"""What a stream tells of another's log: the same fold, nothing twice, and only what may be told."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol import entries as kinds
from headrace.protocol.entries import Entry, encode_data
from workers.generation import Ending, Speaker
from workers.providers import Citation, Event, Reasoning, Text
from workers.rendition import FAILOVER, Rendition, Step, Survey
from workers.takeover import Kept

OPENING: list[Entry] = [
    ("queued", encode_data(kinds.Queued("fast"))),
    ("started", encode_data(kinds.Started(1))),
]
LIVE: Entry = ("source", encode_data(kinds.Source("openai", "m", "live")))
RULES: Entry = ("source", encode_data(kinds.Source("fallback", "rules", "fallback")))
RESET: Entry = ("reset", encode_data(kinds.Reset("worker_lost")))
TOOL: Entry = ("tool_call", encode_data(kinds.ToolCall("t1", "search")))
USAGE: Entry = ("usage", encode_data(kinds.Usage(1, 2)))
CACHED = Speaker("openai", "m", "cached")


def text(piece: str) -> Entry:
    return "text", piece.encode()


def done(status: kinds.Status = "completed", stop_reason: str = "stop") -> Entry:
    return "done", encode_data(kinds.Done(status, stop_reason, 0, ""))


def notice(code: str) -> Entry:
    return "notice", encode_data(kinds.Notice(code))


def surveyed(*entries: Entry) -> Survey:
    survey = Survey()
    for kind, data in [*OPENING, *entries]:
        survey.add(kind, data)
    return survey


def told(entries: Sequence[Entry], before: str = "", thought: bool = False) -> tuple[list[Step], Rendition]:
    """What is told of a log to viewers who have `before`."""
    rendition = Rendition(Kept.of(before, [("reasoning", b"hm")] if thought else []))
    steps: list[Step] = []
    for kind, data in entries:
        steps += rendition.take(kind, data)
        if rendition.is_useless:
            break
    return steps, rendition


def fold(steps: Sequence[Step], before: str = "") -> str:
    for step in steps:
        if isinstance(step, kinds.Reset):
            before = ""
        elif isinstance(step, Text):
            before += step.text
    return before


# -- looking a log over


def test_a_whole_answer_of_a_model_is_told_from_its_first_entry() -> None:
    survey = surveyed(LIVE, text("blue"), USAGE, done())
    assert (survey.is_useful, survey.start, survey.speaker, survey.count) == (True, 1, CACHED, 6)


def test_what_is_being_written_is_told() -> None:
    survey = surveyed()
    assert (survey.is_useful, survey.start, survey.speaker) == (True, 1, None)


def test_what_viewers_of_the_other_stream_were_told_to_forget_is_not_told() -> None:
    survey = surveyed(LIVE, text("gree"), RESET, text("blue"), done())
    assert (survey.start, survey.speaker) == (6, CACHED)


@pytest.mark.parametrize(
    "end",
    [("failed", "error"), ("cancelled", "cancelled"), ("truncated", "length"), ("completed", "refusal"),
     ("completed", "tool_calls")],
)  # fmt: skip
def test_no_other_end_is_used_again(end: tuple[kinds.Status, str]) -> None:
    assert not surveyed(LIVE, text("blue"), done(*end)).is_useful


@pytest.mark.parametrize("entry", [RULES, TOOL])
def test_neither_rules_nor_tools_are_told(entry: Entry) -> None:
    assert not surveyed(entry, text("blue"), done()).is_useful


# -- telling it


def test_an_answer_is_told_as_it_was() -> None:
    citation: Entry = ("citation", msgspec.msgpack.encode({"url": "u"}))
    steps, rendition = told([*OPENING, LIVE, ("reasoning", b"hm"), text("bl"), citation, text("ue"), USAGE, done()])
    assert steps == [
        CACHED, Reasoning("hm"), Text("bl"), Citation({"url": "u"}), Text("ue"), Ending("completed", "stop"),
    ]  # fmt: skip
    assert not rendition.is_useless


def test_of_notices_only_those_about_the_request_are_told() -> None:
    entries = [notice("parameter_dropped"), notice("failover"), notice("worker_lost"), text("blue")]
    steps, _ = told(entries)
    assert steps == [kinds.Notice("parameter_dropped"), Text("blue")]
    steps, _ = told([notice("parameter_dropped")], before="bl")
    assert steps == [], "they have it already"


def test_what_the_leader_voids_is_void() -> None:
    steps, _ = told([text("gree"), RESET, text("blue")])
    assert steps == [Text("gree"), kinds.Reset("worker_lost"), Text("blue")]
    steps, _ = told([RESET, text("blue")])
    assert steps == [Text("blue")], "nothing was told that could be void"


@pytest.mark.parametrize("entry", [RULES, TOOL, done("failed", "error"), done("cancelled", "abandoned"),
                                   done("truncated", "max_run")])  # fmt: skip
def test_a_log_that_cannot_be_told_further_says_so(entry: Entry) -> None:
    steps, rendition = told([text("bl"), entry, text("ue")])
    assert (steps, rendition.is_useless) == ([Text("bl")], True)


@pytest.mark.parametrize(
    "end", [("truncated", "length"), ("truncated", "context"), ("truncated", "too_long"), ("completed", "refusal")]
)
def test_an_end_that_anybody_would_have_met_is_shared_meanwhile(end: tuple[kinds.Status, str]) -> None:
    steps, rendition = told([text("bl"), done(*end)])
    assert (steps, rendition.is_useless) == ([Text("bl"), Ending(*end)], False)


# -- to viewers who have a beginning


def test_a_beginning_that_is_repeated_is_not_told_twice() -> None:
    steps, _ = told([LIVE, ("reasoning", b"hm"), text("The s"), text("ky is"), text(" blue"), done()], before="The sky")
    assert steps == [CACHED, Text(" is"), Text(" blue"), Ending("completed", "stop")]
    steps, _ = told([text("blue"), text("!"), done()], before="blue")
    assert steps == [Text("!"), Ending("completed", "stop")]


def test_another_answer_replaces_the_beginning() -> None:
    steps, _ = told([("reasoning", b"hm"), text("The grass"), text(" is green"), done()], before="The sky")
    reset = kinds.Reset(FAILOVER)
    assert steps == [reset, Reasoning("hm"), Text("The grass"), Text(" is green"), Ending("completed", "stop")]


def test_a_shorter_answer_replaces_the_beginning() -> None:
    steps, _ = told([text("The"), done()], before="The sky")
    assert steps == [kinds.Reset(FAILOVER), Text("The"), Ending("completed", "stop")]


def test_a_reset_while_a_beginning_is_repeated_begins_to_compare_anew() -> None:
    steps, _ = told([text("The"), RESET, text("The sky is"), done()], before="The sky")
    assert steps == [Text(" is"), Ending("completed", "stop")]


def test_half_a_thought_is_void_before_anything_is_told() -> None:
    reset = kinds.Reset(FAILOVER)
    steps, _ = told([LIVE, ("reasoning", b"hmm"), text("blue")], thought=True)
    assert steps == [CACHED, reset, Reasoning("hmm"), Text("blue")]
    steps, _ = told([RESET, done()], thought=True)
    assert steps == [reset, Ending("completed", "stop")]


pieces = st.lists(st.one_of(st.text("ab", min_size=1, max_size=3).map(text), st.just(RESET)), max_size=8)


@given(pieces, st.text("ab", max_size=4), st.booleans())
def test_in_the_end_viewers_have_the_answer_and_nothing_else(log: list[Entry], before: str, thought: bool) -> None:
    whole = ""
    for kind, data in log:
        whole = "" if kind == "reset" else whole + data.decode()
    steps, rendition = told([LIVE, *log, done()], before, thought)
    assert fold(steps, before) == whole
    assert steps[-1] == Ending("completed", "stop")
    assert not rendition.is_useless


@given(pieces, pieces, st.integers(0, 8))
def test_whoever_follows_a_second_log_in_the_middle_of_the_first_has_the_second_in_the_end(
    first: list[Entry], second: list[Entry], cut: int
) -> None:
    steps, _ = told(first[:cut])
    shown = fold(steps)
    whole = ""
    for kind, data in second:
        whole = "" if kind == "reset" else whole + data.decode()
    steps, _ = told([*second, done()], before=shown)
    assert fold(steps, shown) == whole


def test_every_event_that_is_told_is_one_that_a_generation_takes() -> None:
    steps, _ = told([text("blue"), ("reasoning", b"hm")])
    assert all(isinstance(step, Event) for step in steps)
