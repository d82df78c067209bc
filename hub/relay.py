"""The live path of a hub: its mailbox into tails, tails out to viewers; and what it tells the owners of streams.

Attaching is a handshake, each rule of which is there because an interleaving loses an entry without it:
the hub (1) buffers parts of the stream, (2) registers interest and reads top, marks and owner in one script,
(3) merges what it buffered, (4) announces its top to the owner which *that* script returned. The owner answers
every announcement with the offset it relayed last; a hub that has less reads the log.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from headrace.protocol.cursor import Cursor
from headrace.protocol.entries import CONTENT_KINDS, Entry
from headrace.protocol.frames import Attached, Live
from hub.attachment import Attachment
from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.keys import StreamKey
from hub.broker.log import Absent, StreamView
from hub.broker.mailbox import HubPacket, MailboxReader, Part, Wish, WorkerPacket, new_mailbox, post
from hub.errors import Rejected
from hub.metrics import Counts
from hub.recovery import Fresh, Outcome, merge, resume_at, same_history
from hub.tail import BUFFERED_PARTS, Frame, Held, Tail, cut

log_ = structlog.get_logger(__name__)

#: Entries read from the log at once.
PAGE_ENTRIES = 512
#: Log reads and repairs at once in one hub; the next waits.
READS_AT_ONCE = 64


class Relay:
    """Owned by the application's lifespan: `run` must be running while viewers attach."""

    def __init__(self, broker: Broker, counts: Counts) -> None:
        self.broker = broker
        self.counts = counts
        self.tails: dict[StreamKey, Tail] = {}
        self.mailbox = ""
        self.is_degraded = True
        self.ready = asyncio.Event()
        #: Called when Redis goes out of reach.
        self.on_degraded: Callable[[], None] = lambda: None
        self._held = Held()
        #: Streams whose interest may lie in Redis although nothing here watches them; the reconcile pass withdraws it.
        self.strays: set[StreamKey] = set()
        self._reads = asyncio.Semaphore(READS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._wishes: dict[str, dict[StreamKey, Wish]] = defaultdict(dict)
        self._has_wishes = asyncio.Event()

    # -- tasks -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read the mailbox and tell owners, until cancelled. An outage of Redis is waited for."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read_mailboxes())
                tasks.create_task(self._tell_owners())
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def spawn(self, work: Awaitable[None]) -> None:
        """Run something for a stream in the background; `run` ends it. Its errors are logged."""
        task = asyncio.ensure_future(self.guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def guarded(self, work: Awaitable[None]) -> None:
        """Do something for one stream; its errors are logged, and end nothing else."""
        try:
            await work
        except Unreachable as error:
            log_.warning("stream work waits for the reconcile pass", error=type(error).__name__)
        except Exception:
            log_.exception("stream work failed")

    async def _read_mailboxes(self) -> None:
        """One incarnation after the other: a mailbox that broke or expired is never used again."""
        pause = 0.1
        while True:
            reader = MailboxReader(self.broker.connections, new_mailbox("h"), self.broker.settings.mailbox_ttl_s)
            try:
                await reader.open()
                self.mailbox, self.is_degraded, pause = reader.name, False, 0.1
                self.ready.set()
                self._announce_everything()
                await self._read_one(reader)
            except Unreachable as error:
                log_.warning("redis out of reach", error=type(error).__name__)
                if not self.is_degraded:
                    self.is_degraded = True
                    self.on_degraded()
                await asyncio.sleep(pause)
                pause = min(1.0, pause * 2)
            finally:
                await self._close_quietly(reader)

    async def _read_one(self, reader: MailboxReader) -> None:
        """Until the mailbox is lost. Raises `Unreachable`."""
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + self.broker.settings.mailbox_ttl_s / 4
        while True:
            for packet in await reader.read():
                if isinstance(packet, HubPacket):
                    self._receive(packet)
            if loop.time() >= renew_at:
                if not await reader.renew():
                    log_.warning("mailbox was lost", mailbox=reader.name)
                    return
                renew_at = loop.time() + self.broker.settings.mailbox_ttl_s / 4

    async def _close_quietly(self, reader: MailboxReader) -> None:
        try:
            async with asyncio.timeout(1):
                await reader.close()
        except (*Unreachable, TimeoutError):
            pass  # it expires by itself

    def _announce_everything(self) -> None:
        for tail in self.tails.values():
            if tail.state != "done":
                if tail.is_open:
                    self.spawn(self.repair(tail))
                else:
                    tail.missed = True  # its interest is being written under the name that is gone

    async def _tell_owners(self) -> None:
        """Send what has gathered for each owner, one packet each, and go on when there is more."""
        while True:
            await self._has_wishes.wait()
            self._has_wishes.clear()
            gathered, self._wishes = self._wishes, defaultdict(dict)
            for owner, wishes in gathered.items():
                packet = WorkerPacket(self.mailbox, list(wishes.values()))
                try:
                    await post(self.broker.connections.control, owner, packet, self.broker.settings.mailbox_packets)
                except Unreachable as error:
                    # Demand and announcements are repeated by the reconcile pass, a cancel is in the stream's meta.
                    log_.warning("an owner was not told", error=type(error).__name__)

    def tell(self, tail: Tail, wish: Wish | None = None) -> None:
        """Tell the owner of a stream, now or with the next packet, its demand and whatever else `wish` says."""
        if not tail.owner:
            return
        said = self._wishes[tail.owner].get(tail.key)
        wish = wish or Wish(tail.key, 0)
        wish.demand = tail.demand
        if said is not None:
            wish.announce |= said.announce
            wish.cancel |= said.cancel
            wish.on_abandon = wish.on_abandon or said.on_abandon
        self._wishes[tail.owner][tail.key] = wish
        tail.demand_told = tail.demand
        self._has_wishes.set()

    async def say(self, owner: str, wish: Wish) -> None:
        """Tell an owner one thing at once, whether or not its stream is watched here. Raises `Unreachable`."""
        packet = WorkerPacket(self.mailbox, [wish])
        await post(self.broker.connections.control, owner, packet, self.broker.settings.mailbox_packets)

    # -- parts in ----------------------------------------------------------------------------------------

    def _receive(self, packet: HubPacket) -> None:
        now = asyncio.get_running_loop().time()
        for part in packet.parts:
            tail = self.tails.get(part.key)
            if tail is None:
                continue
            if not tail.is_open:
                if len(tail.buffer) < BUFFERED_PARTS:
                    tail.buffer.append((packet.sender, part))
                else:
                    tail.missed = True
                continue
            tail.last_news = now
            try:
                self._take(tail, packet.sender, part)
            except Exception:  # one stream must not end the hub for the others
                log_.exception("a part was not taken", stream=tail.stream)
        for key in packet.not_mine:
            tail = self.tails.get(key)
            if tail is not None and tail.is_open and tail.state != "done" and tail.owner == packet.sender:
                tail.owner = ""
                self.spawn(self._find_owner(tail))

    def _take(self, tail: Tail, sender: str, part: Part) -> None:
        entries: Sequence[Entry] = part.entries
        if part.first == tail.top + 1 and part.mark == tail.runs.last and entries:
            outcome: Fresh | Outcome = Outcome.KNOWN  # what `merge` would find fresh: nearly every part
        else:
            outcome = merge(tail.top, tail.runs, part.mark, part.first, entries)
            entries = outcome.entries if type(outcome) is Fresh else []
        if entries:
            tail.disowned = 0
            if sender and sender != tail.owner:
                self._meet(tail, sender)
            self._deliver(tail, tail.append(part.mark, entries), entries)
        elif outcome is not Outcome.KNOWN:
            self.counts.holes += 1
            self.spawn(self.repair(tail))

    def _meet(self, tail: Tail, sender: str) -> None:
        """Another worker owns the stream now: it must hear what the last one was told."""
        tail.owner = sender
        tail.stalled = False
        self.tell(tail, Wish(tail.key, 0, cancel=tail.cancelled))

    async def _find_owner(self, tail: Tail) -> None:
        """The announced owner disowned the stream. A moment, so that a takeover under way is not asked in a loop."""
        await asyncio.sleep(min(5.0, 0.2 * 2**tail.disowned))
        tail.disowned = min(tail.disowned + 1, 5)
        if self.tails.get(tail.key) is tail and tail.is_open and not tail.owner:
            await self.repair(tail)

    # -- opening and repairing ---------------------------------------------------------------------------

    async def watch(
        self, key: StreamKey, *, user: str, may_read: bool, start: int, ahead: int
    ) -> tuple[Tail, StreamView]:
        """The open tail of a stream this user may see, and the stream's facts as of now.

        Raises Rejected not_found, `Unreachable`. The caller attaches a viewer at once, without awaiting between.
        """
        await self.ready.wait()
        while True:
            tail = self.tails.get(key)
            opens = tail is None
            if tail is None:
                tail = self.tails[key] = Tail(key, self._held, asyncio.get_running_loop().time())
                tail.opened = asyncio.get_running_loop().create_future()
            mailbox = self.mailbox
            try:
                view = await self.broker.log.attach(
                    key, user=user, may_read=may_read, mailbox=mailbox, demand=max(start + ahead, tail.demand)
                )
            except BaseException as error:
                if opens:
                    self._give_up(tail)
                if not isinstance(error, Absent):
                    self.strays.add(key)  # the script may have run
                if isinstance(error, Absent):
                    raise Rejected("not_found", "no such stream") from None
                raise
            if opens:
                tail.demand = min(start, view.top) + ahead  # a cursor above the top is no demand
                tail.begin(view.state, view.top, view.runs, view.owner)
                self._set_open(tail)
                self.announce(tail)
                if mailbox != self.mailbox:
                    self.spawn(self.repair(tail))  # interest was written under a name that is gone
            elif tail.opened is not None:
                await asyncio.wait([tail.opened])
            if self.tails.get(key) is tail:
                is_behind = same_history(tail.top, tail.runs, view.top, view.runs)
                is_ahead = same_history(view.top, view.runs, tail.top, tail.runs)
                ends_unseen = view.state == "done" and tail.state != "done"
                if (is_behind and not ends_unseen) or (is_ahead and view.top < tail.top):
                    return tail, view
                await self.repair(tail)  # another history, or its `done` is on its way or was lost

    def _give_up(self, tail: Tail) -> None:
        self.tails.pop(tail.key, None)
        if tail.opened is not None and not tail.opened.done():
            tail.opened.set_result(None)

    def _set_open(self, tail: Tail) -> None:
        tail.is_open = True
        if tail.opened is not None:
            tail.opened.set_result(None)
            tail.opened = None
        parts, tail.buffer = tail.buffer, []
        for sender, part in parts:
            self._take(tail, sender, part)
        if tail.missed:
            tail.missed = False
            self.spawn(self.repair(tail))

    def announce(self, tail: Tail) -> None:
        """Tell the owner that this hub watches; it answers with the offset it relayed last."""
        if tail.state != "done" and tail.owner:
            self.tell(tail, Wish(tail.key, 0, announce=True, cancel=tail.cancelled))

    async def repair(self, tail: Tail) -> None:
        """Bring a tail in line with its log: read what is missing, or begin again if it is another history.

        Parts that arrive meanwhile are kept back and merged afterwards. Raises `Unreachable`; then the reconcile
        pass tries again.
        """
        if not tail.is_open or self.tails.get(tail.key) is not tail:
            tail.missed = True
            return
        tail.is_open = False
        tail.opened = asyncio.get_running_loop().create_future()
        missing: list[Entry] = []
        try:
            async with self._reads:
                view = await self.broker.log.attach(
                    tail.key, user="", may_read=True, mailbox=self.mailbox, demand=tail.demand
                )
                same = same_history(tail.top, tail.runs, view.top, view.runs)
                if same and view.top - tail.top <= 4 * PAGE_ENTRIES:
                    missing = await self._read_log(tail.key, tail.top + 1, view.top)
                    same = len(missing) == view.top - tail.top
        except Absent:
            self._vanish(tail)
            return
        except BaseException:
            self._set_open(tail)
            raise
        if self.tails.get(tail.key) is not tail:
            self._set_open(tail)
            return
        first = tail.top + 1
        try:
            if same and len(missing) == view.top - tail.top:
                tail.runs, tail.owner = view.runs, view.owner or tail.owner
                if missing:
                    tail.append(view.runs.last, missing)
                self._deliver(tail, first, missing)
            else:
                self._begin_again(tail, view)
            tail.state = view.state if tail.state != "done" else "done"
        finally:
            self._set_open(tail)
        self.announce(tail)

    def _begin_again(self, tail: Tail, view: StreamView) -> None:
        """Do for each viewer what `attach` with its last sent cursor would do, and tell it (protocol §4)."""
        log_.warning("another history", stream=tail.stream, held=tail.top, top=view.top)
        old_runs = tail.runs
        tail.begin(view.state, view.top, view.runs, view.owner)
        for attachment in list(tail.attachments):
            resumed, offset = resume_at(Cursor(attachment.sent, old_runs.at(attachment.sent)), view.top, view.runs)
            attachment.restart(offset)
            answer = Attached(
                tail.stream,
                resumed,
                offset,
                view.runs.at(offset),
                view.top,
                view.state,
                attachment.size,
            )
            attachment.endpoint.send(answer)
            self.pump(attachment)

    def _vanish(self, tail: Tail) -> None:
        """The stream is gone from Redis: say so and let go."""
        self._give_up(tail)
        tail.release()
        for attachment in list(tail.attachments):
            attachment.endpoint.attachments.pop(tail.stream, None)
            attachment.endpoint.send(Rejected("gone", "this stream vanished").frame(stream=tail.stream))
        tail.attachments.clear()

    async def _read_log(self, key: StreamKey, first: int, last: int) -> list[Entry]:
        entries: list[Entry] = []
        while first + len(entries) <= last:
            page = await self.broker.log.read(
                key, first + len(entries), min(PAGE_ENTRIES, last + 1 - first - len(entries))
            )
            if not page:
                break
            entries += page
        return entries

    # -- viewers -----------------------------------------------------------------------------------------

    def add(self, attachment: Attachment) -> None:
        """A viewer attaches; its answer has been sent. Replay begins."""
        tail = attachment.tail
        tail.attachments.append(attachment)
        tail.idle_since = None
        tail.spent_since = None
        if attachment.size is None:
            tail.unacked_viewers = True
        self.pump(attachment)
        self.raise_demand(tail, attachment.demand)

    def remove(self, attachment: Attachment) -> None:
        """A viewer leaves. Interest stays a little: phones come back."""
        tail = attachment.tail
        if attachment not in tail.attachments:
            return
        tail.attachments.remove(attachment)
        tail.unacked_viewers = any(other.size is None for other in tail.attachments)
        if not tail.attachments:
            tail.idle_since = asyncio.get_running_loop().time()
            if tail.state == "done":
                self._forget(tail)
            elif tail.demand:
                tail.demand = 0
                self.tell(tail)

    def _forget(self, tail: Tail) -> None:
        if self.tails.get(tail.key) is tail and tail.is_open:
            del self.tails[tail.key]
            tail.release()

    async def leave(self, tail: Tail) -> None:
        """Withdraw interest in a stream that nobody here watches any more."""
        self.tell(tail, Wish(tail.key, 0, leave=True))
        self._forget(tail)
        await self.withdraw(tail.key)

    async def withdraw(self, key: StreamKey) -> None:
        """Take interest out of Redis, also if the first try is lost. Raises `Unreachable`."""
        self.strays.add(key)
        await self.broker.log.leave(key, self.mailbox)
        self.strays.discard(key)
        back = self.tails.get(key)
        if back is not None:
            self.spawn(self.repair(back))  # it may have registered before this withdrawal

    def raise_demand(self, tail: Tail, demand: int) -> None:
        if demand > tail.demand:
            tail.demand = demand
            step = max(1, self.broker.settings.run_ahead // 2)  # told before the worker runs into its bound
            if demand - tail.demand_told >= step or not tail.demand_told:
                self.tell(tail)

    def acked(self, attachment: Attachment) -> None:
        """A viewer's window moved."""
        tail = attachment.tail
        attachment.is_stalled = False
        tail.unacked_viewers |= attachment.size is None
        demand = attachment.demand
        if demand > tail.demand:
            self.raise_demand(tail, demand)
        if attachment.sent < tail.top:
            self.pump(attachment)

    def _deliver(self, tail: Tail, first: int, entries: Sequence[Entry]) -> None:
        """Offer new entries to every viewer. The hottest loop of a hub: frames are cut and encoded once."""
        if not entries or not tail.attachments:
            return
        frames = list(cut(tail.stream, tail.runs, first, entries))
        if tail.accepted_at is not None and any(kind in CONTENT_KINDS for kind, _ in entries):
            self.counts.first_token(asyncio.get_running_loop().time() - tail.accepted_at)
            tail.accepted_at = None
        for frame in frames:
            self._offer(tail, frame)
        if tail.unacked_viewers:
            self.raise_demand(tail, max(a.demand for a in tail.attachments))
        if tail.state == "done":
            for attachment in [a for a in tail.attachments if a.sent >= tail.top]:
                self._finish(attachment)

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
        self.counts.deliveries += delivered

    def pump(self, attachment: Attachment) -> None:
        """Write what this viewer can take now, from what is held; what is not is read from the log first."""
        tail, endpoint = attachment.tail, attachment.endpoint
        if attachment.is_reading:
            return
        while attachment.sent < tail.top:
            last = attachment.through(tail.top)
            if last <= attachment.sent:
                if not attachment.is_stalled:
                    attachment.is_stalled = True
                    self.counts.window_stalls += 1
                return
            if not endpoint.is_writable:
                return  # `resume_writing` pumps again
            if not tail.holds(attachment.sent + 1):
                attachment.is_reading = True
                self.spawn(self._fetch(attachment))
                return
            last = min(last, attachment.sent + PAGE_ENTRIES)
            if not self._write_held(attachment, attachment.sent + 1, last):
                return
        if not attachment.is_live and attachment.sent >= tail.top:
            if tail.state == "done":
                self._finish(attachment)
                return
            attachment.is_live = True
            endpoint.send(Live(tail.stream))

    def _write_held(self, attachment: Attachment, first: int, last: int) -> bool:
        return self._write(attachment, first, attachment.tail.slice(first, last))

    def _write(self, attachment: Attachment, first: int, entries: Sequence[Entry]) -> bool:
        """Cut and write `entries`; False if the viewer cannot take more for now."""
        tail, endpoint = attachment.tail, attachment.endpoint
        frames: Iterable[Frame] = cut(tail.stream, tail.runs, first, entries)
        if attachment.pace_s:
            frames = self._paced(attachment, list(frames))
        for frame in frames:
            if not endpoint.is_writable:
                return False
            endpoint.write(frame.wire(endpoint.codec))
            attachment.sent = frame.last
            self.counts.deliveries += 1
        if attachment.size is None:  # what was written counts as acked: no ack will raise the demand
            self.raise_demand(tail, attachment.demand)
        if tail.state == "done" and attachment.sent >= tail.top:
            self._finish(attachment)
            return False
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
        if attachment.endpoint.attachments.get(attachment.stream) is attachment:
            self.pump(attachment)

    async def _fetch(self, attachment: Attachment) -> None:
        """Read one page of the log for a viewer that is behind what is held, and go on."""
        tail = attachment.tail
        first = attachment.sent + 1
        try:
            async with self._reads:
                runs = tail.runs
                last = min(attachment.through(tail.top), first + PAGE_ENTRIES - 1)
                page = await self._read_log(tail.key, first, last)
        finally:
            attachment.is_reading = False
        if attachment.endpoint.attachments.get(attachment.stream) is not attachment:
            return
        if not page and tail.is_open and self.tails.get(tail.key) is tail:
            await self.repair(tail)
            return
        if tail.runs is runs and attachment.sent == first - 1:
            tail.prepend(first, page)
            if not tail.holds(first) and not self._write(attachment, first, page):
                return
        self.pump(attachment)

    def _finish(self, attachment: Attachment) -> None:
        """`done` was written: the attachment is over by itself (protocol §4)."""
        attachment.endpoint.attachments.pop(attachment.stream, None)
        self.remove(attachment)
