"""Who is asked next when a provider fails: the rules of failover for one generation (protocol §5).

Pure: no I/O, time is an argument. Before the first content a failover is silent; after it, viewers have seen text
that another model did not write, and the policy of the tier says what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

from workers.catalog import AfterContent

Fault = Literal[
    "unreachable", "connect_timeout", "headers_timeout", "silent", "idle", "broken", "truncated", "malformed",
    "server", "overloaded", "rate_limited", "quota", "credential", "absent", "context", "blocked", "request", "busy",
    "code",
]  # fmt: skip
How = Literal["begin", "splice", "continue", "restart", "read_on"]
#: What viewers have of the answer: nothing, plain text alone, other content too, or a tool that ran for it.
Shown = Literal["nothing", "text", "mixed", "tool"]

#: Provider calls for one generation in one worker, whatever happens.
MAX_CALLS: Final = 6
#: The longest wait for a provider that named one, when there is nobody else to ask, and for all waits together.
WAIT_BUDGET_S: Final = 2.0
#: The pause before the same provider is asked once more: enough for a balancer to drop the process that broke. Whoever
#: waits adds as much again by chance, so that the calls which a crash cut together do not come back together.
QUICK_RETRY_S: Final = 0.05

#: A fault of this one call: the next to the same provider may well succeed.
_PASSING: Final = frozenset[Fault]({"broken", "server"})
#: After content also an end that came too early.
_PASSING_LATE: Final = frozenset[Fault]({"broken", "server", "truncated", "malformed"})
#: Another provider would refuse as well, or must not be asked behind the first one's back.
FINAL: Final = frozenset[Fault]({"blocked", "request"})


class Candidate(msgspec.Struct, frozen=True):
    """One that may be asked."""

    provider: str
    model: str
    context: int | None = None
    """Tokens that it takes; None: unknown."""

    @property
    def name(self) -> str:
        return f"{self.provider}/{self.model}"


class Ask(msgspec.Struct, frozen=True):
    """Ask `candidate`, after `after_s` seconds."""

    candidate: Candidate
    how: How
    after_s: float = 0.0


class Chain:
    """The candidates of one generation, in order, and what became of them. `open_for` tells how long a breaker
    keeps a candidate out, in seconds; 0: it may be asked.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        after_content: Sequence[AfterContent],
        open_for: Callable[[Candidate], float] = lambda _: 0.0,
    ) -> None:
        self._candidates = list(candidates)
        self._policy = tuple(after_content)
        self._open_for = open_for
        self._tried: list[Candidate] = []
        self._repeated: set[Candidate] = set()
        self._spared: set[Candidate] = set()
        self._waited_s = 0.0
        self.current: Candidate | None = None

    @property
    def calls(self) -> int:
        return len(self._tried)

    def begin(self) -> Ask | None:
        """The first to ask; None if breakers keep all of them out."""
        return self._next("begin", None)

    def read_on(self, candidate: Candidate) -> Ask:
        """Read what `candidate` still writes for a lost worker, before anybody is asked."""
        self.current = candidate
        return Ask(candidate, "read_on")

    def failed(self, fault: Fault, shown: Shown, *, after_s: float | None = None) -> Ask | None:
        """What to do about a fault of `current`; None: nothing, the answer ends here. `after_s` is the wait that
        the provider named.
        """
        assert self.current is not None
        if fault in FINAL or len(self._tried) >= MAX_CALLS:
            return None
        if shown == "nothing":
            return self._before_content(fault, after_s)
        how = self.way(shown)
        return None if how is None else self._after_content(fault, how)

    def diverged(self) -> How | None:
        """The splice found another text. `restart`: the answer that is running is the new one; `continue`: ask for
        the rest; None: the answer ends here.
        """
        policy = self._policy[self._policy.index("splice") + 1 :]
        return self._way("text", policy)

    def alongside(self) -> Ask | None:
        """Another to ask beside `current`, which has shown nothing yet; None if there is nobody."""
        current = self.current
        ask = self._next("begin", None) if len(self._tried) < MAX_CALLS else None
        self.current = current
        return ask

    def settle(self, candidate: Candidate) -> None:
        """Of two that were asked side by side `candidate` is the one whose end counts."""
        self.current = candidate

    def spare(self, candidate: Candidate) -> None:
        """It was cut off without a fault of its own, or not asked after all: it may be asked again."""
        self._spared.add(candidate)

    def way(self, shown: Shown) -> How | None:
        """How the policy goes on from what was shown; None: it does not."""
        return self._way(shown, self._policy)

    def _before_content(self, fault: Fault, after_s: float | None) -> Ask | None:
        current = self.current
        assert current is not None
        if fault in _PASSING and current not in self._repeated:
            self._repeated.add(current)
            return self._ask(current, "begin", QUICK_RETRY_S)
        if fault == "context":
            return self._next("begin", current.context)
        following = self._next("begin", None)
        if following is not None or fault != "rate_limited" or after_s is None:
            return following
        self._waited_s += after_s
        return self._ask(current, "begin", after_s) if self._waited_s <= WAIT_BUDGET_S else None

    def _after_content(self, fault: Fault, how: How) -> Ask | None:
        current = self.current
        assert current is not None
        if fault in _PASSING_LATE and current not in self._repeated and self._open_for(current) <= 0:
            self._repeated.add(current)
            return self._ask(current, how, QUICK_RETRY_S)
        return self._next(how, None)

    def _way(self, shown: Shown, policy: Sequence[AfterContent]) -> How | None:
        """The first way of the policy that is open for what was shown. A tool that ran is not run again."""
        for way in policy:
            if way == "error" or shown == "tool":
                return None
            if way == "restart" or shown == "text":
                return way
        return None

    def _next(self, how: How, larger_than: int | None) -> Ask | None:
        for candidate in self._candidates:
            if (candidate in self._tried and candidate not in self._spared) or self._open_for(candidate) > 0:
                continue
            if larger_than is not None and (candidate.context is None or candidate.context <= larger_than):
                continue
            return self._ask(candidate, how)
        return None

    def _ask(self, candidate: Candidate, how: How, after_s: float = 0.0) -> Ask:
        self.current = candidate
        self._tried.append(candidate)
        self._spared.discard(candidate)
        return Ask(candidate, how, after_s)
