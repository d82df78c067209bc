"""One answer for equal requests: the first is generated, those after it follow its log (docs/caching.md).

A stream that follows asks no provider and holds no provider's place. Where the stream that it follows is of no use,
because it failed, was cancelled or is gone, it takes the lead, or follows who took it before; viewers see one whole
answer or a `reset` between. Without Redis nothing is shared, and nothing fails because of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
import structlog

from headrace.protocol import entries as kinds
from headrace.protocol.entries import Entry
from hub.broker.answers import Answers
from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.keys import AnswerKey, StreamKey, stream_of
from workers.generation import Ending, Speaker
from workers.providers import Event, Usage
from workers.question import Question
from workers.rendition import Rendition, Step, Survey
from workers.run import Run
from workers.takeover import Kept
from workers.watch import Watch

log_ = structlog.get_logger(__name__)
_T = TypeVar("_T")

#: Streams that are followed for one answer, one after the other. After so many disappointments it is generated here:
#: behind a provider that fails, nobody is to wait for everybody before him.
LEADERS: Final = 2
#: A stream that adds nothing for so long, in seconds, is not waited for any more. Longer than providers are.
PATIENCE_S: Final = 150.0
#: Entries read at a time: with what is pending anyway they stay below a megabyte for texts.
PAGE: Final = 128
_PAUSE_S: Final = 0.2


class Sharing:
    """One per worker. `run` until cancelled."""

    def __init__(self, broker: Broker, *, mark: Callable[[Run], None], clock: Callable[[], float]) -> None:
        self._broker = broker
        self._answers = Answers(broker.connections.control)
        self._ttl_ms = int(broker.settings.cache_ttl_s * 1000)
        self._watch = Watch(broker)
        self._mark = mark
        self._clock = clock

    async def run(self) -> None:
        """Look after the streams that are followed."""
        await self._watch.run()

    async def answer(self, run: Run, question: Question) -> bool:
        """Answer with an equal request's answer, up to the end. False: it is to be generated here, and what viewers
        have of it by now may be the beginning.
        """
        if question.shared is None:
            return False
        if question.underway is not None:  # a lost worker's, which is written already: only to be read on
            run.generation.attendance.release()
            return False
        useless = ""
        for _ in range(LEADERS):
            leader = await self._lead(question.shared, run.key, useless)
            if leader is None:
                break
            if leader == run.key:
                # Others may be following: no single viewer's pace is theirs.
                run.generation.attendance.release()
                break
            following = _Following(self, run, question, leader)
            if await following.run():
                return True
            log_.info("a shared answer is of no use", stream=stream_of(run.key), of=stream_of(leader))
            useless = leader
        return False

    async def _lead(self, key: AnswerKey, stream: StreamKey, useless: str) -> StreamKey | None:
        """Whom to follow; None: nobody knows."""
        try:
            return await self._answers.lead(key, stream, ttl_ms=self._ttl_ms, useless=useless)
        except Unreachable as error:
            log_.warning("redis out of reach, an answer is not shared", error=type(error).__name__)
            return None


class _Following:
    """One stream following another."""

    def __init__(self, sharing: Sharing, run: Run, question: Question, leader: StreamKey) -> None:
        self._log = sharing._broker.log
        self._watch = sharing._watch
        self._mark = sharing._mark
        self._clock = sharing._clock
        self._run = run
        self._leader = leader
        self._told = Kept.of(question.before, run.generation.entries())

    async def run(self) -> bool:
        """Whether the generation has ended with it."""
        try:
            survey = await self._survey()
            if not (survey.is_useful and survey.count):
                return False
            if survey.speaker is not None:
                self._run.generation.begin_call(survey.speaker)
            else:
                self._tell(kinds.Notice("shared"))  # nothing to be seen yet: why, and that nobody else is asked
            return await self._copy(survey.start)
        except (msgspec.DecodeError, UnicodeDecodeError):
            log_.error("a shared answer cannot be read", of=stream_of(self._leader))
            return False

    async def _survey(self) -> Survey:
        """The log as it is now."""
        survey = Survey()
        while page := await self._read(survey.count + 1):
            for kind, data in page:
                survey.add(kind, data)
        return survey

    async def _copy(self, first: int) -> bool:
        """Tell entries from offset `first` on."""
        rendition, run = Rendition(self._told), self._run
        while not run.generation.ended:
            page = await self._read(first)
            if not page and not await self._grows(first - 1):
                return False
            for kind, data in page:
                for step in rendition.take(kind, data):
                    self._tell(step)
                if rendition.is_useless:
                    return False
                if not run.generation.may_read:
                    await run.readable()
            first += len(page)
        return True

    def _tell(self, step: Step) -> None:
        generation = self._run.generation
        if isinstance(step, Event):
            generation.feed([step], self._clock())
        elif isinstance(step, Speaker):
            generation.begin_call(step)
        elif isinstance(step, kinds.Notice):
            generation.notice(step)
        elif isinstance(step, kinds.Reset):
            generation.reset(step.reason)
        else:
            self._end(step)
        if not self._run.is_marked:
            self._mark(self._run)

    def _end(self, ending: Ending) -> None:
        """It cost nothing: that is what viewers are told."""
        self._run.generation.feed([Usage(cost_usd=0.0)], self._clock())
        self._run.generation.end(ending)

    async def _grows(self, top: int) -> bool:
        """Wait for more than `top` entries; False if none will come, or none for too long."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                standing = await self._watch.beyond(self._leader, top)
        except TimeoutError:
            return False
        return standing is not None and standing.top > top

    async def _read(self, first: int) -> list[Entry]:
        return await self._insist(lambda: self._log.read(self._leader, first, PAGE))

    async def _insist(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Without Redis nothing can be told either: whoever keeps the lease decides how long that is waited for."""
        while True:
            try:
                return await ask()
            except Unreachable:
                await asyncio.sleep(_PAUSE_S)
