"""An answer read again: silent while it is what viewers have, whatever pieces it comes in."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from workers.providers import Event, Reasoning, Speaker, Stop, Text, ToolCall, Usage
from workers.rereading import Rereading

PIECES = st.lists(st.tuples(st.booleans(), st.text("ab ", min_size=1, max_size=4)), max_size=8)
CUTS = st.lists(st.integers(0, 50), max_size=4)


def heard(rereading: Rereading, events: list[Event], cuts: list[int]) -> tuple[list[Event], int]:
    """What is told, and at how much of it the screen is reset; -1: never."""
    told: list[Event] = []
    reset_at = -1
    bounds = [0, *sorted(cut % (len(events) + 1) for cut in cuts), len(events)]
    for start, end in pairwise(bounds):
        joined = list(rereading.join(events[start:end]))
        if rereading.has_diverged:
            reset_at, joined = len(told), [*rereading.release(), *joined]
        told += joined
    return [*told, *rereading.end()], reset_at


def texts(events: list[Event], kind: type[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))  # type: ignore[attr-defined]


@given(PIECES, st.integers(0, 8), CUTS)
def test_what_follows_the_shown_part_of_an_answer_is_told_once(
    pieces: list[tuple[bool, str]], shown: int, cuts: list[int]
) -> None:
    answer: list[Event] = [Reasoning(text) if thinks else Text(text) for thinks, text in pieces]
    before, after = answer[:shown], answer[shown:]
    rereading = Rereading(texts(before, Text), texts(before, Reasoning))
    told, reset_at = heard(rereading, [Speaker("m"), *answer, Usage(1, 2), Stop("stop")], cuts)
    assert reset_at == -1
    assert (texts(told, Text), texts(told, Reasoning)) == (texts(after, Text), texts(after, Reasoning))
    assert told[0] == Speaker("m") and told[-2:] == [Usage(1, 2), Stop("stop")]


@given(PIECES, st.text("ab ", min_size=1, max_size=6), st.text("ab ", max_size=6), CUTS)
def test_what_is_not_what_viewers_have_is_told_as_a_whole_after_a_reset(
    pieces: list[tuple[bool, str]], text: str, thought: str, cuts: list[int]
) -> None:
    answer: list[Event] = [Reasoning(each) if thinks else Text(each) for thinks, each in pieces]
    rereading = Rereading(text, thought)
    told, reset_at = heard(rereading, [*answer, ToolCall("c", "look"), Usage(1, 2), Stop("stop")], cuts)
    same = texts(answer, Text).startswith(text) and texts(answer, Reasoning).startswith(thought)
    assert (reset_at == -1) == same
    if not same:
        after = told[reset_at:]
        assert (texts(after, Text), texts(after, Reasoning)) == (texts(answer, Text), texts(answer, Reasoning))
    assert [each for each in told if isinstance(each, Stop)][-1:] == [Stop("stop")]
    assert ToolCall("c", "look") in told


def test_nothing_is_given_to_the_model() -> None:
    assert Rereading("a", "b").given == ""
