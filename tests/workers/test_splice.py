"""Going on from a second telling: what is shown is one whole answer, or the second telling is known to differ."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.splice import Splice

TEXT = st.text("abé", max_size=30)


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    return [*pieces, text[at:]]


@given(TEXT, TEXT, st.lists(st.integers(0, 6), max_size=12))
def test_what_was_shown_and_what_is_new_make_the_second_telling(shown: str, second: str, sizes: list[int]) -> None:
    splice = Splice(shown)
    new = "".join(splice.feed(piece) for piece in cut(second, sizes))
    joined = splice.end()
    assert joined == second.startswith(shown)
    if joined:
        assert shown + new == second
        assert not splice.has_diverged
    else:
        assert splice.has_diverged
        assert new == ""
        told = splice.told  # all that came until then, so that it can be shown as an answer of its own
        assert second.startswith(told) and (len(told) == len(second) or not shown.startswith(second))


@given(TEXT, TEXT)
def test_after_it_differed_everything_is_kept(shown: str, second: str) -> None:
    splice = Splice(shown + "x")
    splice.feed("y" + second)
    assert splice.has_diverged or not splice.is_joined
    splice.feed("more")
    splice.end()
    assert splice.told == "y" + second + "more"


def test_nothing_shown_is_joined_from_the_start() -> None:
    splice = Splice("")
    assert splice.is_joined
    assert splice.feed("hello") == "hello"
    assert splice.end()


def test_an_answer_that_is_shorter_than_what_was_shown_differs() -> None:
    splice = Splice("hello world")
    assert splice.feed("hello") == ""
    assert not splice.end()
    assert splice.told == "hello"
