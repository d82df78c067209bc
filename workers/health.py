"""How the calls of this worker ended lately, model by model, told to the others every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from redis.asyncio import Redis

from hub.broker.connections import Unreachable
from hub.broker.health import EVERY_S, TTFTS, Fare, ProviderBoard
from workers.chain import Candidate
from workers.providers import ProviderError
from workers.providers.registry import Providers

#: Calls older than this say nothing about now.
LATELY_S = 300.0
#: Calls remembered of each model, and models; beyond it the oldest are forgotten.
CALLS = 200
MODELS = 200

#: Faults of the one who asked: they say nothing about the provider.
_NEUTRAL = frozenset({"context", "blocked", "request", "busy"})


class HealthReporter:
    """One per worker. `run` until cancelled, then `forget`."""

    def __init__(
        self,
        redis: Redis,
        providers: Providers,
        open_for: Callable[[Candidate], float],
        *,
        name: str,
        clock: Callable[[], float],
        tools: Sequence[str] = (),
    ) -> None:
        self._board = ProviderBoard(redis)
        self._providers = providers
        self._open_for = open_for
        self._name = name
        self._tools = tools
        self._clock = clock
        self._calls: OrderedDict[Candidate, deque[tuple[float, str, float | None]]] = OrderedDict()

    def ended(self, candidate: Candidate, error: ProviderError | None, ttft_s: float | None) -> None:
        """A call ended: in order, or with `error`."""
        if error is not None and error.fault in _NEUTRAL:
            return
        calls = self._calls.setdefault(candidate, deque(maxlen=CALLS))
        self._calls.move_to_end(candidate)
        if len(self._calls) > MODELS:
            self._calls.popitem(last=False)
        calls.append((self._clock(), "" if error is None else error.fault, ttft_s))

    def fares(self) -> list[Fare]:
        since = self._clock() - LATELY_S
        fares = []
        for candidate, calls in self._calls.items():
            while calls and calls[0][0] < since:
                calls.popleft()
            faults = [fault for _, fault, _ in calls if fault]
            ttfts = [round(ttft_s * 1000) for _, _, ttft_s in calls if ttft_s is not None]
            open_s = self._open_for(candidate)
            if calls or open_s:
                fares.append(
                    Fare(
                        candidate.provider,
                        candidate.model,
                        len(calls),
                        len(faults),
                        open_s,
                        tuple(ttfts[-TTFTS:]),
                        faults[-1] if faults else "",
                    )  # fmt: skip
                )
        return fares

    async def run(self) -> None:
        """Report now, and then every few seconds; Redis out of reach is waited out."""
        while True:
            with contextlib.suppress(*Unreachable):
                await self._board.publish(
                    self._name,
                    list(self._providers.models()),
                    sorted(self._providers.available),
                    self.fares(),
                    self._providers.keyless,
                    self._tools,
                )
            await asyncio.sleep(EVERY_S)

    async def forget(self) -> None:
        """Leave. Raises `Unreachable`."""
        await self._board.forget(self._name)
