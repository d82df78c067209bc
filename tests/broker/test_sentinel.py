"""Redis behind sentinels: every connection is one to the primary, before a failover and after it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from hub.broker.__main__ import main as health
from hub.broker.address import parse_address
from hub.broker.connections import Connections, Unreachable
from hub.broker.embedded import EmbeddedRedis
from hub.broker.sentinel import Answer, Sentinels, newest, read_answer
from hub.cli.doctor import check_redis
from tests.faults.sentinel import SERVICE, SentinelSetup
from tests.installation import eventually

OLD, NEW = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


@pytest.fixture(scope="module")
def setup() -> Iterator[SentinelSetup]:
    with SentinelSetup() as setup:
        yield setup


@pytest.fixture
async def connections(no_task_left: None, setup: SentinelSetup) -> AsyncIterator[Connections]:
    connections = Connections(setup.url)
    yield connections
    await connections.close()


def stored(server: EmbeddedRedis, name: str) -> Any:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.get(name)


async def written(connections: Connections, name: str) -> None:
    """Set a key as soon as that is possible."""

    async def is_set() -> bool:
        try:
            return bool(await connections.control.set(name, "1"))
        except Unreachable:
            return False

    await eventually(is_set, "a write")


# -- what sentinels say


def test_the_newest_configuration_counts_not_the_first_answer() -> None:
    stale, fresh = Answer(OLD, 4, is_down=False), Answer(NEW, 5, is_down=False)
    assert newest([stale, fresh, stale]) == fresh == newest([fresh, stale, stale])
    assert newest([Answer(OLD, 5, is_down=True), fresh]) == fresh
    assert newest([]) is None


@pytest.mark.parametrize(
    ("flags", "named", "is_down"),
    [
        (b"master", OLD, False),
        (b"s_down,master", OLD, False),  # one sentinel's own view: connecting will tell
        (b"s_down,o_down,master", OLD, True),
        (b"s_down,o_down,master,failover_in_progress", NEW, False),  # promoted, the replicas are being moved
    ],
)
def test_an_answer_is_read_in_both_shapes(flags: bytes, named: tuple[str, int], is_down: bool) -> None:
    facts = {b"ip": b"10.0.0.1", b"port": b"6379", b"flags": flags, b"config-epoch": b"7"}
    place = [named[0].encode(), str(named[1]).encode()]
    expected = Answer(named, 7, is_down)
    assert read_answer(facts, place) == expected
    assert read_answer([part for pair in facts.items() for part in pair], place) == expected


# -- connecting


async def test_every_kind_of_connection_leads_to_the_primary(setup: SentinelSetup, connections: Connections) -> None:
    raw, blocking = await connections.raw(), connections.blocking()
    for client in (connections.control, blocking):
        assert (await client.role())[0] == b"master"
    assert (await raw.execute([("ROLE",)], 5))[0][0] == b"master"
    await written(connections, "everywhere")
    assert stored(setup.primary(), "everywhere") == "1"
    raw.close()


async def test_a_service_that_no_sentinel_knows_is_said(setup: SentinelSetup, no_task_left: None) -> None:
    connections = Connections(setup.url.replace(SERVICE, "nothing"))
    with pytest.raises(RedisConnectionError, match="do not know the service 'nothing'"):
        await connections.control.ping()
    await connections.close()


async def test_a_server_that_is_named_and_is_no_primary_is_not_used(
    setup: SentinelSetup, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sentinels name a server before it was promoted, and one that lags behind names it after it was demoted."""

    async def primary(self: Sentinels) -> tuple[str, int]:
        return "127.0.0.1", setup.replica().port or 0

    with monkeypatch.context() as patch:
        patch.setattr(Sentinels, "primary", primary)
        for connecting in (connections.control.get("k"), connections.raw(), connections.blocking().get("k")):
            with pytest.raises(RedisConnectionError, match="no primary|moment ago"):
                await connecting
            connections.attempts.succeeded()
    await written(connections, "k")


async def test_sentinels_out_of_reach_are_an_outage_within_seconds(no_task_left: None) -> None:
    connections = Connections("redis+sentinel://127.0.0.1:1,127.0.0.1:2/nothing")
    began = time.monotonic()
    with pytest.raises(RedisConnectionError, match="none of 2 sentinels answered|moment ago"):
        await connections.control.ping()
    with pytest.raises(Unreachable):
        await connections.raw()
    assert time.monotonic() - began < 5
    await connections.close()


async def test_a_hung_sentinel_holds_nobody_up_and_the_last_one_is_enough(
    setup: SentinelSetup, no_task_left: None
) -> None:
    sentinels = Sentinels(parse_address(setup.url))
    place = ("127.0.0.1", setup.primary().port)
    hung = setup.sentinels[:2]
    try:
        hung[0].signal(signal.SIGSTOP)
        began = time.monotonic()
        assert await sentinels.primary() == place
        assert time.monotonic() - began < 0.9, "two of three had answered"
        hung[1].signal(signal.SIGSTOP)
        assert await asyncio.gather(*[sentinels.primary() for _ in range(20)]) == [place] * 20
        assert time.monotonic() - began < 5, "twenty at once ask once"
    finally:
        for sentinel in hung:
            sentinel.signal(signal.SIGCONT)
    await sentinels.close()


def test_the_doctor_looks_at_the_primary(setup: SentinelSetup) -> None:
    checks = {check.name: check for check in check_redis({"HEADRACE_REDIS_URL": setup.url})}
    assert [checks[name].verdict for name in ("Redis", "eviction", "persistence", "clock")] == ["ok"] * 4
    [lost] = check_redis({"HEADRACE_REDIS_URL": setup.url.replace(SERVICE, "nothing")})
    assert lost.verdict == "fail" and "does not answer" in lost.found


def test_a_health_check_asks_the_primary(setup: SentinelSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_REDIS_URL", setup.url)
    assert health() is None
    monkeypatch.setenv("HEADRACE_REDIS_URL", setup.url.replace(SERVICE, "nothing"))
    assert health() == "Redis does not answer; is HEADRACE_REDIS_URL right?"
    monkeypatch.setenv("HEADRACE_REDIS_URL", "redis+sentinel://s3cret@host")
    assert "names no service" in (health() or "") and "s3cret" not in (health() or "")
    monkeypatch.delenv("HEADRACE_REDIS_URL")
    assert health() == "HEADRACE_REDIS_URL is not set"


# -- failovers


async def test_after_a_failover_all_connections_lead_to_the_new_primary(
    setup: SentinelSetup, connections: Connections
) -> None:
    raw, blocking = await connections.raw(), connections.blocking()
    await written(connections, "before")
    reading: Any = blocking.xread({"nothing": "0"}, block=1000)
    waiting = asyncio.ensure_future(reading)
    await asyncio.to_thread(setup.kill_primary)
    with pytest.raises(Unreachable):
        await waiting
    with pytest.raises(Unreachable):
        while True:
            await raw.execute([("SET", "k", "1")], 5)
    successor = await asyncio.to_thread(setup.wait_for_failover)
    await written(connections, "after")
    assert stored(successor, "after") == "1"
    assert (await blocking.role())[0] == b"master"
    raw = await connections.raw()
    assert await raw.execute([("SET", "raw", "1")], 5) == [b"OK"] and stored(successor, "raw") == "1"
    raw.close()
    await asyncio.to_thread(setup.restart_former)


async def test_a_former_primary_that_wakes_up_gets_no_write(setup: SentinelSetup, connections: Connections) -> None:
    """It does not know that it was replaced, and its idle connections would still work."""
    former = setup.primary()
    successor = setup.replica()
    raw = await connections.raw()
    await asyncio.gather(*[connections.control.set("k", "1") for _ in range(8)])  # several, idle in the pool
    os.kill(former.pid, signal.SIGSTOP)
    try:
        await eventually(lambda: connections.is_primary(("127.0.0.1", successor.port or 0)), "the failover")
    finally:
        os.kill(former.pid, signal.SIGCONT)
    await written(connections, "woken")
    with pytest.raises(Unreachable):
        await raw.execute([("SET", "woken", "raw")], 5)
    assert stored(successor, "woken") == "1"

    async def is_demoted() -> bool:
        try:
            with redis.Redis.from_url(former.url, decode_responses=True) as client:
                return bool(client.role()[0] == "slave")
        except redis.RedisError:
            return False  # whoever demotes it also cuts its connections

    await eventually(is_demoted, "the demotion of the former primary")


async def test_without_sentinels_what_is_connected_works_on(setup: SentinelSetup, connections: Connections) -> None:
    await written(connections, "k")
    for sentinel in setup.sentinels:
        sentinel.signal(signal.SIGSTOP)
    try:
        for _ in range(15):
            assert await connections.control.set("k", "2")
            await asyncio.sleep(0.1)  # longer than the sentinels are asked anew
    finally:
        for sentinel in setup.sentinels:
            sentinel.signal(signal.SIGCONT)
