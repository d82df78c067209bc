"""Queues dispatch at least once and own nothing; the index of live streams tells the janitor where to look."""

from __future__ import annotations

from typing import Any

import pytest

from hub.broker import keys, lanes
from hub.broker import live as lives
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey

A, B, C = (keys.stream_key("acme", f"g_{letter * 16}") for letter in "abc")


async def test_what_waited_before_there_was_a_group_is_not_skipped(broker: Broker) -> None:
    await broker.lanes.add("standard", A)
    await broker.lanes.ensure(["standard", "takeover"])
    await broker.lanes.ensure(["standard", "takeover"])
    [ticket] = await broker.lanes.take(broker.connections.blocking(), ["takeover", "standard"], "w1", 1000)
    assert (ticket.lane, ticket.key) == ("standard", A)


async def test_one_ticket_a_lane_takeovers_first(broker: Broker) -> None:
    await broker.lanes.ensure(["standard", "takeover"])
    for key in (A, B):
        await broker.lanes.add("standard", key)
    await broker.lanes.add("takeover", C)
    tickets = await broker.lanes.take(broker.connections.blocking(), ["takeover", "standard"], "w1", 1000)
    assert [(ticket.lane, ticket.key) for ticket in tickets] == [("takeover", C), ("standard", A)]


async def test_a_dropped_ticket_leaves_the_lane_empty(broker: Broker) -> None:
    await broker.lanes.ensure(["standard"])
    await broker.lanes.add("standard", A)
    [ticket] = await broker.lanes.take(broker.connections.blocking(), ["standard"], "w1", 1000)
    assert await broker.lanes.depths(["standard"]) == {"standard": 1}
    await broker.lanes.drop(ticket)
    await broker.lanes.drop(ticket)
    assert await broker.lanes.depths(["standard"]) == {"standard": 0}
    assert await broker.lanes.oldest_ms("standard") is None


@pytest.mark.parametrize("loss", ["flush", "group"])
async def test_a_group_that_redis_lost_is_made_again_and_loses_no_ticket(broker: Broker, loss: str) -> None:
    redis: Any = broker.connections.control
    reader = broker.connections.blocking()
    await broker.lanes.ensure(["standard", "takeover"])
    if loss == "flush":
        await redis.flushdb()
    else:
        await redis.xgroup_destroy(keys.lane("standard"), lanes.GROUP)
    await broker.lanes.add("standard", A)
    assert await broker.lanes.take(reader, ["takeover", "standard"], "w1", 50) == []
    [ticket] = await broker.lanes.take(reader, ["takeover", "standard"], "w1", 1000)
    assert ticket.key == A


async def test_tickets_of_a_worker_that_died_before_its_claim_are_found(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broker.lanes.ensure(["standard"])
    reader = broker.connections.blocking()
    for key in (A, B, C):
        await broker.lanes.add("standard", key)
    for _ in range(2):
        await broker.lanes.take(reader, ["standard"], "dead", 1000)
    assert await broker.lanes.stranded("standard", "w2") == [], "not before their time"
    monkeypatch.setattr(lanes, "STRANDED_MS", 0)
    stranded = await broker.lanes.stranded("standard", "w2")
    assert [ticket.key for ticket in stranded] == [A, B]
    await broker.lanes.drop(stranded[0])
    assert [ticket.key for ticket in await broker.lanes.stranded("standard", "w3")] == [B]


async def test_a_consumer_that_leaves_takes_no_pending_ticket_along(broker: Broker) -> None:
    redis: Any = broker.connections.control
    await broker.lanes.ensure(["standard"])
    await broker.lanes.add("standard", A)
    [ticket] = await broker.lanes.take(broker.connections.blocking(), ["standard"], "w1", 1000)
    await broker.lanes.forget(["standard", "no such lane"], "w1")
    assert await redis.xpending_range(keys.lane("standard"), lanes.GROUP, "-", "+", 10) != []
    await broker.lanes.drop(ticket)
    await broker.lanes.forget(["standard"], "w1")
    assert await redis.xinfo_consumers(keys.lane("standard"), lanes.GROUP) == []


async def test_a_ticket_that_is_pending_with_nobody_is_queued_again(broker: Broker) -> None:
    """XGROUP DELCONSUMER takes the consumer's pending list along: no consumer is ever given these entries again."""
    redis: Any = broker.connections.control
    assert await broker.lanes.requeue_lost("standard") == [], "there is no lane yet"
    for key in (A, B, C):
        await broker.lanes.add("standard", key)
    assert await broker.lanes.requeue_lost("standard") == [], "there is no group yet"
    await broker.lanes.ensure(["standard"])
    reader = broker.connections.blocking()
    for worker in ("w1", "w2"):
        await broker.lanes.take(reader, ["standard"], worker, 1000)
    assert await broker.lanes.requeue_lost("standard") == [], "each is pending with somebody, or not delivered"
    await redis.xgroup_delconsumer(keys.lane("standard"), lanes.GROUP, "w1")
    assert await broker.lanes.requeue_lost("standard") == [A]
    assert await broker.lanes.requeue_lost("standard") == []
    taken = [await broker.lanes.take(reader, ["standard"], "w3", 1000) for _ in range(2)]
    assert [ticket.key for [ticket] in taken] == [C, A]
    assert await broker.lanes.depths(["standard"]) == {"standard": 3}


async def test_a_stream_is_due_at_its_time_and_keeps_its_place(broker: Broker) -> None:
    await broker.live.add(A, 100)
    await broker.live.add(A, 900)
    await broker.live.add(B, 200)
    assert await broker.live.due(99, 10) == []
    assert await broker.live.due(150, 10) == [A]
    assert set(await broker.live.due(200, 10)) == {A, B}


async def test_a_clock_that_went_back_delays_no_look(broker: Broker) -> None:
    await broker.live.add(A, 1_000_000)
    assert await broker.live.due(1_000_000 - lives.FAR_MS + 1, 10) == []
    assert await broker.live.due(1_000_000 - lives.FAR_MS, 10) == [A], "so far off cannot be true"


async def test_a_stream_is_moved_or_removed_and_never_brought_back(broker: Broker) -> None:
    await broker.live.add(A, 100)
    await broker.live.add(B, 100)
    await broker.live.reschedule({A: 300, B: None, C: 300})
    assert await broker.live.due(299, 10) == []
    assert await broker.live.due(300, 10) == [A]
    assert await broker.live.size() == 1


async def put(broker: Broker, key: StreamKey, state: str) -> None:
    await broker.connections.control.hset(keys.meta(key), mapping={"state": state})


async def walk(broker: Broker) -> list[StreamKey]:
    """Once around all keys."""
    found = await broker.live.mend(0.5)
    while broker.live._cursor:
        found += await broker.live.mend(0.5)
    return found


async def test_what_the_index_lost_is_added_again_unless_it_is_finished(broker: Broker) -> None:
    redis: Any = broker.connections.control
    await put(broker, A, "queued")
    await put(broker, B, "running")
    await put(broker, C, "done")
    await broker.live.add(B, 900)
    await redis.set("hr:{acme:not a hash}:meta", "x")
    await redis.set("hr:{acme:alice}:request:meta", "x")
    assert await walk(broker) == [A]
    assert await walk(broker) == []
    assert await broker.live.due(0, 10) == [A], "to be looked at now"
    assert await broker.live.size() == 2, "and B keeps its place"


async def test_a_walk_around_many_keys_is_made_of_small_steps_and_misses_nothing(broker: Broker) -> None:
    redis: Any = broker.connections.control
    pipeline = redis.pipeline(transaction=False)
    streams = {keys.stream_key("acme", f"g_{number:016}") for number in range(3000)}
    for key in streams:
        pipeline.hset(keys.meta(key), mapping={"state": "running"})
        pipeline.xadd(keys.log(key), {"k": "queued", "d": ""})
    await pipeline.execute()
    steps, found = 0, set[StreamKey]()
    while not steps or broker.live._cursor:
        lost = await broker.live.mend(0.5)
        assert len(lost) < 200, "no step holds Redis or this process up"
        steps += 1
        found |= set(lost)
    assert found == streams
    assert steps <= lives.WALK_S / 0.5, "once around within the time that is promised"
