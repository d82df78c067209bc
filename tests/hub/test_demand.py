"""A high-water mark that an owner hears of in steps (protocol §6)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hub.demand import Demand


def test_the_first_demand_is_told_at_once_and_more_of_it_in_steps() -> None:
    demand = Demand()
    assert demand.rise(10, step=256)
    demand.told = demand.limit
    assert not demand.rise(10, step=256)
    assert not demand.rise(265, step=256)
    assert demand.rise(266, step=256)


def test_a_viewer_with_less_takes_nothing_back() -> None:
    demand = Demand()
    demand.rise(10, step=1)
    assert not demand.rise(4, step=1)
    assert demand.limit == 10


def test_what_was_withdrawn_is_told_once_and_told_anew_when_somebody_comes() -> None:
    demand = Demand()
    assert not demand.withdraw(), "nobody was told of any"
    demand.rise(10, step=256)
    demand.told = 10
    assert demand.withdraw()
    demand.told = 0
    assert not demand.withdraw()
    assert demand.rise(1, step=256)


@given(st.lists(st.integers(0, 10_000)), st.integers(1, 512))
@settings(deadline=None)
def test_an_owner_is_never_a_step_behind(limits: list[int], step: int) -> None:
    demand = Demand()
    for limit in limits:
        if demand.rise(limit, step):
            demand.told = demand.limit
        assert demand.limit - demand.told < step or not demand.limit
    assert demand.limit == max(limits, default=0)
