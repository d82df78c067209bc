"""A part of `python -m tests.cuts` that fits a test run: each kind of call once, and every ninth await."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from hub.broker.embedded import EmbeddedRedis
from tests.cuts import plan
from tests.cuts.calls import Mode
from tests.cuts.campaign import clean_run, results
from tests.cuts.scenario import Cut, Outcome
from tests.cuts.trial import TRIAL, Await, Trial, watching
from tests.faults.pace import quick

pytestmark = pytest.mark.timeout(240)  # some 10 s each on a machine of their own


@pytest.fixture(autouse=True)
def fast() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture
def socket(redis_server: EmbeddedRedis) -> str:
    return redis_server.url.removeprefix("unix://")


@pytest.fixture
async def clean(no_task_left: None, socket: str) -> AsyncIterator[Outcome]:
    yield await clean_run(socket)


async def test_the_scenario_is_right_and_leaves_nothing_when_nothing_goes_wrong(clean: Outcome) -> None:
    assert clean.faults == []
    assert plan.unknown(clean) == []
    assert {(address.side, address.kind) for address in plan.EVERY_KIND} <= clean.counts.keys()


@pytest.mark.parametrize("mode", ["before", "late"])
async def test_a_call_that_fails_costs_nobody_an_entry(no_task_left: None, socket: str, mode: Mode) -> None:
    """Applied, with the reply lost: tests/integration/test_network.py."""
    faults, missed = await results(socket, [Cut(address, mode) for address in plan.EVERY_KIND])
    assert faults == {}
    assert len(missed) <= 3, missed  # how often a hub reads the log depends on the moment


async def test_a_cancelled_await_leaks_nothing(socket: str, clean: Outcome) -> None:
    faults, missed = await results(socket, plan.cancels(clean)[::9])
    assert faults == {}
    assert len(missed) <= 6, missed  # how often a task waits depends on the moment


def _cancel(task: asyncio.Task[object]) -> None:
    task.cancel()


async def test_the_watch_finds_a_task_that_is_left_an_error_that_is_logged_and_the_await_that_is_meant() -> None:
    """The checks themselves can fail."""
    steps: list[int] = []

    async def forgetful() -> None:
        for step in range(3):
            steps.append(step)
            await asyncio.sleep(0 if step < 2 else 60)

    async def run(trial: Trial) -> list[asyncio.Task[None]]:
        TRIAL.set(trial)
        trial.is_armed = True
        tasks = [asyncio.create_task(forgetful()), asyncio.create_task(forgetful())]
        await asyncio.wait(tasks, timeout=0.05)
        asyncio.get_running_loop().call_exception_handler({"message": "lost"})
        return tasks

    name = f"{forgetful.__qualname__}"
    trial = Trial(Await(name, 2, 2), _cancel)
    with watching():
        left, cancelled = await asyncio.create_task(run(trial))
        assert cancelled.cancelled() and trial.was_cancelled and sorted(steps) == [0, 0, 1, 1, 2]
        assert trial.left() == [left] and any("lost" in error for error in trial.errors())
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
