"""Strikes: carries out the schedule of faults, and writes down what it did and when."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Sequence

import msgspec

from tests.chaos.plan import Fault, Plan
from tests.chaos.process import START_S, DidNotStart, Process
from tests.chaos.stage import Stage
from tests.faults.proxy import FaultProxy, Weather

#: A fault waits this long for somebody whom it may strike.
PATIENCE_S = 6.0
#: A drain has its own deadlines; after this one a process is overdue.
OVERDUE_S = 25.0


class Strike(msgspec.Struct):
    """A fault as it happened. Times are seconds since the start of the run."""

    at: float
    kind: str
    whom: str
    until: float = 0.0
    said: str = ""


class Striker:
    """`run` returns when the last fault is over and everything is up again."""

    def __init__(self, plan: Plan, stage: Stage, epoch: float) -> None:
        self._plan = plan
        self._stage = stage
        self._epoch = epoch
        self._busy: set[FaultProxy] = set()
        self._redis = asyncio.Lock()
        self._dice = plan.dice("redis")
        self.strikes: list[Strike] = []
        self.counts: Counter[str] = Counter()
        #: What should not have happened: processes that do not end, or do not start.
        self.complaints: list[str] = []

    async def run(self, faults: Sequence[Fault]) -> None:
        supervising = asyncio.create_task(self._supervise())
        try:
            async with asyncio.TaskGroup() as group:
                for fault in faults:
                    await asyncio.sleep(max(0.0, fault.at - self._now()))
                    group.create_task(self._strike(fault))
            await self._until_all_are_up()
        finally:
            supervising.cancel()
            await asyncio.gather(supervising, return_exceptions=True)

    async def _until_all_are_up(self) -> None:
        deadline = time.monotonic() + START_S
        while late := [process.name for process in self._stage.processes if process.state != "up"]:
            if time.monotonic() > deadline:
                self.complaints.append(f"not up again after the last fault: {', '.join(late)}")
                return
            await asyncio.sleep(0.1)

    async def _supervise(self) -> None:
        """Start again what ended by itself, as whatever runs it would; such an end is noted by the process."""
        while True:
            for process in self._stage.processes:
                process.check()
                if process.state == "down":
                    await self._start_again(process)
            await asyncio.sleep(0.3)

    def _now(self) -> float:
        return time.monotonic() - self._epoch

    def _note(self, kind: str, whom: str) -> Strike:
        strike = Strike(round(self._now(), 4), kind, whom)
        self.strikes.append(strike)
        self.counts[kind] += 1
        return strike

    async def _strike(self, fault: Fault) -> None:
        who, _, what = fault.kind.partition(" ")
        if who == "redis":
            await self._hurt_redis(fault, what)
        elif who == "network":
            await self._hurt_link(fault)
        else:
            process = await self._victim(fault, self._stage.hubs if who == "hub" else self._stage.workers)
            if process is None:
                self.counts[f"{fault.kind} skipped"] += 1
            elif what == "kill":
                await self._kill(fault, process)
            elif what == "drain":
                await self._drain(fault, process)
            else:
                await self._pause(fault, process)

    async def _victim(self, fault: Fault, processes: list[Process]) -> Process | None:
        """One of those that are up, and not the last one if another comes up soon; None if none is up for a while."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            up = [process for process in processes if process.state == "up"]
            is_late = time.monotonic() > deadline
            if len(up) > 1 or (up and is_late):
                return up[int(fault.choice * len(up))]
            if is_late:
                return None
            await asyncio.sleep(0.1)

    async def _kill(self, fault: Fault, process: Process) -> None:
        strike = self._note(fault.kind, process.name)
        await process.kill()
        await self._start_again(process)
        strike.until = self._now()

    async def _drain(self, fault: Fault, process: Process) -> None:
        strike = self._note(fault.kind, process.name)
        process.state = "ending"
        process.signal(signal.SIGTERM)
        if not await process.ended(OVERDUE_S):
            self.complaints.append(f"{process.name} did not end within {OVERDUE_S:g} s of SIGTERM")
            await process.kill()
        elif process.status() != 0:
            self.complaints.append(f"{process.name} ended with status {process.status()} after SIGTERM")
        strike.said = f"ended after {self._now() - strike.at:.1f} s"
        await process.reap()
        await self._start_again(process)
        strike.until = self._now()

    async def _pause(self, fault: Fault, process: Process) -> None:
        strike = self._note(fault.kind, process.name)
        process.state = "paused"
        process.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            process.signal(signal.SIGCONT)
        process.state = "up"
        strike.until = self._now()

    async def _start_again(self, process: Process) -> None:
        try:
            await self._stage.run(process)
        except DidNotStart as error:
            self.complaints.append(str(error))
            await process.kill()

    # -- Redis and the network

    async def _hurt_redis(self, fault: Fault, what: str) -> None:
        async with self._redis:
            strike = self._note(fault.kind, "redis")
            setup = self._stage.redis
            if what == "restart":
                strike.said = await asyncio.to_thread(setup.restart, fault.seconds, self._dice)
            elif what == "flush":
                await asyncio.to_thread(setup.flush)
            else:
                await asyncio.to_thread(setup.pause, fault.seconds)
            strike.until = self._now()

    def _links(self, which: str) -> list[FaultProxy]:
        stage = self._stage
        return {
            "viewers": [*stage.viewer_links, stage.front],
            "hub-redis": stage.hub_links,
            "worker-redis": stage.worker_links,
            "provider": [stage.provider_link],
        }[which]

    async def _hurt_link(self, fault: Fault) -> None:
        which, _, how = fault.detail.partition(" ")
        links = [link for link in self._links(which) if link not in self._busy]
        if not links:
            self.counts["network skipped"] += 1
            return
        number = int(fault.choice * len(links))
        link = links[number]
        strike = self._note(f"network {how}", f"{which} {self._links(which).index(link)}")
        self._busy.add(link)
        try:
            await self._weather(link, how, fault)
        finally:
            self._busy.discard(link)
            strike.until = self._now()

    async def _weather(self, link: FaultProxy, how: str, fault: Fault) -> None:
        if how == "reset":
            link.reset()
        elif how == "cut":
            link.cut_after(fault.amount, "up" if fault.choice < 0.5 else "down")
            link.reset()
        elif how == "stall":
            link.stall()
            await asyncio.sleep(fault.seconds)
            link.resume()
        elif how == "vanish":
            link.vanish()
            await asyncio.sleep(fault.seconds)
            link.reset()
        elif how == "refuse":
            link.refuse(True)
            link.reset()
            await asyncio.sleep(fault.seconds / 2)
            link.refuse(False)
        else:
            slow = Weather(delay_s=0.08, jitter_s=0.1, bytes_per_s=40_000)
            link.weather = slow if how == "slow" else Weather(split=max(40, fault.amount))
            await asyncio.sleep(fault.seconds)
            link.weather = Weather()
