"""Every accepted request has its one `done`, whatever of what leads to it was lost (protocol §9, promise 3)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ResponseError

from headrace.protocol.body import Body, Options
from headrace.protocol.frames import Message
from hub.broker import janitor as janitors
from hub.broker import keys, lanes
from hub.broker.accept import RequestGone
from hub.broker.broker import Broker
from hub.broker.keys import TAKEOVER_LANE, StreamKey
from hub.broker.lanes import GROUP
from hub.broker.letters import Letters
from hub.broker.log import Claim
from tests.broker.test_accept import STEPS, dying_after
from tests.conftest import StartHub, StartWorker
from tests.installation import HubProcess, RunningHub, eventually, question
from tests.wire import Map, Wire, offsets_of, text_of
from workers import intake

#: Quicker than in production; a silent run is renewed once a second, and a busy machine takes its time.
QUICK: dict[str, Any] = {"lease_s": 2.0, "lease_grace_s": 0.2, "janitor_interval_s": 0.05}
FOR_EVER = 60.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitors, "QUEUE_SLACK_MS", 300)
    monkeypatch.setattr(janitors, "LANES_EVERY_MS", 200)
    monkeypatch.setattr(janitors, "PATIENCE_MS", 500)
    monkeypatch.setattr(lanes, "STRANDED_MS", 300)
    monkeypatch.setattr(intake, "STRANDED_EVERY_S", 0.2)


class WorkerProcess:
    """A worker as operators run it."""

    def __init__(self, redis_url: str, module: str = "workers", **settings: object) -> None:
        chosen = {f"HEADRACE_{name.upper()}": str(value) for name, value in (QUICK | settings).items()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            env={**os.environ, **chosen, "HEADRACE_REDIS_URL": redis_url},
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *ending: object) -> None:
        self.kill()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Place:
    """A hub, a viewer who asked, and the Redis under them."""

    def __init__(self, hub: RunningHub, wire: Wire) -> None:
        self.broker: Broker = hub.node.broker
        self.redis: Any = self.broker.connections.control
        self.wire = wire
        self.key = StreamKey("")
        self.frames: list[Map] = []

    async def ask(self, model: str = "scripted/tokens=5,rate=0", **options: Any) -> None:
        await self.wire.send(question("r1", model=model, window=None, **options))
        accepted = await self.wire.expect("accepted", id="r1")
        self.key = keys.stream_key("alice", accepted["stream"])

    async def worker_is_ready(self) -> None:
        """A worker reads the lanes: its queue timeout may begin."""
        async with asyncio.timeout(40):
            while not await self._has_consumer():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def _has_consumer(self) -> bool:
        try:
            return bool(await self.redis.xinfo_consumers(keys.lane("standard"), GROUP))
        except ResponseError:
            return False

    async def done(self) -> Map:
        """The end that the viewer was shown, which is the only one, after everything before it."""
        self.frames += await self.wire.until("entry", kind="done")
        offsets = offsets_of(self.frames)
        assert offsets == list(range(1, len(offsets) + 1)), "dense, nothing twice"
        entries = await self.broker.log.read(self.key, 1, 10_000)
        assert [kind for kind, _ in entries].count("done") == 1 and len(entries) == len(offsets)
        data: Map = self.frames[-1]["data"]
        return data

    async def is_settled(self) -> bool:
        """Nothing is left of it but the finished stream."""
        depths = await self.broker.lanes.depths([TAKEOVER_LANE, *keys.LANES])
        return await self.broker.live.size() == 0 and not any(depths.values())

    async def facts(self) -> dict[str, str]:
        [facts] = await self.broker.log.facts([self.key], ["state", "owner", "attempt", "losses", "barren"])
        return facts or {}

    # -- what gets lost

    async def lose_index(self) -> None:
        """The index entry, and not because a janitor took it out."""
        assert await self.redis.zrem(keys.live(keys.live_shard(self.key)), self.key) == 1

    async def lose_ticket(self, lane: str = "standard") -> None:
        assert await self.redis.xtrim(keys.lane(lane), maxlen=0, approximate=False) > 0

    async def lose_both(self) -> None:
        await self.lose_ticket()
        await self.lose_index()

    async def lose_lane(self) -> None:
        assert await self.redis.delete(keys.lane("standard")) == 1

    async def take_and_die(self) -> None:
        """A worker that died between taking the ticket and claiming."""
        await self.broker.lanes.ensure(["standard"])
        [_] = await self.broker.lanes.take(self.broker.connections.blocking(), ["standard"], "dead", 1000)

    async def lose_group(self) -> None:
        await self.take_and_die()
        assert await self.redis.xgroup_destroy(keys.lane("standard"), GROUP)

    async def lose_consumer(self) -> None:
        await self.take_and_die()
        assert await self.redis.xgroup_delconsumer(keys.lane("standard"), GROUP, "dead") == 1


@asynccontextmanager
async def place(start_hub: StartHub, **settings: Any) -> AsyncIterator[Place]:
    hub = await start_hub(**(QUICK | {"queue_timeout_s": FOR_EVER} | settings))
    yield Place(hub, await hub.join())


LOSSES: dict[str, Callable[[Place], Awaitable[None]]] = {
    "its lane entry": Place.lose_ticket,
    "its index entry": Place.lose_index,
    "both its entries": Place.lose_both,
    "the whole lane": Place.lose_lane,
    "the worker that took it": Place.take_and_die,
    "the group, with it in a dead worker's hands": Place.lose_group,
    "the consumer, with it in its hands": Place.lose_consumer,
}


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_queued_request_that_lost_something_is_answered_once(
    start_hub: StartHub, start_worker: StartWorker, loss: str
) -> None:
    async with place(start_hub) as here:
        await here.ask()
        await LOSSES[loss](here)
        await start_worker(**QUICK)
        assert (await here.done())["status"] == "completed"
        assert (await here.facts())["attempt"] == "1", "no provider was asked twice"
        await eventually(here.is_settled)


@pytest.mark.parametrize("loss", ["its index entry", "both its entries"])
async def test_a_queued_request_that_no_worker_ever_takes_ends_overloaded(start_hub: StartHub, loss: str) -> None:
    async with place(start_hub, queue_timeout_s=1.0) as here:
        await here.ask()
        await LOSSES[loss](here)
        done = await here.done()
        assert (done["status"], done["error"]["code"], done["error"]["retry"]) == ("failed", "overloaded", "after")
        await eventually(lambda: _is_empty(here))


async def _is_empty(here: Place) -> bool:
    return await here.broker.live.size() == 0


@pytest.mark.parametrize("loses_ticket", [False, True], ids=["index", "index and takeover"])
async def test_a_killed_worker_s_answer_is_finished_by_another_whatever_else_was_lost(
    start_hub: StartHub, start_worker: StartWorker, redis_url: str, loses_ticket: bool
) -> None:
    async with place(start_hub) as here:
        with WorkerProcess(redis_url):
            await here.worker_is_ready()
            await here.ask("scripted/tokens=30,rate=40")
            here.frames += await here.wire.until("delta")
        await here.lose_index()
        if loses_ticket:
            await eventually(lambda: _is_enqueued(here), "the takeover")
            await here.lose_ticket(TAKEOVER_LANE)
            await here.lose_index()
        await start_worker(**QUICK)
        assert (await here.done())["status"] == "completed"
        assert text_of(here.frames).split() == [f"{number:04d}" for number in range(30)]
        assert (await here.facts())["attempt"] == "2"
        await eventually(here.is_settled)


async def _is_enqueued(here: Place) -> bool:
    return (await here.broker.lanes.depths([TAKEOVER_LANE]))[TAKEOVER_LANE] > 0


async def test_when_every_worker_is_lost_for_good_the_hub_ends_the_answer_after_the_queue_timeout(
    start_hub: StartHub, redis_url: str
) -> None:
    """The index entry went with them."""
    async with place(start_hub, queue_timeout_s=1.5) as here:
        with WorkerProcess(redis_url):
            await here.worker_is_ready()
            await here.ask("scripted/tokens=600,rate=40")
            here.frames += await here.wire.until("delta")
        killed_at = asyncio.get_running_loop().time()
        await here.lose_index()
        done = await here.done()
        took_s = asyncio.get_running_loop().time() - killed_at
        assert (done["status"], done["error"]["code"]) == ("failed", "worker_lost")
        assert done["text_bytes"] == len(text_of(here.frames)) > 0, "what was written is kept"
        assert took_s >= 1.5, "not before others had their time"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_janitor_that_dies_or_hangs_with_its_lock_is_followed_by_another(
    start_hub: StartHub, redis_url: str, number: signal.Signals
) -> None:
    holder = HubProcess(redis_url, HEADRACE_JANITOR_INTERVAL_S="0.1", HEADRACE_DRAIN_S="0")
    try:
        await (await holder.connect()).close()
        async with place(start_hub, queue_timeout_s=1.0) as here:
            first = await here.redis.get(keys.janitor())
            assert first is not None
            await here.ask()
            holder.signal(number)
            assert (await here.done())["error"]["code"] == "overloaded"
            assert await here.redis.get(keys.janitor()) not in (None, first)
            holder.signal(signal.SIGCONT)
            assert await here.wire.ping() == [], "one end, also when the first one wakes up"
    finally:
        holder.kill()


# -- the accept ----------------------------------------------------------------------------------------------


async def accept(broker: Broker) -> StreamKey:
    seconds, _ = await broker.connections.control.time()
    body = Body([Message("user", "hi")], model="scripted/tokens=3,rate=0")
    options = Options(on_abandon="continue")
    return await broker.accept(
        org="acme", user="alice", request_key="r1", body=body, options=options, now_ms=seconds * 1000
    )


async def ends(broker: Broker, key: StreamKey) -> int:
    return [kind for kind, _ in await broker.log.read(key, 1, 100)].count("done")


@pytest.mark.parametrize("step", range(len(STEPS)), ids=[f"before {name}" for name in STEPS])
async def test_a_hub_that_dies_in_the_middle_of_an_accept_leaves_nothing_without_an_end(
    broker: Broker, start_hub: StartHub, start_worker: StartWorker, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody repeats the request at first: what was created ends, the rest leaves no trace. Then somebody does."""
    monkeypatch.setattr(janitors, "VANISHED_MS", 300)
    with dying_after(broker, step, monkeypatch):
        await accept(broker)
    await start_hub(**QUICK)
    await start_worker(**QUICK)
    redis: Any = broker.connections.control
    metas = await redis.keys(keys.ALL_METAS)
    assert len(metas) == (1 if step >= 3 else 0)
    for name in metas:
        made = keys.key_of_meta(name.decode())
        await eventually(lambda made=made: _has_ended(broker, made), "the end")  # type: ignore[misc]
    await eventually(lambda: _index_is_empty(broker))
    key = await accept(broker)
    await eventually(lambda: _has_ended(broker, key), "the end")
    assert len(await redis.keys(keys.ALL_METAS)) == 1, "the repeat is the same stream"
    [facts] = await broker.log.facts([key], ["attempt"])
    assert facts is not None and facts["attempt"] == "1"


async def _has_ended(broker: Broker, key: StreamKey) -> bool:
    return await ends(broker, key) == 1


async def _index_is_empty(broker: Broker) -> bool:
    return await broker.live.size() == 0


async def test_a_stream_that_expired_unanswered_is_gone_and_leaves_nothing_behind(
    start_hub: StartHub, start_worker: StartWorker, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepted, then nothing ran for longer than unfinished streams live: no hub, no worker."""
    monkeypatch.setattr(janitors, "VANISHED_MS", 300)
    key = await accept(broker)
    await broker.connections.control.pexpire(keys.meta(key), 1)
    await broker.connections.control.pexpire(keys.log(key), 1)
    await eventually(lambda: _is_absent(broker, key))
    await start_hub(**QUICK)
    await start_worker(**QUICK)
    await eventually(lambda: _index_is_empty(broker))
    await eventually(lambda: _lane_is_empty(broker))
    with pytest.raises(RequestGone):
        await accept(broker)
    assert await broker.log.standings([key]) == [None]


async def _is_absent(broker: Broker, key: StreamKey) -> bool:
    return await broker.log.standings([key]) == [None]


async def _lane_is_empty(broker: Broker) -> bool:
    return (await broker.lanes.depths(["standard"]))["standard"] == 0


# -- poison --------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)  # five processes start one after the other
async def test_a_request_that_kills_every_worker_it_meets_takes_no_neighbour_along(
    start_hub: StartHub, redis_url: str
) -> None:
    """Three neighbours share its workers: one speaks at once, one thinks first, one is asked while they die."""
    async with place(start_hub) as here:
        await here.ask("scripted/poison", on_abandon="continue")
        neighbours = ["scripted/tokens=40,rate=20", "scripted/tokens=3,think_ms=1500", "scripted/tokens=5,rate=0"]
        for number, model in enumerate(neighbours):
            await here.wire.send(question(f"n{number}", model=model, attach=False))
        accepted: list[Map] = []
        while len(accepted) < len(neighbours):
            frame = await here.wire.next()
            (accepted if frame["type"] == "accepted" else here.frames).append(frame)
        asked = [keys.stream_key("alice", frame["stream"]) for frame in accepted]
        module = "tests.integration.poisoned_worker"
        workers = 0
        with ExitStack() as stack:
            running: WorkerProcess | None = None

            async def all_have_ended() -> bool:
                nonlocal running, workers
                if running is None or not running.is_running:  # as a supervisor does
                    running = stack.enter_context(WorkerProcess(redis_url, module, queue_timeout_s=FOR_EVER))
                    workers += 1
                standings = await here.broker.log.standings([here.key, *asked])
                return all(standing is not None and standing.state == "done" for standing in standings)

            async with asyncio.timeout(100):
                while not await all_have_ended():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        assert (await here.done())["error"]["code"] == "worker_lost"
        for key in asked:
            [*_, (kind, data)] = await here.broker.log.read(key, 1, 1000)
            assert kind == "done" and b"completed" in data, "the neighbours are answered"
        assert [letter.key for letter in await Letters(here.redis).all()] == [here.key]
        assert workers == janitors.BARREN_ATTEMPTS + 1


async def test_the_claim_of_a_janitor_and_of_a_worker_at_once_is_one_end(broker: Broker) -> None:
    """Both look at a lease that is over: whoever is second is refused."""
    key = await accept(broker)
    claims = await asyncio.gather(
        *[
            broker.log.claim(key, mark=f"m{n}", owner=f"w{n}", lease_ms=5000, ttl_ms=60_000)
            for n in range(10)
        ]
    )  # fmt: skip
    assert len([claim for claim in claims if isinstance(claim, Claim)]) == 1
