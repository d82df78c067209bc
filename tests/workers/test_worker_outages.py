"""A worker and a Redis that refuses, forgets, restarts or vanishes; and a worker that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from headrace.protocol.entries import decode_data
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.embedded import EmbeddedRedis
from hub.broker.keys import StreamKey
from hub.broker.settings import BrokerSettings
from tests.conftest import StartWorker
from tests.installation import running_worker
from tests.workers.listener import Listener, ask, ending, eventually, kinds, listening, log_of, text
from tests.workers.test_worker import ENDLESS, speaking, watched_worker
from workers.worker import Worker

#: Leases that a test can wait for.
SHORT = {"lease_s": 1.0, "lease_grace_s": 0.2, "janitor_interval_s": 0.1}


@pytest.fixture
async def listener(broker: Broker) -> AsyncIterator[Listener]:
    async with listening(broker) as listener:
        yield listener


@contextmanager
def worker_process(url: str, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """`python -m workers`, as operators run it, once it is ready."""
    environ = {f"HEADRACE_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "workers"],
        env={**os.environ, **environ, "HEADRACE_REDIS_URL": url},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert "ready" in process.stderr.readline()
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def numbers(entries: list[tuple[str, bytes]]) -> list[int]:
    """The pieces of a scripted answer, by their numbers, since the last reset."""
    said = [kind for kind, _ in entries]
    start = len(said) - said[::-1].index("reset") if "reset" in said else 0
    return [int(piece) for piece in text(entries[start:]).split()]


# -- a killed worker, and one that is told to leave


async def test_the_answer_of_a_killed_worker_is_restarted_by_another(
    broker: Broker, redis_url: str, start_worker: StartWorker, listener: Listener
) -> None:
    with worker_process(redis_url, **SHORT) as process:
        key = await ask(broker, "scripted/tokens=60,rate=50", on_abandon="continue")
        await listener.attach(key, 1000)
        await speaking(broker, key, 5)
        await start_worker(**SHORT)
        process.kill()
        entries, done = await ending(broker, key)
    assert kinds(entries) == [
        "queued", "started", "source", "text", "started", "notice", "reset", "source", "text", "usage", "done",
    ]  # fmt: skip
    assert done["status"] == "completed" and numbers(entries) == list(range(60))
    await eventually(lambda: listener.has_done(key), "the relay of done")
    [facts] = await broker.log.facts([key], ["losses", "attempt"])
    assert facts is not None and (facts["losses"], facts["attempt"]) == ("1", "2")


async def test_the_process_hands_back_on_the_second_signal_and_ends_in_good_order(
    broker: Broker, redis_url: str
) -> None:
    with worker_process(redis_url) as process:
        key = await ask(broker, ENDLESS, on_abandon="continue")
        await speaking(broker, key)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert "draining" in await asyncio.to_thread(process.stderr.readline)
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 10) == 0
    [standing] = await broker.log.standings([key])
    assert standing is not None and standing.owner == "" and standing.state == "running"
    assert await broker.lanes.depths([keys.TAKEOVER_LANE]) == {keys.TAKEOVER_LANE: 1}


def test_without_a_redis_url_the_process_says_what_to_set() -> None:
    ended = subprocess.run([sys.executable, "-m", "workers"], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 2 and "HEADRACE_REDIS_URL" in ended.stderr and "headrace dev" in ended.stderr


def test_a_wrong_setting_is_named() -> None:
    environ = {**os.environ, "HEADRACE_WORKER_CONCURRENCY": "many"}
    ended = subprocess.run([sys.executable, "-m", "workers"], capture_output=True, text=True, timeout=20, env=environ)
    assert ended.returncode == 2 and "HEADRACE_WORKER_CONCURRENCY" in ended.stderr and ended.stderr.count("\n") == 1


# -- a Redis that forgets


async def test_a_missing_script_is_loaded_again(broker: Broker, worker: Worker) -> None:
    key = await ask(broker, "scripted/tokens=60,rate=100", on_abandon="continue")
    await speaking(broker, key, 5)
    await broker.connections.control.script_flush()
    entries, done = await ending(broker, key)
    assert done["status"] == "completed" and numbers(entries) == list(range(60))


async def test_a_stream_that_vanished_ends_the_run_and_its_provider_call(broker: Broker, redis_url: str) -> None:
    async with watched_worker(broker, redis_url) as (worker, provider):
        key = await ask(broker, ENDLESS, on_abandon="continue")
        await speaking(broker, key)
        await broker.connections.control.flushall()
        await eventually(lambda: provider.open == 0, "the close of the provider")
        await eventually(lambda: key not in worker.table, "the end of the run")
        assert not await broker.connections.control.exists(keys.meta(key), keys.log(key))
        again = await ask(broker, "scripted/tokens=2,rate=0", "r2")
        _, done = await ending(broker, again)
        assert done["status"] == "completed"


async def test_a_silent_stream_that_vanished_is_noticed_with_its_lease(broker: Broker, redis_url: str) -> None:
    async with watched_worker(broker, redis_url) as (worker, provider):
        key = await ask(broker, "scripted/tokens=9,rate=0,stall_after=2", on_abandon="continue")
        await speaking(broker, key, 2)
        await broker.connections.control.delete(keys.meta(key), keys.log(key))
        await eventually(lambda: provider.open == 0 and key not in worker.table, "the end of the run")
        assert not await broker.connections.control.exists(keys.meta(key), keys.log(key))


async def test_a_worker_that_was_overtaken_writes_nothing_more(
    broker: Broker, redis_url: str, listener: Listener
) -> None:
    async with watched_worker(broker, redis_url) as (worker, provider):
        key = await ask(broker, ENDLESS, on_abandon="continue")
        await listener.attach(key, 1000)
        await speaking(broker, key, 3)
        redis: Any = broker.connections.control
        pipeline = redis.pipeline(transaction=True)
        pipeline.hset(keys.meta(key), mapping={"mark": "another", "owner": "wAnother"})
        pipeline.xlen(keys.log(key))
        _, top = await pipeline.execute()
        await eventually(lambda: provider.open == 0 and key not in worker.table, "the end of the run")
        assert await redis.xlen(keys.log(key)) == top
        assert max(listener.entries.get(key, {0: ("", b"")})) <= top


async def snapshot(broker: Broker, key: StreamKey) -> dict[str, bytes]:
    redis: Any = broker.connections.control
    return {name: await redis.dump(name) for name in (keys.meta(key), keys.log(key))}


async def roll_back(broker: Broker, stored: dict[str, bytes]) -> None:
    """Redis has an older state again."""
    redis: Any = broker.connections.control
    pipeline = redis.pipeline(transaction=True)
    for name, data in stored.items():
        pipeline.restore(name, 60_000, data, replace=True)
    await pipeline.execute()


async def test_entries_that_redis_lost_are_appended_again_as_they_were(
    broker: Broker, worker: Worker, listener: Listener
) -> None:
    key = await ask(broker, "scripted/tokens=150,rate=100", on_abandon="continue")
    await listener.attach(key, 1000)
    await speaking(broker, key, 5)
    stored = await snapshot(broker, key)
    await speaking(broker, key, 40)
    await roll_back(broker, stored)
    entries, done = await ending(broker, key)
    assert done["status"] == "completed" and numbers(entries) == list(range(150))
    await eventually(lambda: listener.has_done(key), "the relay of done")
    for offset, entry in listener.entries[key].items():
        assert entries[offset - 1] == entry


async def test_a_done_that_redis_lost_is_appended_again(
    broker: Broker, redis_url: str, logs: pytest.LogCaptureFixture
) -> None:
    async with watched_worker(broker, redis_url, lease_s=60.0):
        key = await ask(broker, "scripted/tokens=50,rate=100", on_abandon="continue")
        await speaking(broker, key, 10)
        stored = await snapshot(broker, key)
        before, done = await ending(broker, key)
        await roll_back(broker, stored)
        redis: Any = broker.connections.control
        await redis.client_kill_filter(_type="normal", skipme=True)  # a failover breaks connections too
        assert (await log_of(broker, key))[-1][0] != "done"
        after, _ = await ending(broker, key)
    assert after == before and done["status"] == "completed"
    assert "lost the end" in logs.text


async def test_a_log_that_lost_more_than_was_kept_ends_as_failed(broker: Broker, redis_url: str) -> None:
    async with watched_worker(broker, redis_url) as (_, provider):
        key = await ask(broker, ENDLESS, on_abandon="continue")
        await speaking(broker, key, 3)
        await broker.connections.control.delete(keys.log(key))
        _, done = await ending(broker, key)
        await eventually(lambda: provider.open == 0, "the close of the provider")
    assert done["status"] == "failed" and done["error"]["code"] == "internal"


# -- a Redis that refuses


async def test_out_of_memory_holds_the_answer_up_and_loses_nothing(
    broker: Broker, redis_url: str, logs: pytest.LogCaptureFixture
) -> None:
    redis: Any = broker.connections.control
    async with watched_worker(broker, redis_url, lease_s=30.0) as (worker, provider):
        key = await ask(broker, "scripted/tokens=100,rate=100", on_abandon="continue")
        await speaking(broker, key, 5)
        await redis.config_set("maxmemory", 1)
        try:
            run = worker.table.runs[key]
            await eventually(lambda: run.generation.held, "a refusal")
            assert provider.open == 1 and not run.generation.may_read
            held_at = len(await log_of(broker, key))
            await eventually(lambda: "OOM" in logs.text, "the word to the operator")
            assert len(await log_of(broker, key)) == held_at
        finally:
            await redis.config_set("maxmemory", 0)
        entries, done = await ending(broker, key)
    assert done["status"] == "completed" and numbers(entries) == list(range(100))


async def test_a_log_that_refuses_for_ever_is_given_up_and_disturbs_nobody(
    broker: Broker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.lease.GIVE_UP_S", 1.0)
    async with watched_worker(broker, redis_url) as (worker, provider):
        key = await ask(broker, ENDLESS, "r1", on_abandon="continue")
        other = await ask(broker, "scripted/tokens=100,rate=100", "r2", on_abandon="continue")
        await speaking(broker, key)
        await broker.connections.control.xtrim(keys.log(key), maxlen=0, approximate=False)  # its ids stay used
        _, done = await ending(broker, other)
        await eventually(lambda: key not in worker.table, "the end of the run")
        assert provider.open == 0 and done["status"] == "completed"


# -- a Redis that is gone


@pytest.fixture
def mortal_redis() -> Iterator[EmbeddedRedis]:
    """A server of the test's own, that keeps what it answered over a crash."""
    with EmbeddedRedis(appendonly="always") as server:
        yield server


async def test_two_seconds_without_redis_cost_a_pause_and_nothing_else(mortal_redis: EmbeddedRedis) -> None:
    broker = Broker.connect(mortal_redis.url, BrokerSettings())
    async with watched_worker(broker, mortal_redis.url) as (worker, provider):
        asked = [await ask(broker, "scripted/tokens=150,rate=50", f"r{n}", on_abandon="continue") for n in range(5)]
        for key in asked:
            await speaking(broker, key, 5)
        former = worker.appender.sender
        await asyncio.to_thread(mortal_redis.kill)
        await asyncio.sleep(2)  # the outage itself
        await asyncio.to_thread(mortal_redis.start)
        for key in asked:
            entries, done = await ending(broker, key)
            assert done["status"] == "completed" and numbers(entries) == list(range(150))
            assert kinds(entries).count("started") == 1
        assert provider.calls == len(asked) and worker.appender.sender != former
    await broker.close()


async def test_past_the_doubt_about_its_lease_the_worker_waits_and_then_goes_on(mortal_redis: EmbeddedRedis) -> None:
    broker = Broker.connect(mortal_redis.url, BrokerSettings())
    # A grace of more than the outage: the janitor looks twice before it hands the generation to others.
    async with watched_worker(broker, mortal_redis.url, lease_s=1.0, lease_grace_s=10.0) as (worker, provider):
        key = await ask(broker, "scripted/tokens=200,rate=50", on_abandon="continue")
        await speaking(broker, key, 3)
        run = worker.table.runs[key]
        await asyncio.to_thread(mortal_redis.kill)
        await eventually(lambda: run.generation.paused, "the doubt")
        assert provider.open == 1 and not run.generation.may_read
        await asyncio.to_thread(mortal_redis.start)
        entries, done = await ending(broker, key)
    assert done["status"] == "completed" and numbers(entries) == list(range(200)) and provider.calls == 1
    await broker.close()


async def test_a_lease_that_cannot_be_confirmed_is_given_up_in_the_end(
    mortal_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.lease.GIVE_UP_S", 1.5)
    broker = Broker.connect(mortal_redis.url, BrokerSettings())
    async with watched_worker(broker, mortal_redis.url, lease_s=1.0) as (worker, provider):
        key = await ask(broker, ENDLESS, on_abandon="continue")
        await speaking(broker, key)
        await asyncio.to_thread(mortal_redis.kill)
        await eventually(lambda: provider.open == 0, "the close of the provider")
        assert key not in worker.table
    await broker.close()


async def test_a_worker_waits_for_a_redis_that_comes_later(mortal_redis: EmbeddedRedis) -> None:
    await asyncio.to_thread(mortal_redis.kill)
    broker = Broker.connect(mortal_redis.url, BrokerSettings())
    starting = running_worker(mortal_redis.url)
    entering = asyncio.create_task(starting.__aenter__())
    await asyncio.sleep(0.3)
    assert not entering.done()
    await asyncio.to_thread(mortal_redis.start)
    await entering
    _, done = await ending(broker, await ask(broker, "scripted/tokens=1,rate=0"))
    assert done["status"] == "completed" and decode_data("text", b"x") == {"text": "x"}
    await starting.__aexit__(None, None, None)
    await broker.close()
