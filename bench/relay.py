"""Many streams with one viewer each: the cost and the delay of a token on its whole way."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass

from bench import floor
from bench.audience import Audience
from bench.figures import OTHERS, Line
from bench.latency import Delays, count_between, percentile
from bench.process import BenchError
from bench.stack import Setup, Stack, Usage
from bench.viewer import Viewer
from headrace.protocol.codec import CODECS

#: Streams start spread over this many seconds per thousand …
SPREAD_S = 2.5
#: … and are measured this long after the last one spoke.
WARM_UP_S = 2.0
#: Streams go on at least this long after that: longer than all deadlines of a start.
_MARGIN_S = 120.0


@dataclass(frozen=True)
class Relay:
    streams: int = 1000
    rate: float = 20.0
    seconds: float = 10.0
    sdk: bool = False
    """Through the provider's SDKs over HTTP instead of the scripted provider."""

    @property
    def title(self) -> str:
        way = "through the SDKs from a fake provider" if self.sdk else "scripted provider"
        return f"relay: {self.streams:,} streams × {self.rate:g} tokens/s, one viewer each, {way}"

    @property
    def offered(self) -> float:
        """Tokens a second."""
        return self.streams * self.rate

    @property
    def tokens(self) -> int:
        """Enough that no stream ends before the measurement does."""
        return int(self.rate * (self._spread_s + WARM_UP_S + self.seconds + _MARGIN_S))

    @property
    def _spread_s(self) -> float:
        return SPREAD_S * max(self.streams / 1000, 0.2)

    def model(self, index: int) -> str:
        if not self.sdk:
            return f"scripted/tokens={self.tokens},rate={self.rate:g},stamp=1"
        provider = "anthropic" if index % 2 else "openai"
        return f"{provider}/fake-tokens={self.tokens}-rate={self.rate:g}-stamp=1"

    def lines(self) -> list[Line]:
        is_full = not self.sdk and (self.streams, self.rate) == (1000, 20)
        limits: dict[tuple[bool, int, float], tuple[float | None, float | None]] = {
            (False, 1000, 20): (2.0, 25.0),
            (False, 200, 20): (1.0, 5.0),
            (False, 1000, 40): (None, 100.0),
            (True, 200, 25): (None, 25.0),
        }
        p50, p99 = limits.get((self.sdk, self.streams, self.rate), (None, None))
        return [
            Line("delivered within the run", "delivered_pct", "%", at_least=99.0),
            Line("token → viewer, p50", "p50_ms", "ms", at_most=p50),
            Line("token → viewer, p99", "p99_ms", "ms", at_most=p99),
            Line("oldest token of a frame → viewer, p99", "frame_p99_ms", "ms"),
            Line("token's due time → viewer, p50", "due_p50_ms", "ms"),
            Line("token's due time → viewer, p99", "due_p99_ms", "ms"),
            Line("hub CPU a token; floor: a `send`", "hub_us", "µs", floor="send_us",
                 ratio_at_most=3.5 if is_full else None),
            Line("worker CPU a token", "worker_us", "µs", at_most=25.0 if is_full else None),
            Line("Redis CPU a token", "redis_us", "µs", at_most=15.0 if is_full else None),
            Line("load generator CPU a frame", "load_us", "µs", at_most=10.0 if is_full else None),
            Line("tokens a frame", "tokens_a_frame"),
            Line("Redis scripts a token", "scripts_a_token"),
            Line("acks a second, all viewers", "acks_a_second"),
            Line("repaired by the reconcile pass", "repairs", at_most=0),
            Line("log reads because of holes", "holes"),
            Line("… and while the streams started", "start_holes"),
            Line("entries missing or doubled", "torn", at_most=0),
            OTHERS,
        ]  # fmt: skip

    async def run(self, setup: Setup) -> dict[str, float]:
        """One run. Raises BenchError."""
        before = await floor.measure(setup, self.streams, self.rate, _ticks(self.offered))
        figures = await self._relay(setup)
        after = await floor.measure(setup, self.streams, self.rate, _ticks(self.offered))
        return {**figures, "send_us": (before + after) / 2}

    async def _relay(self, setup: Setup) -> dict[str, float]:
        codec = CODECS[f"headrace.v1.{setup.encoding}"]
        async with Stack(setup, fake=self.sdk) as stack, Audience(codec) as audience:
            port = stack.ports[0]

            async def start(viewer: Viewer) -> None:
                await viewer.connect(port, viewer.generate(self.model(int(viewer.name))))
                await viewer.answered

            setup.say(f"starting {self.streams:,} streams")
            for _ in range(self.streams):
                audience.add()
            await audience.wait(audience.each(audience.viewers, start, self._spread_s), 60, "starting streams")
            await audience.wait(speaking(stack, audience.viewers), 30, "the first token of every stream")
            setup.say(f"{self.offered:,.0f} tokens/s: warming up")
            await audience.wait(asyncio.sleep(WARM_UP_S), WARM_UP_S + 10, "warming up")
            setup.say(f"{self.offered:,.0f} tokens/s: measuring for {self.seconds:g} s")
            before = await stack.counts()
            window = await observe(stack, audience, self.seconds)
            counts = await stack.counts()
            counts["new_holes"] = counts["holes"] - before["holes"]
            return self._figures(audience, window, counts)

    def _figures(self, audience: Audience, window: Window, counts: dict[str, float]) -> dict[str, float]:
        delays = Delays(window.began_ns, window.ended_ns)
        for viewer in audience.viewers:
            if viewer.done is not None:
                reason = viewer.done["stop_reason"]
                raise BenchError(f"stream {viewer.stream} ended before the measurement did: {reason}")
            delays.add(viewer.arrivals, viewer.texts, 1e9 / self.rate)
        delays.sort()
        frames = count_between((viewer.arrivals for viewer in audience.viewers), window.began_ns, window.ended_ns)
        tokens = len(delays.tokens)
        if not tokens:
            raise BenchError("no token arrived while it was measured")
        used = window.usage
        return {
            "delivered_pct": 100 * delays.in_time / (self.offered * window.seconds),
            "p50_ms": percentile(delays.tokens, 0.5),
            "p99_ms": percentile(delays.tokens, 0.99),
            "frame_p99_ms": percentile(delays.frames, 0.99),
            "due_p50_ms": percentile(delays.due, 0.5),
            "due_p99_ms": percentile(delays.due, 0.99),
            "hub_us": used.of("hub") / tokens * 1e6,
            "worker_us": used.of("worker") / tokens * 1e6,
            "redis_us": used.of("redis") / tokens * 1e6,
            "load_us": used.of("load") / frames * 1e6,
            "tokens_a_frame": tokens / frames,
            "scripts_a_token": used.scripts / tokens,
            "acks_a_second": window.acks / window.seconds,
            "repairs": counts["repairs"],
            "holes": counts["new_holes"],
            "start_holes": counts["holes"] - counts["new_holes"],
            "others_pct": used.others_pct,
            "torn": float(audience.missing + audience.doubled + audience.restarts),
        }


@dataclass(frozen=True)
class Window:
    """What was observed in a stretch of time."""

    began_ns: int
    ended_ns: int
    usage: Usage
    acks: int

    @property
    def seconds(self) -> float:
        return (self.ended_ns - self.began_ns) / 1e9


async def observe(stack: Stack, audience: Audience, seconds: float) -> Window:
    """Let everything run for so long. Raises BenchError if a process or a viewer fails meanwhile."""
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection over a million kept frames would count as the hub's delay
    try:
        before, acks, began = await stack.usage(), audience.acks, time.monotonic_ns()
        await audience.wait(asyncio.sleep(seconds), seconds + 30, "measuring")
        after, ended = await stack.usage(), time.monotonic_ns()
    finally:
        gc.enable()
    stack.check()
    return Window(began, ended, before.until(after), audience.acks - acks)


async def speaking(stack: Stack, viewers: list[Viewer]) -> None:
    """Wait until every viewer got its first text."""
    while not all(viewer.texts for viewer in viewers):
        stack.check()
        await asyncio.sleep(0.05)


def _ticks(sends_a_second: float) -> int:
    """Rounds a second of the floor's sender: about as many sends a round as a hub gets parts in a packet."""
    return max(50, int(sends_a_second / 20))
