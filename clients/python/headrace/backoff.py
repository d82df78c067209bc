"""How long to wait before the next connection: full jitter (docs/protocol.md §8).

Pure: chance and time are arguments.
"""

from __future__ import annotations

from typing import Final

#: The first delay is drawn from 0 to this many seconds, and doubles with every attempt …
BASE_S: Final = 0.5
#: … up to here.
LIMIT_S: Final = 20.0
#: A connection that lasted this many seconds counts as stable: the next delay starts over.
STABLE_S: Final = 10.0


def jitter(attempt: int, chance: float) -> float:
    """Seconds to wait before `attempt` (from 0), for a `chance` drawn from [0, 1): full jitter."""
    if attempt > 16:  # far past the limit: do not build huge numbers for a hub that is away for days
        return chance * LIMIT_S
    return chance * min(LIMIT_S, BASE_S * 2.0**attempt)


class Backoff:
    """Counts attempts since the last stable connection.

    A planned close (4000 to 4099) needs no rule of its own: after a stable connection the delay is at most
    half a second, and a hub that keeps closing young connections is called less and less often.
    """

    __slots__ = ("_opened_at", "attempts")

    def __init__(self) -> None:
        self.attempts = 0
        self._opened_at: float | None = None

    def opened(self, now: float) -> None:
        """A hub said `welcome`."""
        self._opened_at = now

    def is_stable(self, now: float) -> bool:
        """Whether the connection has lasted long enough to start over."""
        return self._opened_at is not None and now - self._opened_at >= STABLE_S

    def delay(self, now: float, chance: float, after_s: float = 0.0) -> float:
        """Seconds to wait before the next attempt, which is counted.

        `after_s`, what a hub asked for, lengthens the delay and never shortens it: it is added, so that
        clients that were told the same time still come back spread out.
        """
        if self.is_stable(now):
            self.attempts = 0
        self._opened_at = None
        seconds = jitter(self.attempts, chance) + max(0.0, after_s)
        self.attempts += 1
        return seconds
