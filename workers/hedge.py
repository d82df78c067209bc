"""Asking a second provider while the first is silent: when it is worth it, how often, and which of the two goes on.

Pure: no I/O, times are arguments. Only before the first content, only where a tier asks for it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, Literal

from workers.chain import FINAL, Fault

#: Seconds of silence after which the second is asked; `p95`: as long as 19 of 20 answers of the first take.
HedgeAfter = float | Literal["p95"]

#: Of all answers that may be hedged, at most this share is …
SHARE: Final = 0.05
#: … over time: what quiet hours saved up, at most. A worker starts with one.
SAVED: Final = 10.0
#: `p95` is never less: below it a hedge wins nothing that a person would notice.
LEAST_S: Final = 1.5
#: … and is not known before so many answers.
KNOWN: Final = 20
#: Times remembered of each model, and models.
TIMES: Final = 200
MODELS: Final = 200


class Hedging:
    """What one worker knows about silence, and what it may spend. Bounds: TIMES of each of MODELS."""

    def __init__(self) -> None:
        self._saved = 1.0
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def heard(self, model: str, seconds: float) -> None:
        """A call of `model` showed its first content after so long; or had shown nothing by then, and was cut off."""
        times = self._times.setdefault(model, deque(maxlen=TIMES))
        self._times.move_to_end(model)
        if len(self._times) > MODELS:
            self._times.popitem(last=False)
        times.append(seconds)

    def begin(self, rule: HedgeAfter, model: str) -> float | None:
        """An answer begins that may be hedged: after how many seconds of silence; None: not this one."""
        self._saved = min(SAVED, self._saved + SHARE)
        if rule != "p95":
            return rule
        times = sorted(self._times.get(model, ()))
        return max(LEAST_S, times[int(len(times) * 0.95)]) if len(times) >= KNOWN else None

    def spend(self) -> bool:
        """A second call is about to be made: whether there may be one more."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


class Race:
    """Two calls for one answer, 0 and 1. The first to show content goes on; the other is to be cut off."""

    def __init__(self) -> None:
        self._failed: set[int] = set()
        #: How many run or ran.
        self.calls = 1
        #: The call whose end is the answer's, once that is decided.
        self.settled: int | None = None

    def join(self) -> int:
        """The second call begins: its number."""
        self.calls = 2
        return 1

    def shows(self, call: int) -> bool:
        """`call` has content: whether it is the one that goes on."""
        if self.settled is None:
            self.settled = call
        return self.settled == call

    def fails(self, call: int, fault: Fault) -> None:
        """`call` failed with nothing to show. The other goes on alone, unless nobody may answer in its place."""
        self._failed.add(call)
        if self.settled is None and (fault in FINAL or len(self._failed) == self.calls):
            self.settled = call

    def has_failed(self, call: int) -> bool:
        return call in self._failed

    def ends(self, call: int) -> None:
        """`call` is over in another way than these: that is how the answer ends."""
        if self.settled is None:
            self.settled = call
