"""A worker played by the test, entry by entry, where a real one would be too fast to look at."""

from __future__ import annotations

from typing import Any

from headrace.protocol.entries import Done, Entry, Started, TextDigest, encode_data
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey
from hub.broker.log import Claim
from hub.broker.mailbox import HubPacket, Part, post


class HandWorker:
    """Claims one stream, appends what it is told, and relays it to the hubs that watch."""

    def __init__(self, broker: Broker, stream: str, user: str = "alice", org: str | None = None) -> None:
        self.broker = broker
        self.key: StreamKey = keys.stream_key(org or user, stream)
        self.mark = ""
        self.top = 0
        self._digest = TextDigest()

    async def claim(self, mark: str = "m1", relay: bool = True) -> None:
        redis: Any = self.broker.connections.control
        await redis.xadd(keys.mailbox("whand"), {"o": ""})  # it lives
        claimed = await self.broker.log.claim(self.key, mark=mark, owner="whand", lease_ms=60_000, ttl_ms=60_000)
        assert isinstance(claimed, Claim), claimed
        self.mark, self.top = mark, claimed.next_offset - 1
        await self.write(("started", encode_data(Started(claimed.attempt))), relay=relay)

    async def write(self, *entries: Entry, done_ttl_ms: int = 0, relay: bool = True) -> None:
        first = self.top + 1
        for kind, data in entries:
            self._digest.add(kind, data)
        status, _ = await self.broker.log.append(self.key, self.mark, first, entries, done_ttl_ms=done_ttl_ms)
        assert status == "OK", status
        self.top += len(entries)
        if relay:
            await self.relay(first, list(entries))

    async def text(self, *pieces: str, relay: bool = True) -> None:
        await self.write(*[("text", piece.encode()) for piece in pieces], relay=relay)

    async def done(self) -> None:
        data = Done("completed", "stop", self._digest.size, self._digest.hexdigest())
        watchers = await self._watchers()
        await self.write(("done", encode_data(data)), done_ttl_ms=60_000, relay=False)
        await self.relay(self.top, [("done", encode_data(data))], watchers)

    async def relay(self, first: int, entries: list[Entry], watchers: list[str] | None = None) -> None:
        for hub in await self._watchers() if watchers is None else watchers:
            packet = HubPacket("whand", [Part(self.key, self.mark, first, entries)])
            await post(self.broker.connections.control, hub, packet, 512)

    async def _watchers(self) -> list[str]:
        redis: Any = self.broker.connections.control
        return [name.decode() for name in await redis.hkeys(keys.interest(self.key))]

    async def forget(self, kept: int, mark: str, relay: bool = True) -> None:
        """Redis lost the end of the log, and another attempt claims what is left."""
        redis: Any = self.broker.connections.control
        entries = await self.broker.log.read(self.key, 1, kept)
        runs = (await self.broker.log.attach(self.key, user="", may_read=True, mailbox="", demand=0)).runs
        await redis.delete(keys.log(self.key))
        for offset, (kind, data) in enumerate(entries, 1):
            await redis.xadd(keys.log(self.key), {"k": kind, "d": data}, id=f"{offset}-0")
        left = " ".join(f"{first}:{mark}" for first, mark in runs if first <= kept)
        await redis.hset(keys.meta(self.key), mapping={"lease": 0, "runs": left, "mark": "lost"})
        self._digest = TextDigest()
        await self.claim(mark, relay)
