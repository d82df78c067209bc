"""Dead letters: generations that were given up, for a person to look at (`headrace dead`).

A letter holds no prompt. The request itself stays in the stream's meta until the retention ends; only until then
can it be asked again. The newest `KEPT` letters are kept, also after their streams expired; older ones go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from hub.broker import keys
from hub.broker.keys import StreamKey

#: Dead letters kept.
KEPT = 1000


@dataclass(frozen=True, slots=True)
class Letter:
    id: str
    key: StreamKey
    why: str
    user: str
    model: str
    attempts: int

    @property
    def at_ms(self) -> int:
        """When it was given up, by Redis' clock, in Unix ms."""
        return int(self.id.partition("-")[0])


class Letters:
    """Raises `Unreachable` when Redis does not serve a call."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # redis-py's return types span both protocol versions and decodings

    async def bury(self, key: StreamKey, why: str, *, user: str, model: str, attempts: int) -> None:
        """Note a generation that is given up. A repeat, after a janitor died half-way, is told as one by `all`."""
        fields = {"s": key, "why": why, "user": user, "model": model, "attempts": attempts}
        await self._redis.xadd(keys.dead_letters(), fields, maxlen=KEPT, approximate=False)

    async def all(self) -> list[Letter]:
        """The newest letter of each stream, newest first."""
        letters: dict[StreamKey, Letter] = {}
        for id_, raw in await self._redis.xrevrange(keys.dead_letters(), count=KEPT):
            fields = {name.decode(): value.decode() for name, value in raw.items()}
            key = StreamKey(fields["s"])
            attempts = int(fields.get("attempts", 0))
            letter = Letter(id_.decode(), key, fields["why"], fields.get("user", ""), fields.get("model", ""), attempts)
            letters.setdefault(key, letter)
        return list(letters.values())

    async def remove(self, key: StreamKey) -> None:
        """Take every letter of a stream away."""
        rows = await self._redis.xrevrange(keys.dead_letters(), count=KEPT)
        ids = [id_ for id_, fields in rows if fields[b"s"] == key.encode()]
        if ids:
            await self._redis.xdel(keys.dead_letters(), *ids)
