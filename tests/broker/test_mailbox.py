"""The live path between processes, and the connection it goes through."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from hub.broker import keys, mailbox
from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.mailbox import (
    PACKET_BYTES,
    HubPacket,
    MailboxReader,
    Part,
    Wish,
    WorkerPacket,
    new_mailbox,
    post,
    post_command,
    relay_packets,
    still_there,
)  # fmt: skip
from hub.broker.resp import ReplyError

KEY = keys.stream_key("acme", "g_5Zk2mQ9xWb3TnL8r")


async def opened(broker: Broker, ttl_s: float = 20.0) -> MailboxReader:
    reader = MailboxReader(broker.connections, new_mailbox("h"), ttl_s)
    await reader.open()
    return reader


async def test_packets_arrive_in_order_each_once(broker: Broker) -> None:
    reader = await opened(broker)
    packets = [
        HubPacket("w1", [Part(KEY, "m1", 2, [("text", b"a"), ("done", b"\x80")]), Part(KEY, "m1", 4, [])], [KEY]),
        WorkerPacket("h1", [Wish(KEY, 5, announce=True), Wish(KEY, 0, leave=True, cancel=True, on_abandon="cancel")]),
    ]
    for packet in packets:
        assert await post(broker.connections.control, reader.name, packet, 512)
    received: list[Any] = []
    while len(received) < 2:
        received += await reader.read()
    assert received == packets
    assert await post(broker.connections.control, reader.name, packets[0], 512)
    assert await reader.read() == [packets[0]]
    await reader.close()


async def test_a_read_without_packets_returns(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "BLOCK_MS", 20)
    reader = await opened(broker)
    assert await reader.read() == []  # the entry that made the mailbox is no packet
    assert await reader.read() == []
    await reader.close()


async def test_posting_to_nobody_says_so_and_makes_no_mailbox(broker: Broker) -> None:
    assert not await post(broker.connections.control, "hnobody", HubPacket("w1", []), 512)
    assert await broker.connections.control.dbsize() == 0


async def test_an_expired_or_closed_mailbox_is_gone(broker: Broker) -> None:
    reader = await opened(broker)
    other = await opened(broker)
    names = [reader.name, "hnobody", other.name]
    assert await still_there(broker.connections.control, names) == {reader.name, other.name}
    assert await reader.renew()
    redis: Any = broker.connections.control
    await redis.pexpire(keys.mailbox(reader.name), 0)
    assert not await reader.renew()
    assert not await post(redis, reader.name, HubPacket("w1", []), 512)
    await other.close()
    assert await still_there(redis, [reader.name, other.name]) == set()
    await reader.close()


async def test_a_renewal_puts_the_end_off(broker: Broker) -> None:
    redis: Any = broker.connections.control
    reader = await opened(broker, ttl_s=20)
    await redis.pexpire(keys.mailbox(reader.name), 3000)
    await reader.renew()
    assert await redis.pttl(keys.mailbox(reader.name)) > 15_000
    await reader.close()


async def test_a_mailbox_is_bounded_and_its_reader_survives_the_loss(broker: Broker) -> None:
    reader = await opened(broker)
    raw = await broker.connections.raw()
    packets = [HubPacket("w1", [Part(KEY, "m1", number, [])]) for number in range(1, 1001)]
    await raw.execute([post_command(reader.name, packet, 16) for packet in packets], 5)
    assert await broker.connections.control.xlen(keys.mailbox(reader.name)) < 250
    received: list[Any] = []
    while not received or received[-1] != packets[-1]:
        received += await reader.read()
    assert received == packets[-len(received) :]
    raw.close()
    await reader.close()


async def test_names_are_never_used_twice() -> None:
    assert len({new_mailbox("h") for _ in range(1000)}) == 1000


def test_parts_are_packed_within_the_bound_and_keep_their_order() -> None:
    parts = [Part(KEY, "m1", number, [("text", b"x" * 10_000)]) for number in range(1, 21)]
    packets = list(relay_packets("w1", parts))
    assert [part for packet in packets for part in packet.parts] == parts
    assert len(packets) == 4
    for packet in packets:
        assert packet.sender == "w1"
        assert sum(len(data) for part in packet.parts for _, data in part.entries) <= PACKET_BYTES
    assert list(relay_packets("w1", [])) == []


def test_a_part_above_the_bound_goes_alone() -> None:
    small, large = Part(KEY, "m1", 1, []), Part(KEY, "m1", 2, [("text", b"x" * (PACKET_BYTES + 1))])
    assert [packet.parts for packet in relay_packets("w1", [small, large, small])] == [[small], [large], [small]]


# -- the raw connection ----------------------------------------------------------------------------------------


async def test_replies_come_in_order_and_an_error_hides_no_other(broker: Broker) -> None:
    raw = await broker.connections.raw()
    one, error, two = await raw.execute([("ECHO", "1"), ("INCR", b"k", "x"), ("ECHO", 2)], 5)
    assert (one, two) == (b"1", b"2")
    assert isinstance(error, ReplyError)
    assert error.code == "ERR"
    assert raw.is_open
    [missing] = await raw.execute([("EVALSHA", "0" * 40, 0)], 5)
    assert isinstance(missing, ReplyError) and missing.code == "NOSCRIPT"
    raw.close()
    raw.close()


async def test_a_large_batch_is_answered_whole(broker: Broker) -> None:
    raw = await broker.connections.raw()
    payload = b"x" * 10_000
    assert await raw.execute([("ECHO", payload)] * 200, 5) == [payload] * 200
    raw.close()


async def test_a_batch_that_times_out_closes_the_connection(broker: Broker) -> None:
    raw = await broker.connections.raw()
    with pytest.raises(RedisTimeoutError, match=r"within 0\.05 s"):
        await raw.execute([("XREAD", "BLOCK", 1000, "STREAMS", "nothing", "0")], 0.05)
    assert not raw.is_open
    with pytest.raises(Unreachable):
        await raw.execute([("PING",)], 1)


async def test_a_batch_that_is_cancelled_closes_the_connection(broker: Broker) -> None:
    raw = await broker.connections.raw()
    batch = asyncio.create_task(raw.execute([("XREAD", "BLOCK", 5000, "STREAMS", "nothing", "0")], 10))
    await asyncio.sleep(0)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert not raw.is_open


async def test_a_server_that_closes_ends_the_batch(broker: Broker) -> None:
    raw = await broker.connections.raw()
    [identity] = await raw.execute([("CLIENT", "ID")], 1)
    batch = asyncio.create_task(raw.execute([("XREAD", "BLOCK", 5000, "STREAMS", "nothing", "0")], 10))
    await asyncio.sleep(0)
    redis: Any = broker.connections.control
    await redis.client_kill_filter(_id=identity)
    with pytest.raises(RedisConnectionError):
        await batch
    assert not raw.is_open


async def test_a_cancellation_is_never_swallowed_at_whatever_point_it_comes(broker: Broker) -> None:
    redis: Any = broker.connections.control
    await redis.ping()
    for turns in range(20):
        command = asyncio.create_task(redis.ping())
        for _ in range(turns):
            await asyncio.sleep(0)
        if command.done():
            break
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command
    for number in range(5):
        assert await redis.echo(str(number)) == str(number).encode(), "no reply is taken for another's"


async def test_a_deadline_around_a_command_holds(broker: Broker) -> None:
    blocking: Any = broker.connections.blocking()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await blocking.xread({"nothing": "0"}, block=900)
    assert time.monotonic() - began < 0.5
    assert await blocking.echo("next") == b"next"


async def test_a_server_that_is_not_there_is_told_and_not_waited_for(tmp_path: Any) -> None:
    from hub.broker.settings import BrokerSettings

    broker = Broker.connect(f"unix://{tmp_path}/nothing.sock", BrokerSettings())
    assert not await broker.is_reachable()
    with pytest.raises(Unreachable):
        await broker.connections.raw()
    with pytest.raises(Unreachable):
        await broker.lanes.depths(["standard"])
    await broker.close()


async def test_a_server_that_is_there_is_reachable(broker: Broker) -> None:
    assert await broker.is_reachable()
