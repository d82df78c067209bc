"""SIGTERM: a hub sends its viewers elsewhere, in an orderly way and in time, whatever they do (protocol §8, §9)."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator

import pytest
from websockets.exceptions import InvalidStatus

from hub.broker.broker import Broker
from tests.conftest import StartHub
from tests.installation import HubProcess, eventually, question, status_of, token
from tests.integration.handwork import HandWorker
from tests.rolling.crowd import Crowd
from tests.rolling.roll import Asker, roll, start_hubs
from tests.wire import JSON, Wire
from workers.worker import Worker

DRAIN_S = 1.0


@pytest.fixture
async def hubs(redis_url: str) -> AsyncIterator[list[HubProcess]]:
    """Two hubs as processes."""
    hubs = await start_hubs(redis_url, 2, DRAIN_S)
    yield hubs
    for hub in hubs:
        hub.kill()


@pytest.fixture
async def process(redis_url: str) -> AsyncIterator[HubProcess]:
    """A hub that takes long to drain."""
    [process] = await start_hubs(redis_url, 1, 30.0)
    yield process
    process.kill()


async def greet(hub: HubProcess) -> Wire:
    wire = await hub.connect()
    await wire.send({"type": "hello", "token": token()})
    await wire.expect("welcome")
    return wire


async def test_a_rolling_restart_of_two_hubs_loses_and_doubles_nothing(
    redis_url: str, hubs: list[HubProcess], worker: Worker
) -> None:
    """`python -m tests.rolling` does the same with 2,000 viewers."""
    asker = await Asker.join(hubs[0])
    await asker.ask(6, rate=5)
    crowd = Crowd([hub.port for hub in hubs], token())
    try:
        for number in range(120):
            crowd.join(asker.streams[number % 6])
        await crowd.all_live()
        logs = await roll(redis_url, hubs, DRAIN_S, lambda _: crowd.all_live())
        await asker.end(hubs[1])
        async with asyncio.timeout(20):
            await crowd.all_done()
    finally:
        await crowd.leave()
    figures = crowd.figures()
    assert [figures[name] for name in ("lost", "doubled", "mismatches", "restarts")] == [0, 0, 0, 0]
    assert figures["statuses"] == {"cancelled": 120}
    assert (figures["errors"], set(figures["codes"])) == ({}, {"4000"})
    assert 1 <= max(figures["reconnects"]) <= 2
    assert figures["drains"] == sum(figures["reconnects"]), "everybody was told before"
    assert not [log for log in logs if "Traceback" in log]


async def test_a_hub_is_not_ready_and_takes_nobody_before_its_first_viewer_is_told(
    start_hub: StartHub, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.node.random.random", lambda: 0.9)
    hub = await start_hub(drain_s=1.5)
    wire = await hub.join()
    await wire.send(question("r1", attach=False))
    stream = (await wire.expect("accepted"))["stream"]
    draining = asyncio.create_task(hub.node.drain())
    assert (await wire.expect("drain"))["after_ms"] == 1350
    assert await status_of(hub.port, "/readyz") == 503
    assert await status_of(hub.port, "/healthz") == 200
    with pytest.raises(InvalidStatus) as refused:
        await hub.connect()
    assert refused.value.response.status_code == 503
    await wire.send({"type": "attach", "id": 1, "stream": stream})  # who is still here is served as ever
    await wire.until("live")
    worker = HandWorker(broker, stream)
    await worker.claim()
    await worker.text("a")
    await wire.until("delta", offset=3)
    assert await wire.close_code() == 4000
    await draining
    await eventually(lambda: hub.node.relay.tails[worker.key].attachments == [], "its end here")


async def test_closes_are_spread_over_the_time_and_come_when_they_were_announced(start_hub: StartHub) -> None:
    hub = await start_hub(drain_s=1.0)
    wires = await asyncio.gather(*[hub.join() for _ in range(40)])

    async def leave(wire: Wire) -> tuple[int, float]:
        planned = int((await wire.expect("drain"))["after_ms"])
        told = time.monotonic()
        assert await wire.close_code() == 4000
        return planned, time.monotonic() - told

    leaving = [asyncio.create_task(leave(wire)) for wire in wires]
    await hub.node.drain()
    seen = [await task for task in leaving]
    planned = sorted(delay for delay, _ in seen)
    assert planned[0] >= 0 and planned[-1] <= 1000
    assert len(set(planned)) > 20 and planned[30] - planned[10] > 100, "by chance, not all at once"
    for delay, took in seen:
        assert delay / 1000 - 0.1 <= took <= delay / 1000 + 1.0


async def test_a_second_sigterm_ends_a_hub_now(process: HubProcess) -> None:
    wires = [await greet(process) for _ in range(3)]
    process.signal(signal.SIGTERM)
    for wire in wires:
        await wire.expect("drain")
    began = time.monotonic()
    process.signal(signal.SIGTERM)
    status, log = await process.ended()
    assert time.monotonic() - began < 4
    assert (status, "Traceback" in log) == (0, False), log
    for wire in wires:
        assert await wire.close_code() in (4000, 1006, None)


def silent_socket(port: int) -> socket.socket:
    """A WebSocket that was opened and greeted, and whose peer neither reads nor closes."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=5)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.sendall(
        f"GET /v1/ws HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: {JSON}\r\n\r\n".encode()
    )
    assert sock.recv(4096).startswith(b"HTTP/1.1 101 ")
    return sock


async def test_a_hub_ends_in_time_though_its_clients_never_read_its_close(
    hubs: list[HubProcess], worker: Worker
) -> None:
    hub = hubs[0]
    silent = [await asyncio.to_thread(silent_socket, hub.port) for _ in range(5)]
    full = await greet(hub)
    await full.send(question("r1", window=None, model="scripted/tokens=4000,rate=0,size=500"))
    await full.until("accepted")
    full.socket.transport.pause_reading()  # 2 MB do not fit its socket: a close frame does not either
    began = time.monotonic()
    hub.signal(signal.SIGTERM)
    status, log = await hub.ended(DRAIN_S + 12)
    assert time.monotonic() - began < DRAIN_S + 5
    assert (status, "Traceback" in log) == (0, False), log
    for sock in silent:
        sock.close()
    full.abort()


async def test_a_drain_that_does_not_come_to_an_end_is_cut_short(
    start_hub: StartHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = await start_hub(drain_s=0.1)
    monkeypatch.setattr("hub.server.DRAIN_MARGIN_S", 0.2)

    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(hub.node, "drain", never)
    began = time.monotonic()
    hub.server.handle_exit(signal.SIGTERM, None)
    assert hub.server._drain is not None
    await hub.server._drain
    assert hub.server.should_exit
    assert 0.25 < time.monotonic() - began < 3
