"""A worker dies, hangs, or loses Redis: its answers go on elsewhere, and viewers are told what becomes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
import pytest

from headrace.protocol.body import Body, Options
from headrace.protocol.entries import Entry, Queued, Started, ToolCall, decode_data, encode_data
from headrace.protocol.frames import Message
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.embedded import EmbeddedRedis
from hub.broker.keys import StreamKey, stream_key
from hub.broker.log import SCRIPTS
from tests.conftest import StartHub, StartWorker
from tests.fakes import FakeProvider, Script
from tests.faults.redis_proxy import RedisProxy, delay_command
from tests.installation import RunningHub, question, running_worker
from tests.integration.viewer import Screen, Viewer, pieces
from tests.workers.listener import ask, ending, eventually, kinds, log_of, text
from tests.workers.process import WorkerProcess
from workers.providers.continuation import GO_ON
from workers.providers.registry import Providers
from workers.worker import Worker

pytestmark = pytest.mark.timeout(120)  # a process takes a second to start, and ten on a busy machine

#: Leases that a test can wait for and a busy machine can keep.
SHORT: dict[str, Any] = {"lease_s": 2.5, "lease_grace_s": 0.3, "janitor_interval_s": 0.1}
#: Of the fakes' models, one that takes the beginning of its answer.
TAKES_PREFIX = "anthropic/claude-haiku-4-5"
#: The promise about a lost worker (protocol §9, 6).
TOLD_WITHIN_S = 10.0


@pytest.fixture
async def fake() -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as fake:
        yield fake


Successor = Callable[[], AbstractAsyncContextManager[Worker]]


@pytest.fixture
def successor(redis_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> Successor:
    """A worker in the test's own process, where the SDKs are loaded already, that asks the fake."""
    for name, url in (("ANTHROPIC", fake.base_url_anthropic), ("OPENAI", fake.base_url_openai)):
        monkeypatch.setenv(f"{name}_API_KEY", "key")
        monkeypatch.setenv(f"{name}_BASE_URL", url)

    @asynccontextmanager
    async def start() -> AsyncIterator[Worker]:
        providers = Providers(frozenset({"anthropic", "openai"}))
        try:
            async with running_worker(redis_url, providers=providers, **SHORT) as worker:
                yield worker
        finally:
            await providers.close()

    return start


@pytest.fixture
async def proxy(broker: Broker, redis_server: EmbeddedRedis) -> AsyncIterator[RedisProxy]:
    """Between one worker and Redis, and nobody else."""
    names = {(await broker.connections.control.script_load(script)).lower(): name for name, script in SCRIPTS.items()}
    target = redis_server.url.removeprefix("unix://")
    async with RedisProxy(target, scripts=names) as proxy:
        yield proxy


async def attempts(broker: Broker, key: StreamKey) -> list[dict[str, Any]]:
    """What `started` said, attempt by attempt."""
    return [decode_data(*entry) for entry in await log_of(broker, key) if entry[0] == "started"]


async def says(broker: Broker, key: StreamKey, words: str) -> list[Entry]:
    async def spoke() -> list[Entry]:
        entries = await log_of(broker, key)
        return entries if words in text(entries) else []

    return await eventually(spoke, f"“{words}”")  # type: ignore[no-any-return]


async def generate(viewer: Viewer, request: str, model: str, **options: Any) -> Screen:
    await viewer.wire.send(question(request, model=model, window=None, **options))
    return viewer.show(await viewer.reply(request))


# -- killed ---------------------------------------------------------------------------------------------------


async def test_viewers_of_a_killed_worker_see_its_answers_go_on_within_ten_seconds(
    hub: RunningHub, redis_url: str
) -> None:
    """With the leases as they are delivered. A third of the answers by each rule; nothing is lost or doubled."""
    viewer = Viewer(await hub.join())
    rules = ["restart", "continue", "fail"]
    async with WorkerProcess(redis_url) as doomed:
        model = "scripted/tokens=60,rate=20"
        screens = [await generate(viewer, f"r{n}", model, on_worker_loss=rules[n % 3]) for n in range(30)]
        await viewer.until(lambda: all(len(screen.text) >= 25 for screen in screens))
        doomed.kill()
        killed_at = time.monotonic()
    shown: dict[int, float] = {}

    def note_news() -> bool:
        for number, screen in enumerate(screens):
            if screen.kinds.count("started") == 2 or screen.done is not None:
                shown.setdefault(number, time.monotonic() - killed_at)
        return all(screen.is_over for screen in screens)

    async with WorkerProcess(redis_url):
        assert not any(screen.is_over for screen in screens)
        await viewer.until(note_news)
    assert len(shown) == len(screens)
    assert max(shown.values()) <= TOLD_WITHIN_S, f"taken over after {max(shown.values()):.1f} s"
    for number, screen in enumerate(screens):
        assert screen.done is not None
        assert screen.told == (["reset"] if rules[number % 3] == "restart" else [])
        if rules[number % 3] == "fail":
            assert screen.done["error"]["code"] == "worker_lost" and screen.done["retry_token"]
            assert pieces(60).startswith(screen.text) and len(screen.text) >= 25
        else:
            assert (screen.done["status"], screen.text) == ("completed", pieces(60))


@pytest.mark.parametrize("after", [1, 7])
async def test_an_answer_that_continues_is_gone_on_with_as_often_as_its_worker_dies(
    start_hub: StartHub, redis_url: str, after: int
) -> None:
    hub = await start_hub(**SHORT)
    viewer = Viewer(await hub.join())
    async with WorkerProcess(redis_url, **SHORT) as first:
        screen = await generate(viewer, "r", "scripted/tokens=60,rate=30", on_worker_loss="continue")
        await viewer.see(screen, after)
        first.kill()
    async with WorkerProcess(redis_url, **SHORT) as second:
        await viewer.until(lambda: screen.kinds.count("started") == 2)
        await viewer.see(screen, len(screen.text) // 5 + after)
        second.kill()
    async with WorkerProcess(redis_url, **SHORT):
        await viewer.watch(screen)
    assert screen.done is not None and screen.done["status"] == "completed"
    assert (screen.text, screen.told) == (pieces(60), [])
    assert (screen.kinds.count("started"), screen.kinds.count("notice")) == (3, 2)
    at = [index for index, kind in enumerate(screen.kinds) if kind == "started"]
    assert all(screen.kinds[index + 1 : index + 3] == ["notice", "source"] for index in at[1:])


async def test_a_worker_killed_between_its_claim_and_the_first_entry_costs_a_silent_start(
    broker: Broker, proxy: RedisProxy, redis_url: str, start_worker: StartWorker
) -> None:
    async with WorkerProcess(proxy.url, **SHORT) as doomed:
        proxy.decide = lambda call: delay_command(60) if call.name == "append" else None
        key = await ask(broker, "scripted/tokens=5,rate=0", on_abandon="continue")
        await eventually(lambda: proxy.counts["append"], "the first append")
        doomed.kill()
        assert kinds(await log_of(broker, key)) == ["queued"]
        await start_worker(**SHORT)
        entries, done = await ending(broker, key)
    assert kinds(entries) == ["queued", "started", "source", "text", "usage", "done"]
    assert (await attempts(broker, key), done["status"]) == ([{"attempt": 2}], "completed")


async def test_a_worker_killed_after_done_and_before_it_dropped_the_ticket_asks_nobody_twice(
    broker: Broker, proxy: RedisProxy, redis_url: str, start_worker: StartWorker, fake: FakeProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("hub.broker.lanes.STRANDED_MS", 50)
    monkeypatch.setattr("workers.intake.STRANDED_EVERY_S", 0.05)
    async with WorkerProcess(proxy.url, fake, **SHORT) as doomed:
        proxy.decide = lambda call: delay_command(60) if call.name == "XACK" else None
        key = await ask(broker, TAKES_PREFIX, on_abandon="continue")
        before, _ = await ending(broker, key)
        assert proxy.counts["XACK"] == 1, "the ticket was dropped before the worker died"
        doomed.kill()
        await start_worker(**SHORT)

        async def is_empty() -> bool:
            return not any((await broker.lanes.depths(["standard", keys.TAKEOVER_LANE])).values())

        await eventually(is_empty, "the empty lanes")
    assert await log_of(broker, key) == before and len(fake.records) == 1


# -- hung -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["restart", "continue"])
async def test_a_worker_that_wakes_up_too_late_writes_nothing_and_leaves_its_provider(
    broker: Broker, redis_url: str, fake: FakeProvider, successor: Successor, rule: str
) -> None:
    fake.queue.append(Script(texts=[f"first {n} " for n in range(2000)], gap_s=0.01))
    fake.queue.append(Script(texts=[f"second {n} " for n in range(100)], gap_s=0.02))
    async with WorkerProcess(redis_url, fake, **SHORT) as zombie:
        key = await ask(broker, TAKES_PREFIX, on_abandon="continue", on_worker_loss=rule)
        await says(broker, key, "first 9 ")
        zombie.stop()
        async with successor():
            await says(broker, key, "second 9 ")
            woke_at = time.monotonic()
            zombie.go_on()
            record = fake.records[0]
            async with asyncio.timeout(5):
                await record.gone.wait()
            assert record.gone_at is not None and record.gone_at - woke_at <= 1.0
            assert record.tokens_after(record.gone_at) == 0
            await zombie.logged("generation lost")
            entries, done = await ending(broker, key)
    start = len(kinds_of(entries)) - kinds_of(entries)[::-1].index("started")
    assert text(entries[start:]) == "".join(f"second {n} " for n in range(100)), "two workers in one text"
    assert "second" not in text(entries[:start]) and done["status"] == "completed"
    assert ("reset" in kinds(entries)) == (rule == "restart")


def kinds_of(entries: list[Entry]) -> list[str]:
    return [kind for kind, _ in entries]


# -- without Redis --------------------------------------------------------------------------------------------


async def test_a_worker_alone_without_redis_for_less_than_its_lease_goes_on(
    broker: Broker, proxy: RedisProxy, fake: FakeProvider
) -> None:
    fake.queue.append(Script(tokens=150, gap_s=0.02))
    async with WorkerProcess(proxy.url, fake, lease_s=8.0) as worker:
        key = await ask(broker, TAKES_PREFIX, on_abandon="continue")
        await says(broker, key, "0009 ")
        proxy.refuse()
        proxy.reset()
        await worker.logged("out of reach")
        await asyncio.sleep(1.0)  # the outage itself
        proxy.refuse(False)
        entries, done = await ending(broker, key)
    assert (done["status"], text(entries)) == ("completed", pieces(150))
    assert kinds(entries).count("started") == 1 and len(fake.records) == 1


async def test_a_worker_without_redis_for_longer_is_replaced_and_closes_its_provider_when_it_hears_so(
    broker: Broker, proxy: RedisProxy, fake: FakeProvider, successor: Successor
) -> None:
    fake.queue.append(Script(texts=[f"first {n} " for n in range(3000)], gap_s=0.01))
    fake.queue.append(Script(texts=[f"second {n} " for n in range(30)], gap_s=0.01))
    async with WorkerProcess(proxy.url, fake, **SHORT) as alone:
        key = await ask(broker, TAKES_PREFIX, on_abandon="continue")
        await says(broker, key, "first 9 ")
        proxy.refuse()
        proxy.reset()
        async with successor():
            entries, done = await ending(broker, key)
        record = fake.records[0]
        assert record.gone_at is None, "its socket stays while nobody told it that it was replaced"
        proxy.refuse(False)
        healed_at = time.monotonic()
        async with asyncio.timeout(10):
            await record.gone.wait()
        assert record.gone_at is not None and record.tokens_after(record.gone_at) == 0
        await alone.logged("generation lost")
        assert record.gone_at - healed_at < 3.0, "the worker looks for Redis once a second"
    assert done["status"] == "completed" and (await log_of(broker, key)) == entries
    start = len(kinds_of(entries)) - kinds_of(entries)[::-1].index("reset")
    assert text(entries[start:]) == "".join(f"second {n} " for n in range(30))


# -- going on with a real provider ----------------------------------------------------------------------------


async def left_behind(broker: Broker, model: str, *content: Entry) -> StreamKey:
    """An answer that is to be continued, as a worker handed it back."""
    key = stream_key("org", "g_left")
    body = Body([Message("user", "Why is the sky blue?")], model=model)
    await broker.log.create(
        key, mark="m0", queued=encode_data(Queued(model)), user="alice", request=msgspec.msgpack.encode(body),
        options=msgspec.msgpack.encode(Options("continue", on_worker_loss="continue")), lane="standard", ttl_ms=60_000,
    )  # fmt: skip
    await broker.log.claim(key, mark="m1", owner="w0", lease_ms=60_000, ttl_ms=60_000)
    await broker.log.append(key, "m1", 2, [("started", encode_data(Started(1))), *content], shown="c")
    assert await broker.log.release(key, "m1")
    await broker.lanes.add(keys.TAKEOVER_LANE, key)
    return key


async def test_a_model_that_repeats_itself_on_going_on_is_shown_once(
    broker: Broker, fake: FakeProvider, successor: Successor
) -> None:
    told = "Light of short waves is scattered by the air itself"
    fake.by_prompt[GO_ON] = Script(texts=["is scattered by", " the air itself", ", so the sky", " is blue."])
    key = await left_behind(broker, "openai/gpt-6-luna", ("text", told.encode()))
    async with successor():
        entries, done = await ending(broker, key)
    assert (text(entries), done["status"]) == (told + ", so the sky is blue.", "completed")
    assert kinds(entries) == ["queued", "started", "text", "started", "notice", "source", "text", "usage", "done"]


async def test_a_provider_that_refuses_to_go_on_is_asked_anew_and_viewers_are_told(
    broker: Broker, fake: FakeProvider, successor: Successor
) -> None:
    fake.queue.append(Script(status=400, error={"type": "invalid_request_error", "message": "no prefill"}))
    fake.queue.append(Script(texts=["a whole answer"]))
    key = await left_behind(broker, TAKES_PREFIX, ("text", b"half an answer"))
    async with successor():
        entries, done = await ending(broker, key)
    assert kinds(entries)[2:6] == ["text", "started", "notice", "reset"]
    assert (done["status"], done["text_bytes"]) == ("completed", len("a whole answer"))
    assert [len(record.body["messages"]) for record in fake.records] == [2, 1]


@pytest.mark.parametrize(
    "content",
    [[("text", b"a"), ("reasoning", b"hm")], [("text", b"a"), ("tool_call", encode_data(ToolCall("t1", "search")))]],
)
async def test_inside_of_reasoning_or_a_tool_call_it_is_always_over_again(
    broker: Broker, fake: FakeProvider, successor: Successor, content: list[Entry]
) -> None:
    fake.queue.append(Script(texts=["anew"]))
    key = await left_behind(broker, TAKES_PREFIX, *content)
    async with successor():
        entries, done = await ending(broker, key)
    assert "reset" in kinds(entries) and done["text_bytes"] == len("anew")
    assert len(fake.last.body["messages"]) == 1
