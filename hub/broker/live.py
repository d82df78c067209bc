"""The index of streams that are not finished: what the janitor walks. A score says when it looks next, in ms."""

from __future__ import annotations

from redis.asyncio import Redis

from hub.broker import keys
from hub.broker.keys import StreamKey


class LiveIndex:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(self, key: StreamKey, look_ms: int) -> None:
        """Add a stream; one that is already there keeps its place."""
        await self._redis.zadd(keys.live(keys.live_shard(key)), {key: look_ms}, nx=True)

    async def due(self, now_ms: int, count: int) -> list[StreamKey]:
        """Up to `count` streams of each shard whose time has come."""
        pipeline = self._redis.pipeline(transaction=False)
        for shard in range(keys.LIVE_SHARDS):
            pipeline.zrangebyscore(keys.live(shard), "-inf", now_ms, start=0, num=count)
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
