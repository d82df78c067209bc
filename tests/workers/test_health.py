"""How providers fare, from the calls of all workers."""

from __future__ import annotations

from typing import Any

from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.health import Fare, ProviderBoard, Report, merged
from tests.conftest import StartWorker
from tests.workers.listener import ask, ending, eventually
from workers.chain import Candidate
from workers.health import LATELY_S, HealthReporter
from workers.providers import ProviderError
from workers.providers.registry import Providers


def test_reports_are_added_up_and_the_worst_counts() -> None:
    one = Report("w1", 0, ["fast"], ["acme"], [Fare("acme", "small", 10, 1, ttft_ms=(100, 300)), Fare("acme", "big")])
    two = Report("w2", 0, ["fast", "acme/x"], ["acme", "local"], [Fare("acme", "small", 2, 2, 4.0, (200,), "silent")])
    health = merged([two, one])
    assert (health.workers, health.models, health.providers) == (2, ["fast", "acme/x"], ["acme", "local"])
    small = next(fare for fare in health.fares if fare.model == "small")
    assert small == Fare("acme", "small", 12, 3, 4.0, (100, 300, 200), "silent")
    assert (small.state, small.ttft(50), small.ttft(95)) == ("down", 200, 300)
    assert (health.state("acme"), health.state("local")) == ("degraded", "healthy")
    assert Fare("acme", "big", 10, 3).state == "degraded" and Fare("acme", "big", 10, 2).state == "healthy"


def test_only_what_is_the_provider_s_and_of_lately_counts() -> None:
    now = [0.0]
    redis: Any = None
    reporter = HealthReporter(redis, Providers(frozenset()), lambda _: 0.0, name="w", clock=lambda: now[0])
    small = Candidate("acme", "small")
    reporter.ended(small, None, 0.25)
    reporter.ended(small, ProviderError("provider_timeout", "slow", fault="silent"), None)
    reporter.ended(small, ProviderError("content_blocked", "no"), None)
    assert reporter.fares() == [Fare("acme", "small", 2, 1, 0.0, (250,), "silent")]
    now[0] = LATELY_S + 1
    assert reporter.fares() == []


async def test_a_worker_says_how_its_calls_went_and_is_forgotten_when_it_leaves(
    broker: Broker, start_worker: StartWorker
) -> None:
    board = ProviderBoard(broker.connections.control)
    assert (await board.read()).workers == 0
    worker = await start_worker()
    await ending(broker, await ask(broker, "scripted/tokens=3,rate=0", on_abandon="continue"))
    assert worker.health.fares()[0].asked == 1

    async def reported() -> bool:
        return (await board.read()).workers == 1

    await eventually(reported, "the report")
    health = await board.read()
    assert {"fast", "simple"} <= set(health.models) and "scripted" in health.providers
    worker.stop()

    async def gone() -> bool:
        return (await board.read()).workers == 0

    await eventually(gone, "the end of the report")


async def test_an_old_report_is_taken_away(broker: Broker) -> None:
    redis: Any = broker.connections.control
    board = ProviderBoard(redis)
    await board.publish("w1", [], [], [])
    moment = await board.now_ms()

    async def later() -> int:
        return moment + 60_000

    board.now_ms = later  # type: ignore[method-assign]
    assert (await board.read()).workers == 0 and await redis.hlen(keys.providers()) == 0
