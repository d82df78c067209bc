"""A worker against a real server: what it logs, relays, obeys and hands on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest

from headrace.protocol.body import Body, Options
from headrace.protocol.entries import Queued, Started, decode_data, encode_data
from headrace.protocol.frames import Message
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.keys import TAKEOVER_LANE, StreamKey, stream_key
from hub.broker.mailbox import Wish
from hub.broker.usage import UsageQueue
from tests.conftest import StartWorker
from tests.installation import at_work
from tests.workers.listener import Listener, ask, ending, eventually, kinds, listening, log_of, text
from workers.breakers import Breakers
from workers.providers import Event, Provider, Text
from workers.providers.registry import Providers
from workers.providers.scripted import ScriptedProvider
from workers.settings import WorkerSettings
from workers.upstream import Upstream
from workers.worker import Worker

#: A slow answer that ends long after its test.
ENDLESS = "scripted/tokens=100000,rate=50"


@pytest.fixture
async def listener(broker: Broker) -> AsyncIterator[Listener]:
    async with listening(broker) as listener:
        yield listener


class Watched(ScriptedProvider):
    """The scripted provider, how many of its streams are open, and how many were read to their end."""

    def __init__(self) -> None:
        self.calls = 0
        self.open = 0
        self.read_out = 0
        #: How long the body takes to end after the last event.
        self.lingers_s = 0.0

    async def stream(self, model: str, body: Body, kept: str = "") -> AsyncGenerator[list[Event], None]:
        self.calls += 1
        self.open += 1
        try:
            async with aclosing(super().stream(model, body, kept)) as events:
                async for some in events:
                    yield some
            await asyncio.sleep(self.lingers_s)
            self.read_out += 1
        finally:
            self.open -= 1


@asynccontextmanager
async def watched_worker(broker: Broker, url: str, **settings: Any) -> AsyncIterator[tuple[Worker, Watched]]:
    """A worker over the test's own broker, whose provider can be looked at."""
    provider = Watched()
    async with worker_with(broker, url, provider, **settings) as worker:
        yield worker, provider


@asynccontextmanager
async def worker_with(broker: Broker, url: str, scripted: Provider, **settings: Any) -> AsyncIterator[Worker]:
    """A worker over the test's own broker, with another provider under the name of the scripted one."""
    providers = Providers(frozenset({"fallback"}), made={"scripted": scripted})
    configured = WorkerSettings(redis_url=url, **({"drain_timeout_s": 0.0} | settings))
    async with at_work(Worker(configured, broker, providers)) as worker:
        yield worker


async def speaking(broker: Broker, key: StreamKey, tokens: int = 1) -> str:
    """Wait for text in the log; returns the owner."""

    async def spoke() -> bool:
        return len(text(await log_of(broker, key))) >= 5 * tokens

    await eventually(spoke, "the first words")
    [standing] = await broker.log.standings([key])
    assert standing is not None
    return standing.owner


# -- an answer


async def test_an_answer_is_logged_from_queued_to_done(broker: Broker, worker: Worker) -> None:
    key = await ask(broker, "scripted/tokens=20,rate=0", on_abandon="continue")
    entries, done = await ending(broker, key)
    assert kinds(entries) == ["queued", "started", "source", "text", "usage", "done"]
    assert text(entries) == "".join(f"{number:04d} " for number in range(20))
    assert (done["status"], done["stop_reason"]) == ("completed", "stop")
    assert await broker.lanes.depths(["standard", TAKEOVER_LANE]) == {"standard": 0, TAKEOVER_LANE: 0}


async def test_what_is_logged_is_relayed_to_every_hub_that_watches(
    broker: Broker, worker: Worker, listener: Listener
) -> None:
    async with listening(broker) as other:
        key = await ask(broker, "scripted/tokens=40,rate=100")
        await listener.attach(key, 500)
        await other.attach(key, 500)
        entries, _ = await ending(broker, key)
        for hub in (listener, other):
            await eventually(lambda hub=hub: hub.has_done(key), "the relay of done")  # type: ignore[misc]
            for offset, entry in hub.entries[key].items():
                assert entries[offset - 1] == entry
            missing = set(range(1, len(entries) + 1)) - set(hub.entries[key])
            answered = [part.first for packet in hub.packets for part in packet.parts if not part.entries]
            assert missing == set(range(1, max([*answered, 1]))) or not missing


async def test_an_unknown_model_ends_the_answer_and_says_what_could_be_asked(broker: Broker, worker: Worker) -> None:
    _, done = await ending(broker, await ask(broker, "nobody/knows"))
    assert done["status"] == "failed" and done["error"]["retry"] == "no" and "nobody" in done["error"]["message"]


async def test_a_failing_provider_ends_the_answer_with_its_text_kept(broker: Broker, worker: Worker) -> None:
    key = await ask(broker, "scripted/tokens=9,rate=0,fail_after=3,code=provider_overloaded")
    entries, done = await ending(broker, key)
    assert done["error"]["code"] == "provider_overloaded" and done["text_bytes"] == 15 and done["retry_token"]
    assert kinds(entries)[-2:] == ["text", "done"]


class Broken(ScriptedProvider):
    """Breaks its promises: ends without a Stop, or with an error that is none of a provider's."""

    async def stream(self, model: str, body: Body, kept: str = "") -> AsyncGenerator[list[Event], None]:
        yield [Text("half ")]
        if model == "raises":
            raise LookupError("a defect")


@pytest.mark.parametrize(("model", "code"), [("ends", "provider_error"), ("raises", "internal")])
async def test_a_provider_that_breaks_its_promises_costs_its_own_answer_only(
    broker: Broker, redis_url: str, model: str, code: str
) -> None:
    async with worker_with(broker, redis_url, Broken()):
        _, done = await ending(broker, await ask(broker, f"scripted/{model}", "r1"))
        assert (done["status"], done["error"]["code"], done["text_bytes"]) == ("failed", code, 5)
        _, done = await ending(broker, await ask(broker, "fallback/", "r2"))
        assert done["status"] == "completed"


async def test_a_defect_is_no_news_about_the_provider(
    broker: Broker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither failed nor succeeded: a breaker that tries it is not closed by that."""
    told: list[str] = []
    monkeypatch.setattr(Breakers, "ended", lambda self, candidate, *what: told.append(candidate.model))
    async with worker_with(broker, redis_url, Broken()):
        for model in ("raises", "ends"):
            await ending(broker, await ask(broker, f"scripted/{model}", model))
    assert set(told) == {"ends"}


async def test_a_call_is_counted_whatever_goes_wrong_at_its_end(
    broker: Broker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(upstream: Upstream, error: BaseException | None) -> None:
        raise LookupError("a defect")

    monkeypatch.setattr(Upstream, "end", breaks)
    async with watched_worker(broker, redis_url):
        await ending(broker, await ask(broker, "scripted/tokens=3,rate=0,fail_after=2"))
        await eventually(UsageQueue(broker.connections.control).waiting, "the row")


async def test_a_provider_that_had_its_last_word_is_not_cut_off(broker: Broker, redis_url: str) -> None:
    async with watched_worker(broker, redis_url) as (_, provider):
        provider.lingers_s = 0.2
        await ending(broker, await ask(broker, "scripted/tokens=3,rate=0"))
        await eventually(lambda: provider.open == 0, "the end of the body")
        assert provider.read_out == 1


async def test_many_answers_run_at_once_and_none_disturbs_another(broker: Broker, worker: Worker) -> None:
    asked = [await ask(broker, f"scripted/tokens=30,rate=200,size={5 + n % 3}", f"r{n}") for n in range(60)]
    for key in asked:
        entries, done = await ending(broker, key)
        assert done["status"] == "completed" and len([kind for kind, _ in entries if kind == "done"]) == 1


# -- cancel, abandon, flow


async def test_a_cancel_ends_the_answer_and_closes_the_provider_within_a_second(
    broker: Broker, redis_url: str, listener: Listener
) -> None:
    async with watched_worker(broker, redis_url) as (_, provider):
        key = await ask(broker, "scripted/tokens=9,rate=0,stall_after=2")
        await listener.attach(key, 500)
        await speaking(broker, key, 2)
        assert provider.open == 1
        async with asyncio.timeout(1):
            outcome = await broker.log.cancel(key, user="alice", may_cancel=False, done=b"", ttl_ms=1000)
            await listener.tell(outcome.owner, Wish(key, 500, cancel=True))
            _, done = await ending(broker, key)
            await eventually(lambda: provider.open == 0, "the close of the provider")
    assert (done["status"], done["stop_reason"], done["text_bytes"]) == ("cancelled", "cancelled", 10)


async def test_a_cancel_of_which_no_hub_tells_is_found_with_the_lease(broker: Broker, worker: Worker) -> None:
    key = await ask(broker, "scripted/tokens=9,rate=0,stall_after=2")
    await speaking(broker, key, 2)
    await broker.log.cancel(key, user="alice", may_cancel=False, done=b"", ttl_ms=1000)
    _, done = await ending(broker, key)
    assert done["status"] == "cancelled"


async def test_an_answer_that_nobody_waits_for_is_ended(broker: Broker, worker: Worker, listener: Listener) -> None:
    key = await ask(broker, ENDLESS, abandon_after_ms=400)
    owner = await listener.attach(key, 500) or await speaking(broker, key)
    await speaking(broker, key, 3)
    await listener.tell(owner, Wish(key, 0))
    _, done = await ending(broker, key)
    assert (done["status"], done["stop_reason"]) == ("cancelled", "abandoned")


async def test_a_hub_whose_mailbox_is_gone_waits_for_nothing(broker: Broker, worker: Worker) -> None:
    async with listening(broker) as hub:
        key = await ask(broker, "scripted/tokens=9,rate=0,stall_after=2", abandon_after_ms=300)
        await hub.attach(key, 500)
        await speaking(broker, key, 2)
    _, done = await ending(broker, key)
    assert done["stop_reason"] == "abandoned"


async def test_a_request_abandoned_in_the_queue_ends_without_asking_the_provider(
    broker: Broker, redis_url: str
) -> None:
    async with listening(broker) as gone:
        key = await ask(broker, "scripted/tokens=9,rate=0", abandon_after_ms=20)
        await gone.attach(key, 500)
    await asyncio.sleep(0.03)  # the time that the request is abandoned for
    async with watched_worker(broker, redis_url) as (_, provider):
        entries, done = await ending(broker, key)
    assert (done["stop_reason"], provider.calls) == ("abandoned", 0)
    assert kinds(entries) == ["queued", "started", "done"]


async def test_a_detach_may_let_the_answer_run_to_its_end(broker: Broker, worker: Worker, listener: Listener) -> None:
    key = await ask(broker, "scripted/tokens=60,rate=50", abandon_after_ms=100)
    owner = await listener.attach(key, 500) or await speaking(broker, key)
    await listener.tell(owner, Wish(key, 0, on_abandon="continue"))
    _, done = await ending(broker, key)
    assert done["status"] == "completed"


async def test_the_provider_is_read_as_far_as_demand_and_run_ahead_allow(
    broker: Broker, start_worker: StartWorker, listener: Listener
) -> None:
    worker = await start_worker(run_ahead=10)
    key = await ask(broker, "scripted/tokens=400,rate=250")
    await listener.attach(key, 20)
    owner = await speaking(broker, key)
    await listener.tell(owner, Wish(key, 20, announce=True))
    run = worker.table.runs[key]
    await eventually(lambda: run.generation.logged >= 30, "the bound")
    assert not run.generation.may_read and run.generation.logged == 30
    assert len(await log_of(broker, key)) == 30
    await listener.tell(owner, Wish(key, 40))
    await eventually(lambda: run.generation.logged >= 50, "the next bound")
    assert len(await log_of(broker, key)) == 50
    await listener.tell(owner, Wish(key, 1000))
    _, done = await ending(broker, key)
    assert done["status"] == "completed"


# -- hubs


async def test_an_announcement_is_answered_and_nothing_after_it_is_missing(
    broker: Broker, worker: Worker, listener: Listener
) -> None:
    key = await ask(broker, "scripted/tokens=200,rate=400", on_abandon="continue")
    await speaking(broker, key, 20)
    await listener.attach(key, 1000)
    entries, _ = await ending(broker, key)
    await eventually(lambda: listener.has_done(key), "the relay of done")
    answer = next(part for packet in listener.packets for part in packet.parts if not part.entries)
    relayed = listener.entries[key]
    assert answer.first > 4  # under load, entries hold several tokens each
    assert set(range(answer.first, len(entries) + 1)) == {offset for offset in relayed if offset >= answer.first}
    assert all(entries[offset - 1] == entry for offset, entry in relayed.items())


async def test_a_stream_of_another_worker_is_disowned(broker: Broker, worker: Worker, listener: Listener) -> None:
    other = stream_key("org", "g_other")
    await listener.tell(worker.appender.sender, Wish(other, 5, announce=True))
    await eventually(lambda: any(packet.not_mine == [other] for packet in listener.packets), "not mine")


async def test_a_lost_mailbox_is_replaced_and_the_owner_follows(
    broker: Broker, start_worker: StartWorker, listener: Listener
) -> None:
    worker = await start_worker(mailbox_ttl_s=2.0)
    key = await ask(broker, ENDLESS, on_abandon="continue")
    former = await speaking(broker, key)
    await broker.connections.control.delete(keys.mailbox(former))

    async def follows() -> bool:
        [standing] = await broker.log.standings([key])
        return standing is not None and standing.owner not in ("", former)

    await eventually(follows, "the new owner")
    assert await listener.attach(key, 500) == worker.appender.sender
    await eventually(lambda: listener.entries.get(key), "a relay under the new name")
    assert listener.packets[-1].sender == worker.appender.sender


# -- places and tickets


async def test_a_second_lane_entry_disturbs_nobody(broker: Broker, start_worker: StartWorker) -> None:
    await start_worker()
    await start_worker()
    key = await ask(broker, "scripted/tokens=40,rate=100")
    owner = await speaking(broker, key)
    for lane in ("standard", TAKEOVER_LANE, "standard", TAKEOVER_LANE):
        await broker.lanes.add(lane, key)
    entries, done = await ending(broker, key)
    assert done["status"] == "completed" and kinds(entries).count("started") == 1 and owner
    await eventually(lambda: _is_empty(broker), "the empty lanes")


async def _is_empty(broker: Broker) -> bool:
    return not any((await broker.lanes.depths(["standard", TAKEOVER_LANE])).values())


async def test_the_ticket_of_a_worker_that_died_before_its_claim_is_found(
    broker: Broker, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.broker.lanes.STRANDED_MS", 50)
    monkeypatch.setattr("workers.intake.STRANDED_EVERY_S", 0.05)
    await broker.lanes.ensure(["standard"])
    key = await ask(broker, "scripted/tokens=1,rate=0", on_abandon="continue")
    assert await broker.lanes.take(broker.connections.blocking(), ["standard"], "dead", 1000)
    await start_worker()
    _, done = await ending(broker, key)
    assert done["status"] == "completed"
    await eventually(lambda: _is_empty(broker), "the empty lanes")


async def test_the_last_place_is_kept_for_a_takeover(broker: Broker, start_worker: StartWorker) -> None:
    await start_worker(worker_concurrency=1)
    running = await ask(broker, ENDLESS, "r1", on_abandon="continue")
    await speaking(broker, running)
    waiting = await ask(broker, ENDLESS, "r2", on_abandon="continue")
    urgent = await ask(broker, "scripted/tokens=1,rate=0", "r3")
    await broker.lanes.add(TAKEOVER_LANE, urgent)
    await ending(broker, urgent)
    assert kinds(await log_of(broker, waiting)) == ["queued"]
    await broker.log.cancel(running, user="alice", may_cancel=False, done=b"", ttl_ms=1000)
    await speaking(broker, waiting)


async def test_a_generation_that_keeps_losing_its_workers_waits_while_another_such_one_runs(
    broker: Broker, start_worker: StartWorker
) -> None:
    suspects = [await ask(broker, ENDLESS, f"r{n}", on_abandon="continue") for n in range(2)]
    for key in suspects:
        await broker.connections.control.hset(keys.meta(key), "losses", 3)
        await broker.lanes.add(TAKEOVER_LANE, key)
    await broker.connections.control.delete(keys.lane("standard"))
    await start_worker()
    talking = [asyncio.create_task(speaking(broker, key)) for key in suspects]
    [first], [second] = await asyncio.wait(talking, return_when=asyncio.FIRST_COMPLETED)
    watched, waiting = (suspects[talking.index(task)] for task in (first, second))
    assert kinds(await log_of(broker, waiting)) == ["queued"]
    await broker.log.cancel(watched, user="alice", may_cancel=False, done=b"", ttl_ms=1000)
    await second


async def test_a_takeover_of_what_says_fail_keeps_the_text_and_vouches_for_it(broker: Broker, worker: Worker) -> None:
    key = stream_key("org", "g_fails")
    await _abandoned_by_its_worker(broker, key, "fail")
    await broker.lanes.add(TAKEOVER_LANE, key)
    entries, done = await ending(broker, key)
    assert done["status"] == "failed" and done["error"]["code"] == "worker_lost"
    assert text(entries) == "half an answer" and kinds(entries) == ["queued", "started", "text", "done"]


async def test_a_takeover_of_what_was_cancelled_asks_nobody(broker: Broker, redis_url: str) -> None:
    key = stream_key("org", "g_cancelled")
    await _abandoned_by_its_worker(broker, key, "restart")
    await broker.log.cancel(key, user="alice", may_cancel=False, done=b"", ttl_ms=1000)
    await broker.lanes.add(TAKEOVER_LANE, key)
    async with watched_worker(broker, redis_url) as (_, provider):
        entries, done = await ending(broker, key)
    assert (done["status"], done["text_bytes"], provider.calls) == ("cancelled", 14, 0)


async def _abandoned_by_its_worker(broker: Broker, key: StreamKey, on_worker_loss: str) -> None:
    """A stream with half an answer, whose worker handed it back."""
    await broker.log.create(
        key,
        mark="m0",
        queued=encode_data(Queued("standard")),
        user="alice",
        request=msgspec.msgpack.encode(Body([Message("user", "hi")], model="scripted/tokens=3,rate=0")),
        options=msgspec.msgpack.encode(Options(on_worker_loss=on_worker_loss)),
        lane="standard",
        ttl_ms=60_000,
    )
    await broker.log.claim(key, mark="m1", owner="w0", lease_ms=60_000, ttl_ms=60_000)
    entries = [("started", encode_data(Started(1))), ("text", b"half an "), ("text", b"answer")]
    await broker.log.append(key, "m1", 2, entries, shown="c")
    assert await broker.log.release(key, "m1")


async def test_a_takeover_that_restarts_resets_what_was_shown(broker: Broker, worker: Worker) -> None:
    key = stream_key("org", "g_restarts")
    await _abandoned_by_its_worker(broker, key, "restart")
    await broker.lanes.add(TAKEOVER_LANE, key)
    entries, done = await ending(broker, key)
    assert kinds(entries) == [
        "queued", "started", "text", "started", "notice", "reset", "source", "text", "usage", "done",
    ]  # fmt: skip
    assert done["status"] == "completed" and done["text_bytes"] == 15
    assert decode_data(*entries[4]) == {"attempt": 2}


# -- leaving


async def test_a_worker_that_leaves_hands_back_what_it_cannot_finish(broker: Broker, redis_url: str) -> None:
    async with watched_worker(broker, redis_url) as (first, provider):
        key = await ask(broker, "scripted/tokens=30,rate=50", on_abandon="continue")
        owner = await speaking(broker, key, 3)
        first.stop()
        await eventually(lambda: provider.open == 0, "the close of the provider")
    [standing] = await broker.log.standings([key])
    assert standing is not None and standing.owner == "" and standing.state == "running"
    assert not await broker.connections.control.exists(keys.mailbox(owner))
    assert (await broker.lanes.depths([TAKEOVER_LANE]))[TAKEOVER_LANE] == 1
    async with watched_worker(broker, redis_url):
        entries, done = await ending(broker, key)
    assert done["status"] == "completed" and kinds(entries).count("reset") == 1
    [facts] = await broker.log.facts([key], ["losses", "attempt"])
    assert facts is not None and (facts["losses"], facts["attempt"]) == ("0", "2")


async def test_a_worker_that_leaves_finishes_what_it_can(broker: Broker, redis_url: str) -> None:
    async with watched_worker(broker, redis_url, drain_timeout_s=30.0) as (worker, _):
        key = await ask(broker, "scripted/tokens=30,rate=100", on_abandon="continue")
        await speaking(broker, key)
        worker.stop()
        later = await ask(broker, "scripted/tokens=1,rate=0", "r2", on_abandon="continue")
        entries, done = await ending(broker, key)
        assert done["status"] == "completed" and kinds(entries).count("started") == 1
    # The read of the lanes that was under way may have brought it; then it was answered too.
    assert kinds(await log_of(broker, later))[-1] in ("queued", "done")


async def test_a_worker_stopped_before_redis_answers_just_ends(tmp_path: Any) -> None:
    url = f"unix://{tmp_path}/nobody.sock"
    settings = WorkerSettings(redis_url=url)
    broker = Broker.connect(url, settings)
    worker = Worker(settings, broker, Providers(frozenset({"scripted"})))
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    worker.stop()
    async with asyncio.timeout(10):
        await running
    assert not worker.ready.is_set()
    await broker.close()
