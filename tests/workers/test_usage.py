"""What a call used: counted once, priced, in Redis whatever happens to Redis or to the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from genai_prices import Usage as Priced
from genai_prices import calc_price

from headrace.protocol import entries as kinds
from headrace.protocol.body import Body
from headrace.protocol.cursor import MarkRuns
from headrace.protocol.entries import encode_data
from headrace.protocol.frames import Message
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.embedded import EmbeddedRedis
from hub.broker.keys import stream_key
from hub.broker.lost import Asked
from hub.broker.mailbox import Wish
from hub.broker.settings import BrokerSettings
from hub.broker.usage import Outcome, UsageQueue, UsageRow
from tests.conftest import StartWorker
from tests.fakes import FakeProvider, Script
from tests.installation import eventually, running_worker
from tests.workers.listener import ask, ending, listening
from tests.workers.test_worker import ENDLESS, speaking
from tests.workers.test_worker_outages import SHORT, worker_process
from workers import pricing
from workers import usage as usage_module
from workers.catalog import Price
from workers.providers import Event, Provider, Reasoning, Speaker, Stop, Text, ToolCall, ToolInput, Usage
from workers.providers.anthropic import AnthropicProvider
from workers.providers.openai import OpenAIProvider
from workers.usage import Attempt, Meter, UsageReporter, counted

KEY = stream_key("acme", "g_1")
ATTEMPT = Attempt(KEY, "mark", 2, "ada")
ASKED = Asked("g_1", "acme", "ada", 400, "scripted", "story")


def heard(*events: Event) -> Meter:
    meter = Meter()
    meter.hear(events)
    return meter


def metered(text: int = 0, usage: Usage | None = None, stop: str = "") -> Meter:
    events: list[Event] = [Speaker("m")]
    if text:
        events.append(Text("x" * text))
    if usage is not None:
        events.append(usage)
    if stop:
        events.append(Stop(stop))
    return heard(*events)


@asynccontextmanager
async def reporting(broker: Broker, **options: Any) -> AsyncIterator[UsageReporter]:
    reporter = UsageReporter(broker, **options)
    running = asyncio.create_task(reporter.run())
    try:
        yield reporter
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def report(reporter: UsageReporter, number: int = 1, meter: Meter | None = None, outcome: Outcome = "failed") -> None:
    meter = meter or metered(8, Usage(10, 2), "stop")
    reporter.report(ATTEMPT, number, "scripted", "story", meter, outcome, prompt_bytes=400, started_ms=1)


async def rows_of(broker: Broker, count: int) -> list[UsageRow]:
    """The rows in Redis, once there are so many; each of them once, however often it was sent."""
    queue = UsageQueue(broker.connections.control)

    async def are_there() -> bool:
        try:
            return await queue.waiting() >= count
        except Exception:  # the test took Redis away
            return False

    await eventually(are_there, f"{count} rows")
    await queue.ensure()
    return list({row.id: row for _, row in await queue.take("test", 10_000)}.values())


# -- counting


def test_everything_that_a_model_writes_is_counted_in_bytes() -> None:
    meter = heard(
        Speaker("m"), Reasoning("hm"), Text("né"), ToolCall("c", "look"), ToolInput("c", "{}"), Text("\ud83d"),
    )  # fmt: skip
    assert meter.said == 2 + 3 + 4 + 2 + 1
    assert meter.was_answered and not meter.has_ended


@pytest.mark.parametrize(
    ("meter", "outcome", "expected", "is_estimated"),
    [
        (metered(8, Usage(7, 3, 1, 2), "stop"), "completed", Usage(7, 3, 1, 2), False),
        (metered(0, Usage(7, 0), "refusal"), "completed", Usage(7, 0), False),
        (metered(8, None, "stop"), "completed", Usage(100, 2), True),  # a server that does not report
        (metered(8, Usage(), "stop"), "completed", Usage(100, 2), True),  # or reports nothing
        (metered(9, Usage(95, 1), ""), "cancelled", Usage(95, 3), True),  # what came first is no end
        (metered(8, Usage(95, 50), ""), "failed", Usage(95, 50), True),
        (metered(0), "failed", Usage(100, 0), True),  # it began to answer
        (Meter(), "cancelled", Usage(100, 0), True),  # nobody waited for its word
        (Meter(), "superseded", Usage(100, 0), True),
        (Meter(), "failed", Usage(), False),  # refused, or never reached
    ],
)
def test_what_is_reported_is_the_truth_and_the_rest_an_estimate_that_says_so(
    meter: Meter, outcome: Outcome, expected: Usage, is_estimated: bool
) -> None:
    assert counted("anthropic", meter, outcome, 400) == (expected, is_estimated)


def test_the_fallback_used_nothing_whatever_it_wrote() -> None:
    for stop in ("stop", ""):
        assert counted("fallback", metered(80, None, stop), "cancelled", 400) == (Usage(), False)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("stop", "completed"), ("tool", "completed"), ("length", "truncated"), ("filter", "failed"), ("", "superseded")],
)
def test_a_call_s_outcome_is_the_provider_s_word_or_ours(stop: str, expected: str) -> None:
    assert metered(1, None, stop).outcome("superseded") == expected


# -- a call, from asking to its row


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as fake:
        for name, url in (("ANTHROPIC", fake.base_url_anthropic), ("OPENAI", fake.base_url_openai)):
            monkeypatch.setenv(f"{name}_API_KEY", "key")
            monkeypatch.setenv(f"{name}_BASE_URL", url)
        yield fake


MADE: list[tuple[Callable[[], Provider], str, dict[str, Any], dict[str, int]]] = [
    (
        AnthropicProvider,
        "claude-haiku-5-5",
        {"input_tokens": 500, "cache_creation_input_tokens": 2000, "cache_read_input_tokens": 10_000},
        {"input_tokens": 12_500, "cache_read_tokens": 10_000, "cache_write_tokens": 2000, "output_tokens": 40},
    ),
    (
        OpenAIProvider,
        "gpt-6-luna",
        {"prompt_tokens": 3000, "prompt_tokens_details": {"cached_tokens": 1024}},
        {"input_tokens": 3000, "cache_read_tokens": 1024, "output_tokens": 40},
    ),
]


async def listen(reporter: UsageReporter, provider: Provider, model: str, upto: int) -> list[Event]:
    """One call, until so many pieces of text came."""
    call = reporter.call(ATTEMPT, 1, provider.name, model, 400)
    said: list[Event] = []
    try:
        body = Body([Message("user", "why")])
        async with aclosing(provider.stream(model, body)) as stream:
            async for events in stream:
                said += call.hear(events)
                if sum(type(event) is Text for event in said) >= upto:
                    break
    finally:
        call.end("cancelled")
    return said


@pytest.mark.parametrize(("make", "model", "usage", "priced"), MADE)
async def test_a_call_costs_what_the_library_makes_of_the_provider_s_figures(
    broker: Broker, fake: FakeProvider, make: Callable[[], Provider], model: str, usage: dict[str, Any],
    priced: dict[str, int],
) -> None:  # fmt: skip
    await asyncio.to_thread(pricing.load)
    fake.default = Script(tokens=40, usage=usage)
    provider = make()
    async with reporting(broker) as reporter:
        said = await listen(reporter, provider, model, 1000)
        [row] = await rows_of(broker, 1)
    await provider.close()  # type: ignore[attr-defined]
    expected = float(calc_price(Priced(**priced), model_ref=model, provider_id=provider.name).total_price)
    assert row.cost_nanos == pytest.approx(expected * 1e9, rel=0.001)
    assert (row.input_tokens, row.output_tokens, row.estimated) == (priced["input_tokens"], 40, False)
    assert (row.id, row.org, row.user, row.attempt, row.outcome) == ("g_1/mark/1", "acme", "ada", 2, "completed")
    assert 0 < row.started_ms <= row.ended_ms
    told = [event.cost_usd for event in said if isinstance(event, Usage)]
    assert told[-1] == pytest.approx(expected, rel=0.001) and isinstance(said[-1], Stop)


@pytest.mark.parametrize(("make", "model", "usage", "priced"), MADE)
async def test_a_call_that_nobody_waits_for_is_estimated_and_marked(
    broker: Broker, fake: FakeProvider, make: Callable[[], Provider], model: str, usage: dict[str, Any],
    priced: dict[str, int],
) -> None:  # fmt: skip
    fake.default = Script(tokens=4000, size=4, gap_s=0.002, usage=usage)
    provider = make()
    async with reporting(broker) as reporter:
        said = await listen(reporter, provider, model, 20)
        [row] = await rows_of(broker, 1)
    await provider.close()  # type: ignore[attr-defined]
    pieces = sum(type(event) is Text for event in said)
    assert (row.outcome, row.estimated, row.output_tokens) == ("cancelled", True, pieces)  # four bytes each
    assert row.input_tokens == (priced["input_tokens"] if provider.name == "anthropic" else 100)
    assert row.cost_nanos is not None and row.cost_nanos > 0


async def test_a_call_is_reported_once_and_before_its_end_goes_on(broker: Broker) -> None:
    reporter = UsageReporter(broker)
    call = reporter.call(ATTEMPT, 1, "scripted", "story", 400)
    call.hear([Text("four")])
    assert reporter.waiting == 0
    call.hear([Usage(10, 1), Stop("stop")])
    assert reporter.waiting == 1
    call.end("failed")
    assert reporter.waiting == 1
    await reporter.flush(5)


async def test_figures_that_came_before_the_end_are_told_again_with_their_cost(broker: Broker) -> None:
    reporter = UsageReporter(broker, lambda provider, model: Price(input=1, output=2))
    call = reporter.call(ATTEMPT, 1, "own", "llama", 400)
    figures = Usage(1_000_000, 500_000)
    call.hear([figures])
    assert call.hear([Text("x"), Stop("stop")]) == [Text("x"), Usage(1_000_000, 500_000, cost_usd=2.0), Stop("stop")]


async def test_rows_travel_with_the_end_of_their_answer_and_by_themselves_when_it_does_not_come(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "GRACE_S", 60.0)
    async with reporting(broker) as reporter:
        report(reporter, 1)
        report(reporter, 2)
        assert [row.id for row in reporter.unsent(KEY)] == ["g_1/mark/1", "g_1/mark/2"]
        assert reporter.unsent(stream_key("acme", "g_2")) == []
        reporter.sent(reporter.unsent(KEY)[:1])
        assert [row.id for row in reporter.unsent(KEY)] == ["g_1/mark/2"]
        report(reporter, 3, metered(4), "cancelled")  # its end is on its way already: all go now
        assert {row.id[-1] for row in await rows_of(broker, 2)} == {"2", "3"}
        assert reporter.unsent(KEY) == []


# -- to Redis


async def test_rows_wait_for_redis_and_go_once_it_is_back(logs: pytest.LogCaptureFixture) -> None:
    with EmbeddedRedis() as server:
        broker = Broker.connect(server.url, BrokerSettings())
        async with reporting(broker) as reporter:
            await asyncio.to_thread(server.kill)
            for number in range(1, 301):
                report(reporter, number)
            await eventually(lambda: "usage waits for redis" in logs.text)
            await asyncio.to_thread(server.restart)
            assert len(await rows_of(broker, 300)) == 300
            await eventually(lambda: reporter.waiting == 0)
        assert logs.text.count("usage waits for redis") == 1
        await broker.close()


async def test_beyond_the_bound_the_oldest_rows_go_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, logs: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(usage_module, "ROWS", 3)
    with EmbeddedRedis() as server:
        broker = Broker.connect(server.url, BrokerSettings())
        async with reporting(broker) as reporter:
            await asyncio.to_thread(server.kill)
            for number in range(1, 6):
                report(reporter, number)
            await eventually(lambda: "usage waits for redis" in logs.text)
            assert reporter.waiting == 3
            await asyncio.to_thread(server.restart)
            assert [row.id[-1] for row in await rows_of(broker, 3)] == ["3", "4", "5"]
            await eventually(lambda: "'calls': 2" in logs.text or "calls=2" in logs.text)
        await broker.close()


async def test_a_worker_that_leaves_sends_what_it_has_and_says_what_it_could_not(
    broker: Broker, logs: pytest.LogCaptureFixture
) -> None:
    reporter = UsageReporter(broker)
    report(reporter)
    await reporter.flush(5)
    assert len(await rows_of(broker, 1)) == 1
    nowhere = Broker.connect("redis://127.0.0.1:1", BrokerSettings())
    reporter = UsageReporter(nowhere)
    report(reporter)
    await reporter.flush(5)
    assert "usage of some calls is lost" in logs.text
    await nowhere.close()


# -- a worker, whatever becomes of it


async def test_a_killed_worker_s_call_has_its_row_and_so_has_the_next_one(
    broker: Broker, redis_url: str, start_worker: StartWorker
) -> None:
    async with listening(broker) as listener:
        with worker_process(redis_url, **SHORT) as process:
            key = await ask(broker, "scripted/tokens=60,rate=50", on_abandon="continue")
            await listener.attach(key, 1000)
            await speaking(broker, key, 5)
            await start_worker(**SHORT)
            process.kill()
            await ending(broker, key)
    lost, completed = sorted(await rows_of(broker, 2), key=lambda row: row.attempt)
    assert (lost.outcome, lost.estimated, lost.attempt, lost.user, lost.org) == ("lost", True, 1, "alice", "org")
    assert lost.output_tokens >= 5 and (lost.provider, lost.model) == ("scripted", "tokens=60,rate=50")
    assert (completed.outcome, completed.estimated, completed.output_tokens) == ("completed", False, 60)
    assert lost.id.split("/")[1] != completed.id.split("/")[1]


async def test_an_answer_whose_end_is_in_the_log_has_its_row_in_redis(
    broker: Broker, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "GRACE_S", 60.0)
    worker = await start_worker()
    key = await ask(broker, "scripted/tokens=5,rate=0")
    await ending(broker, key)
    assert await UsageQueue(broker.connections.control).waiting() == 1
    await eventually(lambda: worker.usage.waiting == 0)


async def test_what_is_cancelled_is_counted_as_far_as_it_came(broker: Broker, start_worker: StartWorker) -> None:
    await start_worker()
    async with listening(broker) as listener:
        key = await ask(broker, ENDLESS)
        await listener.attach(key, 1000)
        await speaking(broker, key, 5)
        owner = (await broker.connections.control.hget(keys.meta(key), "owner")).decode()
        await listener.tell(owner, Wish(key, 1000, cancel=True))
        await ending(broker, key)
        [row] = await rows_of(broker, 1)
    assert (row.outcome, row.estimated) == ("cancelled", True) and row.output_tokens >= 5


async def test_a_worker_that_leaves_has_told_of_what_it_hands_on(broker: Broker, redis_url: str) -> None:
    async with listening(broker) as listener:
        async with running_worker(redis_url) as worker:
            key = await ask(broker, ENDLESS, on_abandon="continue")
            await listener.attach(key, 1000)
            await speaking(broker, key, 5)
            worker.stop()
            worker.stop()
        [row] = await rows_of(broker, 1)
    assert (row.outcome, row.estimated) == ("superseded", True)


# -- lost attempts


async def make_log(broker: Broker, entries: Sequence[tuple[str, bytes]]) -> None:
    for number, (kind, data) in enumerate(entries, 1):
        await broker.connections.control.xadd(f"hr:{{{KEY}}}:log", {"k": kind, "d": data}, id=f"{number}-0")


async def test_a_lost_attempt_is_told_by_whoever_took_over_and_counts_once_with_its_own_report(broker: Broker) -> None:
    source = ("source", encode_data(kinds.Source("scripted", "story", "live")))
    await make_log(
        broker,
        [("queued", b"\x80"), ("started", encode_data(kinds.Started(2))), source, *[("text", b"four")] * 1500]
        + [("started", encode_data(kinds.Started(3))), source, ("text", b"mine")],
    )
    runs = MarkRuns.parse("1:hub 2:mark 1504:next")
    async with reporting(broker) as reporter:
        reporter.lost(KEY, runs, "next", 1504, ASKED)
        [row] = await rows_of(broker, 1)
        assert (row.id, row.outcome, row.output_tokens, row.input_tokens) == ("g_1/mark/1", "lost", 1500, 100)
        report(reporter, 1, metered(6000), "superseded")
        [own] = await rows_of(broker, 2)
    assert own.id == row.id and own.output_tokens == row.output_tokens


async def test_a_log_that_cannot_be_read_keeps_nobody_else_s_rows(
    broker: Broker, logs: pytest.LogCaptureFixture
) -> None:
    await broker.connections.control.xadd(f"hr:{{{KEY}}}:log", {"other": "fields"}, id="1-0")
    async with reporting(broker) as reporter:
        reporter.lost(KEY, MarkRuns.parse("1:mark 2:next"), "next", 2, ASKED)
        report(reporter)
        await rows_of(broker, 1)
        await eventually(lambda: reporter.waiting == 0)
        report(reporter, 2)
        await rows_of(broker, 2)
    assert "a lost attempt cannot be counted" in logs.text


async def test_a_first_attempt_has_none_before_it(broker: Broker) -> None:
    reporter = UsageReporter(broker)
    reporter.lost(KEY, MarkRuns.parse("1:mark"), "mark", 1, ASKED)
    assert reporter.waiting == 0


async def test_whoever_reads_a_lost_answer_to_its_end_knows_better_than_its_log(broker: Broker) -> None:
    """The log is still being read when the answer that was read on ends."""
    entries = [("queued", b"\x80"), ("started", encode_data(kinds.Started(1))), ("text", b"four")]
    await make_log(broker, [*entries, ("started", encode_data(kinds.Started(2)))])
    reporter = UsageReporter(broker)
    reporter.lost(KEY, MarkRuns.parse("1:hub 2:mark 4:next"), "next", 4, ASKED, ["mark/1"])
    reading = asyncio.create_task(reporter.flush(5))
    await asyncio.sleep(0)  # it waits for Redis now
    report(reporter, 1, metered(6000), "completed")
    await reading
    assert {(row.id, row.outcome) for row in await rows_of(broker, 1)} == {("g_1/mark/1", "completed")}
