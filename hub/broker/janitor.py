"""Finishes or hands on what nobody owns. Run by every hub and worker; a lock only saves work.

Every act is a guarded script, so two janitors at once are harmless: a lease that is renewed refuses the claim,
a second lane entry is dropped at the claim.

What it walks is the index of live streams. Entries that the index or a lane lost are found by two slower looks: one
over the lanes each LANES_EVERY_MS, one over all keys, a slice at a time (`LiveIndex.mend`). So, while any hub or
worker lives, an accepted request has its `done`: at the latest `queue_timeout_s` after nobody owns it, and where its
index entry was lost too, one walk later.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from headrace.protocol.body import Body
from headrace.protocol.codes import DONE_ERROR_CODES
from headrace.protocol.entries import Done, DoneError, TextDigest, encode_data
from hub.broker import keys, mailbox
from hub.broker.accept import new_mark
from hub.broker.connections import Unreachable
from hub.broker.consumers import forget_dead
from hub.broker.contact import Contact
from hub.broker.keys import ALL_LANES, TAKEOVER_LANE, StreamKey
from hub.broker.lanes import GROUP as WORKERS
from hub.broker.lanes import Lanes
from hub.broker.letters import Letters
from hub.broker.live import LiveIndex
from hub.broker.log import Claim, StreamLog
from hub.broker.lost import LostCalls, asked_of
from hub.broker.settings import BrokerSettings
from hub.broker.usage import GROUP as LEDGER
from hub.broker.usage import UsageQueue

log_ = structlog.get_logger(__name__)

#: A queued stream this much older than the oldest entry of its lane is in no lane.
QUEUE_SLACK_MS = 5_000
#: A generation is given up after this many lost attempts without a new content entry …
BARREN_ATTEMPTS = 4
#: … or this many in all.
LOST_ATTEMPTS = 6
#: An index entry without a stream is kept this long: its accept may be under way.
VANISHED_MS = 60_000
#: What could not be ended is looked at again after this.
RETRY_MS = 1_000
#: A lost run is not given up before this janitor knew of it for so long: after an outage, workers come first.
PATIENCE_MS = 30_000
#: Lanes are searched this often for entries that nobody can be given.
LANES_EVERY_MS = 5_000
#: What was not looked at for so long left the index without this janitor's doing.
FORGET_MS = 600_000
#: Redis was out of reach if it was not heard of for so long beyond the janitor's own pause.
GAP_S = 1.0
#: Redis takes no writes for the time being: full, read-only, without its disk or its replicas.
REFUSES_ALL = re.compile(r"OOM|maxmemory|READONLY|read only|MISCONF|persist on disk|NOREPLICAS|enough good replicas")
#: Streams looked at in one trip, so that thousands never stall the loop.
SLICE = 200

FACTS = ("state", "owner", "lease", "created", "losses", "barren", "lane", "cancel")
Act = Literal["wait", "takeover", "enqueue", "overloaded", "cancelled", "lost", "bury", "remove"]


@dataclass(frozen=True, slots=True)
class Verdict:
    act: Act
    look_ms: int | None = None
    """When to look again, in server ms; None: never."""


@dataclass(slots=True)
class Note:
    """`lease` is over, or the stream absent (lease None), `since`; a ticket was queued at `enqueued`. Server ms."""

    lease: int | None
    since: int
    looked: int
    enqueued: int = 0


@dataclass(slots=True)
class Memory:
    """What a janitor remembers between looks. Lost with the process: that delays an act, never repeats harm.

    Bound: one note a stream that is queued, lost or absent. Notes of streams that others finished go by `prune`.
    """

    notes: dict[StreamKey, Note] = field(default_factory=dict)

    def note(self, key: StreamKey, lease: int | None, now_ms: int) -> Note:
        """The note of a stream that is in this condition now. Another lease is another condition, and begins now."""
        note = self.notes.setdefault(key, Note(lease, now_ms, now_ms))
        if note.lease != lease:
            note.lease, note.since = lease, now_ms
        note.looked = now_ms
        return note

    def forget(self, key: StreamKey) -> None:
        self.notes.pop(key, None)

    def prune(self, now_ms: int) -> None:
        for key in [key for key, note in self.notes.items() if now_ms - note.looked > FORGET_MS]:
            del self.notes[key]


def judge(
    key: StreamKey,
    facts: dict[str, str] | None,
    oldest_ms: int | None,
    now_ms: int,
    memory: Memory,
    settings: BrokerSettings,
    settled_ms: int,
) -> Verdict:
    """What to do about one stream. `oldest_ms` is when the oldest entry of its lane was added, None if empty. Redis
    has answered without a break since `settled_ms`.
    """
    if facts is None:
        if now_ms - memory.note(key, None, now_ms).since < VANISHED_MS:
            return Verdict("wait", now_ms + VANISHED_MS // 4)
        return Verdict("remove")
    if facts["state"] == "done":
        return Verdict("remove")
    if facts["state"] == "queued":
        return _judge_queued(key, facts, oldest_ms, now_ms, memory, settings)
    lease = int(facts["lease"])
    if lease > now_ms:
        memory.forget(key)
        return Verdict("wait", lease + 1)
    return _judge_lost(facts, oldest_ms, now_ms, memory.note(key, lease, now_ms), settings, settled_ms)


def _judge_queued(
    key: StreamKey,
    facts: dict[str, str],
    oldest_ms: int | None,
    now_ms: int,
    memory: Memory,
    settings: BrokerSettings,
) -> Verdict:
    created = int(facts["created"])
    if now_ms - created > settings.queue_timeout_s * 1000:
        return Verdict("overloaded")
    since = max(created, memory.note(key, int(facts["lease"]), now_ms).enqueued)
    if now_ms - since > QUEUE_SLACK_MS and (oldest_ms is None or since + QUEUE_SLACK_MS < oldest_ms):
        return Verdict("enqueue", now_ms + QUEUE_SLACK_MS)
    return Verdict("wait", now_ms + QUEUE_SLACK_MS)


def _judge_lost(
    facts: dict[str, str], oldest_ms: int | None, now_ms: int, note: Note, settings: BrokerSettings, settled_ms: int
) -> Verdict:
    """About a run whose lease is over, or that was handed back."""
    next_ms = now_ms + max(int(settings.janitor_interval_s * 1000), RETRY_MS)
    # A loss is counted by the claim that follows it; without an owner there is none to count.
    loss = int(facts["owner"] != "")
    if loss:
        # After an outage of Redis every lease looks over until its owner gets through.
        wait_until = settled_ms + int(settings.lease_grace_s * 1000)
        if now_ms < wait_until:
            return Verdict("wait", wait_until)
    if facts["cancel"] == "1":
        return Verdict("cancelled")  # there is nothing left to take over
    if int(facts["barren"]) + loss >= BARREN_ATTEMPTS or int(facts["losses"]) + loss >= LOST_ATTEMPTS:
        return Verdict("bury")
    limit_ms = settings.queue_timeout_s * 1000
    if now_ms - int(facts["lease"]) > limit_ms and now_ms - note.since > min(limit_ms, PATIENCE_MS):
        return Verdict("lost")
    if oldest_ms is not None and note.enqueued >= oldest_ms:
        return Verdict("wait", next_ms)
    return Verdict("takeover", next_ms)


class Janitor:
    """`run` sweeps until it is cancelled. Redis out of reach is waited for."""

    def __init__(self, redis: Redis, log: StreamLog, lanes: Lanes, live: LiveIndex, settings: BrokerSettings) -> None:
        self._redis = redis
        self._log = log
        self._lanes = lanes
        self._live = live
        self._letters = Letters(redis)
        self._usage = UsageQueue(redis)
        self._settings = settings
        self._memory = Memory()
        self._contact = Contact(settings.janitor_interval_s + GAP_S)
        self._token = secrets.token_urlsafe(8)
        self._lanes_looked_ms = 0

    async def run(self) -> None:
        waits = False
        while True:
            try:
                await self._now_ms()  # also while it is another's turn: whoever gets it next knows how Redis fares
                if await self._has_turn():
                    await self.sweep()
                else:
                    self._memory = Memory()  # what it knows is out of date when its turn comes
                waits = False
            except Unreachable as error:
                self._contact.lost()
                if not waits:
                    log_.warning("janitor waits for Redis", error=type(error).__name__)
                waits = True
            await asyncio.sleep(self._settings.janitor_interval_s)

    async def sweep(self) -> None:
        """Look at every stream whose time has come, and at a slice of all keys."""
        now_ms = await self._now_ms()
        due = await self._live.due(now_ms, SLICE)
        for start in range(0, len(due), SLICE):
            await self._look(due[start : start + SLICE], now_ms)
            await asyncio.sleep(0)
        for key in await self._live.mend(self._settings.janitor_interval_s):
            log_.warning("index entry was missing", stream=keys.stream_of(key))
        if not 0 <= now_ms - self._lanes_looked_ms < LANES_EVERY_MS:
            self._lanes_looked_ms = now_ms
            for lane in ALL_LANES:
                for key in await self._lanes.requeue_lost(lane):
                    log_.warning("lane entry was pending with nobody", stream=keys.stream_of(key), lane=lane)
                await forget_dead(self._redis, keys.lane(lane), WORKERS)
            await forget_dead(self._redis, keys.usage(), LEDGER)
            self._memory.prune(now_ms)

    async def _look(self, due: list[StreamKey], now_ms: int) -> None:
        facts = await self._log.facts(due, FACTS)
        oldest: dict[str, int | None] = {}
        looks: dict[StreamKey, int | None] = {}
        for key, fact in zip(due, facts, strict=True):
            try:
                lane = TAKEOVER_LANE if fact is None or fact["state"] != "queued" else fact["lane"]
                if lane not in oldest:
                    oldest[lane] = await self._lanes.oldest_ms(lane)
                settled_ms = self._contact.since_ms
                verdict = judge(key, fact, oldest[lane], now_ms, self._memory, self._settings, settled_ms)
                looks[key] = await self._act(key, verdict, lane, now_ms)
            except (ResponseError, KeyError, ValueError) as error:
                if REFUSES_ALL.search(str(error)):
                    raise  # not this stream's fault: the sweep waits
                # A stream that Redis refuses, or whose facts make no sense, must not keep the janitor from the others.
                log_.error("stream cannot be tended", stream=keys.stream_of(key), error=type(error).__name__)
                looks[key] = now_ms + QUEUE_SLACK_MS
            if looks[key] is None:
                self._memory.forget(key)
        await self._live.reschedule(looks)

    async def _act(self, key: StreamKey, verdict: Verdict, lane: str, now_ms: int) -> int | None:
        """Carry out a verdict; returns when to look again."""
        if verdict.act in ("takeover", "enqueue"):
            log_.info(verdict.act, stream=keys.stream_of(key), lane=lane)
            await self._lanes.add(lane, key)
            if key in self._memory.notes:
                self._memory.notes[key].enqueued = now_ms
        elif verdict.act == "cancelled":
            return await self._end(key, None, now_ms)
        elif verdict.act == "overloaded":
            return await self._end(key, _error("overloaded", 5000), now_ms)
        elif verdict.act == "lost":
            return await self._end(key, _error("worker_lost"), now_ms)
        elif verdict.act == "bury":
            log_.error("dead letter", stream=keys.stream_of(key))
            message = "this answer's workers were lost repeatedly; ask again"
            return await self._end(key, _error("worker_lost", message=message), now_ms, is_letter=True)
        return verdict.look_ms

    async def _end(
        self, key: StreamKey, error: DoneError | None, now_ms: int, *, is_letter: bool = False
    ) -> int | None:
        """End a generation as a worker would: claim, append `done`, relay. Returns when to look again.

        What somebody cancelled ends so, whatever the error. A worker may have been faster than this: then the
        stream runs, and stays looked after. With `is_letter` a dead letter is written before the end, and the
        request is kept as long as the stream: a person may want it asked again.
        """
        mark = new_mark()
        settings = self._settings
        ttl_ms = int(settings.retention_s * 1000)
        claim = await self._log.claim(key, mark=mark, owner="", lease_ms=1000, ttl_ms=ttl_ms)
        if not isinstance(claim, Claim):
            return now_ms + RETRY_MS
        if is_letter:
            # This claim is an attempt too, though not one that asked anybody.
            why = error.code if error else "cancelled"
            await self._letters.bury(key, why, user=claim.user, model=_model(claim.request), attempts=claim.attempt - 1)
        lost = LostCalls(claim.runs, mark)
        digest = await self._digest(key, claim.next_offset, lost)
        used = list(lost.rows(asked_of(key, claim.user, _body(claim.request)), now_ms))
        if used:  # its worker cannot tell any more, and nobody asks after the end
            await self._usage.add(used)
        if claim.cancelled or error is None:
            done = Done("cancelled", "cancelled", digest.size, digest.hexdigest())
        else:
            done = Done("failed", "error", digest.size, digest.hexdigest(), error=error)
        entries = [("done", encode_data(done))]
        status, _ = await self._log.append(
            key, mark, claim.next_offset, entries, shown="k" if is_letter else "", done_ttl_ms=ttl_ms
        )
        if status != "OK":
            return now_ms + RETRY_MS
        part = mailbox.Part(key, mark, claim.next_offset, entries)
        for watcher in claim.watchers:
            await mailbox.post(self._redis, watcher, mailbox.HubPacket("", [part]), settings.mailbox_packets)
        return None

    async def _digest(self, key: StreamKey, end: int, lost: LostCalls) -> TextDigest:
        digest, first = TextDigest(), 1
        while first < end:
            entries = await self._log.read(key, first, 1000)
            if not entries:
                break
            for kind, data in entries:
                digest.add(kind, data)
                lost.add(kind, data)
            first += len(entries)
        return digest

    async def _now_ms(self) -> int:
        seconds, micros = await self._redis.time()
        now_ms: int = seconds * 1000 + micros // 1000
        self._contact.heard(now_ms, time.monotonic())
        return now_ms

    async def _has_turn(self) -> bool:
        lock_ms = int(self._settings.janitor_interval_s * 3000)
        if await self._redis.set(keys.janitor(), self._token, nx=True, px=lock_ms):
            return True
        if await self._redis.get(keys.janitor()) != self._token.encode():
            return False
        await self._redis.pexpire(keys.janitor(), lock_ms)
        return True


_MESSAGES = {
    "overloaded": "no worker took this request in time; try again later",
    "worker_lost": "no worker took this answer over in time; what was written is kept, ask again",
}


def _error(code: str, after_ms: int | None = None, *, message: str = "") -> DoneError:
    return DoneError(code, message or _MESSAGES[code], DONE_ERROR_CODES[code], after_ms)


def _model(request: bytes) -> str:
    """What was asked for; nothing if the request cannot be read."""
    body = _body(request)
    return "" if body is None else body.model


def _body(request: bytes) -> Body | None:
    try:
        return msgspec.msgpack.decode(request, type=Body)
    except msgspec.MsgspecError:
        return None
