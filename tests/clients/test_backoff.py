"""Delays between connections (docs/protocol.md §8)."""

from __future__ import annotations

import random

import pytest

from headrace.backoff import Backoff, jitter


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
