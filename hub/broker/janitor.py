"""Finishes or hands on what nobody owns. Run by every hub and worker; a lock only saves work.

Every act is a guarded script, so two janitors at once are harmless: a lease that is renewed refuses the claim,
a second lane entry is dropped at the claim.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Literal

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from headrace.protocol.codes import DONE_ERROR_CODES
from headrace.protocol.entries import Done, DoneError, TextDigest, encode_data
from hub.broker import keys, mailbox
from hub.broker.accept import new_mark
from hub.broker.connections import Unreachable
from hub.broker.keys import TAKEOVER_LANE, StreamKey
from hub.broker.lanes import Lanes
from hub.broker.live import LiveIndex
from hub.broker.log import Claim, StreamLog
from hub.broker.settings import BrokerSettings

log_ = structlog.get_logger(__name__)

#: A queued stream this much older than the oldest entry of its lane is in no lane.
QUEUE_SLACK_MS = 5_000
#: A generation is given up after this many lost attempts without a new content entry …
BARREN_ATTEMPTS = 3
#: … or this many in all.
LOST_ATTEMPTS = 6
#: An index entry without a stream is kept this long: its accept may be under way.
VANISHED_MS = 60_000
#: What could not be ended is looked at again after this.
RETRY_MS = 1_000
#: Streams looked at in one trip, so that thousands never stall the loop.
SLICE = 200

FACTS = ("state", "owner", "lease", "created", "losses", "barren", "lane")
Act = Literal["wait", "takeover", "enqueue", "overloaded", "lost", "bury", "remove"]


@dataclass(frozen=True, slots=True)
class Verdict:
    act: Act
    look_ms: int | None = None
    """When to look again, in server ms; None: never."""


@dataclass(slots=True)
class Memory:
    """What a janitor remembers between looks. Lost with the process: that delays an act, never repeats harm.

    Bound: one number a stream whose lease is over or whose lane entry is missing.
    """

    over_since: dict[StreamKey, tuple[int, int]] = field(default_factory=dict)
    enqueued: dict[StreamKey, int] = field(default_factory=dict)
    vanished: dict[StreamKey, int] = field(default_factory=dict)

    def forget(self, key: StreamKey) -> None:
        for store in (self.over_since, self.enqueued, self.vanished):
            store.pop(key, None)


def judge(
    key: StreamKey,
    facts: dict[str, str] | None,
    oldest_ms: int | None,
    now_ms: int,
    memory: Memory,
    settings: BrokerSettings,
) -> Verdict:
    """What to do about one stream. `oldest_ms` is when the oldest entry of its lane was added, None if empty."""
    tick = int(settings.janitor_interval_s * 1000)
    if facts is None:
        first_seen = memory.vanished.setdefault(key, now_ms)
        if now_ms - first_seen < VANISHED_MS:
            return Verdict("wait", now_ms + VANISHED_MS // 4)
        return Verdict("remove")
    if facts["state"] == "done":
        return Verdict("remove")
    if facts["state"] == "queued":
        return _judge_queued(key, facts, oldest_ms, now_ms, memory, settings)
    lease = int(facts["lease"])
    if lease > now_ms:
        memory.over_since.pop(key, None)
        return Verdict("wait", lease + 1)
    seen_lease, seen_at = memory.over_since.setdefault(key, (lease, now_ms))
    if seen_lease != lease:
        memory.over_since[key] = (lease, now_ms)
        seen_at = now_ms
    if facts["owner"]:
        # Twice, because after an outage of Redis every lease looks over until its owner gets through.
        wait_until = seen_at + int(settings.lease_grace_s * 1000)
        if now_ms < wait_until:
            return Verdict("wait", wait_until)
        if int(facts["barren"]) + 1 >= BARREN_ATTEMPTS or int(facts["losses"]) + 1 >= LOST_ATTEMPTS:
            return Verdict("bury")
    if now_ms - seen_at > settings.queue_timeout_s * 1000:
        return Verdict("lost")
    enqueued = memory.enqueued.get(key, 0)
    if oldest_ms is not None and enqueued >= oldest_ms:
        return Verdict("wait", now_ms + max(tick, 1000))
    return Verdict("takeover", now_ms + max(tick, 1000))


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
    since = max(created, memory.enqueued.get(key, 0))
    if now_ms - since > QUEUE_SLACK_MS and (oldest_ms is None or since + QUEUE_SLACK_MS < oldest_ms):
        return Verdict("enqueue", now_ms + QUEUE_SLACK_MS)
    return Verdict("wait", now_ms + QUEUE_SLACK_MS)


class Janitor:
    """`run` sweeps until it is cancelled. Redis out of reach is waited for."""

    def __init__(self, redis: Redis, log: StreamLog, lanes: Lanes, live: LiveIndex, settings: BrokerSettings) -> None:
        self._redis = redis
        self._log = log
        self._lanes = lanes
        self._live = live
        self._settings = settings
        self._memory = Memory()
        self._token = secrets.token_urlsafe(8)

    async def run(self) -> None:
        waits = False
        while True:
            try:
                if await self._has_turn():
                    await self.sweep()
                waits = False
            except Unreachable as error:
                if not waits:
                    log_.warning("janitor waits for Redis", error=type(error).__name__)
                waits = True
            await asyncio.sleep(self._settings.janitor_interval_s)

    async def sweep(self) -> None:
        """Look at every stream whose time has come."""
        seconds, micros = await self._redis.time()
        now_ms = seconds * 1000 + micros // 1000
        due = await self._live.due(now_ms, SLICE)
        for start in range(0, len(due), SLICE):
            await self._look(due[start : start + SLICE], now_ms)
            await asyncio.sleep(0)

    async def _look(self, due: list[StreamKey], now_ms: int) -> None:
        facts = await self._log.facts(due, FACTS)
        oldest: dict[str, int | None] = {}
        looks: dict[StreamKey, int | None] = {}
        for key, fact in zip(due, facts, strict=True):
            try:
                lane = TAKEOVER_LANE if fact is None or fact["state"] != "queued" else fact["lane"]
                if lane not in oldest:
                    oldest[lane] = await self._lanes.oldest_ms(lane)
                verdict = judge(key, fact, oldest[lane], now_ms, self._memory, self._settings)
                looks[key] = await self._act(key, verdict, lane, now_ms)
            except (ResponseError, KeyError, ValueError) as error:
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
            self._memory.enqueued[key] = now_ms
        elif verdict.act == "overloaded":
            message = "no worker took this request in time; try again later"
            return await self._end(key, "overloaded", message, 5000, now_ms)
        elif verdict.act == "lost":
            message = "no worker took this answer over in time; what was written is kept, ask again"
            return await self._end(key, "worker_lost", message, None, now_ms)
        elif verdict.act == "bury":
            log_.error("dead letter", stream=keys.stream_of(key))
            await self._lanes.bury(key, "worker_lost")
            message = "this answer's workers were lost repeatedly; ask again"
            return await self._end(key, "worker_lost", message, None, now_ms)
        return verdict.look_ms

    async def _end(self, key: StreamKey, code: str, message: str, after_ms: int | None, now_ms: int) -> int | None:
        """End a generation as a worker would: claim, append `done`, relay. Returns when to look again.

        A worker may have been faster: then the stream runs, and stays looked after.
        """
        mark = new_mark()
        settings = self._settings
        ttl_ms = int(settings.retention_s * 1000)
        claim = await self._log.claim(key, mark=mark, owner="", lease_ms=1000, ttl_ms=ttl_ms)
        if not isinstance(claim, Claim):
            return now_ms + RETRY_MS
        digest = await self._digest(key, claim.next_offset)
        done = Done(
            "failed", "error", digest.size, digest.hexdigest(),
            error=DoneError(code, message, DONE_ERROR_CODES[code], after_ms),
        )  # fmt: skip
        entries = [("done", encode_data(done))]
        status, _ = await self._log.append(key, mark, claim.next_offset, entries, done_ttl_ms=ttl_ms)
        if status != "OK":
            return now_ms + RETRY_MS
        part = mailbox.Part(key, mark, claim.next_offset, entries)
        for watcher in claim.watchers:
            await mailbox.post(self._redis, watcher, mailbox.HubPacket("", [part]), settings.mailbox_packets)
        return None

    async def _digest(self, key: StreamKey, end: int) -> TextDigest:
        digest, first = TextDigest(), 1
        while first < end:
            entries = await self._log.read(key, first, 1000)
            if not entries:
                break
            for kind, data in entries:
                digest.add(kind, data)
            first += len(entries)
        return digest

    async def _has_turn(self) -> bool:
        lock_ms = int(self._settings.janitor_interval_s * 3000)
        if await self._redis.set(keys.janitor(), self._token, nx=True, px=lock_ms):
            return True
        if await self._redis.get(keys.janitor()) != self._token.encode():
            return False
        await self._redis.pexpire(keys.janitor(), lock_ms)
        return True
