"""Consumers whose process died stay in their group for ever: Redis never removes one by itself."""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import Redis

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


async def forget_dead(redis: Redis, key: str, group: str, idle_ms: int = IDLE_MS) -> list[bytes]:
    """Remove consumers that hold nothing and have not asked for `idle_ms`; their names. Atomic."""
    asking: Any = redis
    names: list[bytes] = await asking.eval(_FORGET, 1, key, group, idle_ms)
    return names
