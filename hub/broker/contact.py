"""Since when Redis has answered without a break: whether a lease that is over means that its owner is gone. Pure.

After an outage every lease looks over until its owner gets through again, and so it does when Redis' clock jumps
(a failover to a machine that is ahead, an operator). Both are seen here, by whoever asks Redis regularly.
"""

from __future__ import annotations


class Contact:
    """Told of every answer. Times of Redis in ms, own ones in monotonic seconds."""

    def __init__(self, gap_s: float) -> None:
        """`gap_s`: a longer silence, and a jump by more of either clock, is a break."""
        self._gap_s = gap_s
        self._last: tuple[int, float] | None = None
        #: The first answer after the last break, by Redis' clock.
        self.since_ms = 0

    def heard(self, redis_ms: int, now: float) -> None:
        if self._last is not None:
            passed_s, by_redis_s = now - self._last[1], (redis_ms - self._last[0]) / 1000
            if passed_s > self._gap_s or abs(by_redis_s - passed_s) > self._gap_s:
                self._last = None
        if self._last is None:
            self.since_ms = redis_ms
        self._last = redis_ms, now

    def lost(self) -> None:
        """Redis did not answer."""
        self._last = None
