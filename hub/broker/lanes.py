"""The queues between accept and claim. A lane dispatches and owns nothing: the lease lies in the stream's meta.

An entry is acknowledged and deleted right after the claim, so a lane's length is its depth. Delivery is at least
once; a second entry for a stream is refused by the claim and dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from hub.broker import keys
from hub.broker.consumers import leave, make_group, settle
from hub.broker.keys import StreamKey

GROUP = "workers"
#: An entry that was delivered but not acknowledged for this long belongs to a dead worker.
STRANDED_MS = 10_000
#: Entries of a lane compared in one look for those that nobody can be given.
_COMPARED = 1000


@dataclass(frozen=True, slots=True)
class Ticket:
    """A lane entry in a worker's hands."""

    lane: str
    id: bytes
    key: StreamKey


class Lanes:
    """Raises `Unreachable` when Redis does not serve a call. Groups are made as needed, from the lane's beginning."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # redis-py's return types span both protocol versions and decodings

    async def add(self, lane: str, key: StreamKey) -> None:
        await self._redis.xadd(keys.lane(lane), {"s": key})

    async def ensure(self, lanes: Sequence[str]) -> None:
        """Make the consumer groups that are missing. From 0: what waits already is not skipped."""
        for lane in lanes:
            await make_group(self._redis, keys.lane(lane), GROUP)

    async def take(self, redis: Any, lanes: Sequence[str], consumer: str, block_ms: int | None) -> list[Ticket]:
        """At most one ticket a lane, in the order of `lanes`; waits up to `block_ms` on `redis`, a blocking client, or
        not at all.
        """
        try:
            reply = await redis.xreadgroup(
                GROUP, consumer, {keys.lane(lane): ">" for lane in lanes}, count=1, block=block_ms
            )
        except ResponseError as error:
            # The group went with a flush, a restart without a disk or a failover: NOGROUP, or UNBLOCKED on 7.0.
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            await self.ensure(lanes)
            return []
        found = dict(reply or {})
        return [
            Ticket(lane, id_, StreamKey(fields[b"s"].decode()))
            for lane in lanes
            for id_, fields in found.get(keys.lane(lane).encode(), [])
        ]

    async def drop(self, ticket: Ticket) -> None:
        """Acknowledge and delete: the claim has been answered, whatever it said."""
        await settle(self._redis, keys.lane(ticket.lane), GROUP, ticket.id)

    async def stranded(self, lane: str, consumer: str) -> list[Ticket]:
        """Tickets of workers that died between delivery and claim, now this consumer's."""
        tickets, cursor = [], b"0-0"
        while True:
            cursor, rows, *_ = await self._redis.xautoclaim(
                keys.lane(lane), GROUP, consumer, min_idle_time=STRANDED_MS, start_id=cursor, count=100
            )
            tickets += [Ticket(lane, id_, StreamKey(fields[b"s"].decode())) for id_, fields in rows if fields]
            if cursor == b"0-0":
                return tickets

    async def forget(self, lanes: Sequence[str], consumer: str) -> None:
        """Remove a consumer that leaves. Only one without pending tickets: they would go with it."""
        for lane in lanes:
            await leave(self._redis, keys.lane(lane), GROUP, consumer)

    async def depths(self, lanes: Sequence[str]) -> dict[str, int]:
        return {lane: await self._redis.xlen(keys.lane(lane)) for lane in lanes}

    async def oldest_ms(self, lane: str) -> int | None:
        """When the oldest entry of a lane was added, in ms; None for an empty lane."""
        rows = await self._redis.xrange(keys.lane(lane), count=1)
        return int(rows[0][0].split(b"-")[0]) if rows else None

    async def requeue_lost(self, lane: str) -> list[StreamKey]:
        """Queue again what was delivered once and is pending with nobody: its consumer was deleted with it.

        No consumer is ever given such an entry, and while it stands at the head of its lane it hides that later
        ones are missing. An entry that is being dropped right now may be queued a second time: its claim is refused.
        """
        name = keys.lane(lane)
        try:
            groups = {group["name"]: group for group in await self._redis.xinfo_groups(name)}
        except ResponseError:  # no such lane yet
            return []
        if GROUP.encode() not in groups:
            return []
        delivered = await self._redis.xrange(name, "-", groups[GROUP.encode()]["last-delivered-id"], count=_COMPARED)
        if not delivered:
            return []
        rows = await self._redis.xpending_range(name, GROUP, delivered[0][0], delivered[-1][0], 2 * _COMPARED)
        pending = {row["message_id"] for row in rows}
        lost = [(id_, fields) for id_, fields in delivered if id_ not in pending]
        for id_, fields in lost:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.xadd(name, fields)
            pipeline.xdel(name, id_)
            await pipeline.execute()
        return [StreamKey(fields[b"s"].decode()) for _, fields in lost]
