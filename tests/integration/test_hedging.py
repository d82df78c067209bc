"""A provider that is silent for too long, over real HTTP: another is asked beside it, and one of the two answers."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.usage import UsageRow
from tests.fakes import Script
from tests.installation import eventually
from tests.integration.failover import MODELS, Told, scene

TEXTS, OTHER = ("the ", "first ", "answer."), ("the ", "other ", "answer.")
HEDGE_S = 0.3
#: Longer than any of these tests, unless the second is asked.
SILENCE_S = 45.0
TIERS: dict[str, Any] = {
    name: {"models": [f"{name}/{MODELS[name]}", "backup/gpt-6-luna"], "hedge_after_s": HEDGE_S} for name in MODELS
}


async def rows(broker: Broker, told: Told, count: int) -> list[UsageRow]:
    """What the ledger will have of it, in the order of the calls. A row may be on its way more than once."""
    found: dict[str, UsageRow] = {}

    async def are_there() -> bool:
        raw: Any = await broker.connections.control.xrange(keys.usage())
        for _, fields in raw:
            row = msgspec.msgpack.decode(fields[b"r"], type=UsageRow)
            if row.stream == keys.stream_of(told.key):
                found[row.id] = row
        return len(found) >= count

    await eventually(are_there, f"{count} rows")
    return [found[id_] for id_ in sorted(found)]


@pytest.mark.parametrize("headers", [False, True], ids=["silent", "no headers"])
@pytest.mark.parametrize("format_", MODELS)
async def test_the_second_answers_for_one_that_is_silent_and_both_are_in_the_ledger(
    broker: Broker, redis_url: str, format_: str, headers: bool
) -> None:
    silent = Script(headers_s=SILENCE_S) if headers else Script(first_s=SILENCE_S)
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        told = await stage.ask(format_, [silent], [Script(texts=OTHER)])
        assert told.text == "".join(OTHER) and told.done["status"] == "completed"
        [source] = told.all("source")
        assert (source["provider"], source["reason"], source["call"]) == ("backup", "hedge", 2)
        assert told.all("notice") == [] and "reset" not in told.kinds, "nobody sees it"
        loser, winner = await rows(broker, told, 2)
        assert (loser.provider, loser.outcome, loser.estimated) == (format_, "cancelled", True)
        assert loser.input_tokens > 0 and loser.output_tokens <= 1
        assert (winner.provider, winner.outcome, winner.estimated) == ("backup", "completed", False)
        record = stage.primary.last
        await eventually(lambda: record.gone_at is not None, "the end of the loser's connection")
        assert record.gone_at is not None
        assert record.gone_at - stage.backup.last.opened_at < 1.0, "a loser is closed within a second"


@pytest.mark.parametrize("format_", MODELS)
async def test_a_first_that_begins_sooner_than_the_second_answers_as_ever(
    broker: Broker, redis_url: str, format_: str
) -> None:
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        told = await stage.ask(
            format_, [Script(texts=TEXTS, first_s=HEDGE_S + 0.7)], [Script(texts=OTHER, first_s=SILENCE_S)]
        )
        assert (told.text, told.backup) == ("".join(TEXTS), 1)
        assert told.all("source")[0].get("reason") is None
        winner, loser = await rows(broker, told, 2)
        assert (winner.outcome, loser.outcome) == ("completed", "cancelled")
        await eventually(lambda: stage.backup.last.gone_at is not None, "the end of the loser's connection")


async def test_a_provider_that_is_in_time_is_asked_alone(broker: Broker, redis_url: str) -> None:
    tiers = {"t": {"models": ["anthropic/claude-haiku-5-5", "backup/gpt-6-luna"], "hedge_after_s": 20}}
    async with scene(broker, redis_url, tiers=tiers) as stage:
        told = await stage.ask("t", [Script(texts=TEXTS)])
        assert (told.text, told.primary, told.backup) == ("".join(TEXTS), 1, 0)
        down = await stage.ask("t", [Script(status=529)], [Script(texts=OTHER)])
        assert down.all("source")[0]["reason"] == "failover", "a failure is nobody's silence"


async def test_when_both_fail_nobody_of_the_tier_answers(broker: Broker, redis_url: str) -> None:
    late = Script(status=529, headers_s=HEDGE_S * 2)
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        told = await stage.ask("openai", [late], [late])
        assert told.all("source")[-1]["reason"] == "providers_failed"
        assert (told.primary, told.backup) == (1, 1)


async def test_when_the_winner_breaks_off_the_loser_may_be_asked_again(broker: Broker, redis_url: str) -> None:
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        broken = Script(texts=OTHER, fault="end", fault_after=2)
        told = await stage.ask("openai", [Script(first_s=SILENCE_S), Script(texts=TEXTS)], [broken])
        assert (told.text, told.primary, told.backup) == ("".join(TEXTS), 2, 2), "the same once more, then the first"
        assert [notice["code"] for notice in told.all("notice")] == ["retrying", "failover"]
        assert told.kinds.count("reset") == 1


async def test_one_that_waits_its_turn_is_cancelled_with_both_calls(broker: Broker, redis_url: str) -> None:
    """A viewer who cancels while both are silent: both sockets are closed, and both calls told."""
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        silent = [Script(first_s=SILENCE_S)]
        asking = asyncio.create_task(stage.ask("anthropic", silent, silent))
        await eventually(lambda: bool(stage.primary.records and stage.backup.records), "both calls")
        [key] = await broker.live.due(2**53 - 1, 16)
        await broker.log.cancel(key, user="alice", may_cancel=False, done=b"", ttl_ms=60_000)
        told = await asking
        assert told.done["status"] == "cancelled" and told.text == ""
        assert {row.outcome for row in await rows(broker, told, 2)} == {"cancelled"}
        await eventually(lambda: all(fake.last.gone_at for fake in (stage.primary, stage.backup)), "closed sockets")


async def test_no_more_than_one_answer_in_twenty_is_hedged(broker: Broker, redis_url: str) -> None:
    slow = Script(texts=TEXTS, first_s=HEDGE_S * 2)
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        asked = [await stage.ask("openai", [slow], [Script(texts=OTHER, first_s=SILENCE_S)]) for _ in range(3)]
        assert [told.backup for told in asked] == [1, 0, 0]
        assert {told.text for told in asked} == {"".join(TEXTS)}
