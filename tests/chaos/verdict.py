"""What a checker finds: violations, each naming its rule, and sums."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rules:
    """What may be expected of a run."""

    #: Redis may lose what it acknowledged: then viewers may be told so. Otherwise telling them is a violation.
    loses_writes: bool = False
    #: Content may follow this long after a cancel was answered: a worker may be dying just then.
    cancel_s: float = 15.0


@dataclass(frozen=True, order=True)
class Violation:
    rule: str
    stream: str
    viewer: str
    at: float
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.stream or 'a request'} seen by {self.viewer} at {self.at:.3f} s: {self.what}"


@dataclass
class Verdict:
    """Adds up; `violations` holds at most `LIMIT`, `broken` counts all of them by rule."""

    LIMIT = 200

    violations: list[Violation] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)

    def add(self, rule: str, stream: str, viewer: str, at: float, what: str) -> None:
        self.broken[rule] += 1
        if len(self.violations) < self.LIMIT:
            self.violations.append(Violation(rule, stream, viewer, at, what))

    @property
    def is_clean(self) -> bool:
        return not self.broken
