"""Coming back: on any hub, from any cursor, and told when there is nothing to come back to (protocol §4)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.protocol.entries import Started, encode_data
from hub import reconcile
from hub import tail as tails
from hub.broker import keys
from hub.broker.broker import Broker
from hub.delivery import PAGE_ENTRIES
from tests.conftest import StartHub
from tests.installation import RunningHub, question
from tests.integration.handwork import HandWorker
from tests.wire import Map, Wire, offsets_of, text_of
from workers.worker import Worker


def cursor_of(frames: list[Map], mark: str) -> Map:
    """Where a viewer is that got these frames, its first mark being that of the answer."""
    offset = 0
    for frame in frames:
        if "offset" in frame and frame["type"] in ("delta", "entry"):
            offset, mark = frame["offset"], frame.get("mark", mark)
    return {"offset": offset, "mark": mark}


async def ask(wire: Wire, content: str = "hi") -> Map:
    await wire.send(question("r1", content=content))
    return await wire.expect("accepted")


async def test_a_dropped_viewer_resumes_on_another_hub_without_a_hole_or_a_repeat(
    hub: RunningHub, start_hub: StartHub, worker: Worker
) -> None:
    other_hub = await start_hub()
    wire = await hub.join()
    await wire.send(question("r1", model="scripted/tokens=60,rate=300"))
    accepted = await wire.expect("accepted")
    frames: list[Map] = []
    while len(text_of(frames)) < 50:
        frames.append(await wire.next())
    wire.abort()
    back = await other_hub.join()
    cursor = cursor_of(frames, accepted["mark"])
    await back.send({"type": "attach", "id": 1, "stream": accepted["stream"], "after": cursor})
    await back.expect("attached", id=1, resumed=True, **cursor)
    frames += await back.until("entry", kind="done")
    assert offsets_of(frames) == list(range(1, frames[-1]["offset"] + 1))
    assert text_of(frames) == "".join(f"{number:04d} " for number in range(60))
    assert other_hub.node.counts.resumes == 1
    assert other_hub.node.counts.repairs == hub.node.counts.repairs == 0


async def test_a_finished_answer_resumes_from_every_offset(hub: RunningHub, broker: Broker) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await worker.text(*"abcdefgh")
    await worker.done()
    await wire.until("entry", kind="done")
    for offset in range(1, worker.top + 1):
        mark = accepted["mark"] if offset == 1 else "m1"
        after = {"offset": offset, "mark": mark}
        await wire.send({"type": "attach", "id": offset, "stream": accepted["stream"], "after": after})
        await wire.expect("attached", id=offset, resumed=True, state="done", top=worker.top, **after)
        if offset < worker.top:
            frames = await wire.until("entry", kind="done")
            assert offsets_of(frames) == list(range(offset + 1, worker.top + 1))
            assert text_of(frames) == "abcdefgh"[max(0, offset - 2) :]
    assert [frame for frame in await wire.ping() if frame["type"] != "live"] == []


@pytest.mark.parametrize(
    ("offset", "mark"), [(3, "another"), (1, "m1"), (99, "m1"), (3, "")], ids=["foreign", "other run", "above", "none"]
)
async def test_a_cursor_of_another_history_begins_again(
    hub: RunningHub, broker: Broker, offset: int, mark: str
) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await worker.text("a", "b")
    other = await hub.join()
    after = {"offset": offset, "mark": mark}
    await other.send({"type": "attach", "id": 1, "stream": accepted["stream"], "after": after})
    await other.expect("attached", id=1, resumed=False, offset=0, mark=accepted["mark"], top=4)
    frames = await other.until("live")
    assert offsets_of(frames) == [1, 2, 3, 4]
    assert hub.node.counts.restarts == 1


async def test_from_now_on_is_from_the_top(hub: RunningHub, broker: Broker) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await worker.text("a")
    other = await hub.join()
    await other.send({"type": "attach", "id": 1, "stream": accepted["stream"], "after": "now"})
    await other.expect("attached", id=1, resumed=True, offset=3, mark="m1", top=3)
    await other.expect("live")
    await worker.text("b")
    await other.expect("delta", offset=4, text="b", first=None, mark=None)


async def test_a_second_attach_supersedes_the_first(hub: RunningHub, broker: Broker) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await worker.text("a", "b", "c")
    await wire.until("delta")
    attach = {"type": "attach", "stream": accepted["stream"]}
    await wire.send({**attach, "id": 1}, {**attach, "id": 2, "after": {"offset": 4, "mark": "m1"}})
    frames = await wire.until("attached", id=2)
    assert frames[-1]["offset"] == 4
    frames = await wire.until("live")
    assert offsets_of(frames) == [5]
    await worker.text("d")
    frames = await wire.until("delta", offset=6)  # the first attach is refused, before or after
    assert offsets_of(frames) == [6]
    assert offsets_of(await wire.ping()) == [], "once, not once for each attach"
    [tail] = hub.node.relay.tails.values()
    assert len(tail.attachments) == 1


async def test_after_a_detach_nothing_comes(hub: RunningHub, broker: Broker) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await wire.until("entry", kind="started")
    await wire.send({"type": "detach", "id": 1, "stream": accepted["stream"]})
    await wire.expect("ok", id=1)
    watcher = await hub.join()
    await watcher.send({"type": "attach", "id": 1, "stream": accepted["stream"]})
    await watcher.until("live")
    await worker.text("a")
    await watcher.until("delta", offset=3)
    assert await wire.ping() == []


async def test_a_detach_ends_an_attach_that_is_still_under_way(hub: RunningHub) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    await wire.until("live")
    stream = accepted["stream"]
    await wire.send({"type": "detach", "stream": stream})
    await wire.batch({"type": "attach", "id": 1, "stream": stream}, {"type": "detach", "id": 2, "stream": stream})
    await wire.until("ok", id=2)
    await wire.send({"type": "list", "id": 3})
    await wire.until("streams", id=3)
    await wire.ping()
    [tail] = hub.node.relay.tails.values()
    assert tail.attachments == []


async def test_done_ends_the_attachment_and_the_ack_after_it_is_nothing(hub: RunningHub, broker: Broker) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await worker.done()
    await wire.until("entry", kind="done")
    await wire.send({"type": "ack", "stream": accepted["stream"], "offset": 3})
    assert await wire.ping() == []
    assert hub.node.relay.tails == {}, "and the hub holds nothing of it"


async def test_the_attachments_of_a_connection_are_limited(start_hub: StartHub) -> None:
    hub = await start_hub(attachments=2)
    wire = await hub.join()
    streams = []
    for number in range(3):
        await wire.send(question(f"r{number}", attach=False))
        streams.append((await wire.expect("accepted"))["stream"])
    for number, stream in enumerate(streams):
        await wire.send({"type": "attach", "id": number, "stream": stream})
        if number < 2:
            await wire.expect("attached", id=number)
            await wire.until("live")
    await wire.expect("error", id=2, code="invalid_request")
    await wire.send({"type": "attach", "id": 3, "stream": streams[0]})
    await wire.expect("attached", id=3)  # again is not one more


async def test_a_part_that_was_lost_on_its_way_is_read_from_the_log(hub: RunningHub, broker: Broker) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await worker.text("a", relay=False)
    await worker.text("b")
    frames = await wire.until("delta", offset=4)
    assert text_of(frames) == "ab"
    assert offsets_of(frames) == [1, 2, 3, 4]
    assert (hub.node.counts.holes, hub.node.counts.repairs) == (1, 0)


@pytest.fixture
def quick_reconcile(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SILENT_S", "SUSPECT_S", "PASS_S"):
        monkeypatch.setattr(reconcile, name, 0.05)


async def test_a_last_part_that_was_lost_is_repaired_and_counted(
    hub: RunningHub, broker: Broker, quick_reconcile: None
) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await worker.text("a", relay=False)
    frames = await wire.until("delta", offset=3)
    assert text_of(frames) == "a"
    assert hub.node.counts.repairs == 1


async def test_an_attached_viewer_is_put_back_when_redis_lost_the_end(hub: RunningHub, broker: Broker) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await worker.text("a", "b", "c")
    await wire.until("delta", offset=5)
    await worker.forget(kept=3, mark="m2")  # "b" and "c" are gone; offset 4 is `started` of another attempt
    await worker.text("B", "C")
    frames = await wire.until("delta", offset=6)
    push = frames[0]
    assert push["type"] == "attached" and "id" not in push
    assert (push["resumed"], push["offset"], push["mark"]) == (False, 0, accepted["mark"])
    assert offsets_of(frames[1:]) == [1, 2, 3, 4, 5, 6]
    assert text_of(frames[1:]) == "aBC"


async def test_another_history_of_the_same_length_is_noticed_although_no_part_of_it_came(
    hub: RunningHub, broker: Broker, quick_reconcile: None
) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await worker.text("a", "b", "c")
    await wire.until("delta", offset=5)
    await worker.forget(kept=3, mark="m2", relay=False)
    await worker.text("B", relay=False)
    frames = await wire.until("delta", offset=5)
    assert frames[0]["type"] == "attached"
    assert text_of(frames) == "aB"


async def test_a_viewer_whose_place_was_kept_goes_on_from_there(hub: RunningHub, broker: Broker) -> None:
    wire = await hub.join()
    await wire.send(question("r1", window=3))
    accepted = await wire.expect("accepted", window=3)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await worker.text("a", "b", "c")
    await wire.until("delta", offset=3)
    await worker.forget(kept=3, mark="m2")
    await worker.text("B")
    push = (await wire.until("attached"))[-1]
    assert (push["resumed"], push["offset"], push["mark"], push["window"]) == (True, 3, "m1", 3)
    frames = await wire.until("delta", offset=5)
    assert offsets_of(frames) == [4, 5]
    assert frames[0]["mark"] == "m2" or frames[1]["mark"] == "m2"


async def test_an_attached_viewer_is_told_when_its_stream_vanished(
    hub: RunningHub, broker: Broker, quick_reconcile: None
) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    await wire.until("live")
    key = keys.stream_key("alice", accepted["stream"])
    await broker.connections.control.delete(keys.meta(key), keys.log(key), keys.interest(key))
    await wire.expect("error", code="gone", retry="no", stream=accepted["stream"])
    await wire.send({"type": "attach", "id": 1, "stream": accepted["stream"]})
    await wire.expect("error", id=1, code="not_found")
    await wire.send(question("r1", content="hi"))
    await wire.expect("error", id="r1", code="gone")


async def test_a_cursor_far_above_the_top_is_no_demand(hub: RunningHub, broker: Broker) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    other = await hub.join()
    after = {"offset": 2**50, "mark": "bogus"}
    await other.send({"type": "attach", "id": 1, "stream": accepted["stream"], "after": after, "window": 16})
    await other.expect("attached", id=1, resumed=False, offset=0)
    redis: Any = broker.connections.control
    [demand] = await redis.hvals(keys.interest(keys.stream_key("alice", accepted["stream"])))
    assert int(demand) <= 1 + hub.node.settings.window


@pytest.mark.parametrize("what", ["expired", "deleted", "trimmed"])
async def test_a_reader_whose_log_went_away_is_told_and_skips_nothing(
    hub: RunningHub, broker: Broker, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(tails, "TAIL_BYTES", 1000)  # the rest is read from the log as the window allows
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await worker.text(*(f"{number} " for number in range(100)))
    await worker.done()
    await wire.until("entry", kind="done")
    reader = await hub.join()
    await reader.send({"type": "attach", "id": 1, "stream": accepted["stream"], "window": 4})
    frames = await reader.until("delta", offset=4)
    redis: Any = broker.connections.control
    log, meta = keys.log(worker.key), keys.meta(worker.key)
    if what == "trimmed":
        await redis.xtrim(log, minid="50-0", approximate=False)
    elif what == "deleted":
        await redis.delete(log)
    else:
        await redis.delete(log, meta)
    await reader.send({"type": "ack", "stream": accepted["stream"], "offset": 4})
    frames = await reader.until("error")
    assert frames[-1]["code"] == "gone"
    assert offsets_of(frames) == [], "nothing of what is left"
    await reader.send({"type": "attach", "id": 2, "stream": accepted["stream"]})
    code = (await reader.until("error"))[-1]["code"]
    assert code == ("not_found" if what == "expired" else "gone")


async def test_many_who_attach_to_one_live_answer_at_once_cost_its_log_one_reading(
    hub: RunningHub, start_hub: StartHub, broker: Broker
) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    for start in range(0, 1200, 100):
        await worker.text(*(f"{number} " for number in range(start, start + 100)), relay=False)
    other_hub = await start_hub()
    viewers = await asyncio.gather(*[other_hub.join() for _ in range(100)])
    attach = {"type": "attach", "id": 1, "stream": accepted["stream"], "window": 2000}
    await asyncio.gather(*[viewer.send(attach) for viewer in viewers])
    seen = await asyncio.gather(*[viewer.until("live") for viewer in viewers])
    assert {tuple(offsets_of(frames)) for frames in seen} == {tuple(range(1, 1203))}
    assert other_hub.node.counts.log_reads <= 1 + 1202 // PAGE_ENTRIES, "pages, whoever waits for them"
    await worker.text("live")
    await asyncio.gather(*[viewer.expect("delta", offset=1203, text="live") for viewer in viewers])


async def test_a_phone_whose_old_socket_still_lives_is_served_on_both_and_shares_no_credit(
    hub: RunningHub, start_hub: StartHub, broker: Broker
) -> None:
    other_hub = await start_hub()
    old = await hub.join()
    await old.send(question("r1", window=4))
    accepted = await old.expect("accepted")
    stream = accepted["stream"]
    worker = HandWorker(broker, stream)
    await worker.claim()
    await worker.text("a", "b", "c", "d")
    frames = await old.until("delta", offset=4)  # its window is spent
    cursor = cursor_of(frames, accepted["mark"])
    new = [await one.join() for one in (hub, other_hub)]
    for wire in new:
        await wire.send({"type": "attach", "id": 1, "stream": stream, "after": cursor, "window": 1})
        await wire.expect("attached", id=1, resumed=True, **cursor)
        await wire.expect("delta", offset=5, text="c")
    await new[0].send({"type": "ack", "stream": stream, "offset": 5})
    await new[0].expect("delta", offset=6, text="d")
    assert [await wire.ping() for wire in (old, new[1])] == [[], []], "an ack is for the connection that it came on"
    await old.send({"type": "ack", "stream": stream, "offset": 4, "window": 8})
    await old.expect("delta", first=5, offset=6, text="cd")
    old.abort()
    await worker.text("e")
    for wire, offset in zip(new, (6, 5), strict=True):
        await wire.send({"type": "ack", "stream": stream, "offset": offset, "window": 8})
        assert text_of(await wire.until("delta", offset=7)) in ("e", "de")


async def test_a_hub_whose_mailbox_went_opens_another_and_is_heard_of_again(
    start_hub: StartHub, broker: Broker
) -> None:
    """A mailbox that expired under a paused hub, or was flushed: workers forgot the hub, and never say so."""
    hub = await start_hub(mailbox_ttl_s=2.0)
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await wire.until("entry", kind="started")
    former = hub.node.relay.mailbox
    redis: Any = broker.connections.control
    await redis.delete(keys.mailbox(former))
    await worker.text("a", relay=False)  # nobody to relay to
    frames = await wire.until("delta", offset=3)
    assert hub.node.relay.mailbox != former, "a name is never used twice"
    interest = await redis.hkeys(keys.interest(worker.key))
    assert hub.node.relay.mailbox.encode() in interest
    await worker.text("b")
    frames += await wire.until("delta", offset=4)
    assert offsets_of(frames) == [3, 4]


async def test_kinds_of_a_later_version_pass_through_with_their_offsets(hub: RunningHub, broker: Broker) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await worker.write(("hologram", encode_data(Started(3))), ("text", b"a"))
    frames = await wire.until("delta", text="a")
    [unknown] = [frame for frame in frames if frame.get("kind") == "hologram"]
    assert unknown["data"] == {"attempt": 3}
    assert offsets_of(frames) == [1, 2, 3, 4]


async def test_who_comes_now_when_all_is_said_hears_the_end(hub: RunningHub, worker: Worker) -> None:
    wire = await hub.join()
    accepted = await ask(wire)
    frames = await wire.until("entry", kind="done")
    late = await hub.join()
    await late.send({"type": "attach", "id": 1, "stream": accepted["stream"], "after": "now"})
    top = frames[-1]["offset"]
    await late.expect("attached", resumed=True, offset=top - 1, top=top)
    await late.expect("entry", kind="done", offset=top)
