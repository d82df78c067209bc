"""The worker's one hot loop: frozen batches into the log, and what is in the log to the hubs.

Durable before visible: entries are relayed only after their append was answered. One write carries the relay of
what the write before it appended and the next appends; one write is outstanding. A generation has at most one
batch in a write, so its order never depends on Redis. Before a `done` goes what its answer used: an answer whose
end is in the log has been counted, though its worker be killed the moment after.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from hub.broker.connections import COMMAND_TIMEOUT_S, Connections, Unreachable
from hub.broker.log import SCRIPTS, append_command
from hub.broker.mailbox import post_command
from hub.broker.resp import Command, RawConnection, ReplyError
from hub.broker.usage import UsageRow, add_command
from workers.journal import Batch
from workers.routing import Routing
from workers.run import Run
from workers.usage import UsageReporter

log_ = structlog.get_logger(__name__)

#: Entry data in one write, beyond which the remaining generations wait for the next one.
WRITE_BYTES = 1024 * 1024
#: Packets kept for another try when Redis did not take them; older ones become holes that hubs read from the log.
UNSENT_PACKETS = 512
#: A lease is renewed by an append if the last confirmed renewal is older than this.
RENEW_AFTER_S = 1.0
_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.0)

_Sending = tuple[Run, Batch, bool]
"""A batch in the write, and whether its append renews the lease."""


class Appender:
    """`run` must be running. Raises nothing: what Redis does not take is tried again, in order."""

    def __init__(
        self,
        connections: Connections,
        routing: Routing,
        usage: UsageReporter,
        *,
        lease_ms: int,
        retention_ms: int,
        mailbox_packets: int,
        on_hub_gone: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._connections = connections
        self._routing = routing
        self._usage = usage
        self._lease_ms = lease_ms
        self._retention_ms = retention_ms
        self._mailbox_packets = mailbox_packets
        self._on_hub_gone = on_hub_gone
        self._clock = clock
        self._marked: deque[Run] = deque()
        self._refused: list[Run] = []
        self._unsent: list[tuple[str, Command]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._raw: RawConnection | None = None
        self._must_load = True
        self._failures = 0
        self._timer: asyncio.TimerHandle | None = None
        #: This worker's mailbox: where hubs answer to.
        self.sender = ""
        #: How often a connection was opened: what Redis confirmed before may be lost after (a failover).
        self.connected = 0

    def mark(self, run: Run) -> None:
        """This generation has something to append. Cheap to repeat."""
        if not run.is_marked:
            run.is_marked = True
            self._marked.append(run)
            self.wake()

    def wake(self) -> None:
        """There is something to append or to send."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not (self._marked or self._routing.has_news or (self._unsent and self._timer is None)):
                    self._waiter = loop.create_future()
                    await self._waiter
                    self._waiter = None
                if not await self._cycle():
                    await asyncio.sleep(self._pause())
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._raw is not None:
                self._raw.close()

    async def _cycle(self) -> bool:
        """One write and its answers. False if Redis is out of reach."""
        now = self._clock()
        relays = self._relays()
        batches = self._batches(now)
        if not relays and not batches:
            return True
        used = [row for run, batch, _ in batches if batch.ends for row in self._usage.unsent(run.key)]
        commands: list[Command] = [command for _, command in relays]
        commands += [add_command(row) for row in used]
        commands += [self._append(sending) for sending in batches]
        try:
            raw = await self._connection()
            loads = self._must_load
            if loads:
                commands.insert(0, ("SCRIPT", "LOAD", SCRIPTS["append"]))
            replies = await raw.execute(commands, COMMAND_TIMEOUT_S)
        except Unreachable as error:
            self._unanswered(relays, batches, error)
            return False
        if loads:
            self._must_load = isinstance(replies.pop(0), ReplyError)
        self._sent(relays, replies)
        appended = len(relays) + len(used)
        self._counted(used, replies[len(relays) : appended])
        refused = False
        for sending, reply in zip(batches, replies[appended:], strict=True):
            if isinstance(reply, ReplyError):
                refused |= self._refuse(sending, reply, loads)
            else:
                self._answered(sending, reply, now)
        if refused or self._unsent:
            self._try_again_later()
        elif self._failures and self._timer is None:
            log_.info("redis takes appends again")
            self._failures = 0
        return True

    # -- what goes into a write

    def _relays(self) -> list[tuple[str, Command]]:
        relays, self._unsent = self._unsent, []
        if self._routing.has_news:
            packets = self._mailbox_packets
            relays += [(hub, post_command(hub, packet, packets)) for hub, packet in self._routing.packets(self.sender)]
        return relays

    def _batches(self, now: float) -> list[_Sending]:
        batches: list[_Sending] = []
        marked = self._marked
        size = 0
        while marked and size < WRITE_BYTES:
            run = marked.popleft()
            run.is_marked = False
            batch = run.generation.take(now)
            if batch is not None:
                batches.append((run, batch, now - run.renewed_at > RENEW_AFTER_S))
                for _, data in batch.entries:
                    size += len(data)
        return batches

    def _append(self, sending: _Sending) -> Command:
        run, batch, renews = sending
        return append_command(
            run.key,
            run.mark,
            batch.first,
            batch.entries,
            shown=batch.shown,
            lease_ms=self._lease_ms if renews else 0,
            done_ttl_ms=self._retention_ms if batch.ends else 0,
        )

    # -- what comes back

    def _sent(self, relays: list[tuple[str, Command]], replies: list[object]) -> None:
        for (hub, command), reply in zip(relays, replies, strict=False):
            if reply is None:
                self._on_hub_gone(hub)
            elif isinstance(reply, ReplyError):
                self._unsent.append((hub, command))
        del self._unsent[:-UNSENT_PACKETS]

    def _counted(self, used: list[UsageRow], replies: list[object]) -> None:
        """What Redis refused goes by itself, later."""
        self._usage.sent([row for row, reply in zip(used, replies, strict=True) if not isinstance(reply, ReplyError)])

    def _answered(self, sending: _Sending, reply: Any, now: float) -> None:
        run, batch, renews = sending
        generation = run.generation
        status, number = reply
        if generation.answered(status, number):
            if renews and status == b"OK":
                run.renewed_at = now  # when it was sent: the lease began later
            self._routing.relay(run.key, run.mark, batch.first, batch.entries)
            if generation.over:
                run.ended_at = self._clock()
        elif generation.over:
            log_.warning("generation lost", stream=run.key, reason=generation.over)
        if generation.has_batch:
            self.mark(run)
        run.poke()

    def _refuse(self, sending: _Sending, error: ReplyError, loaded: bool) -> bool:
        """Not applied. True if that takes a pause, False if the script was only missing (a restart, a flush)."""
        run = sending[0]
        run.generation.refused()
        if error.code == "NOSCRIPT" and not loaded:
            self._must_load = True
            self.mark(run)
            return False
        if not self._failures:
            log_.warning("redis refuses appends, they wait", reason=error.code)
        self._refused.append(run)
        return True

    def _unanswered(self, relays: list[tuple[str, Command]], batches: list[_Sending], error: object) -> None:
        """Nobody knows what was applied: the same again. Appends are idempotent, hubs drop what they have."""
        if not self._failures:
            log_.warning("redis out of reach, appends wait", error=type(error).__name__)
        self._unsent = relays[-UNSENT_PACKETS:]
        for run, _, _ in reversed(batches):
            run.generation.refused()
            if not run.is_marked:
                run.is_marked = True
                self._marked.appendleft(run)

    # -- trying again

    async def _connection(self) -> RawConnection:
        if self._raw is None or not self._raw.is_open:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                self._raw = await self._connections.raw()
            self.connected += 1
            self._must_load = True
        return self._raw

    def _pause(self) -> float:
        pause = _PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)]
        self._failures += 1
        return pause

    def _try_again_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._pause(), self._try_again)

    def _try_again(self) -> None:
        self._timer = None
        refused, self._refused = self._refused, []
        for run in refused:
            self.mark(run)
        self.wake()
