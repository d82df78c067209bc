"""What this worker knows of the shared breakers, and what it tells them: no call waits for Redis but a trial's."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Sequence

import structlog
from redis.asyncio import Redis

from hub.broker.breaker import OPEN_MS, SharedBreakers, Standing, Step, name_of
from hub.broker.connections import Unreachable
from workers.chain import WAIT_BUDGET_S, Candidate, Fault
from workers.providers import ProviderError

log_ = structlog.get_logger(__name__)

#: A standing is believed for so long.
FRESH_S = 1.0
#: Redis is waited for this long at most; without it everybody may be asked.
LOOK_S = 0.25
#: Ends of calls that wait for Redis; beyond it the oldest are forgotten.
STEPS = 1000
#: How long a credential that was refused, or whose money is used up, is not asked.
REFUSED_MS = 60_000
#: Names that are remembered; more than a catalog has.
NAMES = 1000

_BAD: frozenset[Fault] = frozenset({
    "unreachable", "connect_timeout", "headers_timeout", "silent", "idle", "broken", "truncated", "malformed",
    "server", "overloaded",
})  # fmt: skip
_PAUSE_S = 0.5


class Breakers:
    """One per worker. `run` until cancelled. Candidates without a credential of their own have no breaker."""

    def __init__(self, redis: Redis, credential: Callable[[str], str | None], *, clock: Callable[[], float]) -> None:
        self._shared = SharedBreakers(redis)
        self._credential = credential
        self._clock = clock
        self._known: dict[str, tuple[Standing, float]] = {}
        #: When the wait is over that a rate limit named, for models that nothing else keeps out as far as is known.
        self._limited: dict[str, float] = {}
        self._steps: deque[Step] = deque(maxlen=STEPS)
        self._news = asyncio.Event()

    def _names(self, candidate: Candidate) -> list[str]:
        credential = self._credential(candidate.provider)
        if credential is None:
            return []
        return [name_of(candidate.provider, model, credential) for model in (candidate.model, "")]

    # -- before a call

    async def look(self, candidates: Sequence[Candidate]) -> None:
        """Learn how these stand, if that is not known from a moment ago."""
        now = self._clock()
        stale = [
            name
            for candidate in candidates
            for name in self._names(candidate)
            if name not in self._known or now - self._known[name][1] > FRESH_S
        ]
        if not stale:
            return
        for name in stale:  # others need not look too, meanwhile
            self._keep(name, self._known.get(name, (Standing("closed"), 0.0))[0])
        with contextlib.suppress(*Unreachable, TimeoutError):
            async with asyncio.timeout(LOOK_S):
                for name, standing in zip(
                    stale, await self._shared.take([Step(name, "look") for name in stale]), strict=True
                ):
                    self._keep(name, standing)

    def open_for(self, candidate: Candidate) -> float:
        """How long it is kept out, in seconds; 0: it may be asked."""
        return max((self._left_s(name) for name in self._names(candidate)), default=0.0)

    def is_only_limited(self, candidate: Candidate) -> bool:
        """Whether it is a rate limit that keeps it out, or did until a moment ago, and nothing worse is known."""
        names = self._names(candidate)
        return bool(names) and self._is_limited(names[0]) and self._stands(names[1]).state == "closed"

    async def enter(self, candidate: Candidate, *, has_waited: bool = False) -> bool:
        """Whether it may be asked now: one that failed lately is tried by one request at a time. A rate limit is no
        such failure for a request that `has_waited` as long as the provider told it to: all of these are let in.
        """
        if has_waited and self.is_only_limited(candidate):
            return True
        if self.open_for(candidate) > 0:
            return False
        trials = [name for name in self._names(candidate) if self._is_trial(name)]
        if not trials:
            return True
        with contextlib.suppress(*Unreachable, TimeoutError):
            async with asyncio.timeout(LOOK_S):
                standings = await self._shared.take([Step(name, "enter") for name in trials])
                for name, standing in zip(trials, standings, strict=True):
                    self._keep(name, Standing("open", OPEN_MS) if standing.state == "trial" else standing)
                return all(standing.state != "open" for standing in standings)
        return True

    # -- after a call

    def ended(self, candidate: Candidate, error: ProviderError | None, ttft_s: float | None) -> None:
        """A call ended: in order, or with `error`."""
        names = self._names(candidate)
        if not names:
            return
        model, account = names
        if error is None:
            self._tell(Step(model, "ok"), Step(account, "ok"))
        elif error.fault in ("quota", "credential"):
            log_.error(
                "a provider does not accept this worker's account; it is left alone for a while",
                provider=candidate.provider,
                fault=error.fault,
                seconds=REFUSED_MS // 1000,
            )
            self._cool(account, REFUSED_MS)
        elif error.fault == "absent":
            self._limited.pop(model, None)
            self._cool(model, REFUSED_MS)
        elif error.fault == "rate_limited" and error.after_ms:
            self._limit(model, error.after_ms)
            self._cool(model, error.after_ms)
        elif error.fault in _BAD or error.fault == "rate_limited":
            self._limited.pop(model, None)  # whoever waits is held to what all others are
            self._tell(Step(model, "bad", _about(OPEN_MS)))

    def _cool(self, name: str, ms: int) -> None:
        self._keep(name, Standing("open", ms))
        self._tell(Step(name, "cool", ms))

    def _limit(self, name: str, ms: int) -> None:
        """A rate limit named its wait. Where failures keep the model out already, it excuses nobody."""
        now = self._clock()
        if self._stands(name).state == "closed" or name in self._limited:
            if len(self._limited) >= NAMES:
                self._limited.clear()
            self._limited[name] = max(self._limited.get(name, now), now + ms / 1000)

    def _tell(self, *steps: Step) -> None:
        self._steps.extend(steps)
        self._news.set()

    async def run(self) -> None:
        """Tell how calls ended, at once, and again while Redis is away."""
        while True:
            await self._news.wait()
            self._news.clear()
            steps = list(self._steps)
            try:
                standings = await self._shared.take(steps)
            except Unreachable:
                self._news.set()
                await asyncio.sleep(_PAUSE_S)
                continue
            for step, standing in zip(steps, standings, strict=True):
                if self._steps and self._steps[0] is step:  # the oldest may have been forgotten meanwhile
                    self._steps.popleft()
                if step.what == "cool" and standing.wait_ms > step.ms + WAIT_BUDGET_S * 1000:
                    self._limited.pop(step.name, None)  # another worker knows of something worse
                self._keep(step.name, standing)

    # -- what is known

    def _is_limited(self, name: str) -> bool:
        """… or was until a moment ago: who waited comes a little after its end."""
        return name in self._limited and self._clock() <= self._limited[name] + WAIT_BUDGET_S

    def _stands(self, name: str) -> Standing:
        return self._known.get(name, (Standing("closed"), 0.0))[0]

    def _keep(self, name: str, standing: Standing) -> None:
        if len(self._known) >= NAMES and name not in self._known:
            self._known.clear()
        self._known[name] = (standing, self._clock())
        if standing.state == "closed" and not self._is_limited(name):
            self._limited.pop(name, None)  # that was before; what opens it now may be a failure

    def _left_s(self, name: str) -> float:
        standing, known_at = self._known.get(name, (Standing("closed"), 0.0))
        if standing.state != "open":
            return 0.0
        return max(0.0, known_at + standing.wait_ms / 1000 - self._clock())

    def _is_trial(self, name: str) -> bool:
        """One that is over by now has to be tried: nobody said that it is well again."""
        standing, _ = self._known.get(name, (Standing("closed"), 0.0))
        return standing.state == "trial" or (standing.state == "open" and self._left_s(name) <= 0)


def _about(ms: int) -> int:
    """Give or take a fifth: workers do not come back in step."""
    return round(ms * random.uniform(0.8, 1.2))
