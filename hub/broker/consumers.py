"""The consumer groups of Redis streams that serve as queues: made, drained, and rid of consumers that are gone.

Consumers whose process died stay in their group for ever: Redis never removes one by itself.
"""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

#: A living reader asks every two seconds or so. One that was merely slow is made again by its next read.
IDLE_MS: Final = 60_000

# In one step, since removing a consumer discards what is pending with it.
_FORGET: Final = """
local found = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if found.err then return {} end
local removed = {}
for _, fields in ipairs(found) do
  local consumer = {}
  for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
  if consumer.pending == 0 and consumer.idle >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    removed[#removed + 1] = consumer.name
  end
end
return removed
"""


async def make_group(redis: Any, key: str, group: str) -> None:
    """Make a group where it is missing, and its stream. From 0: what waits already is not skipped."""
    try:
        await redis.xgroup_create(key, group, id="0", mkstream=True)
    except ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise


async def settle(redis: Any, key: str, group: str, *ids: bytes) -> None:
    """Acknowledge entries and delete them: the length of the stream is the queue's depth."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.xack(key, group, *ids)
    pipeline.xdel(key, *ids)
    await pipeline.execute()


async def leave(redis: Any, key: str, group: str, consumer: str) -> None:
    """Remove a consumer that leaves, unless entries are pending: they would go with it."""
    try:
        if not await redis.xpending_range(key, group, "-", "+", 1, consumername=consumer):
            await redis.xgroup_delconsumer(key, group, consumer)
    except ResponseError:
        pass  # no group, nothing to leave


async def forget_dead(redis: Redis, key: str, group: str, idle_ms: int = IDLE_MS) -> list[bytes]:
    """Remove consumers that hold nothing and have not asked for `idle_ms`; their names. Atomic."""
    asking: Any = redis
    names: list[bytes] = await asking.eval(_FORGET, 1, key, group, idle_ms)
    return names
