"""Writes what workers used into the ledger: off every stream's path, as often as it takes."""

from __future__ import annotations

import asyncio
import secrets

import structlog

from hub.broker.connections import Unreachable
from hub.broker.usage import UsageQueue, UsageRow
from hub.ledger import Ledger, LedgerDown

log_ = structlog.get_logger(__name__)

#: Rows in one transaction.
BATCH = 500
#: The queue is looked at this often, in seconds, when it was empty.
LOOK_S = 1.0
#: The longest pause, in seconds, while the ledger or Redis is down.
PAUSE_S = 30.0
_LEAVE_S = 2.0


class LedgerWriter:
    """`run` until cancelled. Any number of writers may run: each row goes to one, and writing it twice counts once.

    One that cannot open its ledger takes no rows: others may have better luck.
    """

    def __init__(self, queue: UsageQueue, ledger: Ledger) -> None:
        #: Rows in Redis when it was last looked at.
        self.waiting = 0
        self._queue = queue
        self._ledger = ledger
        self._name = "l" + secrets.token_urlsafe(6)
        self._in_hand: list[tuple[bytes, UsageRow]] = []
        self._is_open = False
        self._is_down = False

    async def run(self) -> None:
        pause = LOOK_S
        try:
            while True:
                try:
                    self.waiting = await self._queue.waiting()
                    written = await self._write_some()
                    pause = 0.0 if written == BATCH else LOOK_S
                    self._is_down = False
                except (LedgerDown, *Unreachable) as error:
                    self._tell(error)
                    pause = min(PAUSE_S, max(LOOK_S, pause) * 2)
                except Exception:
                    # Money is counted late rather than not at all, and a hub lives on without it.
                    log_.exception("writing usage failed")
                    pause = PAUSE_S
                await asyncio.sleep(pause)
        finally:
            await self._leave()

    async def _write_some(self) -> int:
        """Take rows, or those that could not be written last time, and write them; how many."""
        if not self._is_open:
            await self._ledger.open()
            self._is_open = True
        if not self.waiting and not self._in_hand:
            return 0
        rows = self._in_hand or await self._queue.take(self._name, BATCH)
        if not rows:
            return 0
        self._in_hand = rows
        await self._ledger.write([row for _, row in rows])
        await self._queue.drop([id_ for id_, _ in rows])
        self._in_hand = []
        self.waiting = max(0, self.waiting - len(rows))
        return len(rows)

    def _tell(self, error: Exception) -> None:
        """Once for each time that it is down."""
        if not self._is_down:
            log_.warning(
                "usage waits for the ledger, and nothing else does; see HEADRACE_LEDGER",
                error=str(error) if isinstance(error, LedgerDown) else f"redis: {type(error).__name__}",
                waiting=self.waiting,
            )
        self._is_down = True

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._queue.forget(self._name)
        except (*Unreachable, TimeoutError):
            pass  # a consumer without rows costs nothing
