"""Where kept text and its continuation meet: what is on the screen is not shown again, and nothing else is lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workers.providers import Continues, Event, Reasoning, Speaker, Stop, Text
from workers.seam import OVERLAP_LEAST, OVERLAP_MOST, Seam, overlap

SKY = "The sky is blue because air scatters short waves best."


def joined(kept: str, continues: Continues, pieces: Sequence[str]) -> str:
    """What is added to the screen."""
    seam = Seam(kept, continues)
    events = [event for piece in pieces for event in seam.join([Text(piece)])]
    return said([*events, *seam.end()])


def said(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def test_a_model_that_repeats_the_end_is_shown_once() -> None:
    assert joined(SKY, "turn", ["air scatters short", " waves best. At dusk", " it is red."]) == " At dusk it is red."


def test_a_model_that_goes_on_is_shown_at_once() -> None:
    seam = Seam(SKY, "turn")
    assert seam.join([Text(" At"), Text(" dusk")]) == [Text(" At"), Text(" dusk")]


def test_only_what_may_be_a_repetition_is_held_back() -> None:
    seam = Seam(SKY, "turn")
    assert seam.join([Text("air scatters")]) == []
    assert seam.join([Text(" light")]) == [Text("air scatters light")]
    assert seam.join([Text(" air scatters short waves best.")]) == [Text(" air scatters short waves best.")]


def test_a_repetition_that_the_answer_ends_in_is_no_news() -> None:
    assert joined(SKY, "turn", ["short waves best."]) == ""
    assert joined(SKY, "turn", ["because air scatters"]) == "because air scatters"  # not the end: new text


def test_other_events_pass_in_order_and_decide_what_was_held() -> None:
    seam = Seam(SKY, "turn")
    assert seam.join([Speaker("m"), Reasoning("hm"), Text("air "), Stop("stop")]) == [
        Speaker("m"), Reasoning("hm"), Text("air "), Stop("stop"),
    ]  # fmt: skip


@pytest.mark.parametrize("kept", ["so blue", "-" * 40, "ha " * 20 + "ha", "| --- " * 6, "}\n        " * 5 + "}"])
def test_short_and_patterned_repetitions_stay(kept: str) -> None:
    """Nobody can tell them from more of the same, and a word twice is better than one lost."""
    assert joined(kept, "turn", [kept]) == kept


def test_the_longest_repetition_counts() -> None:
    kept = "one two three four five; one two three four five!"
    assert joined(kept, "turn", [kept, " six"]) == " six"


@pytest.mark.parametrize("continues", ["prefix", "turn"])
@pytest.mark.parametrize(
    ("kept", "text", "new"),
    [
        ("blue \n\n", " \n\nAnd", "And"),
        ("blue \n\n", " \nAnd", "And"),
        ("blue\n", "\n    indented", "    indented"),
        ("blue\n", "And", "And"),
        ("blue", "\nAnd", "\nAnd"),
        ("blue\n\n", "\n", ""),
    ],
)
def test_white_space_at_the_end_is_not_given_and_not_shown_twice(
    kept: str, text: str, new: str, continues: Continues
) -> None:
    assert Seam(kept, continues).given == "blue"
    assert joined(kept, continues, list(text)) == new


def test_a_repetition_and_the_white_space_after_it_are_both_known() -> None:
    assert joined(SKY + "\n\n", "turn", ["short waves best.\n", "\nAt dusk"]) == "At dusk"


def test_a_model_that_was_given_the_beginning_may_repeat_itself() -> None:
    assert joined(SKY, "prefix", [SKY]) == SKY


def test_nothing_is_touched_without_kept_text() -> None:
    seam = Seam("", "turn")
    assert (seam.given, seam.join([Text("a")]), seam.end()) == ("", [Text("a")], [])


WORDS = st.text("ab \n", max_size=40) | st.text(max_size=300)


@settings(deadline=None)
@given(kept=WORDS, repeated=st.integers(0, 400), new=WORDS, cuts=st.lists(st.integers(0, 700)), by=st.booleans())
@example(kept=SKY, repeated=20, new=" x", cuts=[], by=True)
@example(kept=SKY + " ", repeated=21, new="x", cuts=[1, 19, 20, 21], by=True)
def test_only_what_the_screen_ends_with_is_ever_removed(
    kept: str, repeated: int, new: str, cuts: list[int], by: bool
) -> None:
    continues: Continues = "turn" if by else "prefix"
    text = kept[len(kept) - min(repeated, len(kept)) :] + new
    borders = sorted({0, len(text), *[cut for cut in cuts if cut <= len(text)]})
    pieces = [text[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    shown = joined(kept, continues, pieces)
    assert shown == joined(kept, continues, [text]), "what is removed depends on how the text was cut"
    assert text.endswith(shown)
    removed = text[: len(text) - len(shown)]
    given = kept.rstrip()
    space = kept[len(given) :]
    passage = removed.rstrip() if removed.strip() else ""
    assert given.endswith(passage) and (not passage or OVERLAP_LEAST <= len(passage) <= OVERLAP_MOST)
    assert space.startswith(removed[len(passage) :])
    assert not passage or continues == "turn"


LETTERS = st.text("ab", max_size=300)
UNITS = st.text("ab", min_size=1, max_size=20)
REPEATS = st.builds(lambda unit, times: (unit * times)[:300], UNITS, st.integers(1, 99))


@settings(deadline=None)
@given(LETTERS | REPEATS, st.integers(0, 300), st.text("ab", max_size=20))
def test_the_overlap_is_the_longest_unless_that_is_a_pattern(tail: str, repeated: int, new: str) -> None:
    """Against a definition that looks at every length."""
    text = tail[len(tail) - min(repeated, len(tail)) :] + new
    lengths = [n for n in range(OVERLAP_LEAST, OVERLAP_MOST + 1) if n <= len(tail) and text.startswith(tail[-n:])]
    longest = max(lengths, default=0)
    periods = [
        period
        for period in range(1, longest // 2 + 1)
        if all(text[at] == text[at + period] for at in range(longest - period))
    ]
    assert overlap(tail, text) == (0 if periods else longest)
