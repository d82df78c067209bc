"""How providers fare, as the workers that ask them see it: nobody asks a provider only to find out.

Each worker writes one report under its name every few seconds; whoever reads puts them together. Times are Redis'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import msgspec
from redis.asyncio import Redis

from hub.broker import keys

#: Workers report this often, in seconds …
EVERY_S: Final = 5.0
#: … and a report is believed for so long.
FRESH_MS: Final = 20_000
#: A model of which so many of a hundred calls failed lately is degraded.
DEGRADED_PERCENT: Final = 20

State = Literal["healthy", "degraded", "down"]


class Fare(msgspec.Struct, frozen=True, omit_defaults=True):
    """How calls of one model ended lately, in one worker or in all. `open_s`: kept out by its breaker for so long."""

    provider: str
    model: str
    asked: int = 0
    failed: int = 0
    open_s: float = 0.0
    ttft_ms: tuple[int, ...] = ()
    """Time to the first content of the last calls, at most TTFTS a worker."""
    last_fault: str = ""

    @property
    def state(self) -> State:
        if self.open_s > 0:
            return "down"
        return "degraded" if self.failed * 100 > self.asked * DEGRADED_PERCENT else "healthy"

    def ttft(self, percent: int) -> int | None:
        """A percentile, in ms; None: no call showed anything lately."""
        ordered = sorted(self.ttft_ms)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else None

    def with_(self, other: Fare) -> Fare:
        """Both together, under this one's name. The worse of two breakers counts."""
        return Fare(
            self.provider,
            self.model,
            self.asked + other.asked,
            self.failed + other.failed,
            max(self.open_s, other.open_s),
            self.ttft_ms + other.ttft_ms,
            self.last_fault or other.last_fault,
        )


#: Of the last calls of a model, in one worker's report.
TTFTS: Final = 50


class Report(msgspec.Struct, frozen=True):
    """One worker's. `models`: what may be asked of it by name; `providers`: those with a key."""

    worker: str
    at_ms: int
    models: list[str]
    providers: list[str]
    fares: list[Fare]
    keyless: list[str] = []
    """Providers of its catalog without a key."""
    tools: list[str] = []
    """Tools that it runs."""


class Health(msgspec.Struct, frozen=True):
    """All workers together."""

    workers: int
    models: list[str]
    providers: list[str]
    fares: list[Fare]
    keyless: list[str] = []
    """Providers that some catalog names and nobody has a key for."""
    tools: list[str] = []
    """Tools that some worker runs, in order."""

    def lists(self, fare: Fare) -> bool:
        """Whether a catalog names its model. Any other name is one that somebody wrote into a request."""
        return f"{fare.provider}/{fare.model}" in self.models

    def telling(self, provider: str) -> list[Fare]:
        """What says something about a provider: that it does not know a name that somebody made up does not."""
        return [
            fare
            for fare in self.fares
            if fare.provider == provider and (fare.last_fault != "absent" or self.lists(fare))
        ]

    def state(self, provider: str) -> State:
        """Of all its models: down if all that were asked lately are, degraded if any is not healthy."""
        states = [fare.state for fare in self.telling(provider)]
        if states and all(state == "down" for state in states):
            return "down"
        return "degraded" if any(state != "healthy" for state in states) else "healthy"


class ProviderBoard:
    """Raises `Unreachable` when Redis does not serve a call."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    async def now_ms(self) -> int:
        seconds, micros = await self._redis.time()
        return int(seconds * 1000 + micros // 1000)

    async def publish(
        self,
        worker: str,
        models: Sequence[str],
        providers: Sequence[str],
        fares: Sequence[Fare],
        keyless: Sequence[str] = (),
        tools: Sequence[str] = (),
    ) -> None:
        """Replace this worker's report."""
        report = Report(
            worker, await self.now_ms(), list(models), list(providers), list(fares), list(keyless), list(tools)
        )
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hset(keys.providers(), worker, msgspec.msgpack.encode(report))
        pipeline.pexpire(keys.providers(), FRESH_MS)
        await pipeline.execute()

    async def forget(self, worker: str) -> None:
        await self._redis.hdel(keys.providers(), worker)

    async def read(self) -> Health:
        """What is fresh. Reports of workers that are gone are taken away."""
        now = await self.now_ms()
        reports: list[Report] = []
        old: list[bytes] = []
        for name, data in (await self._redis.hgetall(keys.providers())).items():
            try:
                report = msgspec.msgpack.decode(data, type=Report)
            except msgspec.DecodeError:  # of another version
                continue
            if now - report.at_ms <= FRESH_MS:
                reports.append(report)
            else:
                old.append(name)
        if old:
            await self._redis.hdel(keys.providers(), *old)
        return merged(reports)


def merged(reports: Iterable[Report]) -> Health:
    """Put together what each worker saw. Pure."""
    models: dict[str, None] = {}
    providers: dict[str, None] = {}
    keyless: dict[str, None] = {}
    fares: dict[tuple[str, str], Fare] = {}
    tools: set[str] = set()
    count = 0
    for report in sorted(reports, key=lambda report: report.worker):
        count += 1
        models |= dict.fromkeys(report.models)
        providers |= dict.fromkeys(report.providers)
        keyless |= dict.fromkeys(report.keyless)
        tools |= set(report.tools)
        for fare in report.fares:
            former = fares.get((fare.provider, fare.model))
            fares[fare.provider, fare.model] = fare if former is None else former.with_(fare)
    lacking = [name for name in keyless if name not in providers]
    return Health(count, list(models), list(providers), list(fares.values()), lacking, sorted(tools))
