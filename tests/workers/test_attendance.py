"""How far a generation may run ahead of its viewers, and when it counts as abandoned (protocol §6)."""

from __future__ import annotations

from math import inf

import pytest

from workers.attendance import Attendance


def attendance(rule: str = "cancel", after_s: float = 10.0) -> Attendance:
    return Attendance(rule, after_s, 512, 100.0)


def test_the_bound_is_the_greatest_demand_and_the_run_ahead() -> None:
    waits = attendance()
    assert waits.bound == 512
    waits.update(300, True, 101.0)
    assert waits.bound == 812
    waits.update(200, True, 102.0)
    assert waits.bound == 812


def test_demand_that_is_withdrawn_keeps_the_bound_and_starts_the_clock() -> None:
    waits = attendance()
    waits.update(300, True, 101.0)
    assert waits.unattended_since is None and not waits.is_abandoned(1000.0)
    waits.update(0, True, 105.0)
    waits.update(0, True, 108.0)
    assert waits.bound == 812
    assert not waits.is_abandoned(114.9)
    assert waits.is_abandoned(115.0)


def test_demand_that_returns_stops_the_clock() -> None:
    waits = attendance()
    waits.update(0, True, 101.0)
    waits.update(1, True, 109.0)
    waits.update(0, False, 112.0)
    assert not waits.is_abandoned(121.9)


def test_whoever_waits_from_the_start_counts_from_the_start() -> None:
    assert attendance().is_abandoned(110.0)


def test_without_viewers_continue_has_no_bound_until_one_comes() -> None:
    waits = attendance("continue")
    assert waits.bound == inf
    waits.update(16, True, 101.0)
    assert waits.bound == 528


@pytest.mark.parametrize("watched", [True, False])
def test_under_continue_abandonment_lifts_the_bound_for_good(watched: bool) -> None:
    waits = attendance("continue")
    waits.update(16, True, 101.0)
    waits.update(0, watched, 102.0)
    assert not waits.is_abandoned(112.0)
    assert waits.bound == inf
    waits.update(20, True, 113.0)
    assert waits.bound == inf


def test_a_detach_may_change_the_rule() -> None:
    waits = attendance("cancel")
    waits.override("continue")
    assert waits.bound == inf and not waits.is_abandoned(200.0)
    waits.override("cancel")
    assert waits.bound == 512 and waits.is_abandoned(200.0)
