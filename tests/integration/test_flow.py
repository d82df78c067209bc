"""Windows, credit and pace, viewer by viewer (protocol §6)."""

from __future__ import annotations

import asyncio
import time

import pytest

from hub import owners, reconcile
from hub.broker import keys
from hub.broker.broker import Broker
from tests.conftest import StartHub, StartWorker
from tests.installation import RunningHub, eventually, question
from tests.integration.handwork import HandWorker
from tests.wire import Map, Wire, offsets_of, text_of
from workers.worker import Worker


async def started(hub: RunningHub, broker: Broker) -> HandWorker:
    """A stream that a hand writes: 1 queued, 2 started."""
    asker = await hub.join("alice")
    await asker.send(question("r1", attach=False))
    accepted = await asker.expect("accepted")
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    return worker


async def viewer(hub: RunningHub, stream: str, **options: object) -> Wire:
    wire = await hub.join("alice")
    await wire.send({"type": "attach", "id": 1, "stream": stream, **options})
    await wire.expect("attached", id=1)
    return wire


async def test_no_frame_passes_acked_plus_window(hub: RunningHub, broker: Broker) -> None:
    worker = await started(hub, broker)
    stream = worker.key.partition(":")[2]
    wire = await viewer(hub, stream, window=4)
    await worker.text(*"abcdefgh")
    frames = await wire.until("delta", offset=4)
    assert offsets_of(frames) == [1, 2, 3, 4]
    assert await wire.ping() == []
    await wire.send({"type": "ack", "stream": stream, "offset": 3})
    frames = await wire.until("delta", offset=7)
    assert offsets_of(frames) == [5, 6, 7]
    assert await wire.ping() == []
    await wire.send({"type": "ack", "stream": stream, "offset": 3})
    assert await wire.ping() == [], "the same ack again changes nothing"
    await wire.send({"type": "ack", "stream": stream, "offset": 7, "window": 256})
    await wire.until("delta", offset=10)
    assert hub.node.counts.window_stalls >= 2


async def test_a_frame_that_fits_others_whole_is_cut_for_a_small_window(hub: RunningHub, broker: Broker) -> None:
    worker = await started(hub, broker)
    stream = worker.key.partition(":")[2]
    small, large = await viewer(hub, stream, window=5), await viewer(hub, stream)
    await large.until("live")
    await small.until("live")
    await worker.text(*"abcdef")
    assert (await large.next())["text"] == "abcdef"
    cut = await small.next()
    assert (cut["first"], cut["offset"], cut["text"]) == (3, 5, "abc")


async def test_a_window_of_0_pauses_from_the_start(hub: RunningHub, broker: Broker) -> None:
    worker = await started(hub, broker)
    stream = worker.key.partition(":")[2]
    wire = await viewer(hub, stream, window=0)
    await worker.text("a")
    assert await wire.ping() == []
    await wire.send({"type": "ack", "stream": stream, "offset": 0, "window": 1})
    await wire.expect("entry", offset=1)
    assert await wire.ping() == []


async def test_a_viewer_pauses_and_catches_up_in_few_frames(hub: RunningHub, broker: Broker) -> None:
    worker = await started(hub, broker)
    stream = worker.key.partition(":")[2]
    wire = await viewer(hub, stream)
    await wire.until("live")
    await wire.send({"type": "ack", "stream": stream, "offset": 2, "window": 0})
    await wire.ping()
    other = await viewer(hub, stream)
    for number in range(50):
        await worker.text(f"{number} ")
    await other.until("delta", offset=52)
    assert await wire.ping() == [], "and the other is not held up"
    await wire.send({"type": "ack", "stream": stream, "offset": 2, "window": 100})
    frame = await wire.expect("delta", first=3, offset=52)
    assert frame["text"] == "".join(f"{number} " for number in range(50))


async def test_null_turns_acks_off_and_is_not_0(hub: RunningHub, worker: Worker) -> None:
    wire = await hub.join()
    await wire.send(question("r1", window=None, model="scripted/tokens=400,rate=4000"))
    await wire.expect("accepted", window=None)
    frames = await wire.until("entry", kind="done")
    assert len(text_of(frames)) == 400 * 5


async def test_an_ack_may_turn_acks_off(hub: RunningHub, broker: Broker) -> None:
    worker = await started(hub, broker)
    stream = worker.key.partition(":")[2]
    wire = await viewer(hub, stream, window=1)
    await worker.text(*"abcdefgh")
    await wire.expect("entry", offset=1)
    await wire.send({"type": "ack", "stream": stream, "offset": 1, "window": None})
    await wire.until("delta", offset=10)


async def test_an_answer_longer_than_its_window_comes_whole_to_a_viewer_that_acks(
    start_hub: StartHub, start_worker: StartWorker
) -> None:
    hub = await start_hub(run_ahead=8)
    await start_worker(run_ahead=8)
    wire = await hub.join()
    await wire.send(question("r1", window=8, model="scripted/tokens=120,rate=2000"))
    stream = (await wire.expect("accepted"))["stream"]
    frames: list[Map] = []
    while not frames or frames[-1].get("kind") != "done":
        frames.append(await wire.next())
        if "offset" in frames[-1]:
            await wire.send({"type": "ack", "stream": stream, "offset": frames[-1]["offset"]})
    assert len(text_of(frames)) == 120 * 5
    assert offsets_of(frames) == list(range(1, frames[-1]["offset"] + 1))


async def test_a_worker_runs_no_further_ahead_than_its_bound(
    hub: RunningHub, broker: Broker, start_worker: StartWorker
) -> None:
    await start_worker(run_ahead=8)
    wire = await hub.join()
    await wire.send(question("r1", window=4, model="scripted/tokens=100,rate=1000"))
    stream = (await wire.expect("accepted"))["stream"]
    key = keys.stream_key("alice", stream)

    async def top() -> int:
        [standing] = await broker.log.standings([key])
        assert standing is not None
        return standing.top

    async def is_ahead() -> bool:
        return await top() >= 12

    await eventually(is_ahead)
    await asyncio.sleep(0.2)  # the provider would have said 200 more by then
    assert await top() <= 4 + 8 + 1
    await wire.send({"type": "ack", "stream": stream, "offset": 4, "window": None})
    frames = await wire.until("entry", kind="done")
    assert frames[-1]["data"]["text_bytes"] == 500


async def test_a_paced_viewer_gets_at_most_one_delta_in_its_time_and_done_at_once(
    hub: RunningHub, worker: Worker
) -> None:
    wire = await hub.join()
    await wire.send(question("r1", pace_ms=100, model="scripted/tokens=100,rate=200"))
    began = time.monotonic()
    frames = await wire.until("entry", kind="done")
    deltas = [frame for frame in frames if frame["type"] == "delta"]
    assert 2 <= len(deltas) <= (time.monotonic() - began) / 0.1 + 2, "one in 100 ms, and the last with `done`"
    assert len(text_of(frames)) == 500


async def test_an_entry_takes_the_text_before_it_along(hub: RunningHub, broker: Broker) -> None:
    worker = await started(hub, broker)
    stream = worker.key.partition(":")[2]
    wire = await viewer(hub, stream, pace_ms=5000)
    await wire.until("live")
    await worker.text("a")
    await wire.expect("delta", text="a", offset=3)
    began = time.monotonic()
    await worker.text("b")
    await worker.done()
    await wire.expect("delta", text="b")
    await wire.expect("entry", kind="done")
    assert time.monotonic() - began < 2


async def test_an_owner_that_was_not_told_of_new_demand_hears_of_it_before_the_next_ack(
    start_hub: StartHub, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker at its bound writes nothing, and a viewer that got all there is acks nothing more."""
    for name in ("SILENT_S", "PASS_S"):
        monkeypatch.setattr(reconcile, name, 0.05)
    hub = await start_hub(run_ahead=8)
    await start_worker(run_ahead=8)
    wire = await hub.join()
    await wire.send(question("r1", window=8, model="scripted/tokens=60,rate=100"))
    stream = (await wire.expect("accepted"))["stream"]
    await wire.until("delta", offset=8)
    [tail] = hub.node.relay.tails.values()
    await eventually(lambda: tail.top >= 16, "the bound")
    lost = 0

    async def lose(*_: object) -> bool:
        nonlocal lost
        lost += 1
        return True

    with monkeypatch.context() as patch:
        patch.setattr(owners, "post", lose)  # its mailbox was trimmed before it read that
        await wire.send({"type": "ack", "stream": stream, "offset": 8, "window": 100})
        await wire.until("delta", offset=16)
        await eventually(lambda: lost > 0, "a packet")
    frames = await wire.until("entry", kind="done")
    assert frames[-1]["data"]["text_bytes"] == 300
