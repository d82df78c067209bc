"""Entries from the log for viewers that are behind what their hub holds.

While a stream fits what a hub holds of it, one read brings all that is missing, for all viewers who wait: many that
attach at once cost the log one read. Of a longer stream each viewer reads pages of its own, as far as its window
reaches; those at the same place share theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from headrace.protocol.cursor import MAX_INT
from headrace.protocol.entries import Entry
from hub.attachment import Attachment
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey
from hub.delivery import PAGE_ENTRIES, Delivery
from hub.metrics import Counts
from hub.tail import Tail

#: Reads of the log at once in one hub; the next waits.
READS_AT_ONCE = 64


class Replay:
    """`spawn` runs a read in the background. `short` is awaited when the log lacks an entry that it should have."""

    def __init__(
        self,
        broker: Broker,
        counts: Counts,
        delivery: Delivery,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        short: Callable[[Tail, int], Awaitable[None]],
    ) -> None:
        self._broker = broker
        self._counts = counts
        self._delivery = delivery
        self._spawn = spawn
        self._short = short
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    async def page(self, key: StreamKey, first: int, last: int) -> list[Entry]:
        """One page of a log, at most through `last`. Raises `Unreachable`."""
        async with self._reads:
            self._counts.log_reads += 1
            return await self._broker.log.read(key, first, min(PAGE_ENTRIES, last + 1 - first))

    def begin(self, attachment: Attachment) -> None:
        """Read what this viewer needs next, or wait for a read that brings it; then it is pumped."""
        tail = attachment.tail
        attachment.is_reading = True
        first = attachment.sent + 1 if tail.is_long else 0
        waiting = tail.reads.get(first)
        if waiting is not None:
            waiting.append(attachment)
            return
        waiting = tail.reads[first] = [attachment]
        self._spawn(self._read_page(tail, first, waiting) if first else self._read_missing(tail, waiting))

    async def _read_missing(self, tail: Tail, waiting: list[Attachment]) -> None:
        """Page by page, backwards from what is held, until it reaches the first viewer or finds no room."""
        absent = 0
        try:
            while not tail.is_long and (first := _first_missing(waiting)) <= tail.base:
                runs, last = tail.runs, tail.base
                first = max(first, last + 1 - PAGE_ENTRIES)
                page = await self.page(tail.key, first, last)
                if len(page) <= last - first:
                    absent = first + len(page)
                    break
                if tail.runs is runs and tail.base == last and _is_awaited(waiting):
                    tail.prepend(first, page)  # neither repaired nor shortened nor left meanwhile
        finally:
            self._ended(tail, 0, waiting)
        await self._go_on(tail, waiting, absent)

    async def _read_page(self, tail: Tail, first: int, waiting: list[Attachment]) -> None:
        runs = tail.runs
        page: list[Entry] = []
        try:
            last = max(viewer.through(tail.top) for viewer in waiting)
            page = await self.page(tail.key, first, max(first, last))
        finally:
            self._ended(tail, first, waiting)
        if tail.runs is runs and _is_awaited(waiting):
            tail.prepend(first, page)
            waiting = [viewer for viewer in waiting if self._takes(viewer, first, page)]
        await self._go_on(tail, waiting, 0 if page else first)

    def _takes(self, viewer: Attachment, first: int, page: list[Entry]) -> bool:
        """Write to one viewer what its window has room for; False if something else than a window stopped it."""
        count = viewer.through(viewer.tail.top) - viewer.sent
        if not viewer.is_attached or viewer.sent != first - 1 or viewer.tail.holds(first) or count < 1 or not page:
            return True
        return self._delivery.write(viewer, first, page[:count])

    def _ended(self, tail: Tail, first: int, waiting: list[Attachment]) -> None:
        del tail.reads[first]
        for viewer in waiting:
            viewer.is_reading = False

    async def _go_on(self, tail: Tail, waiting: list[Attachment], absent: int) -> None:
        if absent and _is_awaited(waiting):
            await self._short(tail, absent)
        for viewer in waiting:
            if viewer.is_attached:
                self._delivery.pump(viewer)


def _first_missing(waiting: list[Attachment]) -> int:
    """The first offset that any of these viewers needs; none is above every log."""
    return min((viewer.sent + 1 for viewer in waiting if viewer.is_attached), default=MAX_INT)


def _is_awaited(waiting: list[Attachment]) -> bool:
    return any(viewer.is_attached for viewer in waiting)
