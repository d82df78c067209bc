"""The proxies do what tests believe they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.proxy import FaultProxy
from tests.installation import eventually

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Peer:
    """A server that keeps what it is sent, and whose connections a test can write to."""

    def __init__(self) -> None:
        self.streams: list[Streams] = []
        self.arrived = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.streams.append((reader, writer))
        self.arrived.set()

    async def next(self) -> Streams:
        async with asyncio.timeout(5):
            await self.arrived.wait()
        self.arrived.clear()
        return self.streams[-1]

    def hang_up(self) -> None:
        for _, writer in self.streams:
            writer.transport.abort()


@pytest.fixture
async def peer(no_task_left: None) -> AsyncIterator[tuple[Peer, str]]:
    peer = Peer()
    server = await asyncio.start_server(peer, "127.0.0.1", 0)
    yield peer, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    peer.hang_up()
    server.close()
    await server.wait_closed()


@pytest.fixture
async def proxy(peer: tuple[Peer, str]) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(peer[1]) as proxy:
        yield proxy


class Caller:
    """A connection through the proxy, and its other end."""

    def __init__(self, near: Streams, far: Streams) -> None:
        self.reader, self.writer = near
        self.far_reader, self.far_writer = far


@pytest.fixture
async def caller(peer: tuple[Peer, str], proxy: FaultProxy) -> AsyncIterator[Caller]:
    near = await dial(proxy)
    yield Caller(near, await peer[0].next())
    near[1].transport.abort()


async def dial(proxy: FaultProxy) -> Streams:
    return await asyncio.open_connection(proxy.host, proxy.port)


async def silent(reader: asyncio.StreamReader, for_s: float = 0.1) -> None:
    """Neither data nor an end comes."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(for_s):
            await reader.read(1)


async def is_reset(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(5):
            while await reader.read(65536):
                pass
    except ConnectionResetError:
        return True
    return False


async def test_bytes_and_the_end_go_both_ways(caller: Caller, proxy: FaultProxy) -> None:
    caller.writer.write(b"up")
    assert await caller.far_reader.readexactly(2) == b"up"
    caller.writer.write_eof()
    assert await caller.far_reader.read() == b""
    caller.far_writer.write(b"down, after the other direction ended")
    caller.far_writer.close()
    assert await caller.reader.read() == b"down, after the other direction ended"
    await eventually(lambda: proxy.connections == 0)


async def test_a_megabyte_each_way_arrives_whole(caller: Caller) -> None:
    sent = bytes(range(256)) * 4096
    caller.writer.write(sent)
    caller.far_writer.write(sent)
    up, down = await asyncio.gather(caller.far_reader.readexactly(len(sent)), caller.reader.readexactly(len(sent)))
    assert up == sent and down == sent


async def test_a_unix_socket_is_a_target_too(tmp_path: Path) -> None:
    peer = Peer()
    server = await asyncio.start_unix_server(peer, tmp_path / "s")
    async with FaultProxy(str(tmp_path / "s")) as proxy:
        _, writer = await dial(proxy)
        far, _ = await peer.next()
        writer.write(b"x")
        assert await far.readexactly(1) == b"x"
        writer.close()
        peer.hang_up()
    server.close()
    await server.wait_closed()


async def test_a_new_target_counts_for_new_connections(caller: Caller, proxy: FaultProxy) -> None:
    other = Peer()
    server = await asyncio.start_server(other, "127.0.0.1", 0)
    proxy.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    _, writer = await dial(proxy)
    await other.next()
    caller.writer.write(b"x")
    assert await caller.far_reader.readexactly(1) == b"x"
    writer.close()
    other.hang_up()
    server.close()
    await server.wait_closed()


async def test_an_unreachable_target_is_a_reset(proxy: FaultProxy) -> None:
    proxy.target = "127.0.0.1:1"
    reader, _ = await dial(proxy)
    assert await is_reset(reader)
    await eventually(lambda: proxy.connections == 0)


async def test_reset_reaches_both_sides_as_one(caller: Caller, proxy: FaultProxy) -> None:
    proxy.reset()
    assert await is_reset(caller.reader) and await is_reset(caller.far_reader)
    await eventually(lambda: proxy.connections == 0)


async def test_delay_keeps_order(caller: Caller, proxy: FaultProxy) -> None:
    proxy.weather.delay_s, proxy.weather.jitter_s = 0.1, 0.1
    began = time.monotonic()
    for number in range(10):
        caller.far_writer.write(b"%d" % number)
        await asyncio.sleep(0.005)
    proxy.weather.delay_s = proxy.weather.jitter_s = 0.0
    caller.far_writer.write(b".")
    assert await caller.reader.readexactly(11) == b"0123456789."
    assert time.monotonic() - began >= 0.1


async def test_throttled_bytes_take_their_time(caller: Caller, proxy: FaultProxy) -> None:
    proxy.weather.bytes_per_s = 10_000
    began = time.monotonic()
    caller.far_writer.write(bytes(3000))
    await caller.reader.readexactly(3000)
    assert 0.25 <= time.monotonic() - began < 3


async def test_split_writes_pieces_of_that_size(caller: Caller, proxy: FaultProxy) -> None:
    proxy.weather.split = 1
    caller.far_writer.write(b"abc")
    pieces: list[bytes] = []
    while sum(map(len, pieces)) < 3:
        pieces.append(await caller.reader.read(10))
    assert b"".join(pieces) == b"abc" and len(pieces) > 1


async def test_stall_holds_everything_and_resume_lets_it_go(
    caller: Caller, proxy: FaultProxy, peer: tuple[Peer, str]
) -> None:
    proxy.stall()
    caller.writer.write(b"held")
    await silent(caller.far_reader)
    reader, writer = await dial(proxy)  # accepted, and silent
    writer.write(b"new")
    await silent(reader)
    assert len(peer[0].streams) == 1
    proxy.resume()
    assert await caller.far_reader.readexactly(4) == b"held"
    far, _ = await peer[0].next()
    assert await far.readexactly(3) == b"new"
    writer.close()


async def test_a_stalled_direction_holds_a_bounded_amount(caller: Caller, proxy: FaultProxy) -> None:
    caller.far_writer.write(bytes(64 * 1024 * 1024))  # far more than sockets hold; nobody reads
    connection = next(iter(proxy._live))
    await eventually(lambda: connection.down.is_full)
    await asyncio.sleep(0.05)
    assert connection.down.held <= 64 * 1024
    assert caller.far_writer.transport.get_write_buffer_size() > 32 * 1024 * 1024, "the sender felt no back-pressure"
    caller.far_writer.transport.abort()


async def test_refused_connections_are_reset_and_present_ones_are_not(caller: Caller, proxy: FaultProxy) -> None:
    proxy.refuse()
    reader, _ = await dial(proxy)
    assert await is_reset(reader)
    caller.writer.write(b"x")
    assert await caller.far_reader.readexactly(1) == b"x"
    proxy.refuse(False)
    _, writer = await dial(proxy)
    await eventually(lambda: proxy.connections == 2)
    writer.close()


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_cut_after_lets_exactly_so_many_bytes_through(
    direction: str, proxy: FaultProxy, peer: tuple[Peer, str]
) -> None:
    proxy.cut_after(5, "up" if direction == "up" else "down")
    near, writer = await dial(proxy)
    far, far_writer = await peer[0].next()
    if direction == "down":
        near, far, writer, far_writer = far, near, far_writer, writer
    writer.write(b"0123456789")
    assert await far.readexactly(5) == b"01234"
    assert await is_reset(far) and await is_reset(near)
    other, other_writer = await dial(proxy)
    _, other_far = await peer[0].next()
    other_far.write(b"0123456789")
    assert await other.readexactly(10), "only the next connection is cut"
    other_writer.close()


async def test_who_vanished_tells_nobody(caller: Caller, proxy: FaultProxy, peer: tuple[Peer, str]) -> None:
    proxy.vanish()
    caller.writer.write(b"x")
    caller.far_writer.close()
    await silent(caller.reader)
    await silent(caller.far_reader) if not caller.far_writer.transport.is_closing() else None
    _, writer = await dial(proxy)
    far, _ = await peer[0].next()
    writer.write(b"y")
    assert await far.readexactly(1) == b"y"
    assert proxy.connections == 2
    writer.close()
