"""Addresses of Redis, and what a connection does with a server that is not there or takes no writes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from redis.asyncio.connection import SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from hub.broker.address import SENTINEL_PORT, WrongAddress, parse_address
from hub.broker.connections import Attempts, Connections, Unreachable
from hub.broker.embedded import EmbeddedRedis
from hub.broker.resp import ReplyError
from hub.broker.settings import BrokerSettings, wrong_settings

# -- addresses


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1", "redis://127.0.0.1:6380/2", "redis://user:p%2Fss@[::1]:6379/0?protocol=3",
        "rediss://redis.internal/1?ssl_cert_reqs=none", "unix:///run/redis.sock", "unix:///run/redis.sock?db=1",
    ],
)  # fmt: skip
def test_the_address_of_one_server_is_taken_as_it_is(url: str) -> None:
    address = parse_address(url)
    assert address.url == url and address.sentinels == ()
    assert "p%2Fss" not in address.shown and "p%2Fss" not in repr(address)


def test_an_address_of_sentinels_names_them_the_service_and_the_database() -> None:
    address = parse_address(
        "redis+sentinel://me:s%2Fcret@one:26380,two,[::1]:1/my.service/3?sentinel_password=o%26ther"
    )
    assert address.sentinels == (("one", 26380), ("two", SENTINEL_PORT), ("::1", 1))
    assert address.service == "my.service" and not address.is_tls
    assert address.options == {"username": "me", "password": "s/cret", "db": 3}
    assert address.sentinel_options == {"password": "o&ther"}
    assert address.shown == "redis+sentinel://me:***@one:26380,two,[::1]:1/my.service/3"
    assert "cret" not in repr(address) and "ther" not in repr(address)


def test_tls_is_spoken_to_sentinels_and_servers_alike() -> None:
    address = parse_address("rediss+sentinel://one/service?ssl_ca_certs=/ca.pem&ssl_check_hostname=false")
    assert address.is_tls
    assert address.options == address.sentinel_options == {"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}
    pool: Any = Connections(address.url).control.connection_pool
    assert isinstance(pool.make_connection(), SSLConnection)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://s3cret@host", "begins with none of redis://"),
        ("s3cret", "begins with none of redis://"),
        ("redis://[s3cret", "no URL"),
        ("redis://me:s3/cret@host", "percent-encoded"),
        ("redis://host/s3cret", "no number of a database"),
        ("redis://host?protocol=s3cret", "cannot be read"),
        ("unix://", "names no socket"),
        ("redis+sentinel://host", "names no service"),
        ("redis+sentinel://host/", "names no service"),
        ("redis+sentinel://host/s3 cret", "names no service"),
        ("redis+sentinel:///service", "sentinels cannot be read"),
        ("redis+sentinel://one,,two/service", "sentinels cannot be read"),
        ("redis+sentinel://one:0/service", "sentinels cannot be read"),
        ("redis+sentinel://one:65536/service", "sentinels cannot be read"),
        ("redis+sentinel://::1/service", "sentinels cannot be read"),
        ("redis+sentinel://me:s3/cret@one/service", "sentinels cannot be read"),
        ("redis+sentinel://one/service/s3", "no number of a database"),
        ("redis+sentinel://one/service/0/1", "no number of a database"),
        ("redis+sentinel://one/service?password=s3cret", "something other than sentinel_username"),
        ("redis+sentinel://one/service?s3cret", "something other than sentinel_username"),
        ("redis+sentinel://one/service?ssl_ca_certs=s3", "something other than sentinel_username"),
        ("rediss+sentinel://one/service?ssl_cert_reqs=s3", "none of required, optional, none"),
        ("rediss+sentinel://one/service?ssl_check_hostname=s3", "neither true nor false"),
    ],
)
def test_what_is_no_address_is_refused_in_one_line_that_repeats_nothing(url: str, reason: str) -> None:
    with pytest.raises(WrongAddress, match=reason) as refusal:
        parse_address(url)
    assert "s3" not in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(ValidationError) as settings:
        BrokerSettings(redis_url=url)
    assert wrong_settings(settings.value) == [f"HEADRACE_REDIS_URL: {refusal.value}"]


# -- tries


class Clock:
    """Seconds that pass only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def test_tries_in_vain_are_four_at_once_and_then_about_five_a_second() -> None:
    clock = Clock()
    attempts = Attempts(clock, clock.sleep)
    tried = []
    while clock.now < 10 and len(tried) < 1000:
        with contextlib.suppress(RedisConnectionError):
            await attempts.turn()
            tried.append(clock.now)
            attempts.failed()
    assert tried[Attempts.AT_ONCE - 1] == 0 < tried[Attempts.AT_ONCE]
    assert 30 < len(tried) <= Attempts.AT_ONCE + 10 * 7
    pauses = {round(after - before, 2) for before, after in zip(tried[4:], tried[5:], strict=False)}
    assert len(pauses) > 3  # nobody keeps step with anybody


async def test_who_waits_goes_with_a_success_and_is_refused_when_another_tries() -> None:
    clock = Clock()
    heard: list[Callable[[], None]] = []

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        heard.pop()()

    attempts = Attempts(clock, sleep)
    for _ in range(Attempts.AT_ONCE):
        attempts.failed()
    heard.append(attempts.failed)  # another one was first
    with pytest.raises(RedisConnectionError, match="a moment ago"):
        await attempts.turn()
    heard.append(attempts.succeeded)
    await attempts.turn()
    await attempts.turn()
    assert not heard and clock.now < 0.7


async def test_a_hundred_callers_try_a_dead_server_a_few_times_and_all_hear_of_it(no_task_left: None) -> None:
    tried = 0

    def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tried
        tried += 1
        writer.transport.abort()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    connections = Connections(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    outcomes = await asyncio.gather(*[connections.control.get("k") for _ in range(100)], return_exceptions=True)
    assert all(isinstance(outcome, Unreachable) for outcome in outcomes)
    assert 1 <= tried < 150, "three times each would be 300; some are under way before the first has failed"
    tried = 0
    began = asyncio.get_running_loop().time()
    while (seconds := asyncio.get_running_loop().time() - began) < 1:
        with pytest.raises(RedisConnectionError):
            await connections.control.get("k")
    assert 1 <= tried <= 10 * seconds
    await connections.close()
    server.close()
    await server.wait_closed()


# -- a server that does not answer


async def test_calls_that_are_given_up_keep_no_connection(no_task_left: None) -> None:
    with EmbeddedRedis() as server:
        connections = Connections(server.url)
        script = connections.control.register_script("return 1")
        await connections.control.ping()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for _ in range(40):  # more than there are connections
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        pipeline = connections.control.pipeline(transaction=False)
                        await script(client=pipeline)
                        await pipeline.execute()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert await connections.control.ping()
        pool: Any = connections.control.connection_pool
        assert not pool._in_use_connections
        await connections.close()


# -- a server that takes no writes


@pytest.fixture
def demotable() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


async def test_a_demoted_server_is_left_by_every_kind_of_connection(
    no_task_left: None, demotable: EmbeddedRedis
) -> None:
    connections = Connections(demotable.url)
    raw = await connections.raw()
    await connections.control.set("k", "1")
    await connections.control.replicaof("127.0.0.1", "1")
    [fine, refused] = await raw.execute([("GET", "k"), ("SET", "k", "2")], 5)
    assert fine == b"1" and isinstance(refused, ReplyError) and refused.code == "READONLY"
    assert not raw.is_open
    with pytest.raises(RedisConnectionError, match="takes no writes"):
        await connections.control.set("k", "2")
    assert await connections.control.get("k") == b"1"
    await connections.control.replicaof("NO", "ONE")
    assert await connections.control.set("k", "2")
    raw = await connections.raw()
    assert await raw.execute([("SET", "k", "3")], 5) == [b"OK"]
    raw.close()
    await connections.close()
