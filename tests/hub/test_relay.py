"""Every viewer with credit reaches the top, in every order of attach, log read, part, hole, ack and full socket."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hub.scene import Scene

viewer_numbers = st.integers(0, 3)
actions = [
    st.tuples(st.just("append"), st.integers(1, 8)),
    st.tuples(st.just("relay"), st.sampled_from([0, 0, 0, 1, 3]), st.sampled_from([0, 0, 0, 2, 5])),
    st.tuples(
        st.just("attach"), viewer_numbers, st.sampled_from([None, 0, 1, 3, 256]),
        st.sampled_from([None, "now"]) | st.integers(0, 30),
    ),
    st.tuples(st.just("ack"), viewer_numbers, st.integers(0, 3)),
    st.tuples(st.just("full"), viewer_numbers),
    st.tuples(st.just("room"), viewer_numbers),
    st.tuples(st.just("turns"), st.integers(0, 6)),
]  # fmt: skip
losses = st.tuples(st.just("lose"), st.integers(0, 6))
latencies = st.lists(st.integers(0, 4), max_size=6)


@given(st.lists(st.one_of(actions), max_size=30), latencies)
@settings(max_examples=200, deadline=None)
def test_every_viewer_with_credit_reaches_the_top(script: list[tuple[Any, ...]], turns: list[int]) -> None:
    async def play() -> None:
        scene = Scene(turns)
        for action in script:
            await scene.act(action)
        await scene.come_to_rest()
        scene.check()
        await scene.end()

    asyncio.run(play())


@given(st.lists(st.one_of([*actions, losses]), max_size=30), latencies)
@settings(max_examples=200, deadline=None)
def test_a_log_that_lost_its_end_is_never_spliced_once_the_facts_are_read(
    script: list[tuple[Any, ...]], turns: list[int]
) -> None:
    async def play() -> None:
        scene = Scene(turns)
        for action in script:
            await scene.act(action)
        await scene.settle()
        for tail in list(scene.relay.tails.values()):
            await scene.relay.repair(tail)  # as the reconcile pass does
        await scene.come_to_rest()
        scene.check()
        await scene.end()

    asyncio.run(play())
