"""Viewers that read slowly, never, or are gone without a word: the dead go in time, the slow stay, nobody pays."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import time
from pathlib import Path

import pytest

from hub.endpoint import Endpoint
from hub.server import listen
from hub.settings import HubSettings
from hub.websocket import CLOSE_TIMEOUT_S, HubProtocol
from tests.conftest import StartHub
from tests.hub.raw import CLOSE, PING, TEXT, Raw, frame
from tests.installation import HubProcess, RunningHub, eventually, question, running_worker, token
from tests.wire import Wire
from workers.worker import Worker

#: The smallest heartbeat there is, and the bound that follows from it.
HEARTBEAT_S = 1.0
#: How often the hub looks.
LOOK_S = 1.0
#: 1 MB of reasoning: more than the buffers of both ends hold.
MUCH = "scripted/tokens=5,rate=0,reasoning=500,size=2048"


#: Viewers before the memory of further ones is measured.
WARM_UP = 50


def gone_within(heartbeat_s: float) -> float:
    """A peer without a sign of life is gone after this: a heartbeat until it is asked and one to answer, each seen at
    the next look, and the time to answer a close."""
    return 2 * (heartbeat_s + LOOK_S) + CLOSE_TIMEOUT_S


def socket_of(endpoint: Endpoint) -> HubProtocol:
    protocol = endpoint._socket
    assert isinstance(protocol, HubProtocol)
    return protocol


def of_user(hub: RunningHub, user: str) -> list[Endpoint]:
    return [endpoint for endpoint in hub.node.connections if endpoint.identity and endpoint.identity.user == user]


async def gone(hub: RunningHub, user: str, within: float) -> float:
    """How long it took until this user was connected no more."""
    began = time.monotonic()
    while of_user(hub, user):
        await asyncio.sleep(0.02)
        assert time.monotonic() - began < within, "still there"
    return time.monotonic() - began


async def unread(hub: RunningHub, user: str) -> tuple[Raw, Endpoint]:
    """A viewer that asked for much, and reads none of it; the hub can write no more to it."""
    raw = await Raw.join(hub.port, token(user), receive_buffer=2048)
    await raw.say(question("much", model=MUCH, window=None))
    [endpoint] = of_user(hub, user)
    await eventually(lambda: not endpoint.is_writable, "a full buffer")
    return raw, endpoint


# -- what the defaults amount to -----------------------------------------------------------------------------


def test_with_the_defaults_whoever_is_dead_is_gone_in_45_s() -> None:
    assert gone_within(HubSettings().heartbeat_s) <= 45


async def test_with_a_full_buffer_the_kernel_gives_up_after_30_s(hub: RunningHub) -> None:
    with listen("127.0.0.1", 0) as listening:
        assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    await hub.join()
    [endpoint] = hub.node.connections
    accepted = socket_of(endpoint).transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


# -- dead ----------------------------------------------------------------------------------------------------


async def never_reads(hub: RunningHub) -> None:
    raw, _ = await unread(hub, "never reads")
    await gone(hub, "never reads", gone_within(HEARTBEAT_S) + 1)
    raw.close()


async def never_answers(hub: RunningHub) -> None:
    """Nothing waits for it. Its kernel takes the pings; its program does not answer them."""
    raw = await Raw.join(hub.port, token("never answers"))
    took = await gone(hub, "never answers", gone_within(HEARTBEAT_S) + 1)
    assert took > 2 * HEARTBEAT_S - LOOK_S
    frames = [await raw.frame()]
    while frames[-1][0] != CLOSE:
        frames.append(await raw.frame())
    assert frames[0] == (PING, b"") and frames[-1][1][:2] == (4102).to_bytes(2)
    raw.close()


async def vanishes(hub: RunningHub) -> None:
    raw = await Raw.join(hub.port, token("vanishes"))
    raw.vanish()
    await gone(hub, "vanishes", gone_within(HEARTBEAT_S) + 1)
    raw.close()


async def vanishes_amid_an_answer(hub: RunningHub) -> None:
    raw = await Raw.join(hub.port, token("vanishes amid"))
    await raw.say(question("vanished", model="scripted/tokens=1000,rate=50", window=None))
    assert (await raw.hear())["type"] == "accepted"
    raw.vanish()
    await gone(hub, "vanishes amid", gone_within(HEARTBEAT_S) + 1)
    raw.close()


async def test_the_dead_of_every_kind_are_gone_in_time(start_hub: StartHub, worker: Worker) -> None:
    hub = await start_hub(heartbeat_s=HEARTBEAT_S)
    other = await hub.join("alive")
    await asyncio.gather(never_reads(hub), never_answers(hub), vanishes(hub), vanishes_amid_an_answer(hub))
    assert await other.ping() == []


async def test_a_viewer_that_only_talks_is_let_go_by_the_kernel(start_hub: StartHub, worker: Worker) -> None:
    """Its words are signs of life; what it does not read for the user timeout ends it all the same."""
    hub = await start_hub(heartbeat_s=300)
    raw, endpoint = await unread(hub, "talks")
    accepted = socket_of(endpoint).transport.get_extra_info("socket")
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)
    talking = asyncio.create_task(raw.flood(frame(TEXT, b'{"type":"ping"}'), seconds=8))
    await gone(hub, "talks", 8)
    await talking
    raw.close()


# -- slow ----------------------------------------------------------------------------------------------------


async def reads_slowly(hub: RunningHub) -> None:
    """It takes some kilobytes a second, so that pings wait behind data for many heartbeats."""
    raw, _ = await unread(hub, "reads slowly")
    until = time.monotonic() + gone_within(HEARTBEAT_S) + 1
    loop = asyncio.get_running_loop()
    while time.monotonic() < until:
        raw._buffer += await loop.sock_recv(raw.sock, 500)
        await asyncio.sleep(0.1)
    assert of_user(hub, "reads slowly")
    await all_of_it(raw)
    raw.close()


async def speaks_and_cannot_read(hub: RunningHub) -> None:
    """The hub reads nothing from a peer that takes nothing, and yet knows that it spoke."""
    raw, _ = await unread(hub, "speaks")
    ping = frame(TEXT, b'{"type":"ping","id":"slow"}')
    until = time.monotonic() + gone_within(HEARTBEAT_S) + 1
    while time.monotonic() < until:
        await raw.send(ping[:1])
        ping = ping[1:]
        await asyncio.sleep(0.4)
    assert of_user(hub, "speaks")
    await raw.send(ping)
    await all_of_it(raw)
    raw.close()


async def speaks_byte_by_byte(hub: RunningHub) -> None:
    """Amid a frame it cannot answer a ping: each byte is a sign of life."""
    raw = await Raw.join(hub.port, token("drips"))
    for byte in frame(TEXT, b'{"type":"ping"}'):
        await raw.send(bytes([byte]))
        await asyncio.sleep(0.3)
    assert of_user(hub, "drips")
    assert await raw.hear() == {"type": "pong"}
    raw.close()


async def test_the_slow_of_every_kind_stay_and_get_everything(start_hub: StartHub, worker: Worker) -> None:
    hub = await start_hub(heartbeat_s=HEARTBEAT_S)
    await asyncio.gather(reads_slowly(hub), speaks_and_cannot_read(hub), speaks_byte_by_byte(hub))


async def all_of_it(raw: Raw) -> None:
    """The whole answer arrives: every offset once, and `done`."""
    expected = 1
    while True:
        heard = await raw.hear()
        if heard["type"] in ("delta", "entry"):
            assert heard.get("first", heard["offset"]) == expected
            expected = heard["offset"] + 1
            if heard.get("kind") == "done":
                return


async def test_a_hub_that_was_stopped_does_not_blame_its_viewers(redis_url: str) -> None:
    """A virtual machine that pauses, say: nobody was asked meanwhile, and what they said waits in the kernel."""
    process = HubProcess(redis_url, HEADRACE_PROVIDERS="scripted", HEADRACE_HEARTBEAT_S="1")
    try:
        quiet = await process.connect()
        talking = await Wire.open(process.url)
        for wire in (quiet, talking):
            await wire.send({"type": "hello", "token": token()})
            await wire.expect("welcome")
        process.signal(signal.SIGSTOP)
        await talking.send({"type": "ping", "id": "meanwhile"})
        await asyncio.sleep(3 * HEARTBEAT_S)
        process.signal(signal.SIGCONT)
        await talking.expect("pong", id="meanwhile")
        await asyncio.sleep(1.2 * HEARTBEAT_S)
        assert [await wire.ping() for wire in (quiet, talking)] == [[], []]
        await quiet.close()
        await talking.close()
    finally:
        process.kill()


# -- what they cost ------------------------------------------------------------------------------------------


async def test_an_unread_socket_holds_one_message_and_an_unacked_one_nothing(
    start_hub: StartHub, worker: Worker
) -> None:
    hub = await start_hub()
    raw, endpoint = await unread(hub, "unread")
    assert socket_of(endpoint).transport.get_write_buffer_size() <= 65_536
    other = await hub.join("other")
    stalls = hub.node.counts.window_stalls
    await other.send(question("unacked", model="scripted/tokens=100,rate=0,size=2048", window=16))
    await other.until("delta", offset=16)
    await eventually(lambda: hub.node.counts.window_stalls > stalls, "a stall")
    assert await other.ping() == []
    [unacked] = of_user(hub, "other")
    assert socket_of(unacked).transport.get_write_buffer_size() == 0
    raw.close()


async def test_a_hundred_unread_viewers_cost_less_than_64_kib_each_and_the_others_no_time(redis_url: str) -> None:
    unread_viewers, readers = 100, 20
    process = HubProcess(redis_url, HEADRACE_PROVIDERS="scripted")
    raws: list[Raw] = []
    try:
        async with running_worker(redis_url):
            first = await process.connect()
            full = await beginning(first, "full", "scripted/tokens=1,rate=0,reasoning=250,size=2048")
            await first.until("entry", kind="done")
            live = await beginning(first, "live", "scripted/tokens=40,rate=20", greeted=True)
            watching = [first, *[await following(process, live, number) for number in range(readers)]]
            for number in range(WARM_UP + unread_viewers):
                if number == WARM_UP:  # what one read of the log takes is no viewer's own
                    before = resident_bytes(process)
                raw = await Raw.join(process.port, token(), receive_buffer=2048)
                await raw.say({"type": "attach", "id": number, "stream": full, "window": None})
                raws.append(raw)
            gaps = await asyncio.gather(*[longest_gap(wire) for wire in watching])
            growth = (resident_bytes(process) - before) / unread_viewers
            assert max(gaps) < 1.5
            assert growth < 65_536, f"{growth / 1024:.0f} KiB each"
            for wire in watching:
                await wire.close()
    finally:
        for raw in raws:
            raw.close()
        process.kill()


async def beginning(wire: Wire, request: str, model: str, *, greeted: bool = False) -> str:
    """The stream of an answer that has begun."""
    if not greeted:
        await wire.send({"type": "hello", "token": token()})
        await wire.expect("welcome")
    await wire.send(question(request, model=model, window=None))
    return str((await wire.expect("accepted"))["stream"])


async def following(process: HubProcess, stream: str, number: int) -> Wire:
    wire = await Wire.open(process.url)
    await wire.send({"type": "hello", "token": token()})
    await wire.expect("welcome")
    await wire.send({"type": "attach", "id": number, "stream": stream, "window": None})
    await wire.until("live")
    return wire


async def longest_gap(wire: Wire) -> float:
    """… between two frames, up to `done`."""
    longest = 0.0
    while True:
        began = time.monotonic()
        heard = await wire.next()
        longest = max(longest, time.monotonic() - began)
        if heard["type"] == "entry" and heard["kind"] == "done":
            return longest


def resident_bytes(process: HubProcess) -> int:
    pages = Path(f"/proc/{process._process.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux: TCP_INFO, socket filters")
