"""How long a provider may take: five clocks for one request, kept as timestamps and one timer.

A read costs two looks at the clock and no timer of its own: the timer fires when the earliest of the clocks could be
over, looks whether it is, and sleeps on if it is not. Time in which nobody reads (viewers take no more for now)
counts for none of the clocks: all of them go by one that stands still meanwhile.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Literal, Self

from workers.catalog import Clocks

#: While nobody reads, the timer looks again no sooner than this.
_LOOK_S = 0.1

Phase = Literal["headers", "first_content", "idle", "idle_content", "total"]


class Expired(Exception):
    """One of the clocks is over; `after_s` is what it allowed."""

    def __init__(self, phase: Phase, after_s: float) -> None:
        super().__init__(phase)
        self.phase: Phase = phase
        self.after_s = after_s


class Watchdog:
    """Use as `with`, from the request on, in the task that reads; raises Expired out of whatever is awaited there.

    Between `pause` and `resume` nothing is cut off.
    """

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._timer: asyncio.TimerHandle | None = None
        self._expired: Expired | None = None
        #: Seconds in which nobody read, and since when nobody does.
        self._paused_s = 0.0
        self._paused_at: float | None = None
        self._begun_at = self._byte_at = self._content_at = 0.0
        self._has_headers = self._has_content = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._begun_at = self._loop.time()
        self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        expired, self._expired = self._expired, None
        if expired is None:
            return
        assert self._task is not None
        # Whatever the cut made of itself on its way here, unless somebody else cancels this task too.
        if self._task.uncancel() <= self._cancelling and kind is not None:
            raise expired from None

    def headers(self) -> None:
        """They came."""
        self._has_headers = True
        self._byte_at = self._content_at = self._reading_time()
        self._look()

    def read(self, *, content: bool, pause: bool = False) -> None:
        """Something came; `content` if it was part of the answer. `pause`: it is handed on before more is read."""
        now = self._loop.time()
        if pause:
            self._paused_at = now
        self._byte_at = now = now - self._paused_s
        if content:
            self._content_at = now
            if not self._has_content:
                self._has_content = True
                self._look()

    def pause(self) -> None:
        self._paused_at = self._loop.time()

    def resume(self) -> None:
        if self._paused_at is not None:
            self._paused_s += self._loop.time() - self._paused_at
            self._paused_at = None

    def _reading_time(self) -> float:
        return (self._loop.time() if self._paused_at is None else self._paused_at) - self._paused_s

    def _dues(self) -> list[tuple[float, Phase, float]]:
        clocks = self._clocks
        dues: list[tuple[float, Phase, float]] = [(self._begun_at + clocks.total_s, "total", clocks.total_s)]
        if not self._has_headers:
            dues.append((self._begun_at + clocks.headers_s, "headers", clocks.headers_s))
            return dues
        dues.append((self._content_at + clocks.idle_content_s, "idle_content", clocks.idle_content_s))
        if self._has_content:
            dues.append((self._byte_at + clocks.idle_s, "idle", clocks.idle_s))
        else:
            dues.append((self._byte_at + clocks.first_content_s, "first_content", clocks.first_content_s))
        return dues

    def _look(self) -> None:
        """Cut off what is over; otherwise look again when it could be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due, phase, after_s = min(self._dues())
        left_s = due - self._reading_time()
        if self._paused_at is not None:  # nothing is over while nobody reads
            left_s = max(left_s, _LOOK_S)
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
            return
        assert self._task is not None
        self._expired = Expired(phase, after_s)
        self._task.cancel()
