"""Whether anybody waits for a generation, how far ahead of them it may run, and when nobody is left (protocol §6)."""

from __future__ import annotations

from math import inf


class Attendance:
    """Pure: time is an argument, in seconds on one monotonic clock.

    Demand is absolute: the greatest offset that some viewer could take. A generation is *unattended* while no
    living hub holds demand above 0. The greatest demand ever stated stays the bound when it is withdrawn: what was
    asked for is still wanted by whoever comes back.
    """

    __slots__ = (
        "_after_s", "_lifted", "_peak", "_released", "_rule", "_run_ahead", "_watched", "bound", "unattended_since",
    )  # fmt: skip

    def __init__(self, on_abandon: str, after_s: float, run_ahead: int, now: float) -> None:
        self._rule = on_abandon
        self._after_s = after_s
        self._run_ahead = run_ahead
        self._peak = 0
        self._watched = False
        self._lifted = False
        self._released = False
        self.unattended_since: float | None = now
        #: The provider is read while the next offset does not exceed this.
        self.bound: float = 0
        self._set_bound()

    def override(self, on_abandon: str) -> None:
        """A detach replaced the option."""
        self._rule = on_abandon
        self._set_bound()

    def release(self) -> None:
        """Whoever watches is not the only one that waits: no bound any more. Whom nobody watches ends all the same."""
        self._released = True
        self._set_bound()

    def update(self, demand: int, watched: bool, now: float) -> None:
        """Take the greatest demand of all hubs, and whether any hub watches at all."""
        self._peak = max(self._peak, demand)
        self._watched = watched
        if demand > 0:
            self.unattended_since = None
        elif self.unattended_since is None:
            self.unattended_since = now
        self._set_bound()

    def is_abandoned(self, now: float) -> bool:
        """True when the run is to end. Under `continue` the bound is lifted instead, for good."""
        if self.unattended_since is None or now - self.unattended_since < self._after_s:
            return False
        self._lifted = True
        self._set_bound()
        return self._rule == "cancel"

    def _set_bound(self) -> None:
        is_free = self._released or (self._rule == "continue" and (self._lifted or not self._watched))
        self.bound = inf if is_free else self._peak + self._run_ahead
