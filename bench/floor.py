"""The least that delivering can cost from Python: a loop of `socket.send`, to the same receiver at the same rate.

`python -m bench.floor` is the sender; `measure` connects viewers to it and reads its CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.audience import Audience
from bench.latency import count_between
from bench.process import BenchError, Process, cpu_s
from bench.stack import Setup
from bench.viewer import FloorViewer
from headrace.protocol.codec import CODECS, Codec
from headrace.protocol.frames import Delta
from hub.server import HIGH_WATER
from hub.tail import prepare
from tests.faults.ports import free_port

_STREAM = "g_0123456789abcdef"


async def measure(setup: Setup, connections: int, rate: float, ticks: int, seconds: float = 3.0) -> float:
    """CPU microseconds of one send: `rate` a second to each connection, in `ticks` rounds a second."""
    setup.say(f"floor: {connections * rate:,.0f} sends a second to {connections:,} sockets")
    codec = CODECS[f"headrace.v1.{setup.encoding}"]
    port = free_port()
    arguments = [str(port), str(connections), str(rate), str(ticks), setup.encoding]
    with TemporaryDirectory(prefix="headrace-bench-") as home:
        sender = Process("the floor's sender", ["bench.floor", *arguments], Path(home) / "floor.log", {})
        try:
            async with Audience(codec) as audience:
                return await audience.wait(_receive(audience, sender, port, connections, seconds), 60, "the floor")
        finally:
            sender.kill()


async def _receive(audience: Audience, sender: Process, port: int, connections: int, seconds: float) -> float:
    loop = asyncio.get_running_loop()
    while not sender.log():
        sender.check()
        await asyncio.sleep(0.05)
    for _ in range(connections):
        viewer = audience.add(FloorViewer)
        await loop.create_connection(lambda viewer=viewer: viewer, "127.0.0.1", port)  # type: ignore[misc]
    while not all(viewer.arrivals for viewer in audience.viewers):
        sender.check()
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    began, used = time.monotonic_ns(), cpu_s(sender.pid)
    await asyncio.sleep(seconds)
    used, ended = cpu_s(sender.pid) - used, time.monotonic_ns()
    sends = count_between((viewer.arrivals for viewer in audience.viewers), began, ended)
    if audience.missing or audience.doubled or not sends:
        raise BenchError("the floor's frames did not arrive one by one")
    return used / sends * 1e6


def send(port: int, connections: int, rate: float, ticks: int, codec: Codec) -> None:
    """Accept `connections`, then send until killed. A late round is sent at once, none is left out."""
    with socket.create_server(("127.0.0.1", port), backlog=4096) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, HIGH_WATER)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print("listens", flush=True)
        sockets = [server.accept()[0] for _ in range(connections)]
    share = max(1, round(connections * rate / ticks))
    offset = position = 0
    due = time.monotonic()
    while True:
        due += 1 / ticks
        time.sleep(max(0.0, due - time.monotonic()))
        for index in range(share):
            if position == 0:
                offset += 1
            if index == 0 or position == 0:
                delta = Delta(_STREAM, offset, text=f"{time.monotonic_ns()} ")
                wire = prepare(codec.encode(delta), codec.is_text)
            sockets[position].send(wire)
            position = (position + 1) % connections


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.floor", description="Send frames in a plain loop.")
    parser.add_argument("port", type=int)
    parser.add_argument("connections", type=int)
    parser.add_argument("rate", type=float)
    parser.add_argument("ticks", type=int)
    parser.add_argument("encoding", choices=["json", "msgpack"])
    options = parser.parse_args()
    codec = CODECS[f"headrace.v1.{options.encoding}"]
    send(options.port, options.connections, options.rate, options.ticks, codec)


if __name__ == "__main__":
    main()
