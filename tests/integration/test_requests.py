"""Idempotent requests, cancelling, leaving, listing; each seen from another hub as well (protocol §3)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest

from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey
from tests.conftest import StartHub, StartWorker
from tests.installation import RunningHub, eventually, question
from tests.integration.handwork import HandWorker
from tests.wire import Map, offsets_of, text_of
from workers.worker import Worker

ENDLESS = "scripted/tokens=1000000,rate=50"


async def end_of(broker: Broker, stream: str) -> Map:
    """The data of `done`, once it is in the log."""
    key = keys.stream_key("alice", stream)

    async def is_done() -> bool:
        [standing] = await broker.log.standings([key])
        return standing is not None and standing.state == "done"

    await eventually(is_done, "done")
    entries = await broker.log.read(key, 1, 100_000)
    assert [kind for kind, _ in entries].count("done") == 1
    data: Map = msgpack.unpackb(entries[-1][1])
    return data


async def test_the_same_request_on_two_hubs_is_one_stream_and_one_run(
    hub: RunningHub, start_hub: StartHub, worker: Worker, broker: Broker
) -> None:
    hubs = [hub, await start_hub()]
    wires = [await one.join() for one in hubs for _ in range(3)]
    await asyncio.gather(*[wire.send(question("r1", model="scripted/tokens=20,rate=200")) for wire in wires])
    seen = await asyncio.gather(*[wire.until("entry", kind="done") for wire in wires])
    assert len({frames[0]["stream"] for frames in seen}) == 1
    assert len({text_of(frames) for frames in seen}) == 1
    entries = await broker.log.read(keys.stream_key("alice", seen[0][0]["stream"]), 1, 1000)
    assert [kind for kind, _ in entries].count("started") == 1


async def test_another_question_under_the_same_key_is_a_conflict(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send(question("r1"))
    await wire.until("live")
    await wire.send(question("r1", id=2, content="Something else?"))
    await wire.expect("error", id=2, code="request_conflict", retry="no")
    await wire.send(question("r1", id=3, window=7, metadata={"a": 1}, on_abandon="continue"))
    await wire.expect("accepted", id=3)  # how it is delivered makes no other request


async def test_a_request_belongs_to_its_user(hub: RunningHub) -> None:
    alice, bob = await hub.join("alice", org="acme"), await hub.join("bob", org="acme")
    await alice.send(question("r1", attach=False))
    await bob.send(question("r1", attach=False, content="Something else?"))
    assert (await alice.expect("accepted"))["stream"] != (await bob.expect("accepted"))["stream"]


async def test_a_cancel_while_queued_ends_it_for_viewers_on_every_hub(hub: RunningHub, start_hub: StartHub) -> None:
    other_hub = await start_hub()
    wire = await hub.join()
    await wire.send(question("r1"))
    stream = (await wire.expect("accepted", state="queued"))["stream"]
    other = await other_hub.join()
    await other.send({"type": "attach", "id": 1, "stream": stream})
    await other.until("live")
    await wire.until("live")
    canceller = await other_hub.join()
    for number in range(3):
        await canceller.send({"type": "cancel", "id": number, "stream": stream})
        await canceller.expect("ok", id=number)
    for viewer in (wire, other):
        done = (await viewer.until("entry", kind="done"))[-1]
        assert (done["offset"], done["data"]["status"]) == (2, "cancelled")


async def test_a_cancelled_request_is_not_run_by_a_worker_that_comes_later(
    hub: RunningHub, start_worker: StartWorker, broker: Broker
) -> None:
    wire = await hub.join()
    await wire.send(question("r1"))
    stream = (await wire.expect("accepted"))["stream"]
    await wire.send({"type": "cancel", "id": 1, "stream": stream})
    await wire.until("ok", id=1)
    await start_worker()
    await wire.send(question("r2"))
    await wire.until("entry", kind="started")
    kinds = [kind for kind, _ in await broker.log.read(keys.stream_key("alice", stream), 1, 9)]
    assert kinds == ["queued", "done"]


async def test_a_cancel_while_running_ends_it_with_the_text_so_far(
    hub: RunningHub, start_hub: StartHub, worker: Worker
) -> None:
    other_hub = await start_hub()
    wire = await hub.join()
    await wire.send(question("r1", model=ENDLESS))
    frames = await wire.until("delta")
    stream = frames[0]["stream"]
    canceller = await other_hub.join()
    await canceller.send({"type": "cancel", "id": 1, "stream": stream})
    await canceller.expect("ok", id=1)
    frames += await wire.until("entry", kind="done")
    done = frames[-1]["data"]
    assert (done["status"], done["stop_reason"]) == ("cancelled", "cancelled")
    assert done["text_bytes"] == len(text_of(frames)) > 0
    await canceller.send({"type": "cancel", "id": 2, "stream": stream})
    await canceller.expect("ok", id=2)


async def test_a_disconnect_alone_cancels_nothing(hub: RunningHub, worker: Worker, broker: Broker) -> None:
    wire = await hub.join()
    await wire.send(question("r1", model="scripted/tokens=40,rate=100"))
    stream = (await wire.expect("accepted"))["stream"]
    wire.abort()
    assert (await end_of(broker, stream))["status"] == "completed"


async def test_an_abandoned_answer_ends_after_its_time(hub: RunningHub, worker: Worker, broker: Broker) -> None:
    wire = await hub.join()
    await wire.send(question("r1", model=ENDLESS, abandon_after_ms=200))
    stream = (await wire.expect("accepted"))["stream"]
    await wire.until("delta")
    wire.abort()
    done = await end_of(broker, stream)
    assert (done["status"], done["stop_reason"]) == ("cancelled", "abandoned")


async def test_one_that_is_watched_elsewhere_is_not_abandoned(
    hub: RunningHub, start_hub: StartHub, worker: Worker, broker: Broker
) -> None:
    other_hub = await start_hub()
    wire = await hub.join()
    await wire.send(question("r1", model="scripted/tokens=100,rate=100", abandon_after_ms=100))
    stream = (await wire.expect("accepted"))["stream"]
    other = await other_hub.join()
    await other.send({"type": "attach", "id": 1, "stream": stream})
    await other.until("live")
    wire.abort()
    done = (await other.until("entry", kind="done"))[-1]
    assert done["data"]["status"] == "completed"


async def test_an_app_that_goes_to_the_background_lets_it_run_on(
    hub: RunningHub, worker: Worker, broker: Broker
) -> None:
    wire = await hub.join()
    await wire.send(question("r1", model="scripted/tokens=100,rate=100", abandon_after_ms=300))
    stream = (await wire.expect("accepted"))["stream"]
    await wire.send({"type": "detach", "id": 2, "stream": stream, "on_abandon": "continue"})
    await wire.until("ok", id=2)
    wire.abort()
    done = await end_of(broker, stream)
    assert (done["status"], done["text_bytes"]) == ("completed", 500)


async def test_a_list_tells_an_app_that_was_killed_what_it_has(hub: RunningHub, worker: Worker) -> None:
    wire = await hub.join()
    await wire.send(question("r1"))
    first = (await wire.expect("accepted"))["stream"]
    await wire.until("entry", kind="done")
    await wire.send(question("r2", model=ENDLESS))
    second = (await wire.expect("accepted"))["stream"]
    await wire.until("delta")
    wire.abort()
    back, stranger = await hub.join(), await hub.join("bob")
    await back.send({"type": "list", "id": 1})
    listed = (await back.expect("streams", id=1))["streams"]
    assert [(one["stream"], one["state"]) for one in listed] == [(second, "running"), (first, "done")]
    assert listed[0]["created_ms"] >= listed[1]["created_ms"] > 1_600_000_000_000
    for state, expected in (("running", [second]), ("done", [first]), ("queued", [])):
        await back.send({"type": "list", "id": 2, "state": state})
        assert [one["stream"] for one in (await back.expect("streams"))["streams"]] == expected
    await stranger.send({"type": "list", "id": 3})
    assert (await stranger.expect("streams"))["streams"] == []


async def test_a_scope_opens_the_streams_of_an_organisation_and_of_no_other(hub: RunningHub) -> None:
    alice = await hub.join("alice", org="acme")
    await alice.send(question("r1"))
    stream = (await alice.expect("accepted"))["stream"]
    await alice.until("live")
    reader = await hub.join("reader", org="acme", scope="streams:read")
    await reader.send({"type": "attach", "id": 1, "stream": stream})
    await reader.until("attached", id=1)
    await reader.send({"type": "cancel", "id": 2, "stream": stream})  # on its own: verbs are answered when ready
    await reader.until("error", id=2, code="not_found")
    foreign = await hub.join("reader", org="other", scope="streams:read streams:cancel")
    await foreign.send({"type": "attach", "id": 1, "stream": stream}, {"type": "cancel", "id": 2, "stream": stream})
    answers: dict[Any, Any] = {frame["id"]: frame["code"] for frame in [await foreign.next(), await foreign.next()]}
    assert answers == {1: "not_found", 2: "not_found"}
    operator = await hub.join("operator", org="acme", scope="streams:cancel")
    await operator.send({"type": "cancel", "id": 1, "stream": stream})
    await operator.expect("ok", id=1)
    await alice.until("entry", kind="done")


async def test_fifty_copies_of_a_request_over_two_hubs_are_one_run_and_fifty_viewers(
    hub: RunningHub, start_hub: StartHub, worker: Worker, broker: Broker
) -> None:
    hubs = [hub, await start_hub()]
    wires = await asyncio.gather(*[hubs[number % 2].join() for number in range(50)])
    await asyncio.gather(*[wire.send(question("r1", model="scripted/tokens=40,rate=100")) for wire in wires])
    seen = await asyncio.gather(*[wire.until("entry", kind="done") for wire in wires])
    assert len({frames[0]["stream"] for frames in seen}) == 1
    for frames in seen:
        assert [frame["type"] for frame in frames].count("accepted") == 1
        assert offsets_of(frames) == list(range(1, frames[-1]["offset"] + 1))
    assert len({text_of(frames) for frames in seen}) == 1
    entries = await broker.log.read(keys.stream_key("alice", seen[0][0]["stream"]), 1, 1000)
    kinds = [kind for kind, _ in entries]
    assert [kinds.count(kind) for kind in ("queued", "started", "source", "done")] == [1, 1, 1, 1]


async def test_a_request_repeated_while_it_is_under_way_is_answered_each_time(hub: RunningHub, broker: Broker) -> None:
    wire = await hub.join()
    await wire.send(question("r1", id="first"))
    stream = (await wire.expect("accepted"))["stream"]
    await wire.until("live")
    await wire.batch(*[question("r1", id=number) for number in range(8)])
    for _ in range(8):
        await wire.until("accepted", stream=stream)
        assert (await wire.next())["offset"] == 1, "each answer is followed by what it announced"
    await wire.until("live")
    worker = HandWorker(broker, stream)
    await worker.claim()
    await worker.text("a")
    frames = await wire.until("delta", offset=3)
    assert offsets_of(frames) == [2, 3], "one attachment, whatever came of the others"


async def test_accepted_tells_the_history_of_its_frames_also_if_it_changed_while_the_request_entered_its_lane(
    hub: RunningHub, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes, relay = hub.node.broker.lanes, hub.node.relay
    add = lanes.add

    async def lose_the_stream(lane: str, key: StreamKey) -> None:
        await broker.connections.control.hset(keys.meta(key), "runs", "1:another")
        await relay.repair(relay.tails[key])
        await add(lane, key)

    monkeypatch.setattr(lanes, "add", lose_the_stream)
    wire = await hub.join()
    await wire.send(question("r1"))
    accepted = await wire.expect("accepted")
    assert accepted["mark"] == "another"
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await wire.until("entry", kind="started")


async def test_a_cancel_that_races_with_the_end_leaves_one_done(
    hub: RunningHub, start_hub: StartHub, worker: Worker, broker: Broker
) -> None:
    wire, canceller = await hub.join(), await (await start_hub()).join()
    count = 20
    for number in range(count):
        await wire.send(question(f"r{number}", model=f"scripted/tokens={number},rate=0"))
    ended: list[Map] = []
    streams = []
    while len(ended) < count:
        frame = await wire.next()
        if frame["type"] == "accepted":
            streams.append(frame["stream"])
            await canceller.send({"type": "cancel", "id": frame["stream"], "stream": frame["stream"]})
        elif frame.get("kind") == "done":
            ended.append(frame)
    for _ in streams:
        await canceller.expect("ok")
    assert sorted(frame["stream"] for frame in ended) == sorted(streams)
    for frame in ended:
        assert await end_of(broker, frame["stream"]) == frame["data"], "what was shown is what the log says"


async def test_a_cancel_outlives_the_worker_that_was_told_of_it(
    hub: RunningHub, start_worker: StartWorker, broker: Broker
) -> None:
    wire = await hub.join()
    await wire.send(question("r1", model=ENDLESS))
    stream = (await wire.expect("accepted"))["stream"]
    dead = HandWorker(broker, stream)
    await dead.claim()
    await dead.text("a")
    await wire.until("delta")
    await wire.send({"type": "cancel", "id": 1, "stream": stream})
    await wire.until("ok", id=1)
    redis: Any = broker.connections.control
    await redis.hset(keys.meta(dead.key), "lease", 0)  # it never read its mail
    await broker.lanes.add(keys.TAKEOVER_LANE, dead.key)
    await start_worker()
    frames = await wire.until("entry", kind="done")
    assert (frames[-1]["data"]["status"], frames[-1]["data"]["stop_reason"]) == ("cancelled", "cancelled")
    assert (await end_of(broker, stream))["status"] == "cancelled"


async def test_somebody_else_s_cancel_changes_nothing(hub: RunningHub, worker: Worker, broker: Broker) -> None:
    alice, bob = await hub.join("alice", org="alice"), await hub.join("bob", org="alice")
    await alice.send(question("r1", model="scripted/tokens=20,rate=200"))
    stream = (await alice.expect("accepted"))["stream"]
    for number in range(5):
        await bob.send({"type": "cancel", "id": number, "stream": stream})
        await bob.expect("error", id=number, code="not_found")
    done = (await alice.until("entry", kind="done"))[-1]
    assert done["data"]["status"] == "completed"
