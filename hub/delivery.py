"""The hot path: from the entries of a tail to the sockets of its viewers. No awaits, no tasks.

A live frame is offered as it is to every viewer; one that cannot take it is pumped: now, from what is held; or
later, when its window, its socket, its pace or a read of the log lets it. Progress never depends on a later ack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from headrace.protocol.entries import CONTENT_KINDS, Entry
from headrace.protocol.frames import Live
from hub.attachment import Attachment
from hub.metrics import Counts
from hub.owners import Owners
from hub.tail import Frame, Tail, cut

#: Entries cut at once for one viewer, and read from the log at once.
PAGE_ENTRIES = 512


class Delivery:
    """What becomes of viewers that cannot be served from here is up to the relay:

    - `behind`: one needs what its tail does not hold; it must come back to `pump`
    - `astray`: one came with a cursor ahead of its tail, and the tail has other entries there by now
    - `over`: one got `done`
    """

    def __init__(
        self,
        counts: Counts,
        owners: Owners,
        *,
        run_ahead: int,
        behind: Callable[[Attachment], None],
        astray: Callable[[Attachment], None],
        over: Callable[[Attachment], None],
    ) -> None:
        self._counts = counts
        self._owners = owners
        #: Demand is told before the worker runs into its bound.
        self._step = max(1, run_ahead // 2)
        self._behind = behind
        self._astray = astray
        self._over = over

    def deliver(self, tail: Tail, first: int, entries: Sequence[Entry]) -> None:
        """Offer new entries to every viewer. The hottest loop of a hub: frames are cut and encoded once."""
        if not entries or not tail.attachments:
            return
        if tail.accepted_at is not None and any(kind in CONTENT_KINDS for kind, _ in entries):
            self._counts.first_token(asyncio.get_running_loop().time() - tail.accepted_at)
            tail.accepted_at = None
        for frame in cut(tail.stream, tail.runs, first, entries):
            self._offer(tail, frame)
        if tail.has_unacked:
            self.raise_demand(tail, max((a.demand for a in tail.attachments), default=0))
        if tail.state == "done":
            for attachment in [a for a in tail.attachments if a.sent >= tail.top]:
                self._over(attachment)

    def _offer(self, tail: Tail, frame: Frame) -> None:
        before, last = frame.first - 1, frame.last
        wires = frame.wires
        delivered = 0
        attachments = tail.attachments
        for attachment in attachments if len(attachments) == 1 else tuple(attachments):
            endpoint = attachment.endpoint
            if (
                attachment.sent == before
                and last <= attachment.limit
                and attachment.is_live
                and not attachment.pace_s
                and endpoint.is_writable
            ):
                codec = endpoint.codec
                attachment.sent = last
                endpoint.write(wires.get(codec) or frame.wire(codec))
                delivered += 1
            elif not attachment.is_reading:
                self.pump(attachment)
        self._counts.deliveries += delivered

    def pump(self, attachment: Attachment) -> None:
        """Write what this viewer can take now, from what is held; what is not is read from the log first."""
        tail, endpoint = attachment.tail, attachment.endpoint
        if attachment.is_reading:
            return
        if not attachment.is_live:
            if attachment.sent > tail.top:
                return  # the hub that it came from was faster; this one gets there
            if not attachment.fits(tail.runs):
                self._astray(attachment)
                return
        while attachment.sent < tail.top:
            last = attachment.through(tail.top)
            if last <= attachment.sent:
                if not attachment.is_stalled:
                    attachment.is_stalled = True
                    self._counts.window_stalls += 1
                return
            if not endpoint.is_writable:
                return  # `resume_writing` pumps again
            first = attachment.sent + 1
            if not tail.holds(first):
                self._behind(attachment)
                return
            last = min(last, attachment.sent + PAGE_ENTRIES)
            if not self.write(attachment, first, tail.slice(first, last)):
                return
        if tail.state == "done":
            self._over(attachment)
        elif not attachment.is_live:
            attachment.is_live = True
            endpoint.send(Live(tail.stream))

    def write(self, attachment: Attachment, first: int, entries: Sequence[Entry]) -> bool:
        """Cut and write `entries`, which this viewer's window has room for. False if its socket or its pace had not:
        the socket or a timer pumps the rest.
        """
        tail, endpoint = attachment.tail, attachment.endpoint
        frames: Iterable[Frame] = cut(tail.stream, tail.runs, first, entries)
        if attachment.pace_s:
            frames = self._paced(attachment, list(frames))
        for frame in frames:
            if not endpoint.is_writable:
                break
            endpoint.write(frame.wire(endpoint.codec))
            attachment.sent = frame.last
            self._counts.deliveries += 1
        if attachment.size is None:  # what was written counts as acked: no ack will raise the demand
            self.raise_demand(tail, attachment.demand)
        return attachment.sent == first + len(entries) - 1

    def _paced(self, attachment: Attachment, frames: list[Frame]) -> list[Frame]:
        """What a paced viewer gets of these now: all up to the last entry, and one delta if its time has come.

        A timer brings the rest.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = max((index + 1 for index, frame in enumerate(frames) if not frame.is_delta), default=0)
        if due < len(frames) and now >= attachment.next_delta_at:
            due += 1
        if any(frame.is_delta for frame in frames[:due]):
            attachment.next_delta_at = now + attachment.pace_s
        if due < len(frames) and not attachment.timer:
            attachment.timer = True
            loop.call_later(max(0.0, attachment.next_delta_at - now), self._pace_over, attachment)
        return frames[:due]

    def _pace_over(self, attachment: Attachment) -> None:
        attachment.timer = False
        if attachment.is_attached:
            self.pump(attachment)

    def acked(self, attachment: Attachment) -> None:
        """A viewer's window moved."""
        tail = attachment.tail
        attachment.is_stalled = False
        tail.has_unacked |= attachment.size is None
        demand = attachment.demand
        if demand > tail.demand.limit:
            self.raise_demand(tail, demand)
        if attachment.sent < tail.top:
            self.pump(attachment)

    def raise_demand(self, tail: Tail, demand: int) -> None:
        """A viewer of this tail could be sent through `demand`."""
        if tail.demand.rise(demand, self._step):
            self._owners.tell(tail)
