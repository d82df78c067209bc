"""Delays between connections (docs/protocol.md §8)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.backoff import BASE_S, LIMIT_S, Backoff, jitter


@pytest.mark.parametrize(
    ("attempt", "longest"), [(0, 0.5), (1, 1.0), (2, 2.0), (5, 16.0), (6, 20.0), (40, 20.0), (10_000, 20.0)]
)
def test_delays_are_spread_evenly_from_zero_to_a_doubling_limit_of_20_s(attempt: int, longest: float) -> None:
    draw = random.Random(7)
    delays = [jitter(attempt, draw.random()) for _ in range(4000)]
    assert min(delays) < 0.01 * longest
    assert 0.99 * longest < max(delays) < longest
    assert sum(delays) / len(delays) == pytest.approx(longest / 2, rel=0.05)


def test_every_attempt_doubles_the_limit() -> None:
    backoff = Backoff()
    assert [backoff.delay(0.0, 0.999) for _ in range(3)] == pytest.approx([0.4995, 0.999, 1.998])


def test_a_connection_of_ten_seconds_starts_over_and_a_shorter_one_does_not() -> None:
    backoff = Backoff()
    backoff.delay(0.0, 0.5)
    backoff.opened(100.0)
    assert backoff.delay(109.9, 1.0) == 1.0
    backoff.opened(200.0)
    assert backoff.is_stable(210.0)
    assert backoff.delay(210.0, 1.0) == 0.5


def test_one_stable_connection_does_not_excuse_the_failures_after_it() -> None:
    backoff = Backoff()
    backoff.opened(0.0)
    assert [backoff.delay(50.0, 1.0) for _ in range(3)] == [0.5, 1.0, 2.0]


def test_what_the_hub_asked_for_lengthens_a_delay_and_never_shortens_it() -> None:
    assert Backoff().delay(0.0, 0.5, after_s=6.0) == 6.25
    assert Backoff().delay(0.0, 0.5, after_s=-3.0) == 0.25


@given(
    st.lists(st.tuples(st.sampled_from(["fail", "young", "stable"]), st.floats(0, 1, exclude_max=True)), max_size=40),
    st.floats(-5, 120),
)
def test_a_delay_is_bounded_by_the_failures_in_a_row_since_the_last_stable_connection(
    life: list[tuple[str, float]], after_s: float
) -> None:
    backoff, now, failures = Backoff(), 0.0, 0
    for what, chance in life:
        if what != "fail":
            backoff.opened(now)
            now += 9.99 if what == "young" else 10.01
        failures = 0 if what == "stable" else failures
        delay = backoff.delay(now, chance, after_s)
        asked = max(0.0, after_s)
        assert asked <= delay <= asked + min(LIMIT_S, BASE_S * 2**failures)
        assert delay == asked + jitter(failures, chance)
        failures += 1
        assert backoff.attempts == failures


@pytest.mark.parametrize(("lost_before", "p50", "p99"), [(0, 0.26, 0.5), (1, 0.52, 1.0), (2, 1.1, 2.0), (3, 2.1, 4.0)])
def test_whoever_lost_its_hub_dials_the_next_one_in_time(lost_before: int, p50: float, p99: float) -> None:
    """A killed hub costs p50 2 s and p99 6 s at most, dialling included; also if hubs died young before."""
    draw = random.Random(11)
    delays = []
    for _ in range(4000):
        backoff = Backoff()
        for _ in range(lost_before):
            backoff.delay(0.0, draw.random())
        delays.append(backoff.delay(0.0, draw.random()))
    delays.sort()
    assert delays[2000] < p50
    assert delays[3960] < p99
