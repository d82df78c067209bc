"""Redis out of reach, and hubs that end: viewers are told, and nothing is pretended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hub import endpoint
from hub.broker.embedded import EmbeddedRedis
from tests.conftest import StartHub
from tests.installation import HubProcess, eventually, question, running_hub, running_worker, token
from tests.integration.test_connections import fetch
from tests.wire import Map, Wire, offsets_of, text_of
from workers.worker import Worker


async def test_a_hub_that_never_had_redis_answers_overloaded(
    start_hub: StartHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endpoint, "VERB_TIMEOUT_S", 0.5)
    hub = await start_hub(redis_url=f"unix://{tmp_path}/nothing.sock", is_ready=False)
    wire = await hub.join()
    stream = "g_aaaaaaaaaaaaaaaa"
    for frame in (
        question("r", id=1), {"type": "attach", "id": 1, "stream": stream},
        {"type": "cancel", "id": 1, "stream": stream}, {"type": "list", "id": 1},
        {"type": "detach", "id": 1, "stream": stream, "on_abandon": "cancel"},
    ):  # fmt: skip
        await wire.send(frame)
        error = await wire.expect("error", id=1, code="overloaded", retry="after")
        assert error["after_ms"] > 0
    assert await wire.ping() == []
    assert (await fetch(hub, "/healthz"))[0] == 200
    assert (await fetch(hub, "/readyz"))[0] == 503
    assert not [record for record in logs.records if record.exc_info]


@pytest.fixture
async def own_redis() -> AsyncIterator[EmbeddedRedis]:
    """A Redis of this test's own, to be killed; it keeps what it acknowledged."""
    server = EmbeddedRedis(appendonly="always")
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.stop)


async def test_an_outage_is_told_and_the_answer_goes_on_after_it(no_task_left: None, own_redis: EmbeddedRedis) -> None:
    async with running_hub(own_redis.url) as hub, running_worker(own_redis.url):
        wire = await hub.join()
        await wire.send(question("r1", model="scripted/tokens=150,rate=100"))
        frames: list[Map] = await wire.until("delta")
        await asyncio.to_thread(own_redis.kill)
        frames += await wire.until("status", state="degraded")
        await asyncio.to_thread(own_redis.start)
        frames += await wire.until("entry", kind="done")
        assert frames[-1]["data"]["status"] == "completed"
        assert text_of(frames) == "".join(f"{number:04d} " for number in range(150))
        assert offsets_of(frames) == list(range(1, frames[-1]["offset"] + 1))
        await wire.send(question("r2"))
        await wire.until("entry", kind="done")


@pytest.fixture
async def hub_process(redis_url: str) -> AsyncIterator[HubProcess]:
    process = HubProcess(redis_url, HEADRACE_DRAIN_S="0.5", HEADRACE_PROVIDERS="scripted")
    yield process
    process.kill()


async def greet(wire: Wire) -> Wire:
    await wire.send({"type": "hello", "token": token()})
    await wire.expect("welcome")
    return wire


async def test_sigterm_sends_everybody_elsewhere_and_ends_in_good_order(
    hub_process: HubProcess, start_hub: StartHub, worker: Worker
) -> None:
    other_hub = await start_hub()
    first = await greet(await hub_process.connect())
    wires = [first] + [await greet(await hub_process.connect()) for _ in range(4)]
    await first.send(question("r1", model="scripted/tokens=100,rate=100"))
    accepted = await first.expect("accepted")
    frames = await first.until("delta")
    hub_process.signal(signal.SIGTERM)
    for wire in wires[1:]:
        announced = (await wire.until("drain"))[-1]
        assert 0 <= announced["after_ms"] <= 500
    assert [await wire.close_code() for wire in wires[1:]] == [4000] * 4
    while frames[-1]["type"] != "drain":
        frames.append(await first.next())
    code = None
    while code is None:
        try:
            frames.append(await first.next())
        except AssertionError:
            code = await first.close_code()
    assert code == 4000
    status, log = await hub_process.ended()
    assert (status, "Traceback" in log) == (0, False), log
    assert "Why is the sky blue?" not in log and "eyJ" not in log
    back = await other_hub.join()
    mark = [accepted["mark"], *[frame["mark"] for frame in frames if "mark" in frame]][-1]
    after = {"offset": max(offsets_of(frames)), "mark": mark}
    await back.send({"type": "attach", "id": 1, "stream": accepted["stream"], "after": after})
    await back.expect("attached", resumed=True, **after)
    frames += await back.until("entry", kind="done")
    assert text_of(frames) == "".join(f"{number:04d} " for number in range(100))
    assert offsets_of(frames) == list(range(1, frames[-1]["offset"] + 1))


async def test_a_hub_that_is_killed_costs_its_viewers_one_reconnect(
    hub_process: HubProcess, start_hub: StartHub, worker: Worker
) -> None:
    other_hub = await start_hub()
    wire = await greet(await hub_process.connect())
    await wire.send(question("r1", model="scripted/tokens=100,rate=200"))
    accepted = await wire.expect("accepted")
    frames = await wire.until("delta")
    hub_process.signal(signal.SIGKILL)
    with pytest.raises(AssertionError):
        while True:
            frames.append(await wire.next())
    back = await other_hub.join()
    mark = [accepted["mark"], *[frame["mark"] for frame in frames if "mark" in frame]][-1]
    after = {"offset": max(offsets_of(frames)), "mark": mark}
    await back.send({"type": "attach", "id": 1, "stream": accepted["stream"], "after": after})
    await back.expect("attached", resumed=True, **after)
    frames += await back.until("entry", kind="done")
    assert text_of(frames) == "".join(f"{number:04d} " for number in range(100))
    assert offsets_of(frames) == list(range(1, frames[-1]["offset"] + 1))


async def test_a_viewer_whose_socket_is_full_holds_up_nobody_and_catches_up(
    start_hub: StartHub, worker: Worker
) -> None:
    hub = await start_hub()
    slow, fast = await hub.join(), await hub.join()
    await slow.send(question("r1", window=None, model="scripted/tokens=3000,rate=0,size=500"))
    stream = (await slow.expect("accepted"))["stream"]
    slow.socket.transport.pause_reading()
    await fast.send({"type": "attach", "id": 1, "stream": stream, "window": None})
    done = (await fast.until("entry", kind="done"))[-1]
    [endpoint] = [one for one in hub.node.connections if one.attachments]
    await eventually(lambda: not endpoint.is_writable, "a full socket: 1.5 MB do not fit")

    async def is_still() -> bool:
        return stream in endpoint.attachments

    await eventually(is_still)
    slow.socket.transport.resume_reading()
    frames = await slow.until("entry", kind="done")
    assert frames[-1] == done
    assert len(text_of(frames)) == 1_500_000
    assert offsets_of(frames) == list(range(1, done["offset"] + 1))
