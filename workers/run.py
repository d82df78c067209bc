"""One generation in this worker: its state machine, and what the worker's parts know of it beside."""

from __future__ import annotations

import asyncio

from hub.broker.keys import StreamKey
from workers.generation import Generation


class Run:
    """Shared by the reader of the provider, the appender, the lease keeper and the mailbox. One event loop."""

    __slots__ = (
        "_gate", "checked_at", "ended_at", "generation", "held_since", "is_marked", "key", "mark", "over", "reader",
        "reconciled_at", "renewed_at",
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

    async def readable(self) -> None:
        """Return when the provider may be read, or need not be any more."""
        generation = self.generation
        while not (generation.may_read or generation.ended):
            self._gate = asyncio.Event()
            await self._gate.wait()
        self._gate = None

    def poke(self) -> None:
        """After any change of the generation: let its reader go on, or stop it, or tell that all is over."""
        generation = self.generation
        if self._gate is not None and (generation.may_read or generation.ended):
            self._gate.set()
        if generation.ended:
            if self.reader is not None and self.reader is not asyncio.current_task():
                self.reader.cancel()  # closes the provider's socket
            if generation.over:
                self.over.set()
