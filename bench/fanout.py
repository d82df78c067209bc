"""One stream, many viewers: what a delivery costs beside the system call it cannot do without."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from bench import floor
from bench.audience import Audience
from bench.figures import OTHERS, Line
from bench.latency import Delays, count_between, percentile
from bench.process import BenchError
from bench.relay import WARM_UP_S, observe, speaking
from bench.stack import Setup, Stack
from bench.viewer import Viewer
from headrace.protocol.codec import CODECS


@dataclass(frozen=True)
class Fanout:
    viewers: int = 1000
    rate: float = 50.0
    seconds: float = 10.0

    @property
    def title(self) -> str:
        return f"fan-out: one stream of {self.rate:g} tokens/s to {self.viewers:,} viewers"

    def lines(self) -> list[Line]:
        is_full = (self.viewers, self.rate) == (1000, 50)
        return [
            Line("hub CPU a delivery; floor: a `send`", "delivery_us", "µs", floor="send_us",
                 ratio_at_most=1.6 if is_full else None),
            Line("delivered within the run", "delivered_pct", "%"),
            Line("token → viewer, p50", "p50_ms", "ms"),
            Line("token → viewer, p99", "p99_ms", "ms"),
            Line("deliveries a second", "deliveries_a_second"),
            Line("acks a second, all viewers", "acks_a_second"),
            Line("load generator CPU a frame", "load_us", "µs"),
            Line("repaired by the reconcile pass", "repairs", at_most=0),
            Line("entries missing or doubled", "torn", at_most=0),
            OTHERS,
        ]  # fmt: skip

    async def run(self, setup: Setup) -> dict[str, float]:
        """One run. Raises BenchError."""
        before = await floor.measure(setup, self.viewers, self.rate, int(self.rate))
        figures = await self._fan_out(setup)
        after = await floor.measure(setup, self.viewers, self.rate, int(self.rate))
        return {**figures, "send_us": (before + after) / 2}

    async def _fan_out(self, setup: Setup) -> dict[str, float]:
        async with Stack(setup) as stack, Audience(CODECS[f"headrace.v1.{setup.encoding}"]) as audience:
            await gather_viewers(setup, stack, audience, self.viewers, self.rate, self.seconds)
            setup.say(f"{self.rate * self.viewers:,.0f} deliveries/s: measuring for {self.seconds:g} s")
            window = await observe(stack, audience, self.seconds)
            counts = await stack.counts()
            delays = Delays(window.began_ns, window.ended_ns)
            for viewer in audience.viewers:
                delays.add(viewer.arrivals, viewer.texts)
            delays.sort()
            frames = count_between((viewer.arrivals for viewer in audience.viewers), window.began_ns, window.ended_ns)
            if not frames:
                raise BenchError("no token arrived while it was measured")
            used = window.usage
            return {
                "delivery_us": used.of("hub") / frames * 1e6,
                "delivered_pct": 100 * delays.in_time / (self.viewers * self.rate * window.seconds),
                "p50_ms": percentile(delays.tokens, 0.5),
                "p99_ms": percentile(delays.tokens, 0.99),
                "deliveries_a_second": frames / window.seconds,
                "acks_a_second": window.acks / window.seconds,
                "load_us": used.of("load") / frames * 1e6,
                "repairs": counts["repairs"],
                "others_pct": used.others_pct,
                "torn": float(audience.missing + audience.doubled + audience.restarts),
            }


async def gather_viewers(
    setup: Setup, stack: Stack, audience: Audience, viewers: int, rate: float, seconds: float, extra: str = ""
) -> Viewer:
    """Start one stream that outlasts `seconds` of measuring, and have all attach to it; returns who asked for it."""
    setup.say(f"gathering {viewers:,} viewers")
    port = stack.ports[0]
    first = audience.add()
    tokens = int(rate * (seconds + WARM_UP_S + 30))
    opening = first.generate(f"scripted/tokens={tokens},rate={rate:g},stamp=1{extra}")
    await audience.wait(first.connect(port, opening), 10, "connecting")
    await audience.wait(first.answered, 10, "the answer to `generate`")

    async def join(viewer: Viewer) -> None:
        await viewer.connect(port, viewer.attach(first.stream, "now"))
        await viewer.answered

    for _ in range(viewers - 1):
        audience.add()
    await audience.wait(audience.each(audience.viewers[1:], join), 30, "attaching")
    await audience.wait(speaking(stack, audience.viewers), 30, "the first token")
    await audience.wait(asyncio.sleep(WARM_UP_S), WARM_UP_S + 10, "warming up")
    return first
