"""Viewers that take nothing, among others of the same stream: with them and without, in turn."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median

import msgspec

from bench import wire
from bench.audience import Audience
from bench.fanout import gather_viewers
from bench.figures import OTHERS, Line
from bench.latency import Delays, percentile
from bench.process import BenchError, rss_kib
from bench.relay import observe
from bench.stack import Setup, Stack
from headrace.protocol.codec import CODECS
from headrace.protocol.frames import Attach, Hello

#: Reasoning at the head of the stream, pieces of 2 KiB: something to fill a socket with.
_FILLER = ",reasoning=40,size=2048"
_FILLER_BYTES = 40 * 2048
#: More than the buffers of both ends of a socket hold.
_FILL_BYTES = 1024 * 1024
#: … and of what waits in the kernel for a viewer that does not read, at least.
_FULL_BYTES = 16 * 1024
_SETTLE_S = 2.0
_KINDS = {"unread": "one does not read", "unacked": "one does not ack", "many": "one in five does not read"}
#: Sockets opened side by side.
_OPENED_AT_ONCE = 20


@dataclass(frozen=True)
class Stalled:
    viewers: int = 1000
    rate: float = 20.0
    seconds: float = 8.0
    rounds: int = 3

    @property
    def title(self) -> str:
        return (
            f"stalled: viewers that take nothing among {self.viewers:,} of one stream at {self.rate:g} tokens/s; "
            f"{self.rounds} rounds of without and with (every other one of with and without), for each way to stall"
        )

    def lines(self) -> list[Line]:
        lines = []
        for kind, name in _KINDS.items():
            lines += [
                Line(f"{name}: the others' p99; floor: without", f"{kind}_p99_ms", "ms", floor=f"no_{kind}_p99_ms",
                     ratio_at_most=1.2),
                Line(f"{name}: the others' p50; floor: without", f"{kind}_p50_ms", "ms", floor=f"no_{kind}_p50_ms"),
                Line(f"{name}: hub memory more than without, each", f"{kind}_growth_kib", "KiB", at_most=64.0),
            ]  # fmt: skip
        return [
            *lines,
            Line("repaired by the reconcile pass", "repairs", at_most=0),
            Line("entries missing or doubled", "torn", at_most=0),
            OTHERS,
        ]

    async def run(self, setup: Setup) -> dict[str, float]:
        """One run. Raises BenchError."""
        async with Stack(setup) as stack, Audience(CODECS[f"headrace.v1.{setup.encoding}"]) as audience:
            phases = 2 * len(_KINDS) * self.rounds
            total = phases * (self.seconds + _SETTLE_S)
            first = await gather_viewers(setup, stack, audience, self.viewers, self.rate, total, _FILLER)
            figures: dict[str, float] = {}
            pairs: dict[str, list[tuple[_Phase, _Phase]]] = {kind: [] for kind in _KINDS}
            for number in range(self.rounds):
                for kind in _KINDS:
                    setup.say(f"round {number + 1} of {self.rounds}: {_KINDS[kind]}")
                    order = ("", kind) if number % 2 == 0 else (kind, "")  # what drifts, drifts both ways
                    taken = {each: await self._phase(setup, stack, audience, first.stream, each) for each in order}
                    pairs[kind].append((taken[""], taken[kind]))
            for kind, measured in pairs.items():
                for name, index in (("no_" + kind, 0), (kind, 1)):
                    figures[f"{name}_p50_ms"] = median(pair[index].p50_ms for pair in measured)
                    figures[f"{name}_p99_ms"] = median(pair[index].p99_ms for pair in measured)
                more = median(with_.growth_kib - no.growth_kib for no, with_ in measured)
                figures[f"{kind}_growth_kib"] = more / self._stalled(kind)
            counts = await stack.counts()
            return {
                **figures,
                "others_pct": median(phase.others_pct for pair in chain(*pairs.values()) for phase in pair),
                "repairs": counts["repairs"],
                "torn": float(audience.missing + audience.doubled + audience.restarts),
            }

    def _stalled(self, kind: str) -> int:
        """How many viewers of this kind there are beside the others."""
        return max(1, self.viewers // 5) if kind == "many" else 1

    async def _phase(self, setup: Setup, stack: Stack, audience: Audience, stream: str, kind: str) -> _Phase:
        """Without a stalled viewer there is one more that behaves: a connection's own memory counts in neither."""
        pid, port = stack.processes["hub 0"].pid, stack.ports[0]
        stalls = (await stack.counts())["window_stalls"]
        before = rss_kib(pid)
        async with AsyncExitStack() as guests:
            opened: list[socket.socket] = []
            if kind:
                frames = _never_acks(stream) if kind == "unacked" else _never_reads(stream)
                while len(opened) < self._stalled(kind):
                    batch = min(_OPENED_AT_ONCE, self._stalled(kind) - len(opened))
                    opening = [asyncio.to_thread(_open, port, setup.encoding, frames) for _ in range(batch)]
                    opened += [guests.enter_context(each) for each in await asyncio.gather(*opening)]
            else:
                guest = (await guests.enter_async_context(Audience(audience.codec))).add()
                await audience.wait(guest.connect(port, guest.attach(stream, "now")), 10, "connecting")
            await audience.wait(asyncio.sleep(_SETTLE_S), _SETTLE_S + 10, "settling")
            window = await observe(stack, audience, self.seconds)
            growth = rss_kib(pid) - before
            if kind != "unacked" and any(_unsent(port, one.getsockname()[1]) < _FULL_BYTES for one in opened):
                raise BenchError("the hub could write all: a viewer that does not read did not stall")
            if kind == "unacked" and (await stack.counts())["window_stalls"] <= stalls:
                raise BenchError("nobody was out of window: the viewer that does not ack did not stall")
        delays = Delays(window.began_ns, window.ended_ns)
        for viewer in audience.viewers:
            delays.add(viewer.arrivals, viewer.texts)
        delays.sort()
        return _Phase(percentile(delays.tokens, 0.5), percentile(delays.tokens, 0.99), growth, window.usage.others_pct)


@dataclass(frozen=True)
class _Phase:
    p50_ms: float
    p99_ms: float
    growth_kib: float
    others_pct: float


def _never_reads(stream: str) -> list[msgspec.Struct]:
    """Attaching again replays from the start: so often that nothing more goes into its socket."""
    times = _FILL_BYTES // _FILLER_BYTES + 1
    return [Attach(number, stream, window=None) for number in range(1, times + 1)]


def _never_acks(stream: str) -> list[msgspec.Struct]:
    return [Attach(1, stream, "now", window=16)]


def _open(port: int, encoding: str, frames: list[msgspec.Struct]) -> socket.socket:
    """A plain socket that is upgraded, says what it has to say and never reads again."""
    codec = CODECS[f"headrace.v1.{encoding}"]
    opcode = 1 if codec.is_text else 2
    opened = socket.socket()
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.settimeout(10)
        opened.connect(("127.0.0.1", port))
        opened.sendall(wire.upgrade("127.0.0.1", port, codec.subprotocol))
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += opened.recv(1)
        for frame in [Hello(client="headrace-bench-stalled"), *frames]:
            opened.sendall(wire.message(codec.encode(frame), opcode))
    except BaseException:
        opened.close()
        raise
    return opened


def _unsent(port: int, peer_port: int) -> int:
    """Bytes that the kernel holds for the connection from `peer_port`, sent or not, and not yet acknowledged."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, peer, _, queues = line.split()[1:5]
        if local.endswith(f":{port:04X}") and peer.endswith(f":{peer_port:04X}"):
            return int(queues.partition(":")[0], 16)
    raise BenchError("the hub closed the stalled viewer")
