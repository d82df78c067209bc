"""Connections that are attached and silent: what each one costs the hub in memory, all of them in CPU."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from bench.audience import Audience
from bench.figures import OTHERS, Line
from bench.process import rss_kib
from bench.relay import observe
from bench.stack import Setup, Stack
from bench.viewer import Viewer
from headrace.protocol.codec import CODECS

#: Connections attached before anything is measured, and kept: nobody pays for what the first one brings, or gets
#: the memory that the first ones left.
_WARM_UP = 100
#: The reconcile pass looks at each stream anew for two of its idle periods; silence is measured after that.
_SETTLE_S = 12.0


@dataclass(frozen=True)
class Idle:
    connections: int = 5000
    seconds: float = 20.0
    queued: bool = False
    """Streams that wait for a worker, of which there is none; else streams whose provider thinks."""

    @property
    def title(self) -> str:
        state = "queued" if self.queued else "thinking"
        return f"idle: {self.connections:,} connections, each attached to its own {state} stream"

    def lines(self) -> list[Line]:
        is_full = self.connections == 5000
        return [
            Line("hub memory a connection, attached", "attached_kib", "KiB", at_most=30.0 if is_full else None),
            Line("hub memory a connection, only connected", "connected_kib", "KiB"),
            Line("reconcile: hub CPU, attached less connected", "reconcile_pct", "% of a core",
                 at_most=5.0 if is_full else None),
            Line("hub CPU, attached, all in all", "attached_pct", "% of a core"),
            Line("hub CPU, only connected: pings, clocks", "connected_pct", "% of a core"),
            Line("repaired by the reconcile pass", "repairs", at_most=0),
            OTHERS,
        ]  # fmt: skip

    async def run(self, setup: Setup) -> dict[str, float]:
        """One run. Raises BenchError."""
        codec = CODECS[f"headrace.v1.{setup.encoding}"]
        async with Stack(setup, workers=0 if self.queued else 1) as stack:
            port, pid = stack.ports[0], stack.processes["hub 0"].pid

            async def connect(viewer: Viewer) -> None:
                await viewer.connect(port)
                await viewer.welcomed

            async def ask(viewer: Viewer) -> None:
                viewer.send(viewer.generate("scripted/tokens=1,think_ms=600000"))
                await viewer.answered

            setup.say("warming up")
            async with Audience(codec) as first, Audience(codec) as audience:
                for number in range(_WARM_UP):
                    first.add(name=f"warm-up-{number}")
                await first.wait(first.each(first.viewers, connect), 30, "connecting")
                await first.wait(first.each(first.viewers, ask), 30, "attaching")
                for _ in range(self.connections):
                    audience.add()
                empty = rss_kib(pid)
                setup.say(f"connecting {self.connections:,}")
                await audience.wait(audience.each(audience.viewers, connect), 60, "connecting")
                connected = rss_kib(pid)
                setup.say(f"{self.connections:,} connected: measuring for {self.seconds:g} s")
                without = await observe(stack, audience, self.seconds)
                setup.say(f"attaching {self.connections:,}")
                await audience.wait(audience.each(audience.viewers, ask), 120, "attaching")
                await audience.wait(asyncio.sleep(_SETTLE_S), _SETTLE_S + 30, "settling")
                setup.say(f"{self.connections:,} attached: measuring for {self.seconds:g} s")
                window = await observe(stack, audience, self.seconds)
                attached = rss_kib(pid)
                counts = await stack.counts()
            with_pct = 100 * window.usage.of("hub") / window.usage.at
            without_pct = 100 * without.usage.of("hub") / without.usage.at
            return {
                "attached_kib": (attached - empty) / self.connections,
                "connected_kib": (connected - empty) / self.connections,
                "attached_pct": with_pct,
                "connected_pct": without_pct,
                "reconcile_pct": with_pct - without_pct,
                "others_pct": window.usage.others_pct,
                "repairs": counts["repairs"],
            }
