"""How providers fare, for whoever runs this installation and for its monitoring. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from hub.broker.health import Fare, Health, State

#: They ask nobody, so they cannot fail.
_OWN: Final = frozenset({"fallback", "scripted"})
#: Models that no catalog lists are told of together: their names are what users wrote.
OTHERS: Final = "others"
_LEVELS: Final[tuple[State, ...]] = ("down", "degraded", "healthy")


def described(health: Health) -> dict[str, Any]:
    """What `GET /v1/health/providers` answers. No key, no address, and no name that only a request brought."""
    return {
        "state": overall(health),
        "workers": health.workers,
        "providers": {name: _provider(health, name) for name in providers(health)},
        "without_key": sorted(name for name in health.keyless if name not in _OWN),
    }


def providers(health: Health) -> list[str]:
    """Those that can fail, and that some worker has a key for."""
    return sorted(name for name in health.providers if name not in _OWN)


def overall(health: Health) -> State:
    """Down: no model can answer, for want of workers, of keys, or of providers that work."""
    states = [health.state(name) for name in providers(health)]
    if not health.workers or all(state == "down" for state in states):
        return "down"
    return "degraded" if any(state != "healthy" for state in states) else "healthy"


def levels(health: Health) -> dict[str, int]:
    """The same as figures, for monitoring: 2 healthy, 1 degraded, 0 down."""
    return {name: _LEVELS.index(health.state(name)) for name in providers(health)}


def _provider(health: Health, name: str) -> dict[str, Any]:
    return {"state": health.state(name), "models": dict(_models(health, name))}


def _models(health: Health, provider: str) -> Iterator[tuple[str, dict[str, Any]]]:
    fares = health.telling(provider)
    for fare in fares:
        if health.lists(fare):
            yield fare.model, _fare(fare)
    others = [fare for fare in fares if not health.lists(fare)]
    if others:
        first, *more = others
        for fare in more:
            first = first.with_(fare)
        yield OTHERS, _fare(first)


def _fare(fare: Fare) -> dict[str, Any]:
    """`ttft_ms` are times to the first content; null where no call showed anything lately."""
    return {
        "state": fare.state,
        "asked": fare.asked,
        "failed": fare.failed,
        "ttft_ms": {"p50": fare.ttft(50), "p95": fare.ttft(95)},
        "open_s": round(fare.open_s, 1),
        "last_fault": fare.last_fault or None,
    }
