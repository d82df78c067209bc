"""Answers prepared ahead: only where it is allowed, behind everything else, and no longer than they may be right."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

import headrace
from hub.broker.broker import Broker
from hub.broker.keys import PREFETCH_LANE, StreamKey, stream_key
from tests.conftest import StartHub
from tests.installation import RunningHub, eventually, question, token
from tests.integration.sharing import Counted, ask, counted_worker, data_of, modes, shown
from tests.wire import Map, Wire
from tests.workers.listener import ending, log_of

TALK = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello to you."}]
SLOW = "scripted/tokens=100000,rate=20"


@pytest.fixture
async def hub(start_hub: StartHub) -> RunningHub:
    return await start_hub(prefetches_per_hour=3)


@pytest.fixture
async def provider(broker: Broker, redis_url: str) -> AsyncIterator[Counted]:
    async with counted_worker(broker, redis_url, prefetches_per_hour=3) as (_, provider):
        yield provider


def asked(request: str, words: str, **options: Any) -> Map:
    return question(request, **options) | {"messages": [*TALK, {"role": "user", "content": words}]}


async def prefetched(wire: Wire, request: str, words: str, **options: Any) -> StreamKey:
    await wire.send(asked(request, words, prefetch=True, **options))
    accepted = await wire.expect("accepted", id=request)
    return stream_key("alice", accepted["stream"])


async def refused(wire: Wire, code: str, frame: Map) -> Map:
    await wire.send(frame)
    return await wire.expect("error", code=code)


async def test_nothing_is_prepared_where_the_operator_did_not_allow_it(start_hub: StartHub) -> None:
    wire = await (await start_hub()).join()
    await refused(wire, "unsupported", asked("r1", "Why?", prefetch=True))
    wire = await (await start_hub(prefetches_per_hour=5, cache_scope="off")).join()
    await refused(wire, "unsupported", asked("r1", "Why?", prefetch=True))
    await refused(wire, "unsupported", asked("r1", "Why?", cache="use"))


async def test_with_tools_nothing_is_prepared(hub: RunningHub) -> None:
    tools = [{"name": "search", "input_schema": {"type": "object"}}]
    await refused(await hub.join(), "invalid_request", asked("r1", "Why?", prefetch=True, tools=tools))


async def test_what_was_prepared_is_told_at_once_when_it_is_asked(
    broker: Broker, hub: RunningHub, provider: Counted
) -> None:
    wire = await hub.join()
    key = await prefetched(wire, "r1", "Why?")
    assert await wire.ping() == [], "nobody watches it"
    entries, done = await ending(broker, key)
    assert (modes(entries), done["status"]) == (["live"], "completed")
    await wire.send(asked("r2", "Why?", cache="use"))
    frames = await wire.until("entry", kind="done")
    [source] = [frame["data"] for frame in frames if frame.get("kind") == "source"]
    assert (source["mode"], provider.calls) == ("cached", 1)
    assert frames[-1]["data"]["text_sha256"] == done["text_sha256"]


async def test_who_asks_meanwhile_joins_in(broker: Broker, hub: RunningHub, provider: Counted) -> None:
    wire = await hub.join()
    model = "scripted/tokens=40,rate=40"
    key = await prefetched(wire, "r1", "Why?", model=model)
    await _speaks(broker, key)
    await wire.send(asked("r2", "Why?", cache="use", model=model))
    frames = await wire.until("entry", kind="done")
    entries, done = await ending(broker, key)
    assert (done["status"], provider.calls) == ("completed", 1)
    assert frames[-1]["data"]["text_sha256"] == done["text_sha256"]


async def _speaks(broker: Broker, key: StreamKey) -> None:
    async def speaks() -> bool:
        return bool(shown(await log_of(broker, key)))

    await eventually(speaks, "the first words")


async def test_what_turns_out_wrong_is_dropped_and_nothing_else(
    broker: Broker, hub: RunningHub, provider: Counted
) -> None:
    wire, bob = await hub.join(), await hub.join("bob")
    wrong = await prefetched(wire, "r1", "Why?", model=SLOW)
    elsewhere = question("r2", model=SLOW, prefetch=True, content="Something else")
    await wire.send(elsewhere)
    other = stream_key("alice", (await wire.expect("accepted"))["stream"])
    await bob.send(asked("b1", "How?", model=SLOW, prefetch=True))
    bobs = stream_key("bob", (await bob.expect("accepted"))["stream"])
    for key in (wrong, other, bobs):
        await _speaks(broker, key)
    await wire.send(asked("r3", "Why?", model=SLOW))  # equal: it is not wrong, whether it is shared or not
    await wire.until("delta")
    await eventually(lambda: not any(endpoint._tasks for endpoint in hub.node.connections), "the end of all verbs")
    [facts] = await broker.log.facts([wrong], ["state", "cancel"])
    assert facts and (facts["state"], facts["cancel"]) == ("running", "0")
    await wire.send(asked("r4", "When?"))
    _, done = await ending(broker, wrong)
    assert (done["status"], done["stop_reason"]) == ("cancelled", "cancelled")
    standings = await broker.log.standings([other, bobs])
    assert [standing and standing.state for standing in standings] == ["running", "running"]


async def test_one_that_waits_is_dropped_too(broker: Broker, hub: RunningHub) -> None:
    wire = await hub.join()
    key = await prefetched(wire, "r1", "Why?")
    assert await broker.lanes.depths([PREFETCH_LANE, "standard"]) == {PREFETCH_LANE: 1, "standard": 0}
    await wire.send(asked("r2", "When?", attach=False))
    _, done = await ending(broker, key)
    assert done["status"] == "cancelled"


async def test_two_at_a_time_and_so_many_an_hour(broker: Broker, hub: RunningHub) -> None:
    wire = await hub.join()
    first = await prefetched(wire, "r1", "One?")
    await prefetched(wire, "r2", "Two?")
    assert await prefetched(wire, "r1", "One?") == first, "the same request again is the same"
    error = await refused(wire, "rate_limited", asked("r3", "Three?", prefetch=True))
    assert (error["retry"], error["after_ms"]) == ("after", 2000)
    await wire.send({"type": "cancel", "id": 9, "stream": first.partition(":")[2]})
    await wire.expect("ok", id=9)
    await prefetched(wire, "r3", "Three?")
    await wire.send({"type": "cancel", "id": 9, "stream": (await _newest(wire))})
    await wire.expect("ok", id=9)
    error = await refused(wire, "budget_exceeded", asked("r4", "Four?", prefetch=True))
    assert error["retry"] == "after" and 3_500_000 < error["after_ms"] <= 3_600_000
    bob = await hub.join("bob")
    await bob.send(asked("r4", "Four?", prefetch=True))
    await bob.expect("accepted")


async def _newest(wire: Wire) -> str:
    await wire.send({"type": "list", "id": 8})
    streams: str = (await wire.expect("streams"))["streams"][0]["stream"]
    return streams


async def test_the_client_shares_and_prepares_as_the_page_shows(hub: RunningHub, provider: Counted) -> None:
    messages = [*TALK, {"role": "user", "content": "Why?"}]
    model = "scripted/tokens=5,rate=0"
    async with headrace.connect(hub.url, token()) as client:
        ahead = client.generate(messages, model=model, prefetch=True)
        await eventually(lambda: ahead.stream is not None)
        answers = [client.generate(messages, model=model, cache="use") for _ in range(2)]
        texts = {await answer.text() for answer in answers}
        assert texts == {"0000 0001 0002 0003 0004 "}
        assert await client.attach(ahead.stream or "").text() in texts
        sources = [answer.source and answer.source.mode for answer in answers]
        # Whichever a worker took first made the answer; the others have it of that one.
        assert sources.count("cached") >= 1 and provider.calls == 1
        usages = [answer.usage for answer in answers if answer.source and answer.source.mode == "cached"]
        assert all(usage and usage.cost_usd == 0 for usage in usages)


async def test_no_request_waits_for_what_is_prepared(broker: Broker, redis_url: str) -> None:
    """Two places for requests, both taken, and two wait: what may be prepared comes after all of them."""
    ahead = [await ask(broker, f"p{number}", prompt=f"{number}?", prefetch=True) for number in range(3)]
    urgent = [await ask(broker, f"r{number}", cache="off", model="scripted/tokens=20,rate=40") for number in range(4)]
    provider = Counted()
    provider.may_go_on.clear()
    async with counted_worker(broker, redis_url, provider, prefetches_per_hour=1, worker_concurrency=2):
        for key in urgent[:2]:
            await _speaks(broker, key)
        standings = await broker.log.standings([*urgent[2:], *ahead])
        assert [standing and standing.state for standing in standings] == ["queued"] * 5
        provider.may_go_on.set()
        told = [await ending(broker, key) for key in [*urgent, *ahead]]
    assert {done["status"] for _, done in told} == {"completed"}


async def test_places_stay_free_for_requests_that_come(
    broker: Broker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two places is taken: the other, and that of takeovers, are not for what may be prepared."""
    monkeypatch.setattr("workers.intake.SPARE_EVERY_S", 0.01)
    async with counted_worker(broker, redis_url, prefetches_per_hour=1, worker_concurrency=2) as (worker, _):
        running = await ask(broker, "r1", cache="off", model=SLOW)
        await _speaks(broker, running)
        ahead = await ask(broker, "p1", prompt="Ahead?", prefetch=True)
        renewed_at = worker.table.runs[running].renewed_at
        await eventually(lambda: worker.table.runs[running].renewed_at > renewed_at + 1, "a hundred looks")
        await ending(broker, await ask(broker, "r2", cache="off"))
        [standing] = await broker.log.standings([ahead])
        assert standing and standing.state == "queued"
        await broker.log.cancel(running, user="alice", may_cancel=False, done=b"", ttl_ms=60_000)
        await ending(broker, ahead)


async def test_one_is_not_worth_a_second_worker(broker: Broker, redis_url: str) -> None:
    async with counted_worker(broker, redis_url, prefetches_per_hour=1) as (_, provider):
        key = await ask(broker, "p1", prefetch=True, model=SLOW)
        await _speaks(broker, key)
    async with counted_worker(broker, redis_url, prefetches_per_hour=1) as (_, second):
        entries, done = await ending(broker, key)
    assert (done["status"], provider.calls, second.calls) == ("cancelled", 1, 0)
    assert len(data_of(entries, "started")) == 1


async def test_a_worker_prepares_few_at_a_time(broker: Broker, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.intake.SPARE_EVERY_S", 0.01)
    ahead = [await ask(broker, f"p{number}", prompt=f"{number}?", prefetch=True, model=SLOW) for number in range(6)]
    async with counted_worker(broker, redis_url, prefetches_per_hour=1) as (worker, provider):
        await eventually(lambda: provider.open == 4)
        entries, _ = await ending(broker, await ask(broker, "r1", cache="off"))
        assert modes(entries) == ["live"], "requests are answered meanwhile"
        assert provider.open == 4
        await broker.log.cancel(ahead[0], user="alice", may_cancel=False, done=b"", ttl_ms=60_000)
        await ending(broker, ahead[0])
        await eventually(lambda: len(worker.table.runs) > 5, "the next one's turn")
