"""Keeps the leases of this worker's generations, and decides what to do when it cannot.

Past 0.6 of a lease without a confirmed renewal the provider waits, its socket and the entries stay; past 30 s, or
when the mark is another's, the generation is given up. So an outage of Redis costs a pause, not every answer.
The same pass drops hubs whose mailboxes are gone, also for generations that are paused and relay nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.log import Refused
from hub.broker.mailbox import still_there
from workers.run import Run
from workers.table import Table

log_ = structlog.get_logger(__name__)

#: Leases are renewed this often; an append that renewed less than this ago saves the trip.
RENEW_S = 1.0
#: Interest is compared with Redis' this often, renewed by appends or not: a lost `leave` holds nothing up for ever.
RECONCILE_S = 10.0
#: Deadlines of generations are looked at this often.
TICK_S = 0.25
#: Of the lease; without a confirmed renewal for so long the provider waits.
DOUBT = 0.6
#: Without a confirmed renewal for so long, in seconds, or a log that takes nothing, the generation is given up.
GIVE_UP_S = 30.0
#: A finished generation keeps its entries this long, in seconds.
LINGER_S = 10.0
#: Renewals in one trip, so that thousands never stall the loop.
_SLICE = 200


class LeaseKeeper:
    """`keep` and `watch` run until cancelled; Redis out of reach is waited for."""

    def __init__(
        self, broker: Broker, table: Table, *, owner: Callable[[], str], connected: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """`owner` is the worker's mailbox now; `connected` counts the appender's connections."""
        self._broker = broker
        self._table = table
        self._owner = owner
        self._connected = connected
        self._clock = clock
        self._hurry = asyncio.Event()
        self._lease_s = broker.settings.lease_s
        self._ttl_ms = run_ttl_ms(broker)

    def rename(self) -> None:
        """The worker's mailbox has another name: tell Redis now, for every generation."""
        for run in self._table.runs.values():
            run.reconciled_at = float("-inf")
        self._hurry.set()

    async def keep(self) -> None:
        """Renew what appends did not, once a second, and look for dead hubs."""
        is_reached = True
        while True:
            began = self._clock()
            try:
                async with asyncio.timeout(max(1.0, self._lease_s * DOUBT)):
                    await self._renew_all(began)
                    await self._drop_dead_hubs()
                is_reached = True
            except Unreachable as error:
                if is_reached:
                    log_.warning("redis out of reach, leases wait", error=type(error).__name__)
                is_reached = False
            try:
                async with asyncio.timeout(max(0.1, began + RENEW_S - self._clock())):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()

    async def watch(self) -> None:
        """Look at the clocks: abandoned, too long, lease in doubt, lease given up, kept long enough."""
        while True:
            await asyncio.sleep(TICK_S)
            now = self._clock()
            for run in list(self._table.runs.values()):
                self._look(run, now)

    def _look(self, run: Run, now: float) -> None:
        generation = run.generation
        if run.ended_at is not None:
            if now >= run.ended_at + LINGER_S:
                self._table.remove(run)
            return
        silent_s = now - run.renewed_at
        generation.paused = silent_s > self._lease_s * DOUBT
        if not generation.held:
            run.held_since = None
        elif run.held_since is None:
            run.held_since = now
        if silent_s > GIVE_UP_S or (run.held_since is not None and now - run.held_since > GIVE_UP_S):
            log_.warning("generation given up", stream=run.key, silent_s=round(silent_s, 1))
            generation.lose("lost")
        self._table.tick(run, now)
        if generation.over and generation.over != "done":
            self._table.remove(run)

    async def _renew_all(self, now: float) -> None:
        """`now` is before the first is sent. Raises `Unreachable`."""
        due = [run for run in self._table.runs.values() if self._is_due(run, now)]
        for start in range(0, len(due), _SLICE):
            runs = due[start : start + _SLICE]
            sent_at = self._clock()
            replies = await self._broker.log.renew(
                [(run.key, run.mark) for run in runs],
                owner=self._owner(), lease_ms=int(self._lease_s * 1000), ttl_ms=self._ttl_ms,
            )  # fmt: skip
            for run, reply in zip(runs, replies, strict=True):
                run.checked_at = self._connected()
                if isinstance(reply, Refused):
                    self._refused(run, reply.reason)
                    continue
                run.renewed_at = run.reconciled_at = sent_at
                run.generation.paused = False
                if run.ended_at is not None and sent_at > run.ended_at:
                    self._reopen(run)
                if reply.cancelled:
                    run.generation.cancel()
                self._table.reconcile(run, reply.watchers, sent_at, self._clock())
                self._table.changed(run)

    def _is_due(self, run: Run, now: float) -> bool:
        if run.ended_at is not None:
            # A failover breaks connections, and may lose a `done` that was confirmed.
            return run.checked_at != self._connected()
        return now - run.renewed_at >= RENEW_S * 0.9 or now - run.reconciled_at >= RECONCILE_S

    def _refused(self, run: Run, reason: str) -> None:
        generation = run.generation
        if reason == "TERMINAL" and (generation.over == "done" or generation.is_closing):
            return
        if generation.over != "done":
            log_.warning("generation lost", stream=run.key, reason=reason.lower())
        generation.lose(reason.lower())
        self._table.changed(run)
        self._table.remove(run)

    def _reopen(self, run: Run) -> None:
        log_.warning("redis lost the end of a generation, appending again", stream=run.key)
        run.generation.done_lost()
        run.ended_at = None

    async def _drop_dead_hubs(self) -> None:
        hubs = self._table.routing.hubs
        if hubs:
            alive = await still_there(self._broker.connections.control, hubs)
            for hub in hubs:
                if hub not in alive:
                    self._table.hub_gone(hub, self._clock())


def run_ttl_ms(broker: Broker) -> int:
    """How long an unfinished stream lives without a renewal: a whole run, and room for a takeover."""
    return int((broker.settings.max_run_s + 60) * 1000)
