"""Generations that keep losing their workers wait for each other: one of them may be what kills them.

Most are innocent neighbours, and a worker that carried a thousand must not make all of them wait for each other. So
whoever went on between two losses is free, whoever did not is watched until it speaks, and whoever was lost again
and again is watched to its end; neither for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, Literal

from hub.broker.keys import StreamKey

#: Lost this often, and nothing came of the last attempt.
BARREN_LOSSES: Final = 2
#: Lost this often, whatever came of it. Below what the janitor gives up at.
GRAVE_LOSSES: Final = 3
#: Nobody is watched for longer, in seconds: a provider that stalls says nothing either.
WATCH_S: Final = 60.0
#: A suspect waits here so long, in seconds, before another worker may have it.
WAIT_S: Final = 1.0
_LOOK_S: Final = 0.1

Suspicion = Literal["none", "until it speaks", "to its end"]


def suspicion(facts: Mapping[str, str]) -> Suspicion:
    """What `losses`, `barren` and `owner` in meta say of a generation that is to be taken over.

    The loss that this takeover is about is counted by its claim, so an owner counts as one more.
    """
    losses = int(facts["losses"]) + (facts["owner"] != "")
    if losses >= GRAVE_LOSSES:
        return "to its end"
    return "until it speaks" if losses >= BARREN_LOSSES and int(facts["barren"]) > 0 else "none"


class Quarantine:
    """One per worker. `has_spoken` tells whether a generation that runs here has begun to show content."""

    def __init__(self, has_spoken: Callable[[StreamKey], bool]) -> None:
        self._has_spoken = has_spoken
        self._place = asyncio.Lock()

    @asynccontextmanager
    async def turn(self, key: StreamKey, suspicion: Suspicion) -> AsyncIterator[bool]:
        """Wait until no other suspect is watched here; False if that takes too long. Others wait meanwhile, until
        this one ends or is cleared.
        """
        if suspicion == "none":
            yield True
            return
        try:
            async with asyncio.timeout(WAIT_S):
                await self._place.acquire()
        except TimeoutError:
            yield False
            return
        clearing = asyncio.create_task(self._clear(key, suspicion))
        clearing.add_done_callback(lambda _: self._place.release())
        try:
            yield True
        finally:
            clearing.cancel()
            await asyncio.wait([clearing])

    async def _clear(self, key: StreamKey, suspicion: Suspicion) -> None:
        for _ in range(round(WATCH_S / _LOOK_S)):
            await asyncio.sleep(_LOOK_S)
            if suspicion == "until it speaks" and self._has_spoken(key):
                return
