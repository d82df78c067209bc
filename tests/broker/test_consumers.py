"""Consumers of dead processes go; one that holds something, or still asks, stays."""

from __future__ import annotations

import asyncio

from hub.broker import keys, lanes
from hub.broker.broker import Broker
from hub.broker.consumers import forget_dead
from tests.installation import eventually


async def names(broker: Broker) -> set[bytes]:
    found = await broker.connections.control.xinfo_consumers(keys.lane("standard"), lanes.GROUP)
    return {
        consumer["name"] if isinstance(consumer["name"], bytes) else consumer["name"].encode() for consumer in found
    }


async def test_only_the_dead_with_empty_hands_are_forgotten(broker: Broker) -> None:
    control = broker.connections.control
    await broker.lanes.ensure(["standard"])
    for consumer in ("dead", "holds"):
        await control.xgroup_createconsumer(keys.lane("standard"), lanes.GROUP, consumer)
    await control.xadd(keys.lane("standard"), {"s": "acme:a"})
    await control.xreadgroup(lanes.GROUP, "holds", {keys.lane("standard"): ">"}, count=1)
    await asyncio.sleep(0.05)
    await control.xgroup_createconsumer(keys.lane("standard"), lanes.GROUP, "young")
    assert await forget_dead(control, keys.lane("standard"), lanes.GROUP, 10_000) == []
    assert await forget_dead(control, keys.lane("standard"), lanes.GROUP, 40) == [b"dead"]
    assert await names(broker) == {b"holds", b"young"}


async def test_a_lane_without_a_group_is_no_error(broker: Broker) -> None:
    assert await forget_dead(broker.connections.control, keys.lane("nowhere"), lanes.GROUP) == []


async def test_a_reader_that_was_forgotten_while_it_waited_reads_on(broker: Broker) -> None:
    await broker.lanes.ensure(["standard"])
    reader = broker.connections.blocking()
    try:
        waiting = asyncio.create_task(broker.lanes.take(reader, ["standard"], "waits", 5000))
        await eventually(lambda: has(broker, b"waits"))
        assert await forget_dead(broker.connections.control, keys.lane("standard"), lanes.GROUP, 0) == [b"waits"]
        await broker.lanes.add("standard", keys.stream_key("acme", "a"))
        [ticket] = await waiting or await broker.lanes.take(reader, ["standard"], "waits", 5000)
        assert ticket.key == keys.stream_key("acme", "a")
    finally:
        await reader.aclose()


async def has(broker: Broker, name: bytes) -> bool:
    return name in await names(broker)
