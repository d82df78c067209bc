"""How far a generation may run ahead of its viewers, and when it counts as abandoned (protocol §6)."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from workers.attendance import Attendance

RULES = st.sampled_from(["cancel", "continue"])


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


class AnyAttendance(RuleBasedStateMachine):
    """Demand that comes, goes and is stated anew, rules that change, time: against the words of protocol §6."""

    @initialize(rule=RULES)
    def begin(self, rule: str) -> None:
        self.now = 100.0
        self.waits = attendance(rule, after_s=10.0)
        self.rule = rule
        self.watched = False
        self.demands = [0]
        self.unattended_since: float | None = 100.0
        self.was_left = False
        self.is_released = False

    @rule(demand=st.integers(0, 50), watched=st.booleans())
    def update(self, demand: int, watched: bool) -> None:
        self.waits.update(demand, watched or demand > 0, self.now)
        self.watched = watched or demand > 0
        self.demands.append(demand)
        if demand:
            self.unattended_since = None
        elif self.unattended_since is None:
            self.unattended_since = self.now

    @rule(rule=RULES)
    def override(self, rule: str) -> None:
        self.waits.override(rule)
        self.rule = rule

    @rule()
    def release(self) -> None:
        self.waits.release()
        self.is_released = True

    @rule(passed=st.floats(0, 12))
    def look(self, passed: float) -> None:
        self.now += passed
        left = self.unattended_since is not None and self.now - self.unattended_since >= 10.0
        self.was_left |= left
        assert self.waits.is_abandoned(self.now) == (left and self.rule == "cancel")

    @invariant()
    def the_bound_is_what_was_asked_for_and_the_run_ahead(self) -> None:
        if not hasattr(self, "waits"):
            return
        free = self.is_released or (self.rule == "continue" and (self.was_left or not self.watched))
        assert self.waits.bound == (inf if free else max(self.demands) + 512)


AnyAttendance.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
test_any_attendance = AnyAttendance.TestCase
