"""How long things took, from histories and strikes: takeovers, dead hubs, resumes. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.history import Answered, Asked, Lost, Opened, Piece, Seen, Watch
from tests.chaos.striker import Strike

#: The last entry of a killed worker may be seen this long before or after the kill.
_BEFORE_S, _AFTER_S = 0.6, 0.6
#: A takeover is not quicker: the lease has to run out.
_SHORTEST_S = 1.0
#: A viewer sees its hub die within this time of the kill.
_NOTICED_S = 1.0


@dataclass
class Spread:
    """Durations in seconds; `calm` are those during which nothing else struck what they need."""

    calm: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)

    def add(self, seconds: float, is_calm: bool) -> None:
        self.all.append(seconds)
        if is_calm:
            self.calm.append(seconds)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of all do not exceed; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, int(share * len(ordered) + 0.9999) - 1))]


class Timings:
    """Takes watches; `takeovers`, `moves` and `resumes` are their durations."""

    def __init__(self, strikes: Sequence[Strike], workers: int) -> None:
        self._workers = workers
        self._strikes = sorted(strikes, key=lambda strike: strike.at)
        self._worker_kills = [strike for strike in self._strikes if strike.kind == "worker kill"]
        self._hub_kills = [strike for strike in self._strikes if strike.kind == "hub kill"]
        self._taken: dict[tuple[str, int], tuple[float, float]] = {}  # (stream, offset) → kill, seen
        self.moves = Spread()
        self.resumes = Spread()

    @property
    def takeovers(self) -> Spread:
        """One for each stream and attempt: the first of its viewers to see what came next."""
        spread = Spread()
        for killed_at, seen_at in self._taken.values():
            calm = self._is_calm(killed_at, seen_at, ("redis", "network worker-redis", "network hub-redis"))
            spread.add(seen_at - killed_at, calm and self._has_worker(killed_at, seen_at))
        return spread

    def add(self, watch: Watch) -> None:
        self._look_for_takeovers(watch)
        if watch.kind == "raw":
            self._look_for_moves(watch)

    def _look_for_takeovers(self, watch: Watch) -> None:
        last_at = None
        for event in watch.events:
            if not isinstance(event, Seen | Piece):
                continue
            is_next = isinstance(event, Seen) and (
                event.kind == "done" or (event.kind == "started" and (event.data or {}).get("attempt") != 1)
            )
            if is_next and last_at is not None and event.at - last_at > _SHORTEST_S:
                assert isinstance(event, Seen)
                kill = self._kill_near(last_at)
                if kill is not None:
                    key = (watch.stream, event.offset)
                    known = self._taken.get(key)
                    if known is None or event.at < known[1]:
                        self._taken[key] = (kill.at, event.at)
            last_at = event.at

    def _kill_near(self, at: float) -> Strike | None:
        index = bisect_left(self._worker_kills, at - _BEFORE_S, key=lambda strike: strike.at)
        if index < len(self._worker_kills) and self._worker_kills[index].at <= at + _AFTER_S:
            return self._worker_kills[index]
        return None

    def _look_for_moves(self, watch: Watch) -> None:
        hub, lost, killed = -1, None, None
        has_followed = False
        for event in watch.events:
            if isinstance(event, Opened):
                hub = event.hub
            elif isinstance(event, Lost):
                if lost is None and has_followed and event.code >= 0:
                    lost = event
                    killed = self._hub_kill(hub, event)
            elif isinstance(event, Answered) and event.is_asked:
                has_followed = True
                if lost is not None:
                    calm = self._is_calm(lost.at, event.at, ("redis", "hub", "network"), besides=killed)
                    self.resumes.add(event.at - lost.at, calm)
                    if killed is not None:
                        self.moves.add(event.at - killed.at, calm)
                lost = killed = None
            elif isinstance(event, Asked) and lost is not None and event.verb == "generate":
                lost = killed = None

    def _hub_kill(self, hub: int, lost: Lost) -> Strike | None:
        if lost.own:
            return None
        for strike in self._hub_kills:
            if strike.whom == f"hub-{hub}" and strike.at - 0.1 <= lost.at <= strike.at + _NOTICED_S:
                return strike
        return None

    def _has_worker(self, start: float, end: float) -> bool:
        """Whether some worker was up at every moment of this time."""
        away = [strike for strike in self._strikes if strike.kind.startswith("worker ")]
        moments = [start, *(strike.at for strike in away if start <= strike.at <= end)]
        return all(
            len({strike.whom for strike in away if strike.at <= moment < strike.until}) < self._workers
            for moment in moments
        )

    def _is_calm(self, start: float, end: float, kinds: Iterable[str], besides: Strike | None = None) -> bool:
        """Whether no strike of these kinds, other than the one that began it, fell into this time."""
        for strike in self._strikes:
            if strike.at > end:
                break
            if strike is besides or strike.at <= start <= strike.at and besides is None:
                continue
            name = f"{strike.kind.split()[0]} {strike.whom}" if strike.kind.startswith("network") else strike.kind
            if strike.until >= start - 0.5 and strike.at < end and any(name.startswith(kind) for kind in kinds):
                if strike.kind.endswith("kill") and strike.at < start - 3:
                    continue  # `until` is when it was up again
                return False
        return True
