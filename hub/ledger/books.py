"""A hub's part in the ledger: it writes what workers queued, and answers what was used."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from hub.broker.connections import Unreachable
from hub.broker.usage import UsageQueue
from hub.ledger import OFF, LedgerDown, Query, Total, connect
from hub.ledger.writer import LedgerWriter

#: Questions at a time; more are sent away.
QUESTIONS = 8
#: An answer takes no longer, in seconds.
DEADLINE_S = 15.0
#: Without a ledger, queued rows are dropped this often, in seconds.
_DISCARD_S = 10.0


class TooManyQuestions(Exception):
    """Ask again in a moment."""


class Books:
    """`run` until cancelled. A ledger that is down stops nothing else. Raises WrongLedger for one that can never be."""

    def __init__(self, url: str, queue: UsageQueue) -> None:
        self._queue = queue
        self._ledger = None if url == OFF else connect(url)
        self._writer = None if self._ledger is None else LedgerWriter(queue, self._ledger)
        self._asking = 0

    @property
    def are_kept(self) -> bool:
        return self._ledger is not None

    @property
    def waiting(self) -> int:
        """Rows that the ledger did not have when this hub last looked, within the last second if all is well."""
        return 0 if self._writer is None else self._writer.waiting

    async def run(self) -> None:
        if self._writer is None or self._ledger is None:
            await self._discard()
            return
        try:
            await self._writer.run()
        finally:
            await self._ledger.close()

    async def totals(self, query: Query) -> list[Total]:
        """Raises LedgerDown, TooManyQuestions."""
        if self._ledger is None:
            raise LedgerDown("no ledger is kept here")
        if self._asking >= QUESTIONS:
            raise TooManyQuestions
        self._asking += 1
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._ledger.totals(query)
        except TimeoutError:
            raise LedgerDown("the ledger took too long") from None
        finally:
            self._asking -= 1

    async def _discard(self) -> None:
        """Workers need not know that nobody counts."""
        while True:
            with suppress(*Unreachable):  # the relay says so
                await self._queue.discard()
            await asyncio.sleep(_DISCARD_S)
