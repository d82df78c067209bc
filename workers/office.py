"""What every generation of a worker asks by: its providers, and who watches over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from workers.chain import Candidate
from workers.hedge import Hedging
from workers.judging import Court
from workers.providers import ProviderError
from workers.providers.registry import Providers
from workers.run import Run
from workers.sharing import Sharing
from workers.tools.runner import ToolRunner
from workers.upstream import Remember
from workers.usage import UsageReporter


class Health(Protocol):
    """Who keeps the record of how providers fare."""

    def ended(self, candidate: Candidate, error: ProviderError | None, ttft_s: float | None) -> None:
        """A call ended: in order, or with `error`. Calls that were cut off by us are not told."""
        ...


class Breakers(Health, Protocol):
    """Who is kept out for now because it failed lately."""

    async def look(self, candidates: Sequence[Candidate]) -> None:
        """Learn how these stand, if that is not known from a moment ago."""
        ...

    def open_for(self, candidate: Candidate) -> float:
        """Seconds; 0: it may be asked."""
        ...

    def is_only_limited(self, candidate: Candidate) -> bool:
        """Whether it is a rate limit that keeps it out, or did until a moment ago, and nothing worse is known."""
        ...

    async def enter(self, candidate: Candidate, *, has_waited: bool = False) -> bool:
        """Whether it may be asked now: one that failed lately is tried by one request at a time. A rate limit is no
        such failure for a request that `has_waited` as long as the provider told it to: all of these are let in.
        """
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
    sharing: Sharing
    tools: ToolRunner
    remember: Remember
    hedging: Hedging = field(default_factory=Hedging)
    court: Court = field(default_factory=Court)
