"""The index of streams that are not finished: what the janitor walks. A score says when it looks next, in ms."""

from __future__ import annotations

from math import ceil
from typing import Any

from redis.asyncio import Redis

from hub.broker import keys
from hub.broker.keys import StreamKey

#: A walk over every key of Redis takes this long …
WALK_S = 120.0
#: … while no step looks at more keys than this (12 ms of this process and 3 of Redis, measured), nor at fewer than
#: STEP_LEAST.
STEP_MOST = 2000
STEP_LEAST = 10
#: Facts asked for in one trip.
_SLICE = 200
#: Nothing is ever looked at later than this from now.
FAR_MS = 120_000


class LiveIndex:
    """Raises `Unreachable` when Redis does not serve a call."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # redis-py's return types span both protocol versions and decodings
        self._cursor = 0

    async def add(self, key: StreamKey, look_ms: int) -> None:
        """Add a stream; one that is already there keeps its place."""
        await self._redis.zadd(keys.live(keys.live_shard(key)), {key: look_ms}, nx=True)

    async def due(self, now_ms: int, count: int) -> list[StreamKey]:
        """Up to `count` streams of each shard whose time has come, and as many whose time is too far off to be true:
        Redis' clock went back, or a failover led to a machine that is behind.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for shard in range(keys.LIVE_SHARDS):
            pipeline.zrangebyscore(keys.live(shard), "-inf", now_ms, start=0, num=count)
            pipeline.zrangebyscore(keys.live(shard), now_ms + FAR_MS, "+inf", start=0, num=count)
        return [StreamKey(member.decode()) for members in await pipeline.execute() for member in members]

    async def reschedule(self, looks: dict[StreamKey, int | None]) -> None:
        """Set when each stream is looked at next; None removes it."""
        pipeline = self._redis.pipeline(transaction=False)
        for key, look_ms in looks.items():
            shard = keys.live(keys.live_shard(key))
            if look_ms is None:
                pipeline.zrem(shard, key)
            else:
                pipeline.zadd(shard, {key: look_ms}, xx=True)
        await pipeline.execute()

    async def size(self) -> int:
        pipeline = self._redis.pipeline(transaction=False)
        for shard in range(keys.LIVE_SHARDS):
            pipeline.zcard(keys.live(shard))
        return sum(await pipeline.execute())

    async def mend(self, every_s: float) -> list[StreamKey]:
        """One step of an endless walk over all keys: unfinished streams that the index lost are added again.

        Called each `every_s`, it meets every stream once in WALK_S where Redis holds up to STEP_MOST × WALK_S /
        `every_s` keys (480,000 at the janitor's pace), later in proportion where it holds more. A stream that ends
        meanwhile is added for nothing, and removed at the janitor's next look.
        """
        count = ceil(await self._redis.dbsize() * every_s / WALK_S)
        self._cursor, names = await self._redis.scan(
            self._cursor, match=keys.ALL_METAS, count=min(STEP_MOST, max(STEP_LEAST, count))
        )
        found = [keys.key_of_meta(name.decode()) for name in names]
        lost: list[StreamKey] = []
        for start in range(0, len(found), _SLICE):
            lost += await self._lost(found[start : start + _SLICE])
        for key in lost:
            await self.add(key, 0)
        return lost

    async def _lost(self, streams: list[StreamKey]) -> list[StreamKey]:
        """Those that are not finished and not in the index."""
        pipeline = self._redis.pipeline(transaction=False)
        for key in streams:
            pipeline.hget(keys.meta(key), "state")
        states = await pipeline.execute(raise_on_error=False)  # a foreign key of that name is no stream
        open_ = [key for key, state in zip(streams, states, strict=True) if state in (b"queued", b"running")]
        for key in open_:
            pipeline.zscore(keys.live(keys.live_shard(key)), key)
        scores = await pipeline.execute() if open_ else []
        return [key for key, score in zip(open_, scores, strict=True) if score is None]
