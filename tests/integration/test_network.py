"""Networks between client, hub, worker and Redis that stall, slow down, cut and fall silent.

Where a test waits for leases and timeouts to pass, the installation's clocks go faster, in proportion.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from websockets.exceptions import InvalidHandshake

from hub.broker import connections
from hub.broker.broker import Broker
from hub.broker.embedded import EmbeddedRedis
from tests.conftest import StartHub, StartWorker
from tests.cuts.calls import SCRIPT_NAMES, kind_of
from tests.cuts.campaign import results
from tests.cuts.plan import EVERY_KIND
from tests.cuts.scenario import Cut
from tests.cuts.viewer import Viewer
from tests.fakes import FakeProvider, Script
from tests.fakes.script import Fault
from tests.faults.pace import SETTINGS, quick
from tests.faults.proxy import FaultProxy
from tests.faults.redis_proxy import CUT_AFTER, Call, RedisProxy
from tests.installation import RunningHub, eventually, question, running_worker
from tests.integration.test_connections import fetch
from tests.wire import JSON, MSGPACK, Map, Wire, offsets_of, text_of
from workers.providers.openai import OpenAIProvider
from workers.providers.registry import Providers
from workers.worker import Worker

#: Longer than commands and leases are waited for at the quick pace.
OUTAGE_S = 2.2


@pytest.fixture
def fast() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture
async def redis_proxy(no_task_left: None, redis_url: str, redis_server: EmbeddedRedis) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(redis_server.url.removeprefix("unix://"), scripts=SCRIPT_NAMES) as proxy:
        yield proxy


@pytest.fixture
async def worker_behind(no_task_left: None, redis_proxy: RedisProxy) -> AsyncIterator[StartWorker]:
    """Starts a worker that reaches Redis through the proxy."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Worker:
            return await stack.enter_async_context(running_worker(redis_proxy.url, **settings))

        yield start


def said(tokens: int) -> str:
    """What the scripted provider says."""
    return "".join(f"{number:04d} " for number in range(tokens))


def whole(frames: list[Map], tokens: int) -> None:
    """Every entry once and in order, and the whole text at the end."""
    assert offsets_of(frames) == list(range(1, frames[-1]["offset"] + 1))
    assert frames[-1]["data"]["status"] == "completed"
    assert text_of(frames) == said(tokens)


async def facts(broker: Broker, stream: str, *names: str) -> list[str]:
    async for name in broker.connections.control.scan_iter(match="hr:{*" + stream + "}:meta"):
        values: Any = await broker.connections.control.hmget(name, list(names))
        return [value.decode() for value in values]
    raise AssertionError("no such stream")


# -- between a hub and Redis


async def test_a_hub_whose_redis_falls_silent_keeps_its_viewers_and_tells_them(
    fast: None, redis_proxy: RedisProxy, start_hub: StartHub, start_worker: StartWorker
) -> None:
    hub = await start_hub(redis_url=redis_proxy.url, **SETTINGS)
    await start_worker(**SETTINGS)
    wire, other = await hub.join(), await hub.join()
    await wire.send(question("r1", model="scripted/tokens=160,rate=50"))
    frames: list[Map] = await wire.until("delta")
    redis_proxy.stall()
    began = time.monotonic()
    frames += await wire.until("status", state="degraded")
    assert (await fetch(hub, "/readyz"))[0] == 503 and (await fetch(hub, "/healthz"))[0] == 200
    for number in range(200):  # what cannot be served waits in the sockets, not in the hub
        await other.send({"type": "cancel", "id": number, "stream": "g_aaaaaaaaaaaaaaaa"})
    pool: Any = hub.node.broker.connections.control.connection_pool
    while time.monotonic() - began < OUTAGE_S:
        assert len(pool._in_use_connections) <= 32
        assert await ping(wire, frames) < OUTAGE_S / 2
    redis_proxy.resume()
    frames += await wire.until("entry", kind="done")
    whole(frames, 160)
    answers = [await other.next(30) for _ in range(200)]
    assert {answer.get("code") for answer in answers} <= {"overloaded", "not_found"}
    await eventually(lambda: is_ready(hub), "readiness")


async def ping(wire: Wire, frames: list[Map]) -> float:
    """How long an answer takes; what comes before it is kept."""
    began = time.monotonic()
    frames += await wire.ping()
    await asyncio.sleep(0.05)
    return time.monotonic() - began


async def is_ready(hub: RunningHub) -> bool:
    return (await fetch(hub, "/readyz"))[0] == 200


async def test_stalls_use_up_no_redis_connections(
    fast: None,
    redis_proxy: RedisProxy,
    start_hub: StartHub,
    worker_behind: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever an impatient caller gave up in the middle goes back to its pool: a pool has 32, for good."""
    monkeypatch.setattr(connections, "COMMAND_TIMEOUT_S", 5.0)  # as outside of tests: longer than callers wait
    hub = await start_hub(redis_url=redis_proxy.url, **SETTINGS)
    worker = await worker_behind(**SETTINGS)
    wire = await hub.join()
    await wire.send(question("r1", model="scripted/tokens=100000,rate=30", on_abandon="continue"))
    await wire.until("delta")
    redis_proxy.stall()
    await asyncio.sleep(2.6)  # two passes of the lease keeper give up
    redis_proxy.resume()
    await wire.until("delta")
    for name, broker in (("hub", hub.node.broker), ("worker", worker._broker)):
        pool: Any = broker.connections.control.connection_pool
        held: dict[Any, float] = {}

        def is_at_rest(pool: Any = pool, held: dict[Any, float] = held) -> bool:
            """No connection is in use for longer than any command takes."""
            now = time.monotonic()
            for gone in held.keys() - pool._in_use_connections:
                del held[gone]
            return not any(now - held.setdefault(each, now) > 1.5 for each in pool._in_use_connections)

        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert is_at_rest(), f"the {name} lost a connection of its pool"
            await asyncio.sleep(0.02)


# -- between a worker and Redis


@asynccontextmanager
async def fake_worker(url: str, fake: FakeProvider, **settings: Any) -> AsyncIterator[Worker]:
    """A worker that asks `fake`, over HTTP with the real SDK."""
    provider = OpenAIProvider()
    try:
        providers = Providers(frozenset(), made={"openai": provider})
        async with running_worker(url, providers=providers, **settings) as worker:
            yield worker
    finally:
        await provider.close()


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as fake:
        monkeypatch.setenv("OPENAI_API_KEY", "a key")
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url_openai)
        yield fake


async def test_a_short_partition_pauses_the_answer_and_changes_nothing(
    fast: None, broker: Broker, redis_proxy: RedisProxy, start_hub: StartHub, fake: FakeProvider
) -> None:
    fake.default = Script(tokens=120, gap_s=0.02)
    hub = await start_hub(**SETTINGS)
    async with fake_worker(redis_proxy.url, fake, **SETTINGS) as worker:
        wire = await hub.join()
        await wire.send(question("r1", model="fast", on_abandon="continue"))
        stream = (await wire.expect("accepted"))["stream"]
        frames = await wire.until("delta")
        redis_proxy.stall()
        await asyncio.sleep(OUTAGE_S)  # the lease is over, yet nobody else is there
        [run] = worker.table.runs.values()
        assert run.generation.paused and fake.last.gone_at is None, "the provider waits, and is kept"
        redis_proxy.resume()
        frames += await wire.until("entry", kind="done")
    whole(frames, 120)
    assert "reset" not in [frame.get("kind") for frame in frames]
    assert await facts(broker, stream, "attempt", "losses") == ["1", "0"]
    assert len(fake.records) == 1 and fake.last.gone_at is None


@pytest.mark.parametrize("fault", [None, "stall"], ids=["speaking", "silent"])
async def test_a_worker_partitioned_for_longer_than_its_lease_is_overtaken_and_lets_its_provider_go(
    fast: None,
    broker: Broker,
    redis_url: str,
    redis_proxy: RedisProxy,
    start_hub: StartHub,
    fake: FakeProvider,
    fault: Fault | None,
) -> None:
    """Its provider speaks on, so that it comes back with entries for places that are another's now; or is silent,
    so that nothing but the end of the run wakes its reader.
    """
    fake.queue += [Script(tokens=99_999, gap_s=0.01, fault=fault, fault_after=9), Script(tokens=20, gap_s=0.05)]
    hub = await start_hub(**SETTINGS)
    async with fake_worker(redis_proxy.url, fake, **SETTINGS) as lost:
        wire = await hub.join()
        await wire.send(question("r1", model="fast", on_abandon="continue"))
        stream = (await wire.expect("accepted"))["stream"]
        frames: list[Map] = []
        while "0008" not in text_of(frames):
            frames += await wire.until("delta")
        async with fake_worker(redis_url, fake, **SETTINGS):
            redis_proxy.stall()
            await eventually(lambda: len(fake.records) == 2, "the takeover")
            first, second = fake.records
            assert first.gone_at is None
            redis_proxy.resume()
            healed = time.monotonic()
            async with asyncio.timeout(5):
                await first.gone.wait()
            assert first.gone_at is not None and first.gone_at - healed < 1.0
            await eventually(lambda: not lost.table.runs, "the end of the lost run")
            frames += await wire.until("entry", kind="done")
    whole(frames, 20)
    assert [frame["kind"] for frame in frames if frame["type"] == "entry"].count("reset") == 1
    assert second.gone_at is None
    assert await facts(broker, stream, "attempt", "losses") == ["2", "1"]


@pytest.mark.timeout(240)  # some 10 s on a machine of its own
async def test_a_reply_that_is_lost_after_its_command_was_applied_changes_nothing_to_anybody(
    fast: None, no_task_left: None, redis_server: EmbeddedRedis
) -> None:
    """Viewers see one answer, whole, and nothing is left behind; `python -m tests.cuts` does this at every call."""
    socket = redis_server.url.removeprefix("unix://")
    wrong, missed = await results(socket, [Cut(address, "after") for address in EVERY_KIND])
    assert wrong == {}
    assert len(missed) <= 3, missed  # how often a hub reads the log depends on the moment


async def test_a_cancel_whose_reply_is_lost_cancels_once(
    fast: None, broker: Broker, redis_proxy: RedisProxy, start_hub: StartHub, start_worker: StartWorker
) -> None:
    hub = await start_hub(redis_url=redis_proxy.url, **SETTINGS)
    await start_worker(**SETTINGS)
    wire = await hub.join()
    await wire.send(question("r1", model="scripted/tokens=10000,rate=50"))
    stream = (await wire.expect("accepted"))["stream"]
    await wire.until("delta")
    lost: list[Call] = []

    def lose_first(call: Call) -> Any:
        if call.name == "cancel" and not lost:
            lost.append(call)
            return CUT_AFTER
        return None

    redis_proxy.decide = lose_first
    await wire.send({"type": "cancel", "id": 2, "stream": stream})
    frames = await wire.until("ok", id=2)
    if not any(frame.get("kind") == "done" for frame in frames):
        frames += await wire.until("entry", kind="done")
    assert lost and frames[-1]["type"] in ("ok", "entry")
    [done] = [frame for frame in frames if frame.get("kind") == "done"]
    assert done["data"]["status"] == "cancelled"
    assert await wire.ping() == []


async def test_redis_that_stands_still_for_three_seconds_costs_three_seconds(
    broker: Broker, redis_proxy: RedisProxy, start_hub: StartHub, worker_behind: StartWorker
) -> None:
    """At the real pace: nothing times out, is asked twice, or is taken from anybody."""
    hub = await start_hub(redis_url=redis_proxy.url)
    await worker_behind()
    await worker_behind()
    wire = await hub.join()
    await wire.send(question("r1", model="scripted/tokens=130,rate=50"))
    stream = (await wire.expect("accepted"))["stream"]
    frames = await wire.until("delta")
    redis_proxy.stall()
    await asyncio.sleep(3.0)
    redis_proxy.resume()
    frames += await wire.until("entry", kind="done")
    whole(frames, 130)
    assert await facts(broker, stream, "attempt", "losses") == ["1", "0"]
    kinds = [kind_of(call) for call in redis_proxy.calls]
    assert kinds.count("XADD lane takeover") == 0 and kinds.count("XADD lane standard") == 1
    firsts = [call.words[7] for call in redis_proxy.calls if call.name == "append"]
    assert len(firsts) == len(set(firsts)), "an append was sent twice"
    packets = [call.words[-1] for call in redis_proxy.calls if kind_of(call) == "XADD hub mailbox"]
    assert len(packets) == len(set(packets)), "a packet was sent twice"


# -- between a client and a hub


@asynccontextmanager
async def in_between(hub: RunningHub, **weather: Any) -> AsyncIterator[tuple[FaultProxy, str]]:
    """A proxy in front of a hub, and the URL through it."""
    async with FaultProxy(f"127.0.0.1:{hub.port}") as proxy:
        for name, value in weather.items():
            setattr(proxy.weather, name, value)
        yield proxy, hub.url.replace(str(hub.port), str(proxy.port))


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
async def test_every_byte_may_come_by_itself(hub: RunningHub, worker: Worker, subprotocol: str) -> None:
    async with in_between(hub, split=1) as (_, url):
        viewer = Viewer("V", [url], subprotocol=subprotocol)
        await viewer.ask("r1", "scripted/tokens=30,rate=0")
        await viewer.watch()
        await viewer.close()
    assert (viewer.faults, viewer.connects, viewer.text) == ([], 1, said(30))


async def test_a_slow_link_is_no_dead_link(start_hub: StartHub, worker: Worker) -> None:
    hub = await start_hub(heartbeat_s=1)
    async with in_between(hub, bytes_per_s=4000) as (_, url):
        viewer = Viewer("V", [url], subprotocol=JSON)
        began = time.monotonic()
        await viewer.ask("r1", "scripted/tokens=30,rate=0,size=500")
        await viewer.watch()
        assert time.monotonic() - began > 2.5, "longer than a silent peer is kept"
        await viewer.close()
    assert (viewer.faults, viewer.connects, len(viewer.text)) == ([], 1, 30 * 500)


@pytest.mark.parametrize("direction", ["down", "up"])
async def test_a_link_cut_anywhere_in_a_frame_costs_a_reconnect_and_no_entry(
    hub: RunningHub, worker: Worker, direction: Any
) -> None:
    dice = random.Random(7)
    async with in_between(hub) as (proxy, url):
        viewer = Viewer("V", [url], subprotocol=MSGPACK)
        proxy.cut_after(dice.randrange(300, 900), direction)

        async def keep_cutting() -> None:
            while True:
                seen = proxy.accepted
                await eventually(lambda last=seen: proxy.accepted > last or viewer.done is not None)  # type: ignore[misc]
                proxy.cut_after(dice.randrange(500, 1500) + 150 * seen, direction)

        cutting = asyncio.create_task(keep_cutting())
        await viewer.ask("r1", "scripted/tokens=150,rate=100")
        acking = asyncio.create_task(chatter(viewer)) if direction == "up" else None
        await viewer.watch()
        for task in (cutting, acking):
            if task is not None:
                task.cancel()
        await asyncio.gather(*filter(None, (cutting, acking)), return_exceptions=True)
        await viewer.close()
    assert viewer.faults == [] and viewer.text == said(150)
    assert viewer.connects >= 3, "it was cut"
    assert {"reset", "resumed: false"}.isdisjoint(viewer.told)


async def chatter(viewer: Viewer) -> None:
    """Something goes up all the time."""
    while True:
        if viewer._wire is not None:
            await viewer._wire.send({"type": "ack", "stream": viewer.stream, "offset": viewer.offset, "window": 256})
        await asyncio.sleep(0.002)


async def test_a_half_open_viewer_is_gone_after_two_heartbeats_and_others_notice_nothing(
    start_hub: StartHub, worker: Worker
) -> None:
    hub = await start_hub(heartbeat_s=1)
    async with in_between(hub) as (proxy, url):
        lost, there = Viewer("L", [url], subprotocol=JSON), Viewer("T", [hub.url], subprotocol=JSON)
        await lost.ask("r1", "scripted/tokens=250,rate=50")
        there.stream = lost.stream
        await lost.watch(until=lambda: lost.offset > 4)
        watching = asyncio.create_task(there.watch())
        await eventually(lambda: len(hub.node.connections) == 2, "the other viewer")
        proxy.vanish()
        began = time.monotonic()
        await eventually(lambda: len(hub.node.connections) == 1, "the end of the half-open connection")
        # two heartbeats, looked at once a second, and the time that a peer has to answer the close
        assert 1.5 < time.monotonic() - began < 7
        [tail] = hub.node.relay.tails.values()
        assert len(tail.attachments) == 1
        await watching
        lost.drop()
        await there.close()
    assert there.faults == [] and there.connects == 1 and there.text == said(250)


async def test_a_client_that_nobody_answers_hears_nothing_and_one_that_is_refused_hears_it(
    hub: RunningHub, worker: Worker
) -> None:
    async with in_between(hub) as (proxy, url):
        proxy.refuse()
        with pytest.raises((OSError, InvalidHandshake)):
            await Wire.open(url)
        proxy.refuse(False)
        proxy.stall()
        opening = asyncio.create_task(Wire.open(url))
        await eventually(lambda: proxy.accepted == 2, "the connection")
        assert not hub.node.connections and not opening.done()
        proxy.resume()
        await (await opening).close()
