"""What every provider call used, on its way to the ledger: a stream in Redis between workers and whoever writes.

A row is taken away once the ledger has it: a ledger that is down costs nothing but memory of Redis, and a killed
writer leaves its rows to the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from hub.broker import keys
from hub.broker.consumers import leave, make_group, settle
from hub.broker.resp import Command

log_ = structlog.get_logger(__name__)

GROUP = "ledger"
#: Rows kept for a ledger that is down, some 300 bytes each; beyond it the oldest are lost, and counted by nobody.
ROWS = 1_000_000
#: The most that one row may say: a provider that reports nonsense must not make the sum of all rows overflow.
MOST_TOKENS = 10**12
MOST_NANOS = 10**15
_NAME_CHARACTERS = 256
#: Rows of a writer that took them and said nothing for so long, in ms, are the next writer's.
STRANDED_MS = 60_000

Outcome = Literal["completed", "truncated", "cancelled", "failed", "superseded", "lost"]


class UsageRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One provider call. Written any number of times under its id it counts once.

    `input_tokens` is the grand total, `cached_tokens` and `cache_write_tokens` are parts of it; `output_tokens`
    includes `reasoning_tokens`. `cost_nanos` is in billionths of a US dollar, None: the price is not known.
    """

    id: str
    """`<stream>/<mark>/<call>`: the attempt's mark, and the number of the provider call in it."""
    stream: str
    org: str
    user: str
    attempt: int
    provider: str
    model: str
    outcome: Outcome
    ended_ms: int
    """Unix time."""
    started_ms: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nanos: int | None = None
    estimated: bool = False
    """The provider did not report: tokens were estimated from the text."""


def name(text: str) -> str:
    """A name as any database takes it: models are named by clients and providers."""
    return text[:_NAME_CHARACTERS].replace("\0", "").encode("utf-8", "replace").decode()


def tokens(count: int) -> int:
    """A number of tokens as a row may hold it."""
    return min(max(count, 0), MOST_TOKENS)


def estimated_tokens(size: int) -> int:
    """Tokens of `size` bytes of UTF-8, where nobody counted them: some 10 % off for most languages and for code."""
    return tokens(-(-size // 4))


def add_command(row: UsageRow) -> Command:
    """Puts a row into the queue, over a `RawConnection`."""
    return ("XADD", keys.usage(), "MAXLEN", "~", ROWS, "*", "r", msgspec.msgpack.encode(row))


class UsageQueue:
    """Raises `Unreachable` when Redis does not serve a call."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    async def add(self, rows: Sequence[UsageRow]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for row in rows:
            pipeline.xadd(keys.usage(), {"r": msgspec.msgpack.encode(row)}, maxlen=ROWS, approximate=True)
        await pipeline.execute()

    async def ensure(self) -> None:
        """Make the group. From 0: rows that wait already are not skipped."""
        await make_group(self._redis, keys.usage(), GROUP)

    async def take(self, consumer: str, count: int) -> list[tuple[bytes, UsageRow]]:
        """Rows that nobody wrote yet, those of dead writers first. None of them: an empty list, at once."""
        try:
            _, stranded, *_ = await self._redis.xautoclaim(
                keys.usage(), GROUP, consumer, min_idle_time=STRANDED_MS, count=count
            )
            found = [row for row in stranded if row[1]]
            if not found:
                reply = await self._redis.xreadgroup(GROUP, consumer, {keys.usage(): ">"}, count=count)
                found = [row for rows in dict(reply or {}).values() for row in rows]
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):  # it went with a flush or a failover
                raise
            await self.ensure()
            return []
        return await self._read(found)

    async def _read(self, found: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[tuple[bytes, UsageRow]]:
        rows, unreadable = [], []
        for id_, fields in found:
            try:
                rows.append((id_, msgspec.msgpack.decode(fields[b"r"], type=UsageRow)))
            except (msgspec.DecodeError, KeyError):
                unreadable.append(id_)
        if unreadable:  # of another version; they must not come back for ever
            log_.error("usage rows cannot be read", rows=len(unreadable))
            await self.drop(unreadable)
        return rows

    async def drop(self, ids: Sequence[bytes]) -> None:
        """The ledger has these rows."""
        await settle(self._redis, keys.usage(), GROUP, *ids)

    async def discard(self) -> None:
        """Nobody keeps a ledger: drop all rows."""
        await self._redis.xtrim(keys.usage(), maxlen=0, approximate=False)

    async def forget(self, consumer: str) -> None:
        """Remove a consumer that leaves, unless rows are pending: they would go with it."""
        await leave(self._redis, keys.usage(), GROUP, consumer)

    async def waiting(self) -> int:
        """Rows that the ledger does not have yet."""
        return int(await self._redis.xlen(keys.usage()))
