"""The backup of the live path: a pass over watched streams that have been silent, and what it finds is counted.

In a run without faults it finds nothing. It is also what removes interest, some seconds after the last viewer
left, and what tells viewers that the owner of their stream is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from headrace.protocol.frames import StatusFrame
from hub.broker.connections import Unreachable
from hub.broker.keys import ALL_LANES
from hub.broker.log import Standing
from hub.relay import Relay
from hub.tail import Tail

log_ = structlog.get_logger(__name__)

#: Streams compared in one trip, so that thousands of idle ones never stall the loop.
SLICE = 200
#: A pass begins this long after the one before it ended.
PASS_S = 1.0
#: A stream is looked at when it was silent this long; one that stays silent, this often.
SILENT_S = 1.0
IDLE_S = 5.0
#: Interest outlives the last viewer by this.
LINGER_S = 5.0
#: Viewers that are all out of window this long no longer hold the worker's bound up.
SPENT_S = 10.0
#: What Redis has and this hub has not must still be missing after this long: it may be on its way.
SUSPECT_S = 0.5


class Reconciler:
    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._looked: dict[str, float] = {}

    async def run(self) -> None:
        """Pass after pass, until cancelled."""
        while True:
            await asyncio.sleep(PASS_S)
            try:
                await self.sweep()
            except Unreachable as error:
                log_.warning("reconcile pass waits for Redis", error=type(error).__name__)
            except Exception:
                log_.exception("reconcile pass failed")

    async def sweep(self) -> None:
        """One pass, spread over its time slice by slice."""
        now = asyncio.get_running_loop().time()
        relay = self._relay
        await self._withdraw(now)
        silent = [
            tail
            for tail in relay.tails.values()
            if tail.is_open
            and tail.attachments
            and now - tail.last_news > SILENT_S
            and now - self._looked.get(tail.key, 0) > (SILENT_S if now - tail.last_news < 2 * IDLE_S else IDLE_S)
        ]
        for start in range(0, len(silent), SLICE):
            part = silent[start : start + SLICE]
            await self._compare(part, now)
            await asyncio.sleep(PASS_S * SLICE / max(len(silent), SLICE) / 2)
        self._looked = {key: at for key, at in self._looked.items() if now - at < 2 * IDLE_S}
        relay.counts.lane_depths = await relay.broker.lanes.depths(ALL_LANES)

    async def _withdraw(self, now: float) -> None:
        """Leave streams nobody here watches any more; lower demand where all viewers are out of window."""
        relay = self._relay
        for key, mailbox in list(relay.strays):
            if mailbox == relay.mailbox and key in relay.tails:
                relay.strays.discard((key, mailbox))
            else:
                await relay.withdraw(key, mailbox)
        for tail in list(relay.tails.values()):
            if not tail.is_open:
                continue
            if not tail.attachments:
                if tail.idle_since is not None and now - tail.idle_since > LINGER_S:
                    await relay.leave(tail)
            elif any(attachment.is_open for attachment in tail.attachments):
                tail.demand.spent_since = None
            elif tail.demand.spent_since is None:
                tail.demand.spent_since = now
            elif now - tail.demand.spent_since > SPENT_S and tail.demand.withdraw():
                relay.owners.tell(tail)

    async def _compare(self, tails: Sequence[Tail], now: float) -> None:
        relay = self._relay
        standings = await relay.broker.log.standings([tail.key for tail in tails])
        suspects = []
        for tail, standing in zip(tails, standings, strict=True):
            self._looked[tail.key] = now
            if not tail.is_open or relay.tails.get(tail.key) is not tail:
                continue
            if standing is None:
                await relay.guarded(relay.repair(tail))  # tells the viewers that it is gone
            elif (standing.top, standing.mark, standing.state == "done") != (
                tail.top, tail.runs.last, tail.state == "done",
            ):  # fmt: skip
                tail.suspect = standing.top
                suspects.append((tail, tail.top))
            else:
                self._check_viewers(tail)
                if standing.owner and standing.owner != tail.owner:
                    tail.owner = standing.owner
                    relay.owners.announce(tail)
                elif tail.top > relay.broker.settings.run_ahead and tail.state != "done":
                    relay.owners.tell(tail)  # its owner may wait for a demand that never reached it
        if suspects:
            await asyncio.sleep(SUSPECT_S)
            for tail, top in suspects:
                if relay.tails.get(tail.key) is tail and tail.is_open and tail.top == top:
                    relay.counts.repairs += 1
                    log_.warning("repaired", stream=tail.stream, held=top, top=tail.suspect)
                    await relay.guarded(relay.repair(tail))
        self._check_owners(tails, standings)

    def _check_viewers(self, tail: Tail) -> None:
        """A viewer with credit and a socket that takes it must be at the top."""
        for attachment in list(tail.attachments):
            stuck = attachment.sent < tail.top and attachment.is_open and attachment.endpoint.is_writable
            if stuck and not attachment.is_reading and not attachment.timer:
                self._relay.counts.repairs += 1
                log_.warning("viewer was stuck", stream=tail.stream, sent=attachment.sent, top=tail.top)
                self._relay.pump(attachment)

    def _check_owners(self, tails: Sequence[Tail], standings: Sequence[Standing | None]) -> None:
        """Tell viewers when the worker of their stream is gone, once."""
        for tail, standing in zip(tails, standings, strict=True):
            if standing is None or not standing.owner or tail.state == "done":
                continue
            if not standing.is_lost:
                tail.stalled = False
            elif not tail.stalled:
                tail.stalled = True
                for attachment in tail.attachments:
                    attachment.endpoint.send(StatusFrame("stalled", tail.stream))
