"""Patterns of schemas: which are taken, and what they weigh."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.pattern import PATTERN_CHARACTERS, PATTERN_WEIGHT, Pattern, WrongPattern, prepare
from hub.patterns import pattern_problem
from workers.validation import Validator


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"^\d{4}-\w+$", "^[0-9]{4}-[0-9A-Za-z_]+$"),
        (r"[\w.-]\W\D", "[[0-9A-Za-z_].-][^0-9A-Za-z_][^0-9]"),
        (r"[[&~]&~", r"[\[\&\~]&~"),
        (r"\/\\d[\]\d]", r"\/\\d[\][0-9]]"),
        ("a\\", "a\\"),
    ],
)
def test_a_pattern_is_put_into_the_engines_words(pattern: str, text: str) -> None:
    assert prepare(pattern).text == text


@pytest.mark.parametrize(
    ("pattern", "weight"),
    [
        ("", 0),
        ("abc", 3),
        ("a{3}", 3),
        ("a{2,5}b{0}", 6),
        ("a{4,}", 5),
        ("(ab){3}", 9),
        ("((a{10}){10}){10}", 1110),
        ("(?:a|b)(?<name>c)(?i:d)", 8),
        (".é", 8),
        (r"\s\.", 8),
        (r"\p{L}\u{e9}x", 105),
        (r"\pL", 101),
        ("[abcd]{10}", 40),
        (r"[\p{L}x]", 105),
        ("[[a]b", 5),
        ("a)", 2),
        ("(a", 1),
        ("a{,3}", 5),
        ("[a\\", 4),
    ],
)
def test_a_pattern_weighs_what_its_repetitions_make_of_it(pattern: str, weight: int) -> None:
    assert prepare(pattern).weight == weight


@pytest.mark.parametrize("pattern", ["a" * (PATTERN_CHARACTERS + 1), "(a{1000}){1000}", "(.{30}){30}", r"\p{L}{99}"])
def test_a_pattern_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(WrongPattern, match=r"has more than|is too large"):
        prepare(pattern)


@pytest.mark.parametrize("pattern", ["(?=a)b", "(?<!a)b", r"(a)\1", "(a", "[", "a**b{", r"\cA", "a{3,2}"])
def test_what_the_engine_does_not_run_is_told(pattern: str) -> None:
    problem = pattern_problem(prepare(pattern).text)
    assert problem is not None and problem.startswith("is no pattern that can be run in linear time: ")
    assert "\n" not in problem


@given(
    st.text("ab1_-. é[", max_size=12),
    st.sampled_from([r"^\w+$", r"\d", r"^[\w-]+$", r"a.b", r"[^\d]", r"^(a|b)*$", r"[[a]"]),
)
def test_a_pattern_means_what_it_means_elsewhere(text: str, pattern: str) -> None:
    elsewhere = re.search(pattern.replace("[[", r"[\["), text, re.ASCII) is not None
    assert (Validator({"pattern": pattern}).misfit(text) is None) is elsewhere


@pytest.mark.parametrize(
    "pattern", ["^(a+)+$", "(x+x+)+y", "(a|a)*b", "(.*.*.*.*)*!", "[ab]*a[ab]{300}c", "(a?){300}a{300}!"]
)
def test_no_pattern_takes_more_than_linear_time(pattern: str) -> None:
    began = time.monotonic()
    assert Validator({"pattern": pattern}).misfit("a" * 30_000 + "é") is not None
    assert time.monotonic() - began < 5  # by backtracking: longer than the world stands


def test_the_bound_leaves_room_for_what_people_write() -> None:
    for pattern in (
        r"^[\w.+-]+@[\w-]+(\.[\w-]+)+$",
        r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})$",
        r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        r"^.{1,100}$",
    ):
        ready = prepare(pattern)
        assert isinstance(ready, Pattern) and ready.weight < PATTERN_WEIGHT / 3
        assert pattern_problem(ready.text) is None
