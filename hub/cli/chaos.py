"""`headrace demo --chaos`: a minute in which something breaks every two seconds, and two dozen people watch answers.

Hubs, workers and Redis are killed with SIGKILL, lines are cut; what each viewer is sent is counted below the client
library, from the offsets in the frames, and each text is held against the digest in its `done`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from rich.console import Console

from hub.broker.embedded import EmbeddedRedis
from hub.cli.children import Child
from hub.cli.crowd import Pair
from hub.cli.demo import perform, surroundings
from hub.cli.pulse import Pulse, verdict
from hub.cli.stack import Stack, environment

SECONDS = 60.0
PAIRS = 12
#: Something breaks this often, in seconds.
EVERY_S = 2.0
#: Once nothing breaks any more, all answers end within this time.
SETTLE_S = 45.0
_HOST = "127.0.0.1"
_WORKERS = ("worker 1", "worker 2")


def show(seconds: float = SECONDS) -> int:
    """Run it on screen; 0 if every promise held, else 1. Raises Failure when it cannot be shown."""
    late = f"answers were still open {SETTLE_S:g} s after the last fault"
    return perform(lambda redis, console: Chaos(redis, console, seconds).run(), late, "always")


class Chaos:
    """Everything that runs, what breaks it, and what came of it."""

    def __init__(self, redis: EmbeddedRedis, console: Console, seconds: float) -> None:
        self._redis = redis
        self._console = console
        self._seconds = seconds
        self._dice = random.Random()
        self._stack = Stack(environment(surroundings(os.environ), redis.url), lambda child, line: None)
        self._hubs: dict[str, tuple[str, int]] = {}
        self._children: dict[str, Child] = {}
        self._pairs: list[Pair] = []
        self._pulse = Pulse(console, seconds)
        self.faults: Counter[str] = Counter()

    async def run(self) -> int:
        async with AsyncExitStack() as cleanup:
            cleanup.push_async_callback(self._stack.stop)
            with self._pulse:
                self._pulse.say(f"starting two hubs and two workers over {self._redis.binary}")
                await self._start()
                addresses = list(self._hubs.items())
                for number in range(PAIRS):
                    near = dict(addresses if number % 2 else reversed(addresses))
                    self._pairs.append(await cleanup.enter_async_context(Pair(f"{number + 1}", near)))
                self._pulse.pairs = self._pairs
                await self._storm()
        figures = sum((pair.figures for pair in self._pairs), Counter[str]())
        self._console.print(verdict(self.faults, figures))
        return self._judge(figures)

    async def _start(self) -> None:
        hubs = await self._stack.start_hubs(_HOST, "hub A", "hub B")
        workers = [await self._stack.start_worker(name) for name in _WORKERS]
        await self._stack.until_ready(hubs)
        self._hubs = {hub.name: address for hub, address in hubs.items()}
        self._children = {child.name: child for child in (*hubs, *workers)}
        self._pulse.up = {**dict.fromkeys(self._children, True), "redis": True}

    async def _storm(self) -> None:
        """Break things while everybody watches; then stop breaking, and wait until every answer has ended."""
        until = time.monotonic() + self._seconds
        talking = [asyncio.create_task(pair.talk(until)) for pair in self._pairs]
        try:
            await self._break_things(until)
            self._pulse.say("nothing breaks any more; waiting for the last answers", "bold")
            async with asyncio.timeout(SETTLE_S):
                await asyncio.gather(*talking)
        finally:
            for task in talking:
                task.cancel()
            await asyncio.gather(*talking, return_exceptions=True)

    async def _break_things(self, until: float) -> None:
        await asyncio.sleep(EVERY_S)
        kinds: list[Callable[[], Awaitable[None]]] = []
        while time.monotonic() < until:
            began = time.monotonic()
            if not kinds:  # all kinds come round, in another order each time
                kinds = [self._kill_hub, self._cut_lines, self._kill_worker, self._cut_lines, self._kill_redis]
                self._dice.shuffle(kinds)
            await kinds.pop()()
            await asyncio.sleep(max(0.2, EVERY_S - (time.monotonic() - began)))

    async def _kill_hub(self) -> None:
        name = self._dice.choice(list(self._hubs))
        await self._kill(name, self._hubs[name])
        self.faults["hubs killed"] += 1

    async def _kill_worker(self) -> None:
        await self._kill(self._dice.choice(_WORKERS), None)
        self.faults["workers killed"] += 1

    async def _kill(self, name: str, address: tuple[str, int] | None) -> None:
        self._pulse.say(f"✖ {name} is killed", "bold red")
        self._pulse.up[name] = False
        await self._children[name].kill()
        self._children[name] = await self._stack.replace(self._children[name], address)
        self._pulse.up[name] = True

    async def _kill_redis(self) -> None:
        self._pulse.say("✖ Redis is killed", "bold red")
        self._pulse.up["redis"] = False
        self.faults["Redis killed"] += 1
        await asyncio.to_thread(self._redis.kill)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(self._redis.start)
        self._pulse.up["redis"] = True

    async def _cut_lines(self) -> None:
        viewers = [viewer for pair in self._pairs for viewer in pair.viewers]
        chosen = self._dice.sample(viewers, len(viewers) // 3)
        self._pulse.say(f"✂ {len(chosen)} connections are cut", "bold yellow")
        for viewer in chosen:
            viewer.switch.cut()
        self.faults["lines cut"] += len(chosen)

    def _judge(self, figures: Counter[str]) -> int:
        broken = figures["lost"] + figures["doubled"] + figures["wrong texts"] + figures["never ended"]
        if broken or not figures["answers"]:
            self._console.print("[bold red]Not as promised[/]: see the figures in red. Please report this.")
            return 1
        self._console.print(
            f"[bold green]Nothing lost, nothing doubled[/], in {self._pulse.seconds:.0f} s and "
            f"{sum(self.faults.values())} faults; {figures['answers']} answers, each read by two."
        )
        return 0
