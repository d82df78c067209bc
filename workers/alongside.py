"""The second call of an answer whose first is silent: whether it is made, of whom, and what became of the two."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from hub.broker.keys import StreamKey
from workers.chain import Ask, Candidate, Chain
from workers.contest import Contender, contest
from workers.hedge import HedgeAfter
from workers.office import Office
from workers.providers import ProviderError

log_ = structlog.get_logger(__name__)


class Alongside:
    """Of one answer. `rule` is its tier's; None: nothing is hedged."""

    def __init__(self, stream: StreamKey, rule: HedgeAfter | None, chain: Chain, office: Office) -> None:
        self._stream = stream
        self._rule = rule
        self._chain = chain
        self._office = office

    def after_s(self, ask: Ask) -> float | None:
        """After how many seconds of silence another is asked beside `ask`; None: never. Once for an answer: only the
        first call is hedged, and only one that begins it.
        """
        rule, self._rule = self._rule, None
        if rule is None or ask.how != "begin" or not self._ends_when_cut(ask.candidate):
            return None
        return self._office.hedging.begin(rule, ask.candidate.name)

    async def asked(
        self, ask: Ask, after_s: float, call: Callable[[Contender], Awaitable[ProviderError | None]]
    ) -> tuple[Ask, ProviderError | None]:
        """Both calls, to the end of the one that goes on: which that was, and how it failed. Raises what it raises."""
        outcome = await contest(ask, after_s, call, self._beside)
        self._chain.settle(outcome.ask.candidate)
        if outcome.spared is not None:
            self._chain.spare(outcome.spared.candidate)
        return outcome.ask, outcome.error

    async def _beside(self) -> Ask | None:
        """Whom to ask beside the one that is silent."""
        ask = self._chain.alongside()
        if ask is None:
            return None
        second, office = ask.candidate, self._office
        if self._ends_when_cut(second) and office.hedging.spend() and await office.breakers.enter(second):
            log_.info("a provider is silent, another is asked too", stream=self._stream, provider=second.name)
            return ask
        self._chain.spare(second)
        return None

    def _ends_when_cut(self, candidate: Candidate) -> bool:
        """Whether closing its socket is all that it takes to end a call, and to end its bill."""
        entry = self._office.providers.catalog.providers.get(candidate.provider)
        return entry is not None and not entry.background
