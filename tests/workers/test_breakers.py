"""Breakers: the script against a model of it, and what a worker makes of them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.broker import keys
from hub.broker.breaker import FAILURES, OPEN_MS, TRIAL_MS, WINDOW_MS, SharedBreakers, Standing, Step
from hub.broker.broker import Broker
from hub.broker.settings import BrokerSettings
from tests.workers.listener import eventually
from workers.breakers import REFUSED_MS, Breakers
from workers.chain import Candidate
from workers.providers import ProviderError

#: What the script's own time may add to a model that knows none.
SLACK_MS = 4000
A = Candidate("acme", "small")


class Model:
    """scripts/breaker.lua in other words. Time moves only by `now`."""

    def __init__(self) -> None:
        self.now = self.since = self.ok = self.bad = 0
        self.opened: int | None = None  # kept out until
        self.trial = 0

    def do(self, what: str, ms: int) -> Standing:
        half_open = self.opened is not None and self.opened <= self.now
        if what in ("ok", "bad") and self.now - self.since >= WINDOW_MS:
            self.ok, self.bad, self.since = 0, 0, self.now
        if what == "ok":
            self.ok += 1
            if half_open:
                self.opened, self.bad = None, 0
        elif what == "bad":
            self.bad += 1
            if half_open:
                self.trial = self.now + TRIAL_MS
            elif self.opened is None and self.bad >= FAILURES and self.bad >= self.ok:
                self.opened, self.trial = self.now + ms, self.now
        elif what == "cool":
            self.opened, self.trial = max(self.opened or 0, self.now + ms), self.now
        standing = self.standing()
        if what == "enter" and standing.state == "trial":
            self.trial = self.now + TRIAL_MS
        return standing

    def standing(self) -> Standing:
        if self.opened is None:
            return Standing("closed")
        until = self.opened if self.opened > self.now else self.trial
        return Standing("open", until - self.now) if until > self.now else Standing("trial")


async def passed(redis: Any, name: str, ms: int) -> None:
    """So much time: what the breaker noted lies so much further back."""
    key = keys.breaker(name)
    for field in ("since", "open", "trial"):
        value = await redis.hget(key, field)
        if value is not None and value != b"0":
            await redis.hset(key, field, int(value) - ms)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["ok", "bad", "bad", "bad", "look", "enter", "cool", "wait"])), max_size=40))
def test_the_script_does_what_the_model_says(redis_url: str, steps: list[tuple[str]]) -> None:
    async def live() -> None:
        broker = Broker.connect(redis_url, BrokerSettings())
        redis: Any = broker.connections.control
        await redis.delete(keys.breaker("b"))
        shared, model, began = SharedBreakers(redis), Model(), time.monotonic()
        try:
            for number, (step,) in enumerate(steps):
                if step == "wait":
                    ms = (9_000, 35_000)[number % 2]
                    model.now += ms
                    await passed(redis, "b", ms)
                    continue
                expected = model.do(step, OPEN_MS)
                [standing] = await shared.take([Step("b", step)])  # type: ignore[arg-type]
                if time.monotonic() - began > 1:
                    return  # a busy machine: real time would count
                assert standing.state == expected.state, (step, number)
                assert abs(standing.wait_ms - expected.wait_ms) <= 1000
        finally:
            await broker.close()

    asyncio.run(live())


class Worker:
    """One worker's view, and its task."""

    def __init__(self, broker: Broker) -> None:
        self.now = 100.0
        self.breakers = Breakers(broker.connections.control, lambda _: "key", clock=lambda: self.now)


@pytest.fixture
async def two(broker: Broker) -> Any:
    workers = Worker(broker), Worker(broker)
    tasks = [asyncio.create_task(worker.breakers.run()) for worker in workers]
    yield workers
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def told(worker: Worker) -> None:
    await eventually(lambda: not worker.breakers._steps, "the report")


async def test_what_one_worker_saw_keeps_the_others_out_within_a_second(two: tuple[Worker, Worker]) -> None:
    one, other = two
    await other.breakers.look([A])
    for _ in range(FAILURES):
        one.breakers.ended(A, ProviderError("provider_overloaded", "busy"), None)
    await told(one)
    assert one.breakers.open_for(A) > 0
    assert other.breakers.open_for(A) == 0, "from a moment ago"
    other.now += 1.1
    await other.breakers.look([A])
    assert 0 < other.breakers.open_for(A) <= OPEN_MS / 1000 * 1.2


async def test_one_request_at_a_time_tries_a_provider_that_failed(broker: Broker, two: tuple[Worker, Worker]) -> None:
    one, other = two
    for _ in range(FAILURES):
        one.breakers.ended(A, ProviderError("provider_overloaded", "busy"), None)
    await told(one)
    await passed(broker.connections.control, "acme/small/key", OPEN_MS * 2)
    for worker in two:
        worker.now += OPEN_MS * 2 / 1000
        await worker.breakers.look([A])
        assert worker.breakers.open_for(A) == 0
    assert [await worker.breakers.enter(A) for worker in (one, other, one)] == [True, False, False]
    one.breakers.ended(A, None, 0.1)
    await told(one)
    other.now += 1.1
    await other.breakers.look([A])
    assert other.breakers.open_for(A) == 0 and await other.breakers.enter(A)


@pytest.mark.parametrize("fault", ["quota", "credential"])
async def test_a_refused_account_is_left_alone_at_once_with_all_its_models(
    two: tuple[Worker, Worker], fault: Any
) -> None:
    one, _ = two
    one.breakers.ended(A, ProviderError("provider_error", "no", fault=fault), None)
    assert one.breakers.open_for(Candidate("acme", "large")) == pytest.approx(REFUSED_MS / 1000)
    await told(one)
    assert one.breakers.open_for(A) > 50


async def test_a_rate_limit_counts_for_as_long_as_it_says(two: tuple[Worker, Worker]) -> None:
    one, _ = two
    one.breakers.ended(A, ProviderError("provider_rate_limited", "slow", after_ms=3000), None)
    assert one.breakers.open_for(A) == pytest.approx(3.0) and one.breakers.open_for(Candidate("acme", "large")) == 0


LIMIT = ProviderError("provider_rate_limited", "slow", after_ms=300)
DOWN = ProviderError("provider_overloaded", "busy")


async def test_who_waited_out_a_rate_limit_is_let_in_and_others_try_one_at_a_time(
    broker: Broker, two: tuple[Worker, Worker]
) -> None:
    one, _ = two
    one.breakers.ended(A, LIMIT, None)
    await told(one)
    assert one.breakers.is_only_limited(A) and not await one.breakers.enter(A)
    await passed(broker.connections.control, "acme/small/key", 400)
    one.now += 0.4
    assert [await one.breakers.enter(A) for _ in range(2)] == [True, False]
    assert [await one.breakers.enter(A, has_waited=True) for _ in range(3)] == [True] * 3
    one.breakers.ended(A, DOWN, None)
    assert not await one.breakers.enter(A, has_waited=True), "it failed since: that is no rate limit any more"


@pytest.mark.parametrize("worse", ["failures", "another worker's failures", "refused", "absent"])
async def test_a_wait_excuses_nobody_where_something_worse_keeps_the_model_out(
    two: tuple[Worker, Worker], worse: str
) -> None:
    one, other = two
    if worse == "failures":
        for _ in range(FAILURES):
            one.breakers.ended(A, DOWN, None)
    elif worse == "another worker's failures":
        for _ in range(FAILURES):
            other.breakers.ended(A, DOWN, None)
        await told(other)
    await told(one)
    one.breakers.ended(A, LIMIT, None)
    if worse in ("refused", "absent"):
        fault: Any = "credential" if worse == "refused" else "absent"
        one.breakers.ended(A, ProviderError("provider_error", "no", fault=fault), None)
    await told(one)
    one.now += 0.4
    assert not one.breakers.is_only_limited(A) and not await one.breakers.enter(A, has_waited=True)


async def test_a_limit_of_long_ago_does_not_excuse_an_outage(two: tuple[Worker, Worker]) -> None:
    one, _ = two
    one.breakers.ended(A, LIMIT, None)
    one.breakers.ended(A, None, 0.1)
    await told(one)
    one.now += 10
    await eventually(lambda: _closed(one), "the end of the limit")
    one.breakers._keep("acme/small/key", Standing("open", 1000))  # what other workers saw
    one.breakers.ended(A, LIMIT, None)
    assert not one.breakers.is_only_limited(A)


async def _closed(worker: Worker) -> bool:
    worker.breakers.ended(A, None, 0.1)  # a trial's success
    await told(worker)
    return worker.breakers._stands("acme/small/key").state == "closed"


@pytest.mark.parametrize("fault", ["context", "blocked", "request", "busy"])
async def test_what_was_wrong_with_the_request_counts_for_nothing(two: tuple[Worker, Worker], fault: Any) -> None:
    one, _ = two
    for _ in range(FAILURES * 2):
        one.breakers.ended(A, ProviderError("provider_error", "no", fault=fault), None)
    assert not one.breakers._steps and one.breakers.open_for(A) == 0


async def test_without_redis_everybody_may_be_asked() -> None:
    broker = Broker.connect("redis://127.0.0.1:9/0", BrokerSettings())
    breakers = Breakers(broker.connections.control, lambda _: "key", clock=time.monotonic)
    await breakers.look([A])
    assert breakers.open_for(A) == 0 and await breakers.enter(A)
    await broker.close()
