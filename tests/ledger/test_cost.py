"""What the ledger says a call cost, beside what `genai-prices` itself makes of the provider's own words."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from genai_prices import Usage as Priced
from genai_prices import calc_price, extract_usage

from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey
from hub.broker.mailbox import Wish
from hub.broker.usage import UsageQueue
from hub.ledger import connect
from hub.ledger import writer as writer_module
from hub.ledger.writer import LedgerWriter
from tests.fakes import Script
from tests.integration.failover import MODELS, Scene, scene
from tests.ledger.test_writer import is_empty, run
from tests.workers.listener import ask, ending, eventually, listening, log_of
from workers import pricing

Row = dict[str, Any]

#: What each provider says about a long prompt that is largely cached, and about its answer of `TOKENS`.
TOKENS = 4000
REPORTS: dict[str, dict[str, Any]] = {
    "anthropic": {"input_tokens": 9000, "cache_creation_input_tokens": 7000, "cache_read_input_tokens": 150_000},
    "openai": {
        "prompt_tokens": 90_000, "completion_tokens": TOKENS,
        "prompt_tokens_details": {"cached_tokens": 60_000}, "completion_tokens_details": {"reasoning_tokens": 1500},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "LOOK_S", 0.01)


@pytest.fixture
async def stage(broker: Broker, redis_url: str) -> AsyncIterator[Scene]:
    pricing.load()
    tier = {"models": [f"anthropic/{MODELS['anthropic']}", f"openai/{MODELS['openai']}"]}
    async with scene(broker, redis_url, tiers={"two": tier}) as stage:
        yield stage


async def rows_of(broker: Broker, key: StreamKey, path: Path) -> list[Row]:
    """The stream's calls as the ledger has them, in order."""
    queue, ledger = UsageQueue(broker.connections.control), connect(f"sqlite:{path}")
    try:
        await run(LedgerWriter(queue, ledger), lambda: is_empty(queue))
    finally:
        await ledger.close()
    with sqlite3.connect(path) as database:
        database.row_factory = sqlite3.Row
        found = database.execute(
            "SELECT * FROM headrace_usage WHERE stream = ? ORDER BY started_ms, id", [keys.stream_of(key)]
        ).fetchall()
    database.close()
    return [dict(row) for row in found]


def script(format_: str, **more: Any) -> Script:
    return Script(tokens=TOKENS, usage=REPORTS[format_], **more)


def by_the_library(format_: str) -> float:
    """Billionths of a dollar, read and priced by the library alone from the provider's own object."""
    report = REPORTS[format_] | ({"output_tokens": TOKENS} if format_ == "anthropic" else {})
    flavor = "chat" if format_ == "openai" else "default"
    extracted = extract_usage({"model": MODELS[format_], "usage": report}, provider_id=format_, api_flavor=flavor)
    return float(extracted.calc_price().total_price) * 1e9


def of_its_tokens(row: Row) -> float:
    priced = Priced(
        input_tokens=row["input_tokens"], output_tokens=row["output_tokens"],
        cache_read_tokens=row["cached_tokens"], cache_write_tokens=row["cache_write_tokens"],
    )  # fmt: skip
    return float(calc_price(priced, model_ref=row["model"], provider_id=row["provider"]).total_price) * 1e9


@pytest.mark.parametrize("format_", ["anthropic", "openai"])
async def test_a_call_costs_what_the_library_reads_out_of_the_provider_s_own_report(
    broker: Broker, stage: Scene, tmp_path: Path, format_: str
) -> None:
    told = await stage.ask(f"{format_}/{MODELS[format_]}", [script(format_)])
    [row] = await rows_of(broker, told.key, tmp_path / "usage.db")
    assert (row["provider"], row["outcome"], row["estimated"]) == (format_, "completed", 0)
    assert row["cached_tokens"] > 0 and row["output_tokens"] == TOKENS
    assert row["cost_nanos"] == pytest.approx(by_the_library(format_), rel=0.001)


async def test_every_attempt_of_an_answer_is_on_the_bill_and_what_was_cut_off_is_marked(
    broker: Broker, stage: Scene, tmp_path: Path
) -> None:
    cut = script("anthropic", fault="cut", fault_after=3000)
    told = await stage.ask("two", [cut, cut, script("openai")])
    first, again, last = await rows_of(broker, told.key, tmp_path / "usage.db")
    for row in (first, again):
        assert (row["provider"], row["outcome"], row["estimated"]) == ("anthropic", "failed", 1)
        assert row["cached_tokens"] == 150_000, "it had said what it read"
        assert row["output_tokens"] > 1000 and row["cost_nanos"] == pytest.approx(of_its_tokens(row), rel=0.001)
    assert (last["provider"], last["outcome"], last["estimated"]) == ("openai", "completed", 0)
    assert last["cost_nanos"] == pytest.approx(by_the_library("openai"), rel=0.001)


@pytest.mark.parametrize("format_", ["anthropic", "openai"])
async def test_what_is_cancelled_is_estimated_from_what_came_and_says_so(
    broker: Broker, stage: Scene, tmp_path: Path, format_: str
) -> None:
    stage.primary.default = Script(tokens=100_000, gap_s=0.001, size=40, usage=REPORTS[format_])
    async with listening(broker) as listener:
        key = await ask(broker, f"{format_}/{MODELS[format_]}")
        await listener.attach(key, 100_000)

        async def speaks() -> bool:
            return sum(kind == "text" for kind, _ in await log_of(broker, key)) > 100

        await eventually(speaks, "the answer")
        redis: Any = broker.connections.control
        owner = (await redis.hget(keys.meta(key), "owner")).decode()
        await listener.tell(owner, Wish(key, 100_000, cancel=True))
        _, done = await ending(broker, key)
    [row] = await rows_of(broker, key, tmp_path / "usage.db")
    assert (done["status"], row["outcome"], row["estimated"]) == ("cancelled", "cancelled", 1)
    assert row["input_tokens"] > 0 and row["output_tokens"] >= 100
    assert row["cost_nanos"] == pytest.approx(of_its_tokens(row), rel=0.001)
