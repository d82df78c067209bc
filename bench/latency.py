"""From arrivals to percentiles. Pure. Times are nanoseconds of the monotonic clock, which processes share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain


def percentile(ordered: Sequence[int], share: float) -> float:
    """Nearest rank of a sorted sequence, in milliseconds; not a number for none."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6


def stamps(arrivals: Sequence[int], texts: Sequence[str]) -> Iterator[tuple[int, int, bool]]:
    """(stamp, arrival, whether it is the first in its frame) of each token, in order.

    Every token is a stamp and a space. A frame may end within a token: that one arrives with its end.
    """
    rest = ""
    for arrival, text in zip(arrivals, texts, strict=True):
        whole, _, rest = (rest + text).rpartition(" ")
        is_first = True
        for stamp in whole.split():
            yield int(stamp), arrival, is_first
            is_first = False


class Delays:
    """How long tokens took that arrived in a window of time."""

    def __init__(self, began_ns: int, ended_ns: int) -> None:
        self._began, self._ended = began_ns, ended_ns
        #: Every token, from when it was made.
        self.tokens: list[int] = []
        #: The oldest token of each frame, from when it was made: what merging costs.
        self.frames: list[int] = []
        #: Every token, from when its schedule called for it (made, without one): a late worker cannot hide.
        self.due: list[int] = []
        #: Tokens that were due in the window and arrived within it.
        self.in_time = 0

    def add(self, arrivals: Sequence[int], texts: Sequence[str], gap_ns: float | None = None) -> None:
        """Take one viewer's frames. `gap_ns` is the schedule of a stream seen from its first token on."""
        began, ended = self._began, self._ended
        seen = list(stamps(arrivals, texts))
        start = min((stamp - index * gap_ns for index, (stamp, _, _) in enumerate(seen)), default=0) if gap_ns else 0
        for index, (stamp, arrival, is_first) in enumerate(seen):
            due = int(start + index * gap_ns) if gap_ns else stamp
            self.in_time += began <= due < ended and arrival < ended
            if began <= arrival < ended:
                self.tokens.append(arrival - stamp)
                self.due.append(arrival - due)
                if is_first:
                    self.frames.append(arrival - stamp)

    def sort(self) -> Delays:
        for delays in (self.tokens, self.frames, self.due):
            delays.sort()
        return self


def count_between(series: Iterable[Sequence[int]], began_ns: int, ended_ns: int) -> int:
    """How many of all arrivals lie in a window of time."""
    return sum(began_ns <= arrival < ended_ns for arrival in chain.from_iterable(series))
