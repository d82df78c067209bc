"""An answer from a worker to its viewers, through a real hub and a real Redis."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from tests.conftest import StartHub
from tests.installation import RunningHub, question
from tests.wire import JSON, MSGPACK, offsets_of, text_of
from workers.worker import Worker

pytestmark = pytest.mark.usefixtures("worker")


async def test_an_answer_comes_complete_and_in_order(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send(question("r1", model="scripted/tokens=30,rate=0"))
    accepted = await wire.expect("accepted", id="r1", offset=0, window=256)
    frames = await wire.until("entry", kind="done")
    assert offsets_of(frames) == list(range(1, frames[-1]["offset"] + 1))
    assert [frame["type"] for frame in frames].count("live") <= 1
    kinds = [frame["kind"] for frame in frames if frame["type"] == "entry"]
    assert kinds[:3] == ["queued", "started", "source"]
    assert {frame["stream"] for frame in frames} == {accepted["stream"]}
    done, text = frames[-1]["data"], text_of(frames)
    assert (done["status"], done["stop_reason"]) == ("completed", "stop")
    assert text == "".join(f"{number:04d} " for number in range(30))
    assert done["text_bytes"] == len(text.encode())
    assert done["text_sha256"] == hashlib.sha256(text.encode()).hexdigest()


async def test_the_first_token_is_not_held_back(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send(question("r1", model="scripted/tokens=2,rate=0,stall_after=1"))
    delta = (await wire.until("delta"))[-1]
    assert delta["text"] == "0000 ", "while the provider says no more"


async def test_a_mark_comes_only_where_it_changes(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send(question("r1", model="scripted/tokens=5,rate=0"))
    accepted = await wire.expect("accepted")
    frames = [frame for frame in await wire.until("entry", kind="done") if "offset" in frame]
    assert "mark" not in frames[0], "the answer named it"
    assert frames[1]["kind"] == "started"
    assert frames[1]["mark"] != accepted["mark"]
    assert not [frame for frame in frames[2:] if "mark" in frame]


async def test_two_viewers_in_two_encodings_on_two_hubs_see_the_same(hub: RunningHub, start_hub: StartHub) -> None:
    other_hub = await start_hub()
    one = await hub.join()
    await one.send(question("r1", model="scripted/tokens=40,rate=400"))
    stream = (await one.expect("accepted"))["stream"]
    two = await hub.join(subprotocol=MSGPACK)
    three = await other_hub.join(subprotocol=JSON)
    for wire in (two, three):
        await wire.send({"type": "attach", "id": 1, "stream": stream})
        await wire.expect("attached", id=1, resumed=True, offset=0)
    seen = await asyncio.gather(*[wire.until("entry", kind="done") for wire in (one, two, three)])
    assert len({text_of(frames) for frames in seen}) == 1
    assert len({frames[-1]["data"]["text_sha256"] for frames in seen}) == 1
    for frames in seen:
        assert offsets_of(frames) == list(range(1, frames[-1]["offset"] + 1))
    assert hub.node.counts.repairs == other_hub.node.counts.repairs == 0


async def test_reasoning_and_tool_calls_keep_their_kinds(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send(question("r1", model="scripted/tokens=3,rate=0,reasoning=2,tools=1"))
    frames = await wire.until("entry", kind="done")
    reasoning = "".join(frame["text"] for frame in frames if frame.get("kind") == "reasoning")
    assert reasoning == "0000 0001 "
    assert text_of(frames) == "0000 0001 0002 "
    arguments = [frame for frame in frames if frame.get("kind") == "tool_input"]
    assert "".join(frame["text"] for frame in arguments) == '{"number": 1}'
    assert {frame["call"] for frame in arguments} == {"call_1"}
    ready = next(frame for frame in frames if frame.get("kind") == "tool_ready")
    assert ready["data"] == {"call": "call_1", "input": {"number": 1}}
    assert frames[-1]["data"]["stop_reason"] == "tool_calls"


async def test_a_provider_that_fails_keeps_the_text_and_says_what_to_do(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send(question("r1", model="scripted/tokens=9,rate=0,fail_after=4,code=provider_overloaded"))
    frames = await wire.until("entry", kind="done")
    done = frames[-1]["data"]
    assert (done["status"], done["error"]["code"], done["error"]["retry"]) == (
        "failed",
        "provider_overloaded",
        "backoff",
    )
    assert text_of(frames) == "0000 0001 0002 0003 "
    assert done["text_bytes"] == 20
    assert done["retry_token"]


async def test_without_any_key_an_answer_comes_from_fallback_and_says_so(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send(question("r1", model="standard"))
    frames = await wire.until("entry", kind="done")
    source = next(frame for frame in frames if frame.get("kind") == "source")
    assert (source["data"]["provider"], source["data"]["mode"]) == ("fallback", "fallback")
    assert frames[-1]["data"]["status"] == "completed"
    assert text_of(frames)


async def test_an_answer_that_nobody_watches_runs_to_its_end(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send(question("r1", attach=False, model="scripted/tokens=700,rate=0"))
    accepted = await wire.expect("accepted", id="r1")
    assert await wire.ping() == [], "nothing of the stream comes"
    while (await ask(wire, {"type": "list", "id": 2}))["streams"][0]["state"] != "done":
        pass
    await wire.send({"type": "attach", "id": 3, "stream": accepted["stream"]})
    await wire.expect("attached", id=3, state="done")
    frames = await wire.until("entry", kind="done")
    assert len(text_of(frames)) == 700 * 5
    assert "live" not in [frame["type"] for frame in frames], "a replay that ends with done has no live part"


async def ask(wire, frame):  # type: ignore[no-untyped-def]
    await wire.send(frame)
    return await wire.next()


async def test_many_answers_share_one_connection(hub: RunningHub) -> None:
    wire = await hub.join()
    for number in range(20):
        await wire.send(question(f"r{number}", model=f"scripted/tokens={number + 1},rate=0"))
    texts: dict[str, list[dict]] = {}
    requests: dict[str, str] = {}
    done = 0
    while done < 20:
        frame = await wire.next()
        if frame["type"] == "accepted":
            requests[frame["stream"]] = frame["id"]
        else:
            assert frame["stream"] in requests, "frames of a stream never precede its answer"
            texts.setdefault(frame["stream"], []).append(frame)
            done += frame.get("kind") == "done"
    for stream, frames in texts.items():
        number = int(requests[stream][1:])
        assert len(text_of(frames)) == 5 * (number + 1)
        assert offsets_of(frames) == list(range(1, frames[-1]["offset"] + 1))


async def test_the_worker_is_not_asked_again_for_what_it_answered(hub: RunningHub, worker: Worker) -> None:
    wire = await hub.join()
    await wire.send(question("r1"))
    first = await wire.until("entry", kind="done")
    await wire.send(question("r1"))
    accepted = await wire.expect("accepted", state="done")
    again = await wire.until("entry", kind="done")
    assert accepted["stream"] == first[0]["stream"]
    assert again[-1] == first[-1]
