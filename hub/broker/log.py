"""A stream's life in Redis. Every change is one script on the stream's slot; see scripts/ for what is atomic."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from redis.asyncio import Redis

from headrace.protocol.cursor import MarkRuns
from headrace.protocol.entries import Entry
from headrace.protocol.frames import StreamState
from hub.broker import keys
from hub.broker.keys import StreamKey
from hub.broker.resp import Command

SCRIPTS: Final[dict[str, str]] = {
    path.name.removesuffix(".lua"): path.read_text()
    for path in files("hub.broker").joinpath("scripts").iterdir()
    if path.name.endswith(".lua")
}
APPEND_SHA: Final = hashlib.sha1(SCRIPTS["append"].encode()).hexdigest()


#: A lease over for this long is its owner's loss, not a late renewal.
LOST_MS = 1000


class Absent(Exception):
    """No such stream, or not this user's: not told apart (protocol §8, not_found)."""


@dataclass(frozen=True, slots=True)
class StreamView:
    """What `attach` tells about a stream."""

    state: StreamState
    top: int
    runs: MarkRuns
    owner: str
    cancelled: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """A generation that is now this worker's, until its lease ends."""

    next_offset: int
    attempt: int
    runs: MarkRuns
    cancelled: bool
    shown: bool
    losses: int
    request: bytes
    options: bytes
    user: str
    log_bytes: int
    watchers: dict[str, int]
    on_abandon: str = ""
    """Set when a detach replaced the option."""
    underway: bytes = b""
    """What a lost worker kept of what a provider still writes, see `StreamLog.remember`."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a claim or a renewal was not granted: GONE, TERMINAL, LEASED or FENCED."""

    reason: str


@dataclass(frozen=True, slots=True)
class Renewal:
    cancelled: bool
    watchers: dict[str, int]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Outcome of a cancel. `offset` is set when the cancel itself appended `done`."""

    owner: str = ""
    offset: int = 0
    mark: str = ""
    watchers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """What the reconcile pass compares: None for an absent stream."""

    state: StreamState
    top: int
    mark: str
    owner: str
    is_lost: bool = False
    """Its owner's lease is over, for LOST_MS by now."""


def append_command(
    key: StreamKey,
    mark: str,
    first: int,
    entries: Sequence[Entry],
    *,
    shown: str,
    lease_ms: int,
    done_ttl_ms: int,
) -> Command:
    """The append of a frozen batch, for a `RawConnection`. See scripts/append.lua for the reply."""
    flat = [part for entry in entries for part in entry]
    return (
        "EVALSHA", APPEND_SHA, 3, keys.meta(key), keys.log(key), keys.interest(key),
        mark, first, shown, lease_ms, done_ttl_ms, *flat,
    )  # fmt: skip


class StreamLog:
    """Runs the scripts. All methods raise `Unreachable` when Redis does not serve them."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # redis-py's return types span both protocol versions and decodings
        self._scripts = {name: redis.register_script(text) for name, text in SCRIPTS.items()}

    async def run(self, name: str, script_keys: Sequence[str], args: Sequence[Any]) -> Any:
        return await self._scripts[name](keys=script_keys, args=args)

    async def create(
        self,
        key: StreamKey,
        *,
        mark: str,
        queued: bytes,
        user: str,
        request: bytes,
        options: bytes,
        lane: str,
        ttl_ms: int,
    ) -> str:
        """Make the stream unless it is there; returns its state."""
        reply = await self.run("create", _keys("create", key), [mark, queued, user, request, options, lane, ttl_ms])
        return str(reply[1], "ascii")

    async def claim(self, key: StreamKey, *, mark: str, owner: str, lease_ms: int, ttl_ms: int) -> Claim | Refused:
        reply = await self.run("claim", _keys("claim", key), [mark, owner, lease_ms, ttl_ms])
        if reply[0] != b"OK":
            return Refused(reply[0].decode())
        _, offset, attempt, runs, cancel, shown, losses, request, options, user, size, watchers, *rest = reply
        abandon, underway = rest
        return Claim(
            offset, attempt, MarkRuns.parse(runs.decode()), bool(cancel), bool(shown), losses,
            request, options, user.decode(), size, _watchers(watchers), abandon.decode(), underway,
        )  # fmt: skip

    async def renew(
        self, renewals: Sequence[tuple[StreamKey, str]], *, owner: str, lease_ms: int, ttl_ms: int
    ) -> list[Renewal | Refused]:
        """Renew many leases in one trip, in the order given as (key, mark)."""
        script = self._scripts["renew"]
        pipeline = self._redis.pipeline(transaction=False)
        for key, mark in renewals:
            await script(keys=_keys("renew", key), args=[mark, owner, lease_ms, ttl_ms], client=pipeline)
        return [
            Renewal(bool(reply[1]), _watchers(reply[2])) if reply[0] == b"OK" else Refused(reply[0].decode())
            for reply in await pipeline.execute()
        ]

    async def append(
        self,
        key: StreamKey,
        mark: str,
        first: int,
        entries: Sequence[Entry],
        *,
        shown: str = "",
        done_ttl_ms: int = 0,
    ) -> tuple[str, int]:
        """Append off the hot path: (OK, DUP, FENCED, TERMINAL, GAP or GONE, its number). `shown`: see the script."""
        flat = [part for entry in entries for part in entry]
        reply = await self.run("append", _keys("append", key), [mark, first, shown, 0, done_ttl_ms, *flat])
        return reply[0].decode(), reply[1]

    async def cancel(self, key: StreamKey, *, user: str, may_cancel: bool, done: bytes, ttl_ms: int) -> Cancelled:
        """Durable when this returns. Raises Absent."""
        reply = await self.run("cancel", _keys("cancel", key), [user, int(may_cancel), done, ttl_ms])
        if reply[0] == b"ABSENT":
            raise Absent
        if reply[0] == b"FLAGGED":
            return Cancelled(owner=reply[1].decode())
        if reply[0] == b"ENDED":
            return Cancelled(offset=reply[1], mark=reply[2].decode(), watchers=tuple(_watchers(reply[3])))
        return Cancelled()

    async def attach(
        self, key: StreamKey, *, user: str, may_read: bool, mailbox: str, demand: int, ahead: int | None = None
    ) -> StreamView:
        """Register interest (none with an empty mailbox) and look. Raises Absent.

        `ahead`: the largest window there is. Demand further past the top is cut to it: it came from a bogus cursor.
        """
        limit = "" if ahead is None else ahead
        reply = await self.run("attach", _keys("attach", key), [user, int(may_read), mailbox, demand, limit])
        if reply[0] == b"ABSENT":
            raise Absent
        _, state, top, runs, owner, cancel = reply
        return StreamView(state.decode(), top, MarkRuns.parse(runs.decode()), owner.decode(), bool(cancel))

    async def leave(self, key: StreamKey, mailbox: str) -> None:
        await self.run("leave", _keys("leave", key), [mailbox])

    async def set_abandon(self, key: StreamKey, *, user: str, may_cancel: bool, rule: str) -> str:
        """Replace the abandon rule, durable when this returns; gives the owner to tell. Raises Absent."""
        reply = await self.run("abandon", _keys("abandon", key), [user, int(may_cancel), rule])
        if reply[0] == b"ABSENT":
            raise Absent
        return str(reply[1], "ascii")

    async def release(self, key: StreamKey, mark: str) -> bool:
        """Hand a generation back. False if it was not this attempt's any more."""
        reply = await self.run("release", _keys("release", key), [mark])
        return bool(reply[0] == b"OK")

    async def remember(self, key: StreamKey, mark: str, underway: bytes) -> bool:
        """Keep what a provider writes on without a reader, for whoever claims next; empty: nothing any more.

        Durable when this returns. False if the generation was not this attempt's any more.
        """
        reply = await self.run("remember", _keys("remember", key), [mark, underway])
        return bool(reply[0] == b"OK")

    async def read(self, key: StreamKey, first: int, count: int) -> list[Entry]:
        """Up to `count` entries from offset `first` on; none past a hole, which only a damaged log has."""
        rows = await self._redis.xrange(keys.log(key), min=f"{first}-0", max="+", count=count)
        return [
            (fields[b"k"].decode(), fields[b"d"])
            for offset, (entry, fields) in enumerate(rows, first)
            if entry == b"%d-0" % offset
        ]

    async def standings(self, streams: Sequence[StreamKey]) -> list[Standing | None]:
        """State, top, mark and owner of many streams in one trip."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        for key in streams:
            pipeline.hmget(keys.meta(key), "state", "mark", "owner", "lease")
            pipeline.xlen(keys.log(key))
        (seconds, micros), *replies = await pipeline.execute()
        lost_before = seconds * 1000 + micros // 1000 - LOST_MS
        return [
            Standing(
                state.decode(),
                top,
                (mark or b"").decode(),
                (owner or b"").decode(),
                bool(owner) and int(lease or 0) < lost_before,
            )
            if state
            else None
            for (state, mark, owner, lease), top in zip(replies[::2], replies[1::2], strict=True)
        ]

    async def facts(self, streams: Sequence[StreamKey], names: Sequence[str]) -> list[dict[str, str] | None]:
        """Chosen meta fields of many streams as text, and `top`; None for an absent stream."""
        pipeline = self._redis.pipeline(transaction=False)
        for key in streams:
            pipeline.hmget(keys.meta(key), *names)
            pipeline.xlen(keys.log(key))
        replies = await pipeline.execute()
        return [
            {name: value.decode() for name, value in zip(names, values, strict=True) if value is not None}
            | {"top": str(top)}
            if values[0] is not None
            else None
            for values, top in zip(replies[::2], replies[1::2], strict=True)
        ]


def _keys(script: str, key: StreamKey) -> list[str]:
    return [make(key) for make in keys.SCRIPT_KEYS[script]]


def _watchers(flat: Any) -> dict[str, int]:
    """Interest as a script returns it: a flat list of mailbox, demand, …"""
    if isinstance(flat, dict):
        return {mailbox.decode(): int(demand) for mailbox, demand in flat.items()}
    return {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}
