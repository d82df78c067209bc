"""A worker: takes tickets, claims generations, reads providers, and hands back what it cannot finish.

Owns every task of the process; the rules live in `generation`, `routing`, `table` and `batching`, which do no I/O.
"""

from __future__ import annotations

import asyncio
import secrets
import time

import structlog

from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.keys import ALL_LANES, TAKEOVER_LANE
from hub.broker.lanes import Ticket
from workers.answer import read_answer
from workers.appender import Appender
from workers.breakers import Breakers
from workers.claims import Claims
from workers.health import HealthReporter
from workers.inbox import Inbox
from workers.intake import Intake
from workers.lease import LeaseKeeper
from workers.office import Office
from workers.providers.registry import Providers
from workers.question import Question
from workers.routing import Routing
from workers.run import Run
from workers.settings import WorkerSettings
from workers.sharing import Sharing
from workers.table import Table
from workers.tools.runner import ToolRunner
from workers.tools.toolbox import Toolbox
from workers.usage import UsageReporter

log_ = structlog.get_logger(__name__)

#: A worker that leaves has this long to tell Redis; what it could not hand back is taken over when its lease is over.
_LEAVE_S = 5.0
#: Redis is asked this often whether it is there yet, at the start.
_START_PAUSE_S = 0.5


class Worker:
    """`run` until `stop`. One per process or test; `broker` and `providers` stay the caller's to close."""

    def __init__(
        self, settings: WorkerSettings, broker: Broker, providers: Providers, toolbox: Toolbox | None = None
    ) -> None:
        self._settings = settings
        self._broker = broker
        self.name = "w" + secrets.token_urlsafe(6)
        clock = time.monotonic
        self._clock = clock
        self.routing = Routing()
        self.usage = UsageReporter(broker, lambda provider, model: providers.catalog.model(f"{provider}/{model}").price)
        self.appender = Appender(
            broker.connections,
            self.routing,
            self.usage,
            lease_ms=int(settings.lease_s * 1000),
            retention_ms=int(settings.retention_s * 1000),
            mailbox_packets=settings.mailbox_packets,
            on_hub_gone=lambda hub: self.table.hub_gone(hub, clock()),
            clock=clock,
        )
        self.table = Table(self.routing, mark=self.appender.mark, wake=self.appender.wake)
        self.leases = LeaseKeeper(
            broker,
            self.table,
            owner=lambda: self.appender.sender,
            connected=lambda: self.appender.connected,
            clock=clock,
        )
        self.inbox = Inbox(broker, self.table, on_name=self._renamed, clock=clock)
        self.places = settings.worker_concurrency + 1
        self.intake = Intake(broker, self.name, self.places, self._serve)
        toolbox = toolbox or Toolbox()
        self.tools = ToolRunner(toolbox, settings.tool_timeout_s)
        self._claims = Claims(
            broker, self.table, providers, settings, self.usage, toolbox,
            owner=lambda: self.appender.sender, clock=clock,
        )  # fmt: skip
        self.breakers = Breakers(broker.connections.control, providers.credential, clock=clock)
        self.health = HealthReporter(
            broker.connections.control, providers, self.breakers.open_for, name=self.name, clock=clock,
            tools=toolbox.names,
        )  # fmt: skip
        self.sharing = Sharing(broker, mark=self.appender.mark, clock=clock)
        self._office = Office(
            providers, self.breakers, self.health, self.usage, self.appender.mark, clock, self.sharing, self.tools,
            broker.log.remember,
        )  # fmt: skip
        self._has_mailbox = asyncio.Event()
        self._draining = asyncio.Event()
        self._leaving = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()
        #: Set once requests are taken.
        self.ready = asyncio.Event()

    def stop(self) -> None:
        """Take no more and finish what runs, within `drain_timeout_s`; the second call hands it back at once."""
        if self._draining.is_set():
            self._leaving.set()
        self._draining.set()

    async def run(self) -> None:
        """Work until `stop`, then leave nothing behind. A defect in any part ends the worker with that error."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            services = [
                group.create_task(service)
                for service in (
                    self.appender.run(), self.leases.keep(), self.leases.watch(), self.inbox.read(),
                    self.inbox.renew(), self.usage.run(), self.breakers.run(), self.health.run(),
                    self.sharing.run(), self._broker.janitor.run(),
                )
            ]  # fmt: skip
            taking = group.create_task(self._take())
            await self._draining.wait()
            await self._drain(taking)
            taking.cancel()
            for task in [*services, *self._serving, *self._readers()]:
                task.cancel()
        await asyncio.gather(self._leave(), self.usage.flush(_LEAVE_S), self.tools.close())

    # -- taking

    async def _take(self) -> None:
        """Wait for Redis and the mailbox, then take tickets until the intake stops."""
        await self._has_mailbox.wait()
        while True:
            try:
                await self._broker.lanes.ensure(ALL_LANES)
                break
            except Unreachable:
                await asyncio.sleep(_START_PAUSE_S)
        self.ready.set()
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(self.intake.take_stranded())]
            if self._settings.prefetches_per_hour:
                others.append(group.create_task(self.intake.take_prefetches()))
            await self.intake.take()
            for task in others:
                task.cancel()

    def _renamed(self, mailbox: str) -> None:
        self.appender.sender = mailbox
        self.leases.rename()
        self._has_mailbox.set()

    # -- one generation

    def _serve(self, ticket: Ticket) -> None:
        task = self._group.create_task(self._serve_one(ticket))
        self._serving.add(task)
        task.add_done_callback(lambda done: self._served(done, ticket))

    def _served(self, task: asyncio.Task[None], ticket: Ticket) -> None:
        self._serving.discard(task)
        self.intake.release(ticket)

    async def _serve_one(self, ticket: Ticket) -> None:
        """From ticket to end: claim → read the provider → everything is in the log."""
        try:
            async with self._claims.turn(ticket) as is_ours:
                claimed = await self._claims.claim(ticket) if is_ours else None
                if claimed is not None:
                    run, question = claimed
                    await self._generate(run, question, ticket)
        except Exception:
            # One request must not end its neighbours; its lease runs out, and the janitor counts how often.
            log_.exception("serving a generation failed", stream=ticket.key)

    async def _generate(self, run: Run, question: Question | None, ticket: Ticket) -> None:
        if question is not None and not run.generation.ended:
            reading = read_answer(run, question, self._office)
            run.reader = self._group.create_task(reading)
        await self._claims.drop(ticket)
        await run.over.wait()
        if run.generation.over != "done":
            self.table.remove(run)
        if run.generation.over == "gap":
            await self._claims.end_broken(run)

    # -- leaving

    async def _drain(self, taking: asyncio.Task[None]) -> None:
        """Finish what runs, as long as the time and the operator allow."""
        self.intake.stop()
        if not self.ready.is_set():
            return
        if self._serving:
            log_.info("draining", running=len(self._serving), timeout_s=self._settings.drain_timeout_s)
        finished = asyncio.ensure_future(self._finish(taking))
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait(
                [finished, leaving], timeout=self._settings.drain_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            finished.cancel()
            leaving.cancel()

    async def _finish(self, taking: asyncio.Task[None]) -> None:
        await asyncio.wait([taking])  # a ticket may have come with its last read
        while self._serving:
            await asyncio.wait(self._serving)

    def _readers(self) -> list[asyncio.Task[None]]:
        return [run.reader for run in self.table.runs.values() if run.reader is not None]

    async def _leave(self) -> None:
        """Nothing runs any more: hand unfinished generations to others, and be forgotten."""
        if not self.ready.is_set():
            return  # nobody has heard of this worker yet
        unfinished = [run for run in self.table.runs.values() if run.generation.over != "done"]
        try:
            async with asyncio.timeout(_LEAVE_S):
                await asyncio.gather(*[self._hand_back(run) for run in unfinished])
                await self._broker.lanes.forget(ALL_LANES, self.name)
                await self.health.forget()
        except Unreachable as error:
            log_.warning("left without telling redis; leases run out", error=type(error).__name__)
        if unfinished:
            log_.info("handed back", generations=len(unfinished))

    async def _hand_back(self, run: Run) -> None:
        if await self._broker.log.release(run.key, run.mark):
            await self._broker.lanes.add(TAKEOVER_LANE, run.key)
