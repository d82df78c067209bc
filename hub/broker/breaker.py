"""Breakers that all workers share: who failed lately is not asked for a while, then by one request at a time.

One hash per provider, model and credential; every change is one script, which judges by Redis' own clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from redis.asyncio import Redis

from hub.broker import keys
from hub.broker.log import SCRIPTS

#: Calls of the last half minute count …
WINDOW_MS: Final = 30_000
#: … and so many failures among them, if they are at least half, open the breaker …
FAILURES: Final = 5
#: … for so long; then one request at a time tries again, this often, until one succeeds.
OPEN_MS: Final = 10_000
TRIAL_MS: Final = 10_000
#: A breaker that nobody touched is forgotten after this.
TTL_MS: Final = 600_000

What = Literal["look", "enter", "ok", "bad", "cool"]


class Standing(msgspec.Struct, frozen=True):
    """`trial`: the next to `enter` may try. `open`: for `wait_ms` more."""

    state: Literal["closed", "open", "trial"]
    wait_ms: int = 0


class Step(msgspec.Struct, frozen=True):
    """Something to do with one breaker. `ms`: how long `bad` opens it, and `cool` at least."""

    name: str
    what: What
    ms: int = OPEN_MS


def name_of(provider: str, model: str, credential: str) -> str:
    """Without a model: what concerns the credential as a whole."""
    return f"{provider}/{model}/{credential}"


class SharedBreakers:
    """Raises `Unreachable` when Redis does not serve a call."""

    def __init__(self, redis: Redis) -> None:
        self._run: Any = redis.register_script(SCRIPTS["breaker"])
        self._redis = redis

    async def take(self, steps: Sequence[Step]) -> list[Standing]:
        """Do all steps, each on its own, in one round trip; how each breaker stands after it."""
        pipeline = self._redis.pipeline(transaction=False)
        for step in steps:
            arguments = [step.what, step.ms, WINDOW_MS, FAILURES, TRIAL_MS, TTL_MS]
            await self._run(keys=[keys.breaker(step.name)], args=arguments, client=pipeline)
        return [Standing(state.decode(), int(wait)) for state, wait in await pipeline.execute()]
