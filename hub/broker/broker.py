"""Everything a process needs of Redis, made together and closed together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from headrace.protocol.body import Body, Options
from hub.broker import keys
from hub.broker.accept import Asked, accept
from hub.broker.connections import Connections, Unreachable
from hub.broker.janitor import Janitor
from hub.broker.keys import StreamKey
from hub.broker.lanes import Lanes
from hub.broker.live import LiveIndex
from hub.broker.log import StreamLog
from hub.broker.settings import BrokerSettings

log_ = structlog.get_logger(__name__)

LANES = keys.LANES


@dataclass(frozen=True)
class Broker:
    settings: BrokerSettings
    connections: Connections
    log: StreamLog
    lanes: Lanes
    live: LiveIndex
    janitor: Janitor

    @classmethod
    def connect(cls, url: str, settings: BrokerSettings) -> Broker:
        """Nothing is sent yet: Redis may be out of reach when a process starts."""
        connections = Connections(url)
        redis = connections.control
        log, lanes, live = StreamLog(redis), Lanes(redis), LiveIndex(redis)
        return cls(settings, connections, log, lanes, live, Janitor(redis, log, lanes, live, settings))

    async def accept(
        self,
        *,
        org: str,
        user: str,
        request_key: str,
        body: Body,
        options: Options,
        now_ms: int,
        before_lane: Callable[[StreamKey], Awaitable[None]] | None = None,
    ) -> StreamKey:
        """See `accept.accept`."""
        lane = keys.PREFETCH_LANE if options.prefetch else LANES[0]
        asked = Asked(org, user, request_key, body, options, lane, now_ms)
        redis = self.connections.control
        return await accept(redis, self.log, self.lanes, self.live, self.settings, asked, before_lane)

    async def is_reserved(self, org: str, user: str, request_key: str) -> bool:
        """Whether a request of this user came with this key before. Raises `Unreachable`."""
        return bool(await self.connections.control.exists(keys.request(org, user, request_key)))

    async def is_reachable(self, timeout_s: float = 1.0) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                return bool(await self.connections.control.ping())
        except (*Unreachable, TimeoutError):
            return False

    async def close(self) -> None:
        await self.connections.close()
