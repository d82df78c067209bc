"""A hub dies under its viewers: all come back on another at once, with their cursors, while the streams run."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from bench.audience import Audience
from bench.figures import OTHERS, Line
from bench.latency import percentile
from bench.relay import SPREAD_S, speaking
from bench.stack import Setup, Stack
from bench.viewer import Viewer
from headrace.protocol.codec import CODECS

#: Streams run this long after the last one was started: the kill falls in the middle of all of them.
_RUN_S = 12.0
_KILL_AFTER_S = 3.0


@dataclass(frozen=True)
class Resume:
    viewers: int = 1000
    streams: int = 1000
    rate: float = 5.0

    @property
    def title(self) -> str:
        return (
            f"resume: {self.viewers:,} viewers of {self.streams:,} streams at {self.rate:g} tokens/s, "
            "their hub killed with SIGKILL, all back on another without jitter"
        )

    def lines(self) -> list[Line]:
        return [
            Line("viewers whose final text is not what `done` says", "mismatches", at_most=0),
            Line("entries missing", "missing", at_most=0),
            Line("entries doubled", "doubled", at_most=0),
            Line("viewers told to begin again", "restarts", at_most=0),
            Line("attach → live, p50", "attach_p50_s", "s"),
            Line("attach → live, p99", "attach_p99_s", "s", at_most=1.0),
            Line("drop → live, the last viewer", "all_live_s", "s", at_most=2.0),
            Line("CPU of the hub that takes them, until all are live", "hub_s", "s"),
            Line("repaired by the reconcile pass", "repairs", at_most=0),
            OTHERS,
        ]

    async def run(self, setup: Setup) -> dict[str, float]:
        """One run. Raises BenchError."""
        spread = SPREAD_S * max(self.streams / 1000, 0.2)
        tokens = int(self.rate * (spread + _RUN_S))
        model = f"scripted/tokens={tokens},rate={self.rate:g},stamp=1"
        async with Stack(setup, hubs=2) as stack, Audience(CODECS[f"headrace.v1.{setup.encoding}"]) as audience:
            first_port, second_port = stack.ports

            async def ask(viewer: Viewer) -> None:
                await viewer.connect(first_port, viewer.generate(model))
                await viewer.answered

            async def join(viewer: Viewer) -> None:
                asker = audience.viewers[int(viewer.name) % self.streams]
                await viewer.connect(first_port, viewer.attach(asker.stream))
                await viewer.answered

            for _ in range(self.viewers):
                audience.add()
            setup.say(f"starting {self.streams:,} streams")
            askers, joiners = audience.viewers[: self.streams], audience.viewers[self.streams :]
            await audience.wait(audience.each(askers, ask, spread), 60, "starting streams")
            await audience.wait(audience.each(joiners, join), 30, "attaching")
            await audience.wait(speaking(stack, audience.viewers), 30, "the first token of every viewer")
            await audience.wait(asyncio.sleep(_KILL_AFTER_S), _KILL_AFTER_S + 10, "running")

            setup.say("killing the hub")
            lost = [viewer.lost for viewer in audience.viewers]
            before = await stack.usage()
            audience.may_lose = True
            killed_at = time.monotonic_ns()
            stack.kill("hub 0")
            back = [asyncio.ensure_future(_come_back(viewer, second_port)) for viewer in audience.viewers]
            await asyncio.wait_for(asyncio.gather(*lost), 10)
            audience.may_lose = False
            await audience.wait(asyncio.gather(*back), 30, "resuming")
            used = before.until(await stack.usage())
            setup.say("all are live; waiting for the end of the streams")
            await audience.wait(asyncio.gather(*(viewer.finished for viewer in audience.viewers)), 60, "the end")
            counts = await stack.counts()
            delays = sorted(viewer.live_at - viewer.asked_at for viewer in audience.viewers)
            return {
                "mismatches": float(audience.mismatches),
                "missing": float(audience.missing),
                "doubled": float(audience.doubled),
                "restarts": float(audience.restarts + audience.resets),
                "attach_p50_s": percentile(delays, 0.5) / 1000,
                "attach_p99_s": percentile(delays, 0.99) / 1000,
                "all_live_s": max(viewer.live_at - killed_at for viewer in audience.viewers) / 1e9,
                "hub_s": used.of("hub 1"),
                "others_pct": used.others_pct,
                "repairs": counts["repairs"],
            }


async def _come_back(viewer: Viewer, port: int) -> None:
    """What a client without jitter does: the moment its connection drops, connect to another hub and attach."""
    await viewer.lost
    viewer.begin()
    await viewer.connect(port, viewer.attach())
    await viewer.live
