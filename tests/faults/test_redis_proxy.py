"""The proxy in front of Redis cuts and delays the very command that a test means."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from hub.broker.broker import Broker
from hub.broker.embedded import EmbeddedRedis
from tests.faults.redis_proxy import CUT_AFTER, CUT_BEFORE, RedisProxy, delay_command, delay_reply
from tests.faults.resp import Cutter
from tests.installation import eventually


@pytest.fixture
async def proxy(broker: Broker, redis_server: EmbeddedRedis) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(redis_server.url.removeprefix("unix://")) as proxy:
        yield proxy


@pytest.fixture(params=[2, 3])
async def through(request: Any, proxy: RedisProxy) -> AsyncIterator[Any]:
    """A client through the proxy, which never tries again."""
    client = Redis.from_url(proxy.url, protocol=request.param, retry=Retry(NoBackoff(), 0), socket_timeout=5)
    yield client
    await client.aclose()


async def holds(key: str, value: bytes, direct: Any) -> bool:
    return bool(await direct.get(key) == value)


@pytest.fixture
def direct(broker: Broker) -> Any:
    return broker.connections.control


async def test_replies_of_every_shape_pass_unchanged(through: Any, direct: Any) -> None:
    await through.hset("h", mapping={"a": 1, "b": ""})
    await through.xadd("x", {"f": b"\r\n*3\r\n"}, id="1-0")
    await through.sadd("s", "m")
    pipeline = through.pipeline(transaction=True)
    pipeline.hgetall("h")
    pipeline.xrange("x")
    pipeline.smembers("s")
    pipeline.get("nothing")
    pipeline.zadd("z", {"m": 1.5})
    pipeline.zrange("z", 0, -1, withscores=True)
    assert (await pipeline.execute())[:4] == [
        {b"a": b"1", b"b": b""}, [(b"1-0", {b"f": b"\r\n*3\r\n"})], {b"m"}, None,
    ]  # fmt: skip
    assert await through.eval("return {1, {2, {}}, 'x'}", 0) == [1, [2, []], b"x"]
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        await through.get("h")


async def test_commands_are_counted_and_scripts_have_names(through: Any, proxy: RedisProxy) -> None:
    script = through.register_script("return redis.call('INCR', KEYS[1])")
    proxy.scripts[script.sha] = "count"
    await through.script_flush()
    await script(keys=["{k}:n"])
    assert ("count", "{k}:n") in proxy.seen and proxy.counts["count"] == 2, "NOSCRIPT first"
    proxy.forget()
    await through.ping()
    assert proxy.seen == [("PING", "")] and proxy.calls[0].ordinal == 1
    await through.xadd("x", {"a": 1})
    await through.xread({"x": "0"}, block=10)
    assert proxy.seen[-1] == ("XREAD", "x")


@pytest.mark.parametrize(("fault", "applied"), [(CUT_BEFORE, 0), (CUT_AFTER, 1)])
async def test_a_cut_command_is_applied_or_not_as_told(
    fault: Any, applied: int, through: Any, proxy: RedisProxy, direct: Any
) -> None:
    proxy.decide = lambda call: fault if call.name == "INCRBY" else None
    with pytest.raises(redis.exceptions.ConnectionError):
        await through.incr("n")
    proxy.decide = None
    assert int(await direct.get("n") or 0) == applied
    assert await through.incr("n") == applied + 1


@pytest.mark.parametrize(("fault", "applied"), [(CUT_BEFORE, "12"), (CUT_AFTER, "123")])
async def test_what_was_pipelined_before_is_applied_and_what_came_behind_is_not(
    fault: Any, applied: str, through: Any, proxy: RedisProxy, direct: Any
) -> None:
    for _ in range(20):
        await direct.delete("l")
        proxy.decide = lambda call: fault if call.words[-2:] == [b"l", b"3"] else None
        pipeline = through.pipeline(transaction=False)
        for number in range(1, 6):
            pipeline.append("l", number)
        with pytest.raises(redis.exceptions.ConnectionError):
            await pipeline.execute()
        assert await direct.get("l") == applied.encode()


async def test_a_delayed_reply_comes_late_and_holds_up_its_connection_only(
    through: Any, proxy: RedisProxy, direct: Any
) -> None:
    await through.ping()
    proxy.decide = lambda call: delay_reply(0.3) if call.name == "INCRBY" else None
    began = time.monotonic()
    counting = asyncio.create_task(through.incr("n"))
    await eventually(lambda: holds("n", b"1", direct))
    await through.ping()
    assert time.monotonic() - began < 0.3
    assert await counting == 1 and time.monotonic() - began >= 0.3


async def test_a_delayed_command_arrives_even_when_its_sender_is_gone(proxy: RedisProxy, direct: Any) -> None:
    proxy.decide = lambda call: delay_command(0.3) if call.name == "INCRBY" else None
    impatient = Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0), socket_timeout=0.1)
    with pytest.raises(redis.exceptions.TimeoutError):
        await impatient.incr("n")
    await impatient.aclose()
    assert await direct.get("n") is None
    await eventually(lambda: holds("n", b"1", direct))


async def test_a_blocking_read_is_cut_while_it_waits_or_after_it_got_something(
    through: Any, proxy: RedisProxy, direct: Any
) -> None:
    proxy.decide = lambda call: CUT_AFTER if call.name == "XREADGROUP" else None
    await direct.xgroup_create("x", "g", mkstream=True)
    reading = asyncio.create_task(through.xreadgroup("g", "c", {"x": ">"}, block=5000))
    await direct.xadd("x", {"a": 1})
    with pytest.raises(redis.exceptions.ConnectionError):
        await reading
    assert (await direct.xpending("x", "g"))["pending"] == 1, "delivered, and nobody knows"


def test_values_are_cut_wherever_the_bytes_were_torn() -> None:
    values = [
        b"+OK\r\n", b"$-1\r\n", b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n", b"%1\r\n+k\r\n*0\r\n", b">2\r\n+push\r\n+x\r\n",
        b"|1\r\n+a\r\n+b\r\n*1\r\n#t\r\n", b"*-1\r\n", b"_\r\n", b"$3\r\n\r\n*\r\n",
    ]  # fmt: skip
    stream = b"".join(values)
    for size in (1, 2, 3, 7, len(stream)):
        cutter = Cutter()
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [value for piece in pieces for value in cutter.feed(piece)] == values
    with pytest.raises(ValueError, match="not RESP"):
        Cutter().feed(b"GET / HTTP/1.1\r\n")
