"""From a lane entry to a generation that is this worker's."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

import msgspec
import structlog

from headrace.protocol.body import Body, Options
from headrace.protocol.tools import WrongTools
from hub.broker.accept import new_mark
from hub.broker.answers import answer_key
from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.keys import TAKEOVER_LANE, StreamKey
from hub.broker.lanes import Ticket
from hub.broker.log import Claim, Refused
from hub.broker.lost import Asked, asked_of
from hub.broker.mailbox import still_there
from workers.generation import CANCELLED, Ending, Generation, Speaker, worker_lost
from workers.lease import run_ttl_ms
from workers.providers import Continues
from workers.providers.registry import Providers, UnknownModel
from workers.quarantine import Quarantine, Suspicion, suspicion
from workers.question import Question
from workers.retried import retried
from workers.run import Run
from workers.settings import WorkerSettings
from workers.table import Table
from workers.takeover import GiveUp, GoOn, Kept, ReadOn, StartOver, Takeover, decide, read_on
from workers.tools.toolbox import Toolbox
from workers.upstream import Underway, drop, underway_of
from workers.usage import Attempt, UsageReporter

log_ = structlog.get_logger(__name__)
_T = TypeVar("_T")

_PAUSE_S = 0.2
_PAGE_ENTRIES = 1000


class Claims:
    """Errors of Redis end in a log line: a ticket that is not dropped comes back, a lease that is not renewed ends."""

    def __init__(
        self,
        broker: Broker,
        table: Table,
        providers: Providers,
        settings: WorkerSettings,
        usage: UsageReporter,
        tools: Toolbox,
        *,
        owner: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self._broker = broker
        self._usage = usage
        self._tools = tools
        self._table = table
        self._providers = providers
        self._settings = settings
        self._owner = owner
        self._clock = clock
        self._quarantine = Quarantine(self._has_spoken)
        self._in_hand: set[StreamKey] = set()

    @asynccontextmanager
    async def turn(self, ticket: Ticket) -> AsyncIterator[bool]:
        """Whether this ticket is to be claimed, when its turn comes; False for a second one of the same stream.

        A generation that keeps losing its workers waits, unclaimed, while another such one is watched here: it may be
        innocent, and is not to go down with the one that kills its workers.
        """
        key = ticket.key
        if key in self._in_hand or key in self._table:
            await self.drop(ticket)
            yield False
            return
        self._in_hand.add(key)
        try:
            async with self._quarantine.turn(key, await self._suspicion(ticket)) as has_place:
                if not has_place:
                    await self._pass_on(ticket)
                yield has_place
        finally:
            self._in_hand.discard(key)

    async def _pass_on(self, ticket: Ticket) -> None:
        """To the end of its lane, where a worker with a free place finds it."""
        try:
            await self._broker.lanes.add(ticket.lane, ticket.key)
        except Unreachable:
            return  # it stays pending, and is taken up again
        await self.drop(ticket)

    async def drop(self, ticket: Ticket) -> None:
        """The lane is done with this entry, whatever the claim said."""
        try:
            await self._broker.lanes.drop(ticket)
        except Unreachable as error:
            log_.warning("a lane entry stays, it will be refused later", error=type(error).__name__)

    async def claim(self, ticket: Ticket) -> tuple[Run, Question | None] | None:
        """The run and what to ask, None if it ended already; None if the stream is not for this worker."""
        key = ticket.key
        self._table.begin_claim(key)
        try:
            mark = new_mark()
            granted = await self._claim(key, mark)
            if granted is None:
                return None
            claim, sent_at = granted
            if isinstance(claim, Refused):
                await self.drop(ticket)
                return None
            return await self._begin(key, mark, claim, sent_at)
        except Unreachable as error:
            log_.warning("redis out of reach after a claim; its lease runs out", stream=key, error=type(error).__name__)
            return None
        finally:
            self._table.refuse_claim(key)

    async def end_broken(self, run: Run) -> None:
        """Redis lost more of a log than this worker kept: a new attempt says so and ends it (protocol §5, done)."""
        key, mark = run.key, new_mark()
        self._table.begin_claim(key)
        try:
            await self._broker.log.release(key, run.mark)
            granted = await self._claim(key, mark)
            if granted is None or isinstance(granted[0], Refused):
                return
            ending = Ending.failed("internal", "part of this answer was lost in storage; ask again")
            run, _ = await self._begin(key, mark, granted[0], granted[1], ending)
            await run.over.wait()
        except Unreachable as error:
            log_.warning("a broken log could not be ended yet", stream=key, error=type(error).__name__)
        finally:
            self._table.refuse_claim(key)

    async def _claim(self, key: StreamKey, mark: str) -> tuple[Claim | Refused, float] | None:
        """The reply and when it was asked for. Asks again under the same mark, which counts once, for one lease."""
        settings = self._settings
        until = self._clock() + settings.lease_s
        while True:
            sent_at = self._clock()
            try:
                reply = await self._broker.log.claim(
                    key,
                    mark=mark,
                    owner=self._owner(),
                    lease_ms=int(settings.lease_s * 1000),
                    ttl_ms=run_ttl_ms(self._broker),
                )
                return reply, sent_at
            except Unreachable as error:
                if self._clock() > until:
                    log_.warning("redis out of reach, leaving a ticket", stream=key, error=type(error).__name__)
                    return None
                await asyncio.sleep(_PAUSE_S)

    async def _begin(
        self, key: StreamKey, mark: str, claim: Claim, sent_at: float, ending: Ending | None = None
    ) -> tuple[Run, Question | None]:
        """Enter a claimed generation in the table, open or ended. Raises `Unreachable`."""
        options = _decode(claim.options, Options) or Options()
        if claim.on_abandon:
            options.on_abandon = claim.on_abandon
        question, refusal = self._question(key, mark, claim, options)
        underway = underway_of(claim.underway)
        if claim.attempt > 1:
            asked = _asked(key, claim, question)
            self._usage.lost(key, claim.runs, mark, claim.next_offset, asked, underway.calls if underway else ())
        if ending is None:
            ending = CANCELLED if claim.cancelled else refusal
        kept, takeover = await self._take_over(key, claim, options, question, ending)
        if isinstance(takeover, GiveUp):
            ending = ending or worker_lost()
        elif isinstance(takeover, GoOn) and question is not None:
            question = replace(question, kept=takeover.text)
        elif isinstance(takeover, ReadOn) and question is not None and underway is not None:
            question = replace(question, kept=takeover.text, shared=None, underway=(underway, takeover))
        if underway is not None and (ending is not None or not isinstance(takeover, ReadOn)):
            self._drop(underway)
        goes_on = isinstance(takeover, GoOn) or (isinstance(takeover, ReadOn) and takeover.stays)
        begins_with = None
        if isinstance(takeover, StartOver) and question is not None and ending is None:
            begins_with = await retried(self._broker.log, key, question.body, self._continues(question))
            if begins_with is not None:
                question = replace(question, kept=begins_with.text, is_quoted=True, shared=None)
        owner = self._owner()
        watchers = await self._living(claim.watchers)
        waited_s = 0.0
        if ending is None and claim.attempt == 1 and options.on_abandon == "cancel" and not any(watchers.values()):
            waited_s = await self._waited_s(key)
        generation = Generation(
            claim,
            options,
            Speaker("", "", "live"),
            now=self._clock(),
            run_ahead=self._settings.run_ahead,
            max_run_s=self._settings.max_run_s,
            retry_token=secrets.token_urlsafe(12),
            waited_s=waited_s,
            ending=ending,
            goes_on=goes_on,
            digest=kept.digest if ending is not None or goes_on else None,
        )
        if begins_with is not None:
            generation.quote(begins_with.source, begins_with.text)
        run = Run(key, mark, generation, sent_at)
        self._table.enter(run, watchers, self._clock())
        if owner != self._owner():
            run.reconciled_at = float("-inf")  # the mailbox changed meanwhile: the next renewal names the new one
        return run, question

    def _question(
        self, key: StreamKey, mark: str, claim: Claim, options: Options
    ) -> tuple[Question | None, Ending | None]:
        """What to ask whom, or why nobody can be asked."""
        if options.prefetch and claim.attempt > 1:
            return None, CANCELLED  # nobody waits for it: it is not worth a second worker
        body = _decode(claim.request, Body)
        if body is None:
            log_.error("unreadable request")
            return None, Ending.failed("internal", "the stored request could not be read; ask again")
        try:
            route, missing = self._providers.route(body), self._tools.missing(body)
        except (UnknownModel, WrongTools) as error:
            return None, Ending.failed("provider_error", str(error), retry="no")
        if missing:
            names = ", ".join(f"“{name}”" for name in missing)
            message = f"this worker has no tool {names}: name it in HEADRACE_TOOLS of every worker, or ask without it"
            return None, Ending.failed("provider_error", message)
        attempt = Attempt(key, mark, claim.attempt, claim.user)
        shared = None
        if options.cache == "use":
            candidates = [candidate.name for candidate in route.candidates]
            shared = answer_key(key, claim.user, body, candidates, self._settings.cache_scope)
        return Question(route, body, attempt, shared=shared), None

    async def _living(self, watchers: dict[str, int]) -> dict[str, int]:
        """Those whose mailbox exists. Hubs that this worker knows were looked at within the last second."""
        unknown = set(watchers).difference(self._table.routing.hubs)
        if not unknown:
            return watchers
        alive = await still_there(self._broker.connections.control, sorted(unknown))
        return {hub: demand for hub, demand in watchers.items() if hub not in unknown or hub in alive}

    async def _waited_s(self, key: StreamKey) -> float:
        """How long ago the stream was created, by Redis' clock."""
        [facts] = await self._broker.log.facts([key], ["created"])
        seconds, micros = await self._broker.connections.control.time()
        return 0.0 if facts is None else max(0.0, seconds + micros / 1e6 - int(facts["created"]) / 1000)

    async def _take_over(
        self, key: StreamKey, claim: Claim, options: Options, question: Question | None, ending: Ending | None
    ) -> tuple[Kept, Takeover]:
        """What the log holds of attempts before this one, as far as anybody has to know, and what becomes of it."""
        kept = Kept(None if question is None else self._tools.wanted(question.body))
        has_tools = question is not None and bool(question.body.tools)
        underway = underway_of(claim.underway)
        is_plain = options.on_worker_loss == "restart" and not has_tools and underway is None
        if claim.attempt == 1 or (ending is None and (is_plain or not (claim.shown or has_tools or underway))):
            return kept, StartOver()
        while kept.count < claim.next_offset - 1:
            count = min(_PAGE_ENTRIES, claim.next_offset - 1 - kept.count)
            page = await self._broker.log.read(key, kept.count + 1, count)
            if not page:  # Redis lost it since the claim: the first append will say so
                return kept, StartOver()
            for kind, data in page:
                kept.add(kind, data)
        if ending is not None or question is None:
            return kept, StartOver()
        continues = self._continues(question)
        structured = question.body.schema is not None
        takeover = decide(options.on_worker_loss, kept, continues, structured=structured)
        if underway is not None and underway.provider in self._providers.available:
            takeover = read_on(kept, takeover)
        return kept, takeover

    def _drop(self, underway: Underway) -> None:
        """What a provider still writes for a lost worker is not wanted."""
        if underway.provider in self._providers.available:
            drop(self._providers.get(underway.provider), underway)

    def _continues(self, question: Question) -> Continues:
        first = question.first
        return self._providers.get(first.provider).continues(first.model)

    async def _suspicion(self, ticket: Ticket) -> Suspicion:
        if ticket.lane != TAKEOVER_LANE:
            return "none"
        try:
            [facts] = await self._broker.log.facts([ticket.key], ["losses", "barren", "owner"])
        except Unreachable:
            return "none"
        return "none" if facts is None else suspicion(facts)

    def _has_spoken(self, key: StreamKey) -> bool:
        run = self._table.runs.get(key)
        return run is not None and run.generation.has_spoken


def _asked(key: StreamKey, claim: Claim, question: Question | None) -> Asked:
    """What attempts before this one asked, as far as their log does not say."""
    if question is None:
        return asked_of(key, claim.user, _decode(claim.request, Body))
    asked = asked_of(key, claim.user, question.body)
    return msgspec.structs.replace(asked, provider=question.first.provider, model=question.first.model)


def _decode(data: bytes, kind: type[_T]) -> _T | None:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, TypeError):
        return None
