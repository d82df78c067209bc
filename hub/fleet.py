"""What the workers of this installation can do, as they say it themselves: for admission, lists and health."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final, Protocol

from hub.admission import SHIPPED, SHIPPED_PROVIDERS, Choices
from hub.broker.connections import Unreachable
from hub.broker.health import Health

#: The board is read this often, in seconds …
EVERY_S: Final = 2.0
#: … and within this time, or not now.
DEADLINE_S: Final = 1.0
#: What was read is believed for so long.
FRESH_S: Final = 6.0
#: Who asks for what is not known has it looked up, but all together no more often than this.
AGAIN_S: Final = 0.25
#: The provider of tests and demonstrations: for open hubs, and where it is allowed by name.
_SCRIPTED: Final = "scripted"


class OutOfSight(Exception):
    """Redis does not answer, so nobody knows how the workers are."""


class Board(Protocol):
    async def read(self) -> Health: ...


class Fleet:
    """One per hub. `run` until cancelled; before the first report the shipped catalog's names are allowed.

    What was known last stays allowed while no worker is there: requests wait for one in their lane.
    """

    def __init__(
        self, board: Board, allowed: frozenset[str], *, is_open: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`allowed` are the only providers that requests may name; none: all that workers have."""
        self._board = board
        self._allowed = allowed
        self._is_open = is_open
        self._clock = clock
        self._reading = asyncio.Lock()
        self._read_at = self._tried_at = float("-inf")
        self._health = Health(0, [], [], [])
        self.choices = self._choices()

    async def run(self) -> None:
        """Read the board every few seconds; Redis out of reach is waited out."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Read the board once from now on, for all who wait for it. Failing is no error; `is_blind` may tell."""
        asked_at = self._clock()
        async with self._reading:
            if self._tried_at > asked_at:
                return
            await asyncio.sleep(self._tried_at + AGAIN_S - self._clock())
            self._tried_at = self._clock()
            with contextlib.suppress(*Unreachable, TimeoutError):
                async with asyncio.timeout(DEADLINE_S):
                    health = await self._board.read()
                self._read_at = self._clock()
                self._health = health
                if health.workers:
                    self.choices = self._choices()

    @property
    def health(self) -> Health:
        """What was read last. Raises OutOfSight if that is too long ago."""
        if self._clock() - self._read_at > FRESH_S:
            raise OutOfSight
        return self._health

    @property
    def is_blind(self) -> bool:
        """Whether the board was never read."""
        return self._read_at == float("-inf")

    @property
    def last_seen(self) -> Health:
        """What was read last, however long ago."""
        return self._health

    @property
    def models(self) -> list[str]:
        """Tiers and complexities, then the concrete models that somebody has a key for: what a list shows."""
        choices = self.choices
        named = dict.fromkeys([*choices.tiers, *self._health.models])
        return [name for name in named if choices.allows(name)]

    def _choices(self) -> Choices:
        health = self._health
        providers = self._allowed or (SHIPPED_PROVIDERS | {*health.providers, *health.keyless}) - {_SCRIPTED}
        tiers = dict.fromkeys([*SHIPPED, *(name for name in health.models if "/" not in name)])
        return Choices(providers | ({_SCRIPTED} if self._is_open else frozenset()), tuple(tiers))
