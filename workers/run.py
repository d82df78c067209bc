"""One generation in this worker: its state machine, and what the worker's parts know of it beside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hub.broker.keys import StreamKey
from workers.generation import Generation


class Run:
    """Shared by the reader of the provider, the appender, the lease keeper and the mailbox. One event loop."""

    __slots__ = (
        "_awaited", "_gate", "checked_at", "ended_at", "generation", "held_since", "is_marked", "key", "mark", "over",
        "reader", "reconciled_at", "renewed_at",
    )  # fmt: skip

    def __init__(self, key: StreamKey, mark: str, generation: Generation, renewed_at: float) -> None:
        self.key = key
        self.mark = mark
        self.generation = generation
        #: When the last confirmed renewal of the lease was sent, monotonic seconds.
        self.renewed_at = renewed_at
        #: When interest was last compared with what Redis holds.
        self.reconciled_at = renewed_at
        #: Waits for its turn with the appender.
        self.is_marked = False
        #: Reads the provider, while it may have to be cut off; owned by the worker's task group.
        self.reader: asyncio.Task[None] | None = None
        #: Set once nothing more can be appended.
        self.over = asyncio.Event()
        #: When the log confirmed `done`. Entries are kept a little longer, in case that Redis loses them.
        self.ended_at: float | None = None
        #: Since when the log has not taken what it was sent.
        self.held_since: float | None = None
        #: Which connection of the appender the end was last checked on.
        self.checked_at = 0
        self._gate: asyncio.Event | None = None
        self._awaited: Callable[[], bool] = self._is_readable

    async def readable(self) -> None:
        """Return when the provider may be read, or need not be any more."""
        await self._until(self._is_readable)

    async def settled(self) -> None:
        """Return when all that was told is in the log, or need not be any more."""
        await self._until(self._is_settled)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._awaited, self._gate = condition, asyncio.Event()
            await self._gate.wait()
        self._gate = None

    def _is_readable(self) -> bool:
        return self.generation.may_read or self.generation.ended

    def _is_settled(self) -> bool:
        return not self.generation.has_batch or self.generation.ended

    def poke(self) -> None:
        """After any change of the generation: let its reader go on, or stop it, or tell that all is over."""
        generation = self.generation
        if self._gate is not None and self._awaited():
            self._gate.set()
        if generation.ended:
            if self.reader is not None and self.reader is not asyncio.current_task():
                self.reader.cancel()  # closes the provider's socket
            if generation.over:
                self.over.set()
