"""Takes tickets from the lanes, as long as there are free places; claims nothing itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from hub.broker.broker import LANES, Broker
from hub.broker.connections import BLOCK_MS, Unreachable
from hub.broker.keys import ALL_LANES, PREFETCH_LANE, TAKEOVER_LANE
from hub.broker.lanes import Ticket

log_ = structlog.get_logger(__name__)

#: Tickets of workers that died between taking and claiming are looked for this often, in seconds.
STRANDED_EVERY_S = 10.0
#: Whether anything may be prepared ahead is looked at this often, in seconds.
SPARE_EVERY_S = 0.25
#: Prefetches at a time in one worker, and of its places: a request never waits for one.
PREFETCHES = 4
PREFETCH_SHARE = 4
_PAUSE_S = 0.5
_URGENT = (TAKEOVER_LANE, *LANES)


class Intake:
    """Places for generations. The last free one is for takeovers, so that they never wait behind new requests."""

    def __init__(self, broker: Broker, consumer: str, places: int, serve: Callable[[Ticket], None]) -> None:
        """`serve` is called with every ticket, whose place is taken until `release`."""
        self._broker = broker
        self._consumer = consumer
        self._free = places
        #: What prefetches leave free, for requests that come.
        self._spare = max(len(LANES), places // 2)
        self._prefetches = min(PREFETCHES, max(1, places // PREFETCH_SHARE))
        self._prefetching = 0
        self._serve = serve
        self._changed = asyncio.Event()
        self._stopped = False

    def release(self, ticket: Ticket) -> None:
        """A ticket's place is free again."""
        self._free += 1
        self._prefetching -= ticket.lane == PREFETCH_LANE
        self._changed.set()

    def stop(self) -> None:
        """Let `take` return, within a second: a read that were cut off might have brought a ticket already."""
        self._stopped = True
        self._changed.set()

    async def take(self) -> None:
        """Hand out tickets until `stop`. Redis out of reach is waited for."""
        blocking = self._broker.connections.blocking()
        is_reached = True
        while not self._stopped:
            lanes = _URGENT if self._free > len(LANES) else _URGENT[:1]
            if self._free < 1:
                self._changed.clear()
                await self._changed.wait()
                continue
            try:
                tickets = await self._broker.lanes.take(blocking, lanes, self._consumer, BLOCK_MS)
                is_reached = True
            except Unreachable as error:
                if is_reached:
                    log_.warning("redis out of reach, taking no requests", error=type(error).__name__)
                is_reached = False
                await asyncio.sleep(_PAUSE_S)
                continue
            self._hand_out(tickets)

    async def take_prefetches(self) -> None:
        """Take what may be prepared ahead while nothing else waits and most places are free, until cancelled."""
        while True:
            await asyncio.sleep(SPARE_EVERY_S)
            if self._stopped or self._prefetching >= self._prefetches or self._free - 1 <= self._spare:
                continue
            try:
                if not any((await self._broker.lanes.depths(_URGENT)).values()):
                    control = self._broker.connections.control
                    self._hand_out(await self._broker.lanes.take(control, [PREFETCH_LANE], self._consumer, None))
            except Unreachable:
                continue  # the intake says so

    async def take_stranded(self) -> None:
        """Look for stranded tickets until cancelled."""
        while True:
            await asyncio.sleep(STRANDED_EVERY_S)
            for lane in ALL_LANES:
                if self._free > len(LANES):
                    try:
                        self._hand_out(await self._broker.lanes.stranded(lane, self._consumer))
                    except Unreachable:
                        break

    def _hand_out(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            self._free -= 1
            self._prefetching += ticket.lane == PREFETCH_LANE
            self._serve(ticket)
