"""When a second provider is asked beside a silent one, how often, and which of the two goes on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.hedge import KNOWN, LEAST_S, MODELS, SAVED, SHARE, TIMES, Hedging, Race


def test_a_fixed_time_is_what_it_says_and_p95_is_what_nineteen_of_twenty_take() -> None:
    hedging = Hedging()
    assert hedging.begin(0.7, "a/b") == 0.7
    for number in range(KNOWN):
        assert hedging.begin("p95", "a/b") is None, "nobody knows yet"
        hedging.heard("a/b", 2.0 + number)
    assert hedging.begin("p95", "a/b") == 2.0 + KNOWN - 1
    assert hedging.begin("p95", "a/other") is None
    for _ in range(TIMES):
        hedging.heard("a/b", 0.1)
    assert hedging.begin("p95", "a/b") == LEAST_S, "old times are forgotten, and it is never less"


def test_models_are_forgotten_the_longest_unheard_first() -> None:
    hedging = Hedging()
    for _ in range(KNOWN):
        hedging.heard("old", 3.0)
        hedging.heard("kept", 3.0)
    for number in range(MODELS - 2):
        hedging.heard(f"m{number}", 1.0)
    hedging.heard("kept", 3.0)
    hedging.heard("one more", 1.0)
    assert hedging.begin("p95", "old") is None
    assert hedging.begin("p95", "kept") == 3.0


@given(st.lists(st.booleans(), max_size=400))
def test_no_more_than_a_share_of_all_answers_is_hedged(wanted: list[bool]) -> None:
    hedging = Hedging()
    spent = 0
    for count, is_silent in enumerate(wanted, 1):
        hedging.begin(1.5, "a/b")
        spent += is_silent and hedging.spend()
        assert spent <= 1 + SHARE * count


def test_quiet_hours_do_not_save_up_without_end() -> None:
    hedging = Hedging()
    for _ in range(10_000):
        hedging.begin(1.5, "a/b")
    assert sum(hedging.spend() for _ in range(100)) == SAVED


def test_the_first_to_show_goes_on_whoever_it_is() -> None:
    for winner in (0, 1):
        race = Race()
        assert race.join() == 1
        assert race.settled is None
        assert race.shows(winner)
        assert not race.shows(1 - winner)
        assert race.shows(winner) and race.settled == winner
        race.fails(1 - winner, "server")
        race.ends(1 - winner)
        assert race.settled == winner


@pytest.mark.parametrize("fault", ["overloaded", "server", "rate_limited", "context"])
def test_one_that_fails_leaves_the_other_alone_and_the_last_failure_is_the_end(fault: Any) -> None:
    race = Race()
    race.join()
    race.fails(0, fault)
    assert race.settled is None and race.has_failed(0) and not race.has_failed(1)
    race.fails(1, fault)
    assert race.settled == 1


def test_one_that_fails_before_there_is_another_is_the_end() -> None:
    race = Race()
    race.fails(0, "overloaded")
    assert race.settled == 0


@pytest.mark.parametrize("fault", ["blocked", "request"])
def test_behind_a_refusal_nobody_else_answers(fault: Any) -> None:
    race = Race()
    race.join()
    race.fails(0, fault)
    assert race.settled == 0 and not race.shows(1)


def test_one_that_ends_in_any_other_way_is_how_the_answer_ends() -> None:
    race = Race()
    race.join()
    race.ends(1)
    race.ends(0)
    assert race.settled == 1
