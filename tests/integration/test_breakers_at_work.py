"""Breakers as requests meet them: real ones in a whole worker, with providers that limit, fail, break off and heal."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from hub.broker.breaker import FAILURES
from hub.broker.broker import Broker
from tests.fakes import Script
from tests.integration.failover import MODELS, Scene, Told, scene
from workers.providers.registry import Providers

TEXTS = tuple(f"{number:03d} " for number in range(8))
WHOLE = "".join(TEXTS)
OTHER = ("Quite ", "another ", "answer.")
TIERS = {"anthropic": {"models": [f"anthropic/{MODELS['anthropic']}", "backup/gpt-6-luna"]}}
DEADLINE_S = 20.0


async def until_spared(stage: Scene, failing: Script) -> None:
    """Ask until the primary is left alone; the backup has every answer."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        told = await stage.ask("anthropic", [failing], [Script(texts=OTHER)])
        assert (told.text, told.done["status"]) == ("".join(OTHER), "completed")
        if not told.primary:
            return
        assert told.kinds.count("reset") == (failing.status == 200), "it had shown something, if it began well"
        assert time.monotonic() < deadline, "it is asked on and on"


# -- rate limits that name their wait


@pytest.mark.parametrize("waiters", [1, 3])
async def test_whoever_waited_as_long_as_the_provider_said_is_answered(
    broker: Broker, redis_url: str, waiters: int
) -> None:
    # the refusals come late enough that all were asked before the first of them
    limited = Script(status=429, headers={"retry-after-ms": "300"}, headers_s=0.5)
    # … and the answers too, so that none of them has ended, and closed the breaker, when the others come
    answer = Script(texts=TEXTS, first_s=0.3)
    async with scene(broker, redis_url, kind=Providers) as stage:
        every = await asyncio.gather(*(stage.ask("openai/gpt-6-luna", [limited, answer]) for _ in range(waiters)))
    assert [(told.error, told.text, told.primary) for told in every] == [("", WHOLE, 2)] * waiters


async def test_who_comes_during_a_short_wait_waits_too(broker: Broker, redis_url: str) -> None:
    long = Script(status=429, headers={"retry-after-ms": "2300"})
    async with scene(broker, redis_url, kind=Providers) as stage:
        assert (await stage.ask("openai/gpt-6-luna", [long])).error == "provider_rate_limited", "longer than any wait"
        deadline = time.monotonic() + DEADLINE_S
        while True:  # refused at first: what is left of the wait is still too long
            answer = Script(texts=TEXTS, first_s=0.3)
            every = await asyncio.gather(*(stage.ask("openai/gpt-6-luna", [answer]) for _ in range(3)))
            if not any(told.error for told in every):
                break
            assert time.monotonic() < deadline, "they are refused on and on"
        assert [(told.text, told.primary) for told in every] == [(WHOLE, 1)] * 3
        assert min(told.took_s for told in every) > 1, "before the wait is over"


# -- recovery


async def test_a_provider_that_heals_is_asked_again_though_only_its_fallback_succeeds(
    broker: Broker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.breakers.OPEN_MS", 1000)
    monkeypatch.setattr("hub.broker.breaker.TRIAL_MS", 1000)
    async with scene(broker, redis_url, kind=Providers, tiers=TIERS) as stage:

        async def healthy() -> Told:
            return await stage.ask("anthropic", [Script(texts=TEXTS)], [Script(texts=OTHER)])

        await until_spared(stage, Script(status=529))
        deadline = time.monotonic() + DEADLINE_S
        while not (told := await healthy()).primary:
            assert told.text == "".join(OTHER)
            assert time.monotonic() < deadline, "nobody tries whether it is well again"
        assert (told.text, told.backup) == (WHOLE, 0), "the trial is a request like others"
        # that it succeeded is told to Redis after its end
        while not (told := await healthy()).primary:
            assert time.monotonic() < deadline, "it is not let in again"
        later = [await healthy() for _ in range(5)]
        assert [(told.text, told.primary, told.backup) for told in later] == [(WHOLE, 1, 0)] * 5


# -- answers that begin well


@pytest.mark.parametrize("fault", ["cut", "error"])
async def test_answers_that_begin_and_break_off_count_by_their_end(broker: Broker, redis_url: str, fault: Any) -> None:
    # the gaps let the text be read before the end
    breaking = Script(texts=TEXTS, fault=fault, fault_after=3, gap_s=0.02)
    async with scene(broker, redis_url, kind=Providers, tiers=TIERS) as stage:
        await until_spared(stage, breaking)
        asked = len(stage.primary.records)
        assert asked >= FAILURES and all(record.status == 200 for record in stage.primary.records)
        for _ in range(3):
            told = await stage.ask("anthropic", [breaking], [Script(texts=OTHER)])
            assert (told.text, told.kinds.count("reset")) == ("".join(OTHER), 0)
        assert len(stage.primary.records) == asked, "it is asked no more"
