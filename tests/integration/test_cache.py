"""Equal requests and one answer: told again at once, shared while it is made, and never a wrong or a broken one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from headrace.protocol.body import Body
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.embedded import EmbeddedRedis
from hub.broker.keys import StreamKey
from hub.broker.log import SCRIPTS
from hub.broker.settings import BrokerSettings
from hub.broker.usage import UsageQueue
from tests.faults.redis_proxy import CUT_BEFORE, RedisProxy
from tests.installation import eventually
from tests.integration.sharing import Counted, ask, counted_worker, data_of, modes, shown
from tests.workers.listener import ending, kinds, listening, log_of
from tests.workers.process import WorkerProcess
from workers.catalog import TierEntry
from workers.providers import Event, Text, registry
from workers.worker import Worker

Crew = tuple[Worker, Counted]
#: Slow enough to be followed while it is told, and to be cut off.
SLOW = "scripted/tokens=60,rate=60"
WHOLE = "".join(f"{number:04d} " for number in range(60))


@pytest.fixture
async def crew(broker: Broker, redis_url: str) -> AsyncIterator[Crew]:
    async with counted_worker(broker, redis_url) as crew:
        yield crew


async def speaking(broker: Broker, key: StreamKey) -> None:
    async def speaks() -> bool:
        return bool(shown(await log_of(broker, key)))

    await eventually(speaks, "the first words")


async def rows(broker: Broker) -> int:
    return await UsageQueue(broker.connections.control).waiting()


# -- told again


async def test_an_equal_request_gets_the_same_answer_and_nobody_is_asked(broker: Broker, crew: Crew) -> None:
    first, done = await ending(broker, await ask(broker, "r1", model="scripted/tokens=300,rate=0,reasoning=3"))
    again, redone = await ending(broker, await ask(broker, "r2", model="scripted/tokens=300,rate=0,reasoning=3"))
    assert crew[1].calls == 1
    assert (shown(again), redone["text_sha256"]) == (shown(first), done["text_sha256"])
    assert b"".join(data for kind, data in again if kind == "reasoning") == b"".join(
        data for kind, data in first if kind == "reasoning"
    )
    [source], [original] = data_of(again, "source"), data_of(first, "source")
    assert source == {**original, "mode": "cached"}
    assert (redone["status"], redone["stop_reason"], redone["usage"]) == ("completed", "stop", {"cost_usd": 0.0})
    assert kinds(again) == ["queued", "started", "source", "reasoning", "text", "usage", "done"]
    await eventually(lambda: _is(broker, 1), "the row of the one call")


async def _is(broker: Broker, count: int) -> bool:
    return await rows(broker) == count


async def test_only_who_asks_for_it_gets_or_gives_a_shared_answer(broker: Broker, crew: Crew) -> None:
    for number, cache in enumerate(["off", "use", "off"]):
        entries, _ = await ending(broker, await ask(broker, f"r{number}", cache=cache))
        assert modes(entries) == ["live"]
    assert crew[1].calls == 3


@pytest.mark.parametrize(
    "other",
    [{"org": "globex"}, {"prompt": "Why not?"}, {"temperature": 0.5}, {"max_tokens": 500}, {"system": "Be brief."},
     {"stop": ["x"]}, {"model": "scripted/tokens=21,rate=0"}],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
async def test_whatever_is_asked_otherwise_is_another_request(
    broker: Broker, crew: Crew, other: dict[str, Any]
) -> None:
    await ending(broker, await ask(broker, "r1"))
    entries, _ = await ending(broker, await ask(broker, "r2", **other))
    assert (modes(entries), crew[1].calls) == (["live"], 2)


async def test_an_organisation_shares_or_each_user_alone(broker: Broker, redis_url: str) -> None:
    async with counted_worker(broker, redis_url) as (_, provider):
        await ending(broker, await ask(broker, "r1", user="alice"))
        entries, _ = await ending(broker, await ask(broker, "r2", user="bob"))
        assert (modes(entries), provider.calls) == (["cached"], 1)
    async with counted_worker(broker, redis_url, cache_scope="user") as (_, provider):
        for request, user, mode in (("r3", "alice", "live"), ("r4", "bob", "live"), ("r5", "alice", "cached")):
            entries, _ = await ending(broker, await ask(broker, request, user=user))
            assert modes(entries) == [mode]
    async with counted_worker(broker, redis_url, cache_scope="off") as (_, provider):
        entries, _ = await ending(broker, await ask(broker, "r6"))
        assert modes(entries) == ["live"]


@pytest.mark.parametrize(
    ("model", "status"),
    [("scripted/tokens=9,rate=0,fail_after=3", "failed"), ("scripted/tokens=9,rate=0", "truncated"),
     ("fast", "completed")],
)  # fmt: skip
async def test_nothing_but_a_model_s_whole_answer_is_told_again(
    broker: Broker, crew: Crew, model: str, status: str
) -> None:
    """`fast` is answered by the rules here: nobody has a key."""
    limit = 5 if status == "truncated" else None
    for request in ("r1", "r2"):
        entries, done = await ending(broker, await ask(broker, request, model=model, max_tokens=limit))
        assert done["status"] == status
        assert modes(entries) == ["fallback" if model == "fast" else "live"]


async def test_a_cancelled_answer_is_not_told_again(broker: Broker, crew: Crew) -> None:
    crew[1].may_go_on.clear()
    key = await ask(broker, "r1", model=SLOW)
    await speaking(broker, key)
    await cancel(broker, key)
    await ending(broker, key)
    crew[1].may_go_on.set()
    entries, _ = await ending(broker, await ask(broker, "r2", model=SLOW))
    assert (modes(entries), shown(entries)) == (["live"], WHOLE)
    entries, _ = await ending(broker, await ask(broker, "r3", model=SLOW))
    assert (modes(entries), shown(entries)) == (["cached"], WHOLE), "whoever asked anew is followed from then on"


async def cancel(broker: Broker, key: StreamKey) -> None:
    await broker.log.cancel(key, user="alice", may_cancel=False, done=b"", ttl_ms=60_000)


async def test_an_answer_is_forgotten_with_its_time_and_with_its_stream(broker: Broker, crew: Crew) -> None:
    redis: Any = broker.connections.control
    key = await ask(broker, "r1")
    await ending(broker, key)
    [name] = await redis.keys("hr:*:answer")
    assert 3_000_000 < await redis.pttl(name) <= 3_600_000
    await redis.delete(keys.meta(key), keys.log(key))  # as at the end of its retention
    entries, _ = await ending(broker, await ask(broker, "r2"))
    assert modes(entries) == ["live"]
    await redis.delete(name)
    entries, _ = await ending(broker, await ask(broker, "r3"))
    assert (modes(entries), crew[1].calls) == (["live"], 3)


async def test_what_redis_refuses_to_name_is_generated(broker: Broker, crew: Crew) -> None:
    redis: Any = broker.connections.control
    await ending(broker, await ask(broker, "r1"))
    [name] = await redis.keys("hr:*:answer")
    await redis.delete(name)
    await redis.lpush(name, "no string")
    entries, done = await ending(broker, await ask(broker, "r2"))
    assert (modes(entries), done["status"], crew[1].calls) == (["live"], "completed", 2)


async def test_a_log_that_makes_no_sense_is_not_told(broker: Broker, crew: Crew) -> None:
    redis: Any = broker.connections.control
    key = await ask(broker, "r1")
    await ending(broker, key)
    await redis.delete(keys.log(key))
    await redis.xadd(keys.log(key), {"k": "source", "d": b"\x81"}, id="1-0")
    entries, _ = await ending(broker, await ask(broker, "r2"))
    assert (modes(entries), crew[1].calls) == (["live"], 2)


# -- shared while it is made


async def test_twenty_equal_requests_are_one_call_and_twenty_whole_answers(broker: Broker, crew: Crew) -> None:
    crew[1].may_go_on.clear()
    asked = [await ask(broker, f"r{number}", user=f"u{number}", model=SLOW) for number in range(20)]
    for key in asked:
        await speaking(broker, key)  # all of them while it is made
    crew[1].may_go_on.set()
    told = await asyncio.gather(*[ending(broker, key) for key in asked])
    assert crew[1].calls == 1
    assert {shown(entries) for entries, _ in told} == {WHOLE}
    assert sorted(modes(entries) for entries, _ in told) == [["cached"]] * 19 + [["live"]]
    assert all("reset" not in kinds(entries) for entries, _ in told)


async def test_who_waits_for_a_silent_one_is_told_that_nobody_else_is_asked(broker: Broker, crew: Crew) -> None:
    crew[1].may_speak.clear()
    first, second = await ask(broker, "r1"), await ask(broker, "r2")

    async def says() -> bool:
        notices = [data_of(await log_of(broker, key), "notice") for key in (first, second)]
        return [{"code": "shared"}] in notices

    await eventually(says, "the notice")
    crew[1].may_speak.set()
    ends = [await ending(broker, key) for key in (first, second)]
    assert (crew[1].calls, ends[0][1]["text_sha256"]) == (1, ends[1][1]["text_sha256"])


@pytest.mark.parametrize("end", ["cancel", "failure"])
async def test_whoever_follows_one_that_ends_early_has_one_whole_answer(broker: Broker, crew: Crew, end: str) -> None:
    provider = crew[1]
    provider.may_go_on.clear()
    if end == "failure":
        provider.fails_after = [30]
    leader = await ask(broker, "r1", model=SLOW)
    await speaking(broker, leader)
    followers = [await ask(broker, f"f{number}", model=SLOW) for number in range(5)]
    for key in followers:
        await speaking(broker, key)
    if end == "cancel":
        await cancel(broker, leader)
    provider.may_go_on.set()
    _, done = await ending(broker, leader)
    assert done["status"] == ("cancelled" if end == "cancel" else "failed")
    told = await asyncio.gather(*[ending(broker, key) for key in followers])
    assert provider.calls == 2, "one of those that followed asked, and the others followed it"
    for entries, done in told:
        assert (shown(entries), done["status"]) == (WHOLE, "completed")
        assert "reset" not in kinds(entries), "what viewers had was told again, word for word: nothing to be seen"
    assert sorted(modes(entries) for entries, _ in told) == [["cached"]] * 4 + [["cached", "live"]]


class Fickle(Counted):
    """Says something else whenever it is asked again."""

    async def stream(self, model: str, body: Body, kept: str = "") -> AsyncGenerator[list[Event], None]:
        again = self.calls > 0
        async with aclosing(super().stream(model, body, kept)) as told:
            async for events in told:
                yield [Text(each.text.upper()[::-1]) if again and isinstance(each, Text) else each for each in events]


async def test_whoever_follows_one_that_breaks_off_and_may_not_begin_again_is_told_so(
    broker: Broker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `restart` there is nothing left to do where another telling differs from what is shown."""
    monkeypatch.setattr(registry, "TierEntry", partial(TierEntry, after_content=("splice", "error")))
    async with counted_worker(broker, redis_url, Fickle()) as (_, provider):
        provider.may_go_on.clear()
        leader = await ask(broker, "r1", model=SLOW)
        await speaking(broker, leader)
        follower = await ask(broker, "r2", model=SLOW)
        await speaking(broker, follower)
        await cancel(broker, leader)
        provider.may_go_on.set()
        entries, done = await ending(broker, follower)
        assert (done["status"], done["error"]["code"]) == ("failed", "provider_error")
        assert "broke off" in done["error"]["message"]
        assert WHOLE.startswith(shown(entries)) and shown(entries)


async def test_behind_a_provider_that_fails_nobody_waits_for_everybody(broker: Broker, crew: Crew) -> None:
    provider = crew[1]
    provider.fails_after = [12] * 6
    provider.may_speak.clear()
    asked = [await ask(broker, f"r{number}", model=SLOW) for number in range(6)]
    await eventually(lambda: provider.calls == 1)
    provider.may_speak.set()
    ends = [done async for _, done in _all(broker, asked)]
    assert (provider.calls, {done["status"] for done in ends}) == (6, {"failed"})
    assert provider.most_open > 2, "two were waited for, then each asked by itself"


async def _all(broker: Broker, asked: list[StreamKey]) -> AsyncIterator[Any]:
    for key in asked:
        yield await ending(broker, key)


async def test_no_single_viewer_s_pace_is_everybody_s(broker: Broker, redis_url: str) -> None:
    """The first one's viewer takes two entries and no more; who follows takes all, or as much as its own viewer."""
    async with (
        counted_worker(broker, redis_url, run_ahead=1) as (_, provider),
        listening(broker) as hub,
    ):
        provider.may_go_on.clear()
        leader = await ask(broker, "r1", model=SLOW, on_abandon="cancel")
        await hub.attach(leader, 1)
        await speaking(broker, leader)
        paused = await ask(broker, "r2", model=SLOW, on_abandon="cancel")
        await hub.attach(paused, 1)
        await eventually(lambda: _runs(broker, paused), "its claim")
        provider.may_go_on.set()
        entries, _ = await ending(broker, await ask(broker, "r3", model=SLOW))
        assert (shown(entries), modes(entries), provider.calls) == (WHOLE, ["cached"], 1)
        [standing] = await broker.log.standings([paused])
        assert standing is not None and (standing.state, standing.top < 10) == ("running", True)
        await hub.attach(paused, 1000)
        entries, _ = await ending(broker, paused)
        assert shown(entries) == WHOLE


async def _runs(broker: Broker, key: StreamKey) -> bool:
    [standing] = await broker.log.standings([key])
    return standing is not None and standing.state == "running"


async def test_who_follows_can_be_cancelled_and_hurts_nobody(broker: Broker, crew: Crew) -> None:
    crew[1].may_go_on.clear()
    leader = await ask(broker, "r1", model=SLOW)
    await speaking(broker, leader)
    follower = await ask(broker, "r2", model=SLOW)
    await speaking(broker, follower)
    await cancel(broker, follower)
    _, done = await ending(broker, follower)
    assert (done["status"], done["stop_reason"]) == ("cancelled", "cancelled")
    crew[1].may_go_on.set()
    entries, _ = await ending(broker, leader)
    assert (shown(entries), crew[1].calls) == (WHOLE, 1)


# -- Redis goes


@asynccontextmanager
async def far_worker(
    broker: Broker, server: EmbeddedRedis, **settings: Any
) -> AsyncIterator[tuple[RedisProxy, Counted]]:
    """A worker that reaches Redis through a proxy, and nobody else does."""
    names = {(await broker.connections.control.script_load(script)).lower(): name for name, script in SCRIPTS.items()}
    async with RedisProxy(server.url.removeprefix("unix://"), scripts=names) as proxy:
        own = Broker.connect(proxy.url, BrokerSettings(**settings))
        try:
            async with counted_worker(own, proxy.url, **settings) as (_, provider):
                yield proxy, provider
        finally:
            await own.close()


async def test_without_redis_to_name_a_leader_an_answer_is_generated(
    broker: Broker, redis_server: EmbeddedRedis
) -> None:
    async with far_worker(broker, redis_server) as (proxy, provider):
        proxy.decide = lambda call: CUT_BEFORE if call.name == "lead" else None
        for request in ("r1", "r2"):
            entries, done = await ending(broker, await ask(broker, request))
            assert (modes(entries), done["status"]) == (["live"], "completed")
        assert provider.calls == 2


async def test_an_outage_of_redis_costs_who_follows_a_pause(broker: Broker, redis_server: EmbeddedRedis) -> None:
    async with far_worker(broker, redis_server) as (proxy, provider):
        provider.may_go_on.clear()
        asked = [await ask(broker, f"r{number}", model=SLOW) for number in range(3)]
        for key in asked:
            await speaking(broker, key)
        provider.may_go_on.set()
        proxy.refuse()
        proxy.reset()
        await asyncio.sleep(1)  # how long it is away
        proxy.refuse(False)
        told = [await ending(broker, key) for key in asked]
        assert provider.calls == 1
    assert {shown(entries) for entries, _ in told} == {WHOLE}
    assert all("reset" not in kinds(entries) for entries, _ in told)


# -- workers die


SHORT: dict[str, Any] = {"lease_s": 2.5, "lease_grace_s": 0.3, "janitor_interval_s": 0.1}


@pytest.mark.timeout(120)
async def test_whoever_follows_one_whose_worker_is_killed_has_one_whole_answer(broker: Broker, redis_url: str) -> None:
    long = "scripted/tokens=250,rate=50"
    async with WorkerProcess(redis_url, worker_concurrency=1, **SHORT) as process:  # so it takes no second one
        leader = await ask(broker, "r1", model=long)
        await speaking(broker, leader)
        async with counted_worker(broker, redis_url, **SHORT) as (_, provider):
            followers = [await ask(broker, f"f{number}", model=long) for number in range(2)]
            for key in followers:
                await speaking(broker, key)
            process.kill()
            told = [await ending(broker, key) for key in [leader, *followers]]
            assert provider.calls == 1, "the one that lost its worker was taken over, the others follow it still"
    whole = "".join(f"{number:04d} " for number in range(250))
    for entries, done in told:
        assert (shown(entries), done["status"]) == (whole, "completed")
    assert [modes(entries)[-1] for entries, _ in told] == ["live", "cached", "cached"]


async def test_a_follower_that_loses_its_worker_follows_anew_and_costs_nothing(broker: Broker, redis_url: str) -> None:
    async with counted_worker(broker, redis_url, **SHORT) as (_, provider):
        provider.may_go_on.clear()
        leader = await ask(broker, "r1", model="scripted/tokens=200,rate=50")
        await speaking(broker, leader)
        other = Counted()
        async with counted_worker(broker, redis_url, other, **SHORT) as (second, _):
            followers: list[StreamKey] = []
            while not set(followers) & set(second.table.runs):
                followers.append(await ask(broker, f"f{len(followers)}", model="scripted/tokens=200,rate=50"))
                await speaking(broker, followers[-1])
        provider.may_go_on.set()
        told = await asyncio.gather(*[ending(broker, key) for key in followers])
        await ending(broker, leader)
        assert (provider.calls, other.calls) == (1, 0)
    assert len({shown(entries) for entries, _ in told}) == 1
    assert any(len(data_of(entries, "started")) == 2 for entries, _ in told), "one was handed on"
    await eventually(lambda: _is(broker, 1), "the row of the one call, and no other")
