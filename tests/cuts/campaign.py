"""Many runs, some at a time, each on a database of its own."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence

from tests.cuts.scenario import Cancel, Cut, Outcome, Scenario
from tests.cuts.trial import watching

#: Runs at once: they mostly wait. Redis has 16 databases; 0 is left alone.
AT_ONCE = 4
#: A run that is void is done again so often.
TRIES = 4
_TICK_S = 0.02


async def clean_run(unix_socket: str) -> Outcome:
    """Nothing goes wrong. The second of two, so that Redis has seen the scripts."""
    with watching():
        await asyncio.create_task(Scenario(unix_socket, 1).run())
        return await asyncio.create_task(Scenario(unix_socket, 1).run())


async def runs(unix_socket: str, plans: Iterable[Cut | Cancel], *, at_once: int = AT_ONCE) -> AsyncIterator[Outcome]:
    """The outcomes, as they come. A run that the machine was too slow for is done again, a few times."""
    free = list(range(1, at_once + 1))
    waiting = [(plan, 0) for plan in plans][::-1]
    running: dict[asyncio.Task[Outcome], tuple[int, int, float]] = {}
    lag = Lag()
    measuring = asyncio.create_task(lag.measure())
    with watching():
        try:
            while waiting or running:
                while waiting and free:
                    database = free.pop()
                    plan, tries = waiting.pop()
                    task = asyncio.create_task(Scenario(unix_socket, database).run(plan))
                    running[task] = database, tries, time.monotonic()
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    database, tries, began = running.pop(task)
                    free.append(database)
                    outcome = task.result()
                    outcome.lag_s, outcome.tries = lag.since(began), tries
                    if outcome.is_void and tries < TRIES and outcome.what is not None:
                        waiting.insert(0, (outcome.what, tries + 1))  # last of all: with luck at a calmer time
                    else:
                        yield outcome
        finally:
            measuring.cancel()
            for task in running:
                task.cancel()
            await asyncio.gather(measuring, *running, return_exceptions=True)


async def results(unix_socket: str, plans: Sequence[Cut | Cancel]) -> tuple[dict[str, list[str]], list[str]]:
    """For tests: what went wrong in which run, and the runs whose fault never came. Without those that say nothing."""
    outcomes = [outcome async for outcome in runs(unix_socket, plans, at_once=2 * AT_ONCE)]
    assert len(outcomes) == len(plans)
    outcomes = [outcome for outcome in outcomes if not outcome.is_void]
    assert len(outcomes) > len(plans) / 2, "this machine is too busy"
    return (
        {str(outcome.what): [*outcome.faults, *outcome.logs[-20:]] for outcome in outcomes if outcome.faults},
        [str(outcome.what) for outcome in outcomes if not outcome.was_hit],
    )


class Lag:
    """How late this process gets its turn."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=20_000)

    async def measure(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            self._seen.append((now, now - before - _TICK_S))

    def since(self, moment: float) -> float:
        return max((lag for at, lag in self._seen if at >= moment), default=0.0)
