"""What a seed decides, and that it decides enough."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.plan import Plan, intent, schedule


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    assert schedule(Plan(seed=3)) == schedule(Plan(seed=3))
    assert schedule(Plan(seed=3)) != schedule(Plan(seed=4))


def test_the_same_seed_gives_each_viewer_the_same_intents() -> None:
    drawn = [intent(Plan(seed=3).dice("viewer:7"), "ask") for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("seed", range(20))
def test_two_minutes_hold_enough_faults(seed: int) -> None:
    counts = Counter(fault.kind for fault in schedule(Plan(minutes=2, seed=seed)))
    assert counts["hub kill"] >= 13 and counts["worker kill"] >= 13 and counts["redis restart"] >= 3


def test_half_an_hour_holds_enough_faults() -> None:
    counts = Counter(fault.kind for fault in schedule(Plan(minutes=30)))
    assert counts["hub kill"] >= 200 and counts["worker kill"] >= 200 and counts["redis restart"] >= 50


def test_only_a_redis_that_keeps_nothing_is_flushed() -> None:
    kinds = {mode: {fault.kind for fault in schedule(Plan(minutes=10, redis=mode))} for mode in ("always", "none")}
    assert "redis flush" in kinds["none"] and "redis flush" not in kinds["always"]


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    short = schedule(Plan(minutes=1))
    assert [fault for fault in schedule(Plan(minutes=3)) if fault.at < 60] == short
