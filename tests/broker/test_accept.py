"""How a request becomes a stream: any hub may die between any two steps, and the repeat finishes (protocol §3)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from headrace.protocol.body import Body, Options
from headrace.protocol.frames import Message
from hub.broker import keys
from hub.broker.accept import RequestConflict, RequestGone
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey


def body(content: str = "hi") -> Body:
    return Body([Message("user", content)])


async def accept(broker: Broker, request_key: str = "r1", content: str = "hi", user: str = "alice") -> StreamKey:
    return await broker.accept(
        org="acme", user=user, request_key=request_key, body=body(content), options=Options(),
        now_ms=int(time.time() * 1000),
    )  # fmt: skip


async def test_an_accepted_request_is_created_queued_indexed_and_listed(broker: Broker) -> None:
    key = await accept(broker)
    assert await broker.lanes.depths(["standard"]) == {"standard": 1}
    assert await broker.live.size() == 1
    redis: Any = broker.connections.control
    assert await redis.zrange(keys.user_streams("acme", "alice"), 0, -1) == [keys.stream_of(key).encode()]
    [standing] = await broker.log.standings([key])
    assert standing is not None and standing.state == "queued"


async def test_the_same_request_again_is_the_same_stream_and_no_second_run(broker: Broker) -> None:
    key = await accept(broker)
    assert await accept(broker) == key
    assert await broker.lanes.depths(["standard"]) == {"standard": 1}


async def test_requests_at_the_same_time_are_one_stream(broker: Broker) -> None:
    accepted = await asyncio.gather(*[accept(broker) for _ in range(10)])
    assert len(set(accepted)) == 1
    redis: Any = broker.connections.control
    assert len(await redis.zrange(keys.user_streams("acme", "alice"), 0, -1)) == 1


async def test_another_body_under_the_same_key_is_a_conflict(broker: Broker) -> None:
    await accept(broker)
    with pytest.raises(RequestConflict):
        await accept(broker, content="something else")


async def test_keys_belong_to_their_user(broker: Broker) -> None:
    assert await accept(broker, user="alice") != await accept(broker, user="bob", content="something else")


async def test_after_the_stream_expired_the_request_is_gone_and_runs_no_second_time(broker: Broker) -> None:
    key = await accept(broker)
    await broker.connections.control.delete(keys.meta(key), keys.log(key))
    with pytest.raises(RequestGone):
        await accept(broker)
    assert await broker.log.standings([key]) == [None]


class Died(Exception):
    """The hub, between two steps."""


STEPS = ["reserve", "live", "create", "lane", "mark accepted"]


@contextmanager
def dying_after(broker: Broker, step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of an accept in here only the first `step` steps happen."""
    redis: Any = broker.connections.control

    async def dies(*args: Any, **kwargs: Any) -> Any:
        raise Died

    places = [(broker.log, "run"), (broker.live, "add"), (broker.log, "create"), (broker.lanes, "add"), (redis, "set")]
    with monkeypatch.context() as patch:
        patch.setattr(*places[step], dies)
        with pytest.raises(Died):
            yield


@pytest.mark.parametrize("step", range(len(STEPS)), ids=[f"before {name}" for name in STEPS])
async def test_a_hub_dies_between_two_steps_and_the_repeat_finishes(
    broker: Broker, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying_after(broker, step, monkeypatch):
        await accept(broker)
    redis: Any = broker.connections.control
    listed = await redis.zrange(keys.user_streams("acme", "alice"), 0, -1)
    key = await accept(broker)
    if listed:
        assert listed == [keys.stream_of(key).encode()], "the stream that was reserved is the one that is made"
    assert await accept(broker) == key
    [standing] = await broker.log.standings([key])
    assert standing is not None and standing.state == "queued"
    assert await broker.live.size() == 1
    depth = (await broker.lanes.depths(["standard"]))["standard"]
    assert depth == (2 if step == 4 else 1), "a second lane entry is dropped at the claim; none would be a lost request"
    assert len(await redis.zrange(keys.user_streams("acme", "alice"), 0, -1)) == 1


@pytest.mark.parametrize("step", [1, 2, 3, 4])
async def test_a_repeat_of_an_unfinished_request_with_another_body_is_a_conflict_too(
    broker: Broker, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying_after(broker, step, monkeypatch):
        await accept(broker)
    with pytest.raises(RequestConflict):
        await accept(broker, content="something else")


async def age_key(broker: Broker, seconds: float) -> None:
    """As if the request key had been reserved so long ago."""
    left = broker.settings.request_key_s - seconds
    await broker.connections.control.pexpire(keys.request("acme", "alice", "r1"), int(left * 1000))


@pytest.mark.parametrize("step", [1, 4], ids=["before it was created", "before it was marked"])
async def test_a_request_that_may_have_run_and_expired_is_gone_and_runs_no_second_time(
    broker: Broker, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub died before it could mark the key, and the client comes back after the retention time."""
    with dying_after(broker, step, monkeypatch):
        await accept(broker)
    redis: Any = broker.connections.control
    for name in await redis.keys("hr:{acme:g_*"):
        await redis.delete(name)
    life_s = min(broker.settings.retention_s, broker.settings.queue_timeout_s + broker.settings.max_run_s)
    await age_key(broker, life_s + 1)
    with pytest.raises(RequestGone):
        await accept(broker)
    await age_key(broker, life_s - 10)
    key = await accept(broker)
    assert await broker.log.standings([key]) != [None], "younger than any stream's life: it cannot have expired"


async def test_a_repeat_while_it_runs_queues_nothing(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    with dying_after(broker, 4, monkeypatch):
        await accept(broker)
    [ticket] = await broker.lanes.take(broker.connections.blocking(), ["standard"], "w1", 1) or (
        await broker.lanes.take(broker.connections.blocking(), ["standard"], "w1", 1000)
    )
    await broker.log.claim(ticket.key, mark="m1", owner="w1", lease_ms=5000, ttl_ms=60_000)
    await broker.lanes.drop(ticket)
    assert await accept(broker) == ticket.key
    assert await broker.lanes.depths(["standard"]) == {"standard": 0}


async def test_the_key_of_a_request_is_kept_for_its_time(broker: Broker) -> None:
    await accept(broker)
    redis: Any = broker.connections.control
    ttl = await redis.pttl(keys.request("acme", "alice", "r1"))
    assert 86_000_000 < ttl <= 86_400_000


async def test_a_user_s_list_is_bounded(broker: Broker) -> None:
    for number in range(205):
        await broker.log.run(
            "reserve", [keys.request("acme", "alice", f"r{number}"), keys.user_streams("acme", "alice")],
            [f"g_{number}", "digest", 1000, 200],
        )  # fmt: skip
    redis: Any = broker.connections.control
    assert await redis.zcard(keys.user_streams("acme", "alice")) == 200


async def test_a_queued_stream_outlives_its_queue_and_a_whole_run(broker: Broker) -> None:
    key = await accept(broker)
    least_s = broker.settings.queue_timeout_s + broker.settings.max_run_s
    for name in (keys.meta(key), keys.log(key)):
        assert await broker.connections.control.pttl(name) > (least_s - 10) * 1000


async def test_a_request_that_redis_forgot_runs_when_it_is_repeated(broker: Broker) -> None:
    """A restart without a disk: the repeat is a new stream, which is the truth."""
    key = await accept(broker)
    await broker.connections.control.flushdb()
    again = await accept(broker)
    assert again != key
    [standing] = await broker.log.standings([again])
    assert standing is not None and standing.state == "queued"


async def test_a_client_that_asks_otherwise_for_the_same_is_no_conflict(broker: Broker) -> None:
    """How it is watched is no part of what is asked: another device repeats with other options."""
    key = await accept(broker)
    again = await broker.accept(
        org="acme", user="alice", request_key="r1", body=body(), options=Options(on_abandon="continue"),
        now_ms=int(time.time() * 1000),
    )  # fmt: skip
    assert again == key
