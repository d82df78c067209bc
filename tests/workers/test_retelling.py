"""A second telling: silent as long as it repeats the first, whatever pieces it comes in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.providers import Event, Reasoning, Stop, Text, ToolCall, Usage
from workers.retelling import THOUGHT_CHARACTERS, Retelling

LETTERS = st.text("ab ", max_size=8)


def heard(shown: str, events: list[Event], cuts: list[int]) -> tuple[str, bool, list[Event]]:
    """What viewers have in the end, whether it was reset, and all that was told, read by read."""
    retelling, screen, was_reset = Retelling(shown), shown, False
    told: list[Event] = []
    bounds = [0, *sorted(cut % (len(events) + 1) for cut in cuts), len(events)]
    for start, end in zip(bounds, bounds[1:], strict=False):
        joined = list(retelling.join(events[start:end]))
        if retelling.has_diverged:
            screen, was_reset, joined = "", True, [*retelling.release(), *joined]
        told += joined
        screen += "".join(event.text for event in joined if isinstance(event, Text))
    return screen, was_reset, told


@given(LETTERS, st.lists(LETTERS), st.lists(st.integers(0, 50), max_size=4))
def test_the_screen_holds_one_telling_and_is_reset_only_for_another(
    shown: str, pieces: list[str], cuts: list[int]
) -> None:
    events: list[Event] = [Reasoning("hm"), *[Text(piece) for piece in pieces], Usage(1, 2), Stop("stop")]
    screen, was_reset, told = heard(shown, events, cuts)
    whole = "".join(pieces)
    assert screen == whole
    assert was_reset == (not whole.startswith(shown))
    assert [event for event in told if isinstance(event, Usage | Stop)] == [Usage(1, 2), Stop("stop")]
    if shown:
        assert any(isinstance(event, Reasoning) for event in told) == was_reset, "only a new answer thinks anew"


def test_a_tool_call_in_the_place_of_the_text_is_another_answer() -> None:
    call = ToolCall("c", "search")
    assert heard("abc", [Text("a"), call, Stop("tool")], []) == ("a", True, [Text("a"), call, Stop("tool")])


def test_thinking_that_is_held_back_has_a_bound() -> None:
    retelling = Retelling("abc")
    for _ in range(40):
        retelling.join([Reasoning("x" * (THOUGHT_CHARACTERS // 10))])
    retelling.join([Text("z")])
    assert sum(len(event.text) for event in retelling.release() if isinstance(event, Reasoning)) <= THOUGHT_CHARACTERS
