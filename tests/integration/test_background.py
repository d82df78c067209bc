"""Answers that a provider writes in the background: they outlive their worker, are paid for once, and end when told."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.protocol.body import Body, Options
from headrace.protocol.entries import Entry, decode_data
from headrace.protocol.frames import Message
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey
from hub.broker.usage import UsageRow
from tests.fakes import FakeProvider, Script
from tests.fakes.script import Record
from tests.installation import running_worker
from tests.workers.listener import ask, ending, eventually, kinds, log_of, text
from tests.workers.process import WorkerProcess
from workers.catalog import load
from workers.providers.registry import Providers
from workers.worker import Worker

pytestmark = pytest.mark.timeout(120)  # a process takes a second to start, and ten on a busy machine

SHORT: dict[str, Any] = {"lease_s": 2.5, "lease_grace_s": 0.3, "janitor_interval_s": 0.1}
MODEL = "openai/gpt-6-luna"
WORDS = [f"{number:03d} " for number in range(60)]
#: Long enough to be caught in the middle, short enough to be waited for.
SLOW = Script(texts=WORDS, gap_s=0.05)
WHOLE = "".join(WORDS)
CATALOG = """
[providers.openai]
format = "responses"
background = true
"""


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as fake:
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url_openai)
        monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
        yield fake


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    path = tmp_path / "headrace.toml"
    path.write_text(CATALOG)
    return path


Start = Callable[[], AbstractAsyncContextManager[Worker]]


@pytest.fixture
def start(redis_url: str, catalog: Path, fake: FakeProvider) -> Start:
    """A worker in the test's own process."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Worker]:
        providers = Providers(frozenset({"openai"}), catalog=load(catalog))
        await providers.warm()
        tools = "tests.integration.sample_tools"
        try:
            async with running_worker(redis_url, providers=providers, tools=tools, **SHORT) as worker:
                yield worker
        finally:
            await providers.close()

    return start


async def says(broker: Broker, key: StreamKey, words: str) -> list[Entry]:
    async def spoke() -> list[Entry]:
        entries = await log_of(broker, key)
        return entries if words in text(entries) else []

    return await eventually(spoke, f"“{words}”")  # type: ignore[no-any-return]


async def rows_of(broker: Broker) -> list[UsageRow]:
    found: Any = await broker.connections.control.xrange(keys.usage())
    return [msgspec.msgpack.decode(fields[b"r"], type=UsageRow) for _, fields in found]


async def bill_of(broker: Broker) -> dict[str, UsageRow]:
    """As the ledger would have it: by id, what was reported before what was estimated."""
    bill: dict[str, UsageRow] = {}
    for row in await rows_of(broker):
        known = bill.get(row.id)
        if known is None or (known.estimated and (not row.estimated or known.outcome == "lost")):
            bill[row.id] = row
    return bill


def begun(fake: FakeProvider) -> Record:
    return next(record for record in fake.records if record.response)


async def test_a_killed_worker_s_answer_is_read_on_and_paid_for_once(
    broker: Broker, redis_url: str, catalog: Path, fake: FakeProvider, start: Start
) -> None:
    fake.default = SLOW
    async with WorkerProcess(redis_url, config=catalog, **SHORT) as doomed:
        key = await ask(broker, MODEL, on_abandon="continue")
        await says(broker, key, "005 ")
        doomed.kill()
        async with start():
            entries, done = await ending(broker, key)
    assert text(entries) == WHOLE, "not a word lost, doubled or told twice"
    assert "reset" not in kinds(entries)
    assert (done["status"], done["stop_reason"]) == ("completed", "stop")
    assert [decode_data(*each)["code"] for each in entries if each[0] == "notice"] == ["worker_lost"]
    assert fake.begun == 1
    assert [record.resumed_after for record in fake.records if record.resumed_after is not None] == [0]
    assert begun(fake).cancelled_at is None

    async def billed() -> dict[str, UsageRow]:
        bill = await bill_of(broker)
        return bill if [row.outcome for row in bill.values()] == ["completed"] else {}

    bill = await eventually(billed, "one row of one call")
    [row] = bill.values()
    assert (row.input_tokens, row.output_tokens, row.estimated, row.attempt) == (12, len(WORDS), False, 1)


async def test_a_draining_worker_hands_its_answer_over_without_ending_it(
    broker: Broker, fake: FakeProvider, start: Start
) -> None:
    fake.default = SLOW
    async with start():
        key = await ask(broker, MODEL, on_abandon="continue")
        await says(broker, key, "005 ")
    assert begun(fake).cancelled_at is None and not begun(fake).finished
    async with start():
        entries, done = await ending(broker, key)
    assert (text(entries), done["status"], fake.begun) == (WHOLE, "completed", 1)
    assert "reset" not in kinds(entries) and begun(fake).cancelled_at is None
    bill = await eventually(lambda: bill_of(broker), "the bill")
    assert len({row.id for row in bill.values()}) == 1


async def test_a_cancelled_answer_is_cancelled_at_the_provider_within_a_second(
    broker: Broker, fake: FakeProvider, start: Start
) -> None:
    fake.default = Script(texts=WORDS * 20, gap_s=0.05)
    async with start():
        key = await ask(broker, MODEL, on_abandon="continue")
        await says(broker, key, "005 ")
        told_at = time.monotonic()
        await broker.log.cancel(key, user="alice", may_cancel=False, done=b"", ttl_ms=60_000)
        await eventually(lambda: begun(fake).cancelled_at, "the end at the provider")
        assert (begun(fake).cancelled_at or 0) - told_at < 1.0
        _, done = await ending(broker, key)
    assert done["status"] == "cancelled"
    assert begun(fake).tokens_after(told_at + 1.0) == 0


async def test_an_answer_cancelled_between_two_workers_is_cancelled_by_the_next(
    broker: Broker, fake: FakeProvider, start: Start
) -> None:
    fake.default = Script(texts=WORDS * 20, gap_s=0.05)
    async with start():
        key = await ask(broker, MODEL, on_abandon="continue")
        await says(broker, key, "005 ")
    await broker.log.cancel(key, user="alice", may_cancel=False, done=b"", ttl_ms=60_000)
    assert begun(fake).cancelled_at is None
    async with start():
        _, done = await ending(broker, key)
        await eventually(lambda: begun(fake).cancelled_at, "the end at the provider")
    assert done["status"] == "cancelled" and fake.begun == 1


async def test_where_the_provider_does_not_know_the_answer_any_more_it_is_asked_again(
    broker: Broker, fake: FakeProvider, start: Start
) -> None:
    fake.default = SLOW
    async with start():
        key = await ask(broker, MODEL, on_abandon="continue")
        await says(broker, key, "005 ")
    fake.background.close()
    fake.background.answers.clear()
    fake.default = Script(texts=["Anew."])
    async with start():
        entries, done = await ending(broker, key)
    assert (done["status"], fake.begun) == ("completed", 2), (done, entries)
    last = max(index for index, (kind, _) in enumerate(entries) if kind == "reset")
    assert text(entries[last:]) == "Anew."
    bill = await eventually(lambda: bill_of(broker), "the bill")
    assert sorted(row.outcome for row in bill.values()) == ["completed", "lost"]


async def test_who_wants_no_other_worker_has_the_answer_ended_at_the_provider_too(
    broker: Broker, fake: FakeProvider, start: Start
) -> None:
    fake.default = Script(texts=WORDS * 20, gap_s=0.05)
    async with start():
        key = await ask(broker, MODEL, on_abandon="continue", on_worker_loss="fail")
        await says(broker, key, "005 ")
    async with start():
        _, done = await ending(broker, key)
        await eventually(lambda: begun(fake).cancelled_at, "the end at the provider")
    assert (done["status"], done["error"]["code"], fake.begun) == ("failed", "worker_lost", 1)


async def test_an_answer_with_tool_calls_is_told_anew_and_not_asked_again(
    broker: Broker, fake: FakeProvider, start: Start
) -> None:
    """Calls are not matched with what viewers have: the screen is cleared, the bill is not doubled."""
    pieces = ['{"list": [0', *[f", {number}" for number in range(1, 40)], "]}"]
    fake.default = Script(texts=["So: "], tools=[("look", pieces)], gap_s=0.05)

    async def is_calling() -> bool:
        return sum(kind == "tool_input" for kind, _ in await log_of(broker, key)) > 3

    async with start():
        key = await ask(broker, MODEL, on_abandon="continue")
        await eventually(is_calling, "a tool call")
    async with start():
        entries, done = await ending(broker, key)
    last = max(index for index, (kind, _) in enumerate(entries) if kind == "reset")
    assert kinds(entries[last:])[:4] == ["reset", "source", "text", "tool_call"]
    ready = [decode_data(*entry) for entry in entries[last:] if entry[0] == "tool_ready"]
    assert [each["input"] for each in ready] == [{"list": list(range(40))}]
    assert (text(entries[last:]), done["stop_reason"], fake.begun) == ("So: ", "tool_calls", 1)


async def test_a_step_that_was_read_on_runs_its_tools_and_the_next_is_asked(
    broker: Broker, fake: FakeProvider, start: Start
) -> None:
    first = Script(texts=WORDS[:20], gap_s=0.05, tools=[("weather", ['{"city":', '"Graz"}'])])
    fake.by_turn["Is it blue?"] = deque([first, Script(texts=["It is."])])
    body = Body([Message("user", "Is it blue?")], model=MODEL, tools=[{"type": "worker", "name": "weather"}])
    async with start():
        key = await broker.accept(
            org="org", user="alice", request_key="r", body=body, options=Options(on_abandon="continue"),
            now_ms=int(time.time() * 1000),
        )  # fmt: skip
        await says(broker, key, "005 ")
    async with start():
        entries, done = await ending(broker, key)
    assert (text(entries), done["status"]) == ("".join(WORDS[:20]) + "It is.", "completed")
    assert fake.begun == 2, "one answer a step"
    assert kinds(entries).count("tool_result") == 1 and "reset" not in kinds(entries)
    bill = await eventually(lambda: bill_of(broker), "the bill")
    assert sorted(row.outcome for row in bill.values()) == ["completed", "completed"]


async def test_thinking_that_was_shown_is_not_shown_twice(broker: Broker, fake: FakeProvider, start: Start) -> None:
    fake.default = Script(reasoning=["first this, ", "then that"], texts=["Done."], first_s=1.0)

    async def thinks() -> bool:
        return "reasoning" in kinds(await log_of(broker, key))

    async with start():
        key = await ask(broker, MODEL, on_abandon="continue")
        await eventually(thinks, "a thought")
    async with start():
        entries, _ = await ending(broker, key)
    thought = b"".join(data for kind, data in entries if kind == "reasoning").decode()
    assert (thought, text(entries), fake.begun) == ("first this, then that", "Done.", 1)
    assert "reset" not in kinds(entries)


@pytest.mark.parametrize("fault", ["reset", "cut", "end", "malformed", "invalid_utf8"])
async def test_a_connection_that_breaks_is_made_again_and_nobody_hears_of_it(
    broker: Broker, fake: FakeProvider, start: Start, fault: Any
) -> None:
    fake.default = Script(texts=WORDS, reasoning=["hm"], tools=[("look", ['{"q":', "1}"])], fault=fault, fault_after=7)
    async with start():
        key = await ask(broker, MODEL, on_abandon="continue")
        entries, done = await ending(broker, key)
    assert (text(entries), done["status"], fake.begun) == (WHOLE, "completed", 1)
    assert {"notice", "reset"}.isdisjoint(kinds(entries))
    assert begun(fake).cancelled_at is None
