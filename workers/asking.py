"""The provider calls of one generation: who is asked, what is told of each answer, what becomes of a failure.

The rules are `chain`'s; here they meet the providers. Before the first content nobody hears of a failure. After it
viewers are told, and what they see is one model's whole answer, or a `reset` lies between (protocol §5).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import structlog

from headrace.protocol import entries as kinds
from headrace.protocol.body import Body
from hub.broker.usage import Outcome
from workers.alongside import Alongside
from workers.capability import fitted
from workers.chain import QUICK_RETRY_S, WAIT_BUDGET_S, Ask, Candidate, Chain, Fault, Shown
from workers.contest import Beaten, Contender
from workers.generation import Ending, Speaker
from workers.office import Office
from workers.providers import Continues, Event, Provider, ProviderError, Stop
from workers.providers.fallback import MODEL_OUTAGE
from workers.providers.registry import PROVIDERS_FAILED
from workers.question import Question
from workers.rereading import Rereading
from workers.retelling import Retelling
from workers.retried import RETRY
from workers.run import Run
from workers.seam import Seam
from workers.steps import Steps
from workers.takeover import GoOn, Kept
from workers.upstream import Underway, Upstream
from workers.usage import Call

log_ = structlog.get_logger(__name__)

#: After the provider's last word its body may still end in good order, so that the connection can be used again.
_LAST_WORD_S = 1.0
#: Why another than the first choice speaks: `source.reason`, and the reason of a `reset`.
FAILOVER = "failover"
#: … because the first was silent, and the second began sooner.
HEDGE = "hedge"
_NEEDS_MODEL = "a structured answer needs a model, and no provider has a key on this worker"
_UNSHARED = "the answer that this one shares broke off, and nobody could go on with it"
_UNSAID = "the provider ended its answer without saying so"
#: Faults that another asking cannot be blamed for: the rules do not answer in the place of an error about them.
_ANSWERED: frozenset[Fault] = frozenset({"blocked", "request", "context"})


Listener = Seam | Retelling | Rereading
"""What stands between a call and the viewers, who have some of it already."""


class _Continue(Exception):
    """The second telling differs, and the rest is to be asked for instead."""


class _Ended(Exception):
    """The second telling differs, and the policy wants no other answer."""


class Asking:
    """One generation's calls. `run` returns once it ended, or raises the ProviderError that it ends with."""

    def __init__(self, run: Run, question: Question, office: Office, steps: Steps | None = None) -> None:
        """With `steps` it is one step's calls that are made here, and `run` returns too once that is over."""
        self._run = run
        self._question = question
        self._office = office
        self._steps = steps
        self._kept = question.kept
        self._policy = question.route.after_content
        self._breakers = office.breakers
        self._chain = Chain(question.route.candidates, self._policy, self._open_for)
        self._calls = 0
        #: Whom the coming call asks after a rate limit's wait, and how long all such waits were.
        self._waited_for: Candidate | None = None
        self._waited_s = 0.0
        self._alongside = Alongside(run.key, question.route.hedge_after_s, self._chain, office)

    async def run(self) -> None:
        breakers, generation = self._breakers, self._run.generation
        candidates = self._question.route.candidates
        await breakers.look(candidates)
        underway = self._question.underway
        ask = self._chain.begin() if underway is None else self._read_on(underway[0])
        if ask is None:
            ask = await self._begin_late()
        shown = self._shown()
        if ask is not None and ask.how == "begin" and shown != "nothing":  # of a shared answer, until it broke off
            ask = Ask(ask.candidate, self._chain.way(shown) or "restart")
        error = _resting(candidates[0], min(breakers.open_for(each) for each in candidates)) if ask is None else None
        while ask is not None:
            try:
                ask, failure = await self._asked_in_time(ask)
            except _Ended:  # with what the first telling broke off with
                error = error or ProviderError("provider_error", _UNSHARED, fault="truncated")
                break
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

    @property
    def said(self) -> str:
        """The text of the answer; with steps, of this one."""
        return self._told().text

    @property
    def question(self) -> Question:
        return self._question

    def following(self, body: Body) -> Asking:
        """The calls of the next step: whoever spoke in this one is asked first."""
        route, current = self._question.route, self._chain.current
        assert current is not None
        others = [candidate for candidate in route.candidates if candidate != current]
        reason = route.reason if current == route.candidates[0] else FAILOVER
        route = msgspec.structs.replace(
            route, candidates=(current, *others), reason=reason, falls_back=False, hedge_after_s=None
        )
        question = replace(self._question, route=route, body=body, kept="", is_quoted=False, underway=None)
        asking = Asking(self._run, question, self._office, self._steps)
        asking._calls = self._calls
        return asking

    # -- what becomes of a failure

    def _next(self, ask: Ask, error: ProviderError) -> Ask | None:
        """Whom to ask now; None: nobody, the answer ends with `error`."""
        shown = self._shown()
        self._waited_for = None
        if ask.how == "read_on" and not self._run.generation.has_spoken:
            return self._ask_after_all(error)
        if error.refused and self._kept and not self._run.generation.has_spoken:
            return self._start_over(ask)
        if error.refused and ask.how == "continue" and "restart" in self._policy:
            return Ask(ask.candidate, "restart")
        after_s = None if error.after_ms is None else error.after_ms / 1000
        if after_s is not None and self._waited_s + after_s > WAIT_BUDGET_S:
            after_s = None  # it may have waited before its first call, which the chain does not know
        following = self._chain.failed(error.fault, shown, after_s=after_s)
        if following is not None and following.after_s and error.fault == "rate_limited":
            self._waited_for = following.candidate
            self._waited_s += following.after_s
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

    def _open_for(self, candidate: Candidate) -> float:
        if candidate == self._waited_for and self._breakers.is_only_limited(candidate):
            return 0.0
        return self._breakers.open_for(candidate)

    async def _begin_late(self) -> Ask | None:
        """All are kept out: wait for the first that only a rate limit keeps, if that is not long."""
        breakers = self._breakers
        limited = [each for each in self._question.route.candidates if breakers.is_only_limited(each)]
        soonest = min(limited, key=breakers.open_for, default=None)
        if soonest is None or (after_s := breakers.open_for(soonest)) > WAIT_BUDGET_S:
            return None
        await asyncio.sleep(after_s + random.uniform(0, QUICK_RETRY_S))
        self._waited_for, self._waited_s = soonest, after_s
        return self._chain.begin()

    def _start_over(self, ask: Ask) -> Ask:
        """A provider refuses to go on with a lost worker's answer: what was shown before this attempt is void."""
        log_.info("provider refuses to go on, starting over", stream=self._run.key, provider=ask.candidate.name)
        self._kept = ""
        self._run.generation.start_over(RETRY if self._question.is_quoted else "worker_lost")
        self._office.mark(self._run)
        return Ask(ask.candidate, "begin")

    def _read_on(self, underway: Underway) -> Ask:
        candidates = [each for each in self._question.route.candidates if each.provider == underway.provider]
        same = [each for each in candidates if each.model == underway.model]
        return self._chain.read_on(same[0] if same else Candidate(underway.provider, underway.model))

    def _ask_after_all(self, error: ProviderError) -> Ask | None:
        """What a provider wrote for a lost worker cannot be read any more."""
        assert self._question.underway is not None
        _, how = self._question.underway
        log_.info("an answer cannot be read on, it is asked for again", stream=self._run.key, fault=error.fault)
        if not isinstance(how.otherwise, GoOn):
            self._kept = ""
            if how.text or how.thought:
                self._run.generation.start_over()
                self._office.mark(self._run)
        return self._chain.begin()

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
        if self._question.before:
            told.add("text", self._question.before.encode())
        for kind, data in self._run.generation.entries():
            told.add(kind, data)
        return told

    def _may_fall_back(self, error: ProviderError) -> bool:
        return (
            self._question.route.falls_back
            and error.fault not in _ANSWERED
            and self._question.body.schema is None  # the rules' text is no document
            and not self._run.generation.has_spoken
            and not self._kept
            and "fallback" in self._office.providers.available
        )

    async def _fall_back(self) -> None:
        log_.error("all providers of a tier failed, the rules answer", stream=self._run.key)
        provider = self._office.providers.get("fallback")
        self._run.generation.begin_call(self._speaker("fallback", MODEL_OUTAGE, "fallback", PROVIDERS_FAILED))
        await self._read(provider, Candidate("fallback", MODEL_OUTAGE), self._question.body, Seam("", "no"))

    # -- one call

    async def _asked_in_time(self, ask: Ask) -> tuple[Ask, ProviderError | None]:
        """As `_asked`; where the tier hedges, a second call may be made beside it. With the call whose end counts."""
        after_s = None if self._kept else self._alongside.after_s(ask)
        if after_s is None:
            return ask, await self._asked(ask)

        async def asked(contender: Contender) -> ProviderError | None:
            return await self._asked(contender.ask, is_let_in=contender.is_second, contender=contender)

        return await self._alongside.asked(ask, after_s, asked)

    async def _asked(
        self, ask: Ask, *, is_let_in: bool = False, contender: Contender | None = None
    ) -> ProviderError | None:
        """One call, to the generation's end; or how it failed. Raises _Ended; Beaten, for a contender."""
        if ask.after_s:
            await asyncio.sleep(ask.after_s + random.uniform(0, QUICK_RETRY_S))
        if contender is not None and contender.is_out:
            raise Beaten  # before it began
        candidate = ask.candidate
        has_waited = candidate == self._waited_for
        if not (is_let_in or ask.how == "read_on" or await self._breakers.enter(candidate, has_waited=has_waited)):
            return _resting(candidate, self._breakers.open_for(candidate))
        try:
            await self._call(ask, contender)
        except _Continue:
            return await self._asked(Ask(candidate, "continue"), is_let_in=True)
        except ProviderError as error:
            return error
        return None

    async def _call(self, ask: Ask, contender: Contender | None) -> None:
        """Raises ProviderError, Beaten, _Continue, _Ended."""
        candidate = ask.candidate
        provider = self._office.providers.get(candidate.provider)
        if provider.mode == "fallback" and self._question.body.schema is not None:
            raise ProviderError("provider_error", _NEEDS_MODEL, fault="absent", retry="no")
        body, aside = fitted(self._question.body, self._office.providers.model(candidate), candidate.name)
        continues = "no" if self._question.body.schema is not None else provider.continues(candidate.model)
        how = ask.how
        if how == "begin" and self._kept and continues == "no":
            self._start_over(ask)
        if how == "continue" and continues == "no":
            if "restart" not in self._policy:
                raise _Ended
            how = "restart"
        reason = HEDGE if contender is not None and contender.is_second else self._reason(candidate)
        speaker = self._speaker(provider.name, candidate.model, provider.mode, reason)
        begin = partial(self._run.generation.begin_call, speaker, aside, voids=FAILOVER if how == "restart" else "")
        if contender is None:
            begin()
        else:
            contender.on_in = begin
        underway = self._question.underway[0] if how == "read_on" and self._question.underway else None
        await self._read(provider, candidate, body, self._listener(how, continues), contender, underway)

    def _speaker(self, provider: str, model: str, mode: str, reason: str | None) -> Speaker:
        """Of the next call: it is counted here."""
        self._calls += 1
        return Speaker(provider, model, mode, reason, self._calls if self._calls > 1 else None)

    def _listener(self, how: str, continues: Continues) -> Listener:
        if how == "read_on" and self._question.underway is not None:
            _, kept = self._question.underway
            return Rereading(kept.text, kept.thought)
        if how == "splice":
            return Retelling(self._told().text)
        if how == "continue":
            return Seam(self._told().text, continues)
        return Seam(self._kept if how == "begin" else "", continues)

    def _reason(self, candidate: Candidate) -> str | None:
        route = self._question.route
        return route.reason if candidate == route.candidates[0] else FAILOVER

    async def _read(
        self,
        provider: Provider,
        candidate: Candidate,
        body: Body,
        listener: Listener,
        contender: Contender | None = None,
        underway: Underway | None = None,
    ) -> None:
        """One request: that which was counted last. Raises ProviderError, Beaten, _Continue, _Ended."""
        generation, number = self._run.generation, self._calls
        if self._steps is not None:
            self._steps.begin_call()
        asked = body.prompt_bytes + len(listener.given.encode())
        own = (self._question.attempt, number)
        upstream = Upstream(self._run, provider, candidate, own, self._office.remember, underway=underway)
        call = self._office.usage.call(*upstream.billed, provider.name, candidate.model, asked)
        outcome: Outcome = "failed"
        error: ProviderError | None = None
        ended_by: BaseException | None = None
        began, is_cut = self._office.clock(), False
        try:
            await self._follow(upstream, await upstream.stream(body, listener.given), listener, call, contender)
            outcome = generation.status or "superseded"
        except ProviderError as failure:
            error = ended_by = failure
            if underway is not None and not generation.has_spoken:
                is_cut = True  # asking for it again is no call of its own, and nobody's fault
                call.void()
            raise
        except (asyncio.CancelledError, Beaten, _Continue, _Ended) as cut:
            is_cut, ended_by = True, cut
            is_beaten = contender is not None and contender.is_out
            outcome = "cancelled" if is_beaten else generation.status or "superseded"
            if is_beaten:
                self._office.hedging.heard(candidate.name, self._office.clock() - began)
            raise
        except Exception as defect:  # ours: it says nothing about the provider
            is_cut, ended_by = True, defect
            raise
        finally:
            try:
                await upstream.end(ended_by)
            finally:
                call.end("lost" if upstream.is_left else outcome)  # every provider call ends here
            spoke_at = generation.call_spoken_at if contender is None or contender.is_in else None
            ttft_s = None if spoke_at is None else spoke_at - began
            if ttft_s is not None and number == 1:
                self._office.hedging.heard(candidate.name, ttft_s)
            if not is_cut:
                self._breakers.ended(candidate, error, ttft_s)
                self._office.health.ended(candidate, error, ttft_s)

    async def _follow(
        self, upstream: Upstream, stream: Any, listener: Listener, call: Call, contender: Contender | None
    ) -> None:
        """Feed what comes, to the generation's end. Raises ProviderError, Beaten, _Continue, _Ended."""
        run, clock, mark = self._run, self._office.clock, self._office.mark
        generation = run.generation
        try:
            async with aclosing(stream):
                async for events in stream:
                    heard = await upstream.hear(call.hear(events))
                    if contender is not None:
                        heard = contender.hear(heard)
                        if not contender.is_in:
                            continue
                    heard = self._heard(listener, heard)
                    if self._steps is not None:
                        heard = self._steps.hear(heard)
                    generation.feed(await self._judged(heard), clock())
                    if not run.is_marked:
                        mark(run)
                    if self._steps is not None and self._steps.is_over:
                        await _hear_out(stream)
                        return
                    if not generation.may_read:
                        if generation.ended:
                            run.reader = None  # ends by itself now, and soon: nobody is to cut it off
                            await _hear_out(stream)
                            return
                        await run.readable()
        except ProviderError:
            generation.feed(listener.end(), clock())
            raise
        if contender is not None and not contender.is_in:
            raise ProviderError("provider_error", _UNSAID, fault="truncated")
        generation.feed(listener.end(), clock())
        generation.end(Ending.failed("provider_error", _UNSAID))

    async def _judged(self, events: Sequence[Event]) -> Sequence[Event]:
        """What of `events` is still to be fed: an answer by a schema is looked at before it ends well."""
        schema, run = self._question.body.schema, self._run
        last = events[-1] if events else None
        if schema is None or not isinstance(last, Stop) or last.reason != "stop":
            return events
        run.generation.feed(events[:-1], self._office.clock())
        if run.generation.is_void:
            run.generation.reset(FAILOVER)  # it said nothing, and nothing else is its answer
        self._office.mark(run)
        shown = [("text", self._question.before.encode()), *run.generation.entries()]
        ending = await self._office.court.judge(schema, shown)
        if ending is not None:
            run.generation.end(ending)
        return events[-1:]

    def _heard(self, listener: Listener, events: Sequence[Event]) -> Sequence[Event]:
        """What is new of `events`. A second telling that differs becomes the answer, if the policy allows it."""
        joined = listener.join(events)
        if isinstance(listener, Rereading) and listener.has_diverged:
            self._run.generation.reset("worker_lost")
            return [*listener.release(), *joined]
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
    message = f"{candidate.provider} failed or is limited just now and is left alone for {max(1, round(open_s))} s"
    return ProviderError("provider_overloaded", message, after_ms=max(1000, round(open_s * 1000)), retry="after")


async def _hear_out(stream: Any) -> None:
    try:
        async with asyncio.timeout(_LAST_WORD_S):
            await anext(stream, None)
    except (TimeoutError, ProviderError):
        pass
