"""The live path into a hub: from its mailbox to the tails of the streams it watches.

Attaching is a handshake, each rule of which is there because an interleaving loses an entry without it:
the hub (1) buffers parts of the stream, (2) registers interest and reads top, marks and owner in one script,
(3) merges what it buffered, (4) announces its top to the owner which *that* script returned. The owner answers
every announcement with the offset it relayed last; a hub that has less reads the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import structlog

from headrace.protocol.cursor import Cursor
from headrace.protocol.entries import Entry
from headrace.protocol.frames import Attached
from hub.attachment import Attachment
from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.keys import StreamKey
from hub.broker.log import Absent, StreamView
from hub.broker.mailbox import HubPacket, MailboxReader, Part, Wish, new_mailbox
from hub.delivery import Delivery
from hub.errors import Rejected, not_found
from hub.metrics import Counts
from hub.owners import Owners
from hub.recovery import Fresh, Outcome, merge, resume_at, same_history
from hub.replay import Replay
from hub.tail import Held, Opening, Tail

log_ = structlog.get_logger(__name__)

#: An owner whose log lost its end has this long to append it again, in seconds: it keeps its entries.
APPENDED_AGAIN_S = 2.0


class Relay:
    """Owned by the application's lifespan: `run` must be running while viewers attach."""

    def __init__(self, broker: Broker, counts: Counts, window: int) -> None:
        """`window` is the largest that a viewer may have."""
        self.broker = broker
        self.counts = counts
        self.tails: dict[StreamKey, Tail] = {}
        self.mailbox = ""
        self.is_degraded = True
        self.ready = asyncio.Event()
        #: Called when Redis goes out of reach.
        self.on_degraded: Callable[[], None] = lambda: None
        #: Interest (stream, mailbox) that may lie in Redis although nothing here watches it; the reconcile pass
        #: withdraws it.
        self.strays: set[tuple[StreamKey, str]] = set()
        self.owners = Owners(broker)
        self.delivery = Delivery(
            counts,
            self.owners,
            run_ahead=broker.settings.run_ahead,
            behind=self._behind,
            astray=self._put_back,
            over=self._over,
        )
        self.replay = Replay(broker, counts, self.delivery, spawn=self.spawn, short=self._look_for)
        #: Called for a viewer whose window moved, and for one whose socket takes more.
        self.acked = self.delivery.acked
        self.pump = self.delivery.pump
        self._window = window
        self._held = Held()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- tasks -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read the mailbox and tell owners, until cancelled. An outage of Redis is waited for."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read_mailboxes())
                tasks.create_task(self.owners.run())
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something for a stream in the background; `run` ends it. Its errors are logged."""
        task = asyncio.ensure_future(self.guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before its first step, it would complain

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
                self.mailbox = self.owners.sender = reader.name
                self.is_degraded, pause = False, 0.1
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
            if tail.opening is not None:
                tail.opening.missed = True  # its interest is being written under the name that is gone
            elif tail.state != "done":
                self.spawn(self.repair(tail))

    # -- parts in ----------------------------------------------------------------------------------------

    def _receive(self, packet: HubPacket) -> None:
        now = asyncio.get_running_loop().time()
        for part in packet.parts:
            tail = self.tails.get(part.key)
            if tail is None:
                continue
            if tail.opening is not None:
                tail.opening.keep(packet.sender, part)
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
            self.delivery.deliver(tail, tail.append(part.mark, entries), entries)
        elif outcome is not Outcome.KNOWN:
            self.counts.holes += 1
            self.spawn(self.repair(tail))

    def _meet(self, tail: Tail, sender: str) -> None:
        """Another worker owns the stream now: it must hear what the last one was told."""
        tail.owner = sender
        tail.stalled = False
        self.owners.tell(tail, Wish(tail.key, 0, cancel=tail.cancelled))

    async def _find_owner(self, tail: Tail) -> None:
        """The announced owner disowned the stream. A moment, so that a takeover under way is not asked in a loop."""
        await asyncio.sleep(min(5.0, 0.2 * 2**tail.disowned))
        tail.disowned = min(tail.disowned + 1, 5)
        if self._is_watched(tail) and not tail.owner:
            await self.repair(tail)

    # -- opening and repairing ---------------------------------------------------------------------------

    async def watch(
        self, key: StreamKey, *, user: str, may_read: bool, start: int, ahead: int
    ) -> tuple[Tail, StreamView]:
        """The open tail of a stream this user may see, and the stream's facts as of now.

        `start` and `ahead` are the viewer's cursor, as it says, and its window. Raises Rejected not_found or gone,
        `Unreachable`. The caller attaches a viewer at once; who awaits between asks `is_current` again.
        """
        await self.ready.wait()
        while True:
            tail = self.tails.get(key)
            opens = tail is None
            if tail is None:
                tail = self.tails[key] = Tail(key, self._held, asyncio.get_running_loop().time())
                tail.opening = self._new_opening()
            mailbox = self.mailbox
            try:
                view = await self.broker.log.attach(
                    key,
                    user=user,
                    may_read=may_read,
                    mailbox=mailbox,
                    demand=max(start + ahead, tail.demand.limit),
                    ahead=self._window,  # a cursor above the top is no demand
                )
            except BaseException as error:
                if opens:
                    self._give_up(tail)
                if isinstance(error, Absent):
                    raise not_found() from None
                self.strays.add((key, mailbox))  # the script may have run
                raise
            if _is_hollow(view):
                if opens:
                    self._give_up(tail)
                raise _gone()
            if opens:
                tail.demand.limit = min(start, view.top) + ahead
                tail.begin(view.state, view.top, view.runs, view.owner)
                self._set_open(tail)
                self.owners.announce(tail)
                if mailbox != self.mailbox:
                    self.spawn(self.repair(tail))  # interest was written under a name that is gone
            elif tail.opening is not None:
                await asyncio.wait([tail.opening.ended])
            if self.tails.get(key) is tail:
                if self.is_current(tail, view):
                    return tail, view
                await self.repair(tail)  # another history, or its `done` is on its way or was lost

    def is_current(self, tail: Tail, view: StreamView) -> bool:
        """Whether a tail is watched, and one history with a view of its stream."""
        if self.tails.get(tail.key) is not tail:
            return False
        if view.state == "done" and tail.state != "done":
            return False
        is_behind = same_history(tail.top, tail.runs, view.top, view.runs)
        return is_behind or (view.top < tail.top and same_history(view.top, view.runs, tail.top, tail.runs))

    def _new_opening(self) -> Opening:
        return Opening(asyncio.get_running_loop().create_future())

    def _give_up(self, tail: Tail) -> None:
        self.tails.pop(tail.key, None)
        if tail.opening is not None:
            tail.opening.ended.set_result(None)
            tail.opening = None

    def _set_open(self, tail: Tail) -> None:
        opening, tail.opening = tail.opening, None
        assert opening is not None, "opened once"
        opening.ended.set_result(None)
        for sender, part in opening.parts:
            self._take(tail, sender, part)
        if opening.missed:
            self.spawn(self.repair(tail))

    async def repair(self, tail: Tail) -> None:
        """Bring a tail in line with its log: read what is missing, or begin again if it is another history.

        Parts that arrive meanwhile are kept back and merged afterwards. Raises `Unreachable`; then the reconcile
        pass tries again.
        """
        if tail.opening is not None:
            tail.opening.missed = True
            return
        if self.tails.get(tail.key) is not tail:
            return
        tail.opening = self._new_opening()
        try:
            view = await self._look(tail)
            is_up = await self._bring_up(tail, view)
            if not is_up and same_history(tail.top, tail.runs, view.top, view.runs):
                view = await self._look(tail)  # the log lost its end while it was read
            if _is_hollow(view):
                raise Absent
            if not is_up and not tail.is_short and _lost_its_end(tail, view):
                tail.is_short = True
                self.spawn(self._look_again(tail))
            elif is_up:
                tail.is_short = False
                tail.runs, tail.owner = view.runs, view.owner or tail.owner
                for attachment in [a for a in tail.attachments if a.sent > tail.top]:
                    self._put_back(attachment)  # its place was lost
            else:
                self._begin_again(tail, view)
            if tail.state != "done":
                tail.state = view.state
        except Absent:
            self._vanish(tail)
            return
        finally:
            if tail.opening is not None:
                self._set_open(tail)
        self.owners.announce(tail)

    async def _look_again(self, tail: Tail) -> None:
        await asyncio.sleep(APPENDED_AGAIN_S)
        if self._is_watched(tail):
            await self.repair(tail)

    async def _look(self, tail: Tail) -> StreamView:
        return await self.broker.log.attach(
            tail.key, user="", may_read=True, mailbox=self.mailbox, demand=tail.demand.limit
        )

    async def _bring_up(self, tail: Tail, view: StreamView) -> bool:
        """Read a tail up to what `view` saw, page by page, each delivered before the next. False if it cannot be:
        another history, or the log lost its end since.
        """
        if not same_history(tail.top, tail.runs, view.top, view.runs):
            return False
        while tail.top < view.top:
            page = await self.replay.page(tail.key, tail.top + 1, view.top)
            if not page:
                return False
            tail.runs = view.runs
            self.delivery.deliver(tail, tail.append(view.runs.last, page), page)
        return True

    def _begin_again(self, tail: Tail, view: StreamView) -> None:
        """Do for each viewer what `attach` with its last sent cursor would do, and tell it (protocol §4)."""
        log_.warning("another history", stream=tail.stream, held=tail.top, top=view.top)
        cursors = [(attachment, attachment.cursor(tail.runs)) for attachment in tail.attachments]
        tail.begin(view.state, view.top, view.runs, view.owner)
        tail.is_short = False
        for attachment, cursor in cursors:
            self._put(attachment, cursor)

    def _put_back(self, attachment: Attachment) -> None:
        """One viewer had more than its hub, and what it had is not in the log any more."""
        self._put(attachment, attachment.cursor(attachment.tail.runs))

    def _put(self, attachment: Attachment, cursor: Cursor) -> None:
        tail = attachment.tail
        resumed, offset = resume_at(cursor, tail.top, tail.runs)
        start = Cursor(offset, tail.runs.at(offset))
        attachment.restart(start)
        attachment.endpoint.send(
            Attached(tail.stream, resumed, offset, start.mark, tail.top, tail.state, attachment.size)
        )
        self.pump(attachment)

    async def _look_for(self, tail: Tail, offset: int) -> None:
        """The log lacks an entry that it should have: another history, or it was trimmed or deleted."""
        await self.repair(tail)
        if offset > tail.top or not self._is_watched(tail) or await self.replay.page(tail.key, offset, offset):
            return
        if self._is_watched(tail):
            self._vanish(tail)

    def _is_watched(self, tail: Tail) -> bool:
        return self.tails.get(tail.key) is tail and tail.is_open

    def _vanish(self, tail: Tail) -> None:
        """The stream is gone from Redis: say so and let go."""
        self._give_up(tail)
        tail.release()
        for attachment in list(tail.attachments):
            attachment.endpoint.attachments.pop(tail.stream, None)
            attachment.endpoint.send(_gone().frame(stream=tail.stream))
        tail.attachments.clear()

    # -- viewers -----------------------------------------------------------------------------------------

    def add(self, attachment: Attachment) -> None:
        """A viewer attaches; its answer has been sent. Replay begins."""
        tail = attachment.tail
        tail.attachments.append(attachment)
        tail.idle_since = None
        tail.demand.spent_since = None
        tail.has_unacked |= attachment.size is None
        self.pump(attachment)
        self.delivery.raise_demand(tail, attachment.demand)

    def remove(self, attachment: Attachment) -> None:
        """A viewer leaves. Interest stays a little: phones come back."""
        tail = attachment.tail
        if attachment not in tail.attachments:
            return
        tail.attachments.remove(attachment)
        tail.has_unacked = any(other.size is None for other in tail.attachments)
        if not tail.attachments:
            tail.idle_since = asyncio.get_running_loop().time()
            if tail.state == "done":
                self._forget(tail)
            elif tail.demand.withdraw():
                self.owners.tell(tail)

    def _behind(self, attachment: Attachment) -> None:
        self.replay.begin(attachment)

    def _over(self, attachment: Attachment) -> None:
        """`done` was written: the attachment is over by itself (protocol §4)."""
        attachment.endpoint.attachments.pop(attachment.stream, None)
        self.remove(attachment)

    def _forget(self, tail: Tail) -> None:
        if self._is_watched(tail):
            del self.tails[tail.key]
            tail.release()

    async def leave(self, tail: Tail) -> None:
        """Withdraw interest in a stream that nobody here watches any more."""
        self.owners.tell(tail, Wish(tail.key, 0, leave=True))
        self._forget(tail)
        await self.withdraw(tail.key, self.mailbox)

    async def withdraw(self, key: StreamKey, mailbox: str) -> None:
        """Take interest out of Redis, also if the first try is lost. Raises `Unreachable`."""
        self.strays.add((key, mailbox))
        await self.broker.log.leave(key, mailbox)
        self.strays.discard((key, mailbox))
        back = self.tails.get(key)
        if back is not None and mailbox == self.mailbox:
            self.spawn(self.repair(back))  # it may have registered before this withdrawal


def _is_hollow(view: StreamView) -> bool:
    """A finished stream whose log was lost: nobody will write it again."""
    return view.state == "done" and view.top == 0


def _lost_its_end(tail: Tail, view: StreamView) -> bool:
    """Whether Redis forgot the newest entries of a run whose owner lives and has them still."""
    return (
        view.top < tail.top
        and view.state == "running"
        and bool(view.owner)
        and view.runs.last == tail.runs.last
        and same_history(view.top, view.runs, tail.top, tail.runs)
    )


def _gone() -> Rejected:
    return Rejected("gone", "this stream vanished")
