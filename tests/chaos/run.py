"""One run, from the first process to the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
from rich.console import Console

from bench.process import cpu_s
from tests.chaos import logs
from tests.chaos.audit import Auditor, Measure, measure
from tests.chaos.checker import check_requests, check_stream
from tests.chaos.crowd import Order
from tests.chaos.figures import Figures, gather, show
from tests.chaos.history import SHARDS, Log, Watch, read_logs, read_watches
from tests.chaos.plan import Plan, schedule
from tests.chaos.stage import SECRET, Stage
from tests.chaos.striker import Strike, Striker
from tests.chaos.timings import Timings
from tests.chaos.verdict import Rules, Verdict

#: Viewers of the crowd that has been told to end have this long.
END_S = 15.0
LEAKS_S = 75.0
TERMINAL_S = 150.0
OUT_LIMIT = 2**20


class Crowd:
    """The process of viewers, and what it last said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.load: dict[str, int] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, order: Order, environ: dict[str, str], log: Path) -> Crowd:
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "tests.chaos.crowd",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
                env=environ, start_new_session=True, limit=OUT_LIMIT,
            )  # fmt: skip
        crowd = cls(process)
        await crowd.say(msgspec.json.encode(order))
        return crowd

    async def say(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError, RuntimeError):  # it ended: its status says so
            self._process.stdin.write(line + b"\n")
            await self._process.stdin.drain()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.load = msgspec.json.decode(line)

    @property
    def status(self) -> int | None:
        return self._process.returncode

    async def ended(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self._process.wait()
            return True
        except TimeoutError:
            return False

    def cpu_s(self) -> float:
        return cpu_s(self._process.pid) if self.status is None else 0.0

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


class Run:
    def __init__(self, plan: Plan, directory: Path, console: Console) -> None:
        self._plan = plan
        self._directory = directory
        self._console = console
        self._complaints: list[str] = []

    async def run(self) -> Figures:
        """Everything. Raises DidNotStart when the stage does not stand; nothing is left then either."""
        plan, directory = self._plan, self._directory
        self._tell("starting Redis, hubs, workers and a provider")
        async with Stage(plan, directory) as stage:
            baseline = measure([*stage.hubs, *stage.workers])
            epoch = time.monotonic()
            striker = Striker(plan, stage, epoch)
            used = stage.cpu_s()
            crowd = await self._crowd(stage, epoch)
            try:
                await self._strike(striker, crowd, epoch)
                used = stage.cpu_s() + crowd.cpu_s() - used
                cpu_percent = 100 * used / (time.monotonic() - epoch) / (os.cpu_count() or 1)
                await self._let_finish(crowd)
            finally:
                await crowd.kill()
            leaks = await self._audit(stage, epoch, baseline)
            self._complaints += striker.complaints
            for process in stage.processes:
                process.check()
                self._complaints += process.surprises
            loses_writes = stage.redis.loses_writes
        (directory / "strikes.json").write_bytes(msgspec.json.encode(striker.strikes))
        self._tell("checking what was seen")
        return self._judge(striker.strikes, striker.counts, crowd.load, leaks, loses_writes, cpu_percent)

    def _tell(self, text: str) -> None:
        if not self._plan.quiet:
            self._console.print(text, style="dim")

    async def _crowd(self, stage: Stage, epoch: float) -> Crowd:
        hubs = [*enumerate(stage.ports), *enumerate(link.port for link in stage.viewer_links)]
        order = Order(self._plan, str(self._directory), epoch, SECRET, hubs, f"ws://127.0.0.1:{stage.front.port}/v1/ws")
        return await Crowd.start(order, stage.environ, self._directory / "crowd.log")

    async def _strike(self, striker: Striker, crowd: Crowd, epoch: float) -> None:
        striking = asyncio.create_task(striker.run(schedule(self._plan)))
        try:
            while not striking.done() or time.monotonic() - epoch < self._plan.seconds:
                await asyncio.wait([striking], timeout=1.0)
                if striking.done():
                    await asyncio.sleep(min(1.0, max(0.0, self._plan.seconds - (time.monotonic() - epoch))))
                self._progress(striker, crowd, time.monotonic() - epoch)
                if crowd.status is not None:
                    self._complaints.append(f"the viewers' process ended by itself with {crowd.status}")
                    break
            if striking.done():
                striking.result()
        finally:
            striking.cancel()
            await asyncio.gather(striking, return_exceptions=True)

    def _progress(self, striker: Striker, crowd: Crowd, elapsed: float) -> None:
        every = 1 if self._console.is_terminal else 10
        if self._plan.quiet or int(elapsed) % every:
            return
        counts, load = striker.counts, crowd.load
        text = (
            f"{elapsed:5.0f} s  hubs killed {counts['hub kill']}, workers {counts['worker kill']}, "
            f"Redis {counts['redis restart']}; accepted {load.get('accepted', 0)}, watched to the end "
            f"{load.get('ends', 0)}, open {load.get('open', 0)}"
        )
        self._console.print(text, end="\r" if self._console.is_terminal else "\n", highlight=False, soft_wrap=True)

    async def _let_finish(self, crowd: Crowd) -> None:
        self._tell("\nno more faults; every viewer finishes what it watches")
        await crowd.say(b"stop")
        if not await crowd.ended(self._plan.settle_s):
            await crowd.say(b"end")
            if not await crowd.ended(END_S):
                self._complaints.append("the viewers' process did not end")
        elif crowd.status:
            self._complaints.append(f"the viewers' process ended with {crowd.status}: see crowd.log")

        if broken := crowd.load.get("broken viewers"):
            self._complaints.append(f"{broken} viewers failed themselves: see crowd.log")

    async def _audit(self, stage: Stage, epoch: float, baseline: dict[str, Measure]) -> list[str]:
        self._tell("looking at every stream once more, and at what is left behind")
        auditor = Auditor(self._plan, stage, epoch, self._directory)
        try:
            if left := await auditor.until_terminal(TERMINAL_S):
                self._complaints.append(f"{left} streams were not done {TERMINAL_S:g} s after the last viewer left")
            accepted = await auditor.write_logs()
            await auditor.attach_to_all(accepted)
            return await auditor.leaks(baseline, LEAKS_S)
        finally:
            await auditor.close()

    # -- afterwards

    def _judge(
        self, strikes: list[Strike], counts: Counter[str], load: dict[str, int], leaks: list[str], loses_writes: bool,
        cpu_percent: float,
    ) -> Figures:  # fmt: skip
        rules = Rules(loses_writes)
        verdict, timings = Verdict(), Timings(strikes, self._plan.workers)
        acceptances: list[tuple[str, str, str]] = []
        outcomes: Counter[str] = Counter()
        for shard in range(SHARDS):
            streams: dict[str, list[Watch]] = {}
            for watch in read_watches(self._directory, shard):
                streams.setdefault(watch.stream, []).append(watch)
                timings.add(watch)
                outcomes[f"watches {watch.outcome}"] += watch.viewer != "audit"
                if watch.request and watch.stream:
                    acceptances.append((watch.user, watch.request, watch.stream))
            kept: dict[str, Log] = {log.stream: log for log in read_logs(self._directory, shard)}
            for stream in streams.keys() | kept.keys():
                check_stream(streams.get(stream, []), kept.get(stream), rules, verdict)
        check_requests(acceptances, rules, verdict)
        load = {**load, **{name: number for name, number in sorted(outcomes.items()) if number}}
        load["streams"] = len({stream for _, _, stream in acceptances})
        findings = logs.read(sorted(self._directory.glob("hub-*.log")) + sorted(self._directory.glob("worker-*.log")))
        figures = gather(self._plan, counts, load, verdict, timings, findings, self._complaints, leaks, cpu_percent)
        (self._directory / "figures.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures)))
        show(figures, verdict, findings, self._console)
        return figures
