"""The provider calls of one generation: who is asked, what is told of each answer, what becomes of a failure.

The rules are `chain`'s; here they meet the providers. Before the first content nobody hears of a failure. After it
viewers are told, and what they see is one model's whole answer, or a `reset` lies between (protocol §5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import structlog

from headrace.protocol import entries as kinds
from headrace.protocol.body import Body
from hub.broker.usage import Outcome
from workers.capability import fitted
from workers.chain import Ask, Candidate, Chain, Fault, Shown
from workers.generation import Ending, Speaker
from workers.providers import Continues, Event, Provider, ProviderError
from workers.providers.fallback import MODEL_OUTAGE
from workers.providers.registry import PROVIDERS_FAILED, Providers, Route
from workers.retelling import Retelling
from workers.run import Run
from workers.seam import Seam
from workers.takeover import Kept
from workers.usage import Attempt, Call, UsageReporter

log_ = structlog.get_logger(__name__)

#: After the provider's last word its body may still end in good order, so that the connection can be used again.
_LAST_WORD_S = 1.0
#: Why another than the first choice speaks: `source.reason`, and the reason of a `reset`.
FAILOVER = "failover"
#: Faults that another asking cannot be blamed for: the rules do not answer in the place of an error about them.
_ANSWERED: frozenset[Fault] = frozenset({"blocked", "request", "context"})


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of whom. `kept` is the beginning of the answer, when a lost worker's is gone on with."""

    route: Route
    body: Body
    attempt: Attempt
    kept: str = ""

    @property
    def first(self) -> Candidate:
        """Who is asked if nothing speaks against it."""
        return self.route.candidates[0]


class Breakers(Protocol):
    """Who is kept out for now because it failed lately."""

    async def look(self, candidates: Sequence[Candidate]) -> None:
        """Learn how these stand, if that is not known from a moment ago."""
        ...

    def open_for(self, candidate: Candidate) -> float:
        """Seconds; 0: it may be asked."""
        ...

    async def enter(self, candidate: Candidate) -> bool:
        """Whether it may be asked now: one that failed lately is tried by one request at a time."""
        ...

    def ended(self, candidate: Candidate, error: ProviderError | None, ttft_s: float | None) -> None:
        """A call ended: in order, or with `error`. Calls that were cut off by us are not told."""
        ...


class Health(Protocol):
    """Who keeps the record of how providers fare."""

    def ended(self, candidate: Candidate, error: ProviderError | None, ttft_s: float | None) -> None:
        """A call ended: in order, or with `error`. Calls that were cut off by us are not told."""
        ...


@dataclass(frozen=True, slots=True)
class Office:
    """What every generation of a worker asks by."""

    providers: Providers
    breakers: Breakers
    health: Health
    usage: UsageReporter
    mark: Callable[[Run], None]
    clock: Callable[[], float]


class _Continue(Exception):
    """The second telling differs, and the rest is to be asked for instead."""


class _Ended(Exception):
    """The second telling differs, and the policy wants no other answer."""


class Asking:
    """One generation's calls. `run` returns once it ended, or raises the ProviderError that it ends with."""

    def __init__(self, run: Run, question: Question, office: Office) -> None:
        self._run = run
        self._question = question
        self._office = office
        self._kept = question.kept
        self._policy = question.route.after_content
        self._chain = Chain(question.route.candidates, self._policy, office.breakers.open_for)
        self._calls = 0

    async def run(self) -> None:
        breakers, generation = self._office.breakers, self._run.generation
        candidates = self._question.route.candidates
        await breakers.look(candidates)
        ask = self._chain.begin()
        error = _resting(candidates[0], min(breakers.open_for(each) for each in candidates)) if ask is None else None
        while ask is not None:
            try:
                failure = await self._asked(ask)
            except _Ended:
                break  # with what the first telling broke off with
            if failure is None or generation.ended:
                return
            error = failure
            await breakers.look(candidates)
            ask = self._next(ask, error)
        assert error is not None
        if self._may_fall_back(error):
            await self._fall_back()
        else:
            raise error

    # -- what becomes of a failure

    def _next(self, ask: Ask, error: ProviderError) -> Ask | None:
        """Whom to ask now; None: nobody, the answer ends with `error`."""
        shown = self._shown()
        if error.refused and self._kept and not self._run.generation.has_spoken:
            return self._start_over(ask)
        if error.refused and ask.how == "continue" and "restart" in self._policy:
            return Ask(ask.candidate, "restart")
        after_s = None if error.after_ms is None else error.after_ms / 1000
        following = self._chain.failed(error.fault, shown, after_s=after_s)
        log_.warning(
            "provider failed",
            stream=self._run.key,
            provider=ask.candidate.name,
            fault=error.fault,
            shown=shown,
            next=None if following is None else following.candidate.name,
        )
        if following is not None and shown != "nothing":
            code = "retrying" if following.candidate == ask.candidate else FAILOVER
            self._run.generation.notice(kinds.Notice(code, following.candidate.provider))
            self._office.mark(self._run)
        return following

    def _start_over(self, ask: Ask) -> Ask:
        """A provider refuses to go on with a lost worker's answer: what was shown before this attempt is void."""
        log_.info("provider refuses to go on, starting over", stream=self._run.key, provider=ask.candidate.name)
        self._kept = ""
        self._run.generation.start_over()
        self._office.mark(self._run)
        return Ask(ask.candidate, "begin")

    def _shown(self) -> Shown:
        if not self._run.generation.has_spoken:
            return "nothing"  # a lost worker's text may be there: it is gone on with
        told = self._told()
        if told.ran_tool:
            return "tool"
        return "text" if told.is_prose else "mixed" if told.shows else "nothing"

    def _told(self) -> Kept:
        """What viewers have of this answer."""
        told = Kept()
        if self._question.kept:
            told.add("text", self._question.kept.encode())
        for kind, data in self._run.generation.entries():
            told.add(kind, data)
        return told

    def _may_fall_back(self, error: ProviderError) -> bool:
        return (
            self._question.route.falls_back
            and error.fault not in _ANSWERED
            and not self._run.generation.has_spoken
            and not self._kept
            and "fallback" in self._office.providers.available
        )

    async def _fall_back(self) -> None:
        log_.error("all providers of a tier failed, the rules answer", stream=self._run.key)
        provider = self._office.providers.get("fallback")
        self._begin(Speaker("fallback", MODEL_OUTAGE, "fallback", PROVIDERS_FAILED))
        await self._read(provider, Candidate("fallback", MODEL_OUTAGE), self._question.body, Seam("", "no"))

    # -- one call

    async def _asked(self, ask: Ask, *, is_let_in: bool = False) -> ProviderError | None:
        """One call, to the generation's end; or how it failed. Raises _Ended."""
        if ask.after_s:
            await asyncio.sleep(ask.after_s)
        candidate = ask.candidate
        if not (is_let_in or await self._office.breakers.enter(candidate)):
            return _resting(candidate, self._office.breakers.open_for(candidate))
        try:
            await self._call(ask)
        except _Continue:
            return await self._asked(Ask(candidate, "continue"), is_let_in=True)
        except ProviderError as error:
            return error
        return None

    async def _call(self, ask: Ask) -> None:
        """Raises ProviderError, _Continue, _Ended."""
        candidate = ask.candidate
        provider = self._office.providers.get(candidate.provider)
        body, aside = fitted(self._question.body, self._office.providers.model(candidate), candidate.name)
        continues = "no" if body.schema is not None else provider.continues(candidate.model)
        how = ask.how
        if how == "begin" and self._kept and continues == "no":
            self._start_over(ask)
        if how == "continue" and continues == "no":
            if "restart" not in self._policy:
                raise _Ended
            how = "restart"
        reason = self._reason(candidate)
        speaker = Speaker(provider.name, candidate.model, provider.mode, reason)
        self._begin(speaker, aside, voids=FAILOVER if how == "restart" else "")
        await self._read(provider, candidate, body, self._listener(how, continues))

    def _begin(self, speaker: Speaker, aside: Sequence[kinds.Notice] = (), *, voids: str = "") -> None:
        self._calls += 1
        call = self._calls if self._calls > 1 else None
        self._run.generation.begin_call(msgspec.structs.replace(speaker, call=call), aside, voids=voids)

    def _listener(self, how: str, continues: Continues) -> Seam | Retelling:
        if how == "splice":
            return Retelling(self._told().text)
        if how == "continue":
            return Seam(self._told().text, continues)
        return Seam(self._kept if how == "begin" else "", continues)

    def _reason(self, candidate: Candidate) -> str | None:
        route = self._question.route
        return route.reason if candidate == route.candidates[0] else FAILOVER

    async def _read(self, provider: Provider, candidate: Candidate, body: Body, listener: Seam | Retelling) -> None:
        """One request. Raises ProviderError, _Continue, _Ended."""
        generation = self._run.generation
        asked = body.prompt_bytes + len(listener.given.encode())
        call = self._office.usage.call(self._question.attempt, self._calls, provider.name, candidate.model, asked)
        outcome: Outcome = "failed"
        error: ProviderError | None = None
        began, is_cut = self._office.clock(), False
        try:
            await self._follow(provider.stream(candidate.model, body, listener.given), listener, call)
            outcome = generation.status or "superseded"
        except ProviderError as failure:
            error = failure
            raise
        except (asyncio.CancelledError, _Continue, _Ended):
            is_cut = True
            outcome = generation.status or "superseded"
            raise
        finally:
            call.end(outcome)  # every provider call ends here
            if not is_cut:
                spoke_at = generation.call_spoken_at
                ttft_s = None if spoke_at is None else spoke_at - began
                self._office.breakers.ended(candidate, error, ttft_s)
                self._office.health.ended(candidate, error, ttft_s)

    async def _follow(self, stream: Any, listener: Seam | Retelling, call: Call) -> None:
        """Feed what comes, to the generation's end. Raises ProviderError, _Continue, _Ended."""
        run, clock, mark = self._run, self._office.clock, self._office.mark
        generation = run.generation
        try:
            async with aclosing(stream):
                async for events in stream:
                    generation.feed(self._heard(listener, call.hear(events)), clock())
                    if not run.is_marked:
                        mark(run)
                    if not generation.may_read:
                        if generation.ended:
                            run.reader = None  # ends by itself now, and soon: nobody is to cut it off
                            await _hear_out(stream)
                            return
                        await run.readable()
        except ProviderError:
            generation.feed(listener.end(), clock())
            raise
        generation.feed(listener.end(), clock())
        generation.end(Ending.failed("provider_error", "the provider ended its answer without saying so"))

    def _heard(self, listener: Seam | Retelling, events: Sequence[Event]) -> Sequence[Event]:
        """What is new of `events`. A second telling that differs becomes the answer, if the policy allows it."""
        joined = listener.join(events)
        if not (isinstance(listener, Retelling) and listener.has_diverged):
            return joined
        how = self._chain.diverged()
        if how is None:
            raise _Ended
        if how == "continue":
            raise _Continue
        self._run.generation.reset(FAILOVER)
        return [*listener.release(), *joined]


def _resting(candidate: Candidate, open_s: float) -> ProviderError:
    message = f"{candidate.provider} failed several times just now and is left alone for {max(1, round(open_s))} s"
    return ProviderError("provider_overloaded", message, after_ms=max(1000, round(open_s * 1000)), retry="after")


async def _hear_out(stream: Any) -> None:
    try:
        async with asyncio.timeout(_LAST_WORD_S):
            await anext(stream, None)
    except (TimeoutError, ProviderError):
        pass
