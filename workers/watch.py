"""Tells those who follow other streams' logs when these grow: one look at all of them, several times a second."""

from __future__ import annotations

import asyncio

import structlog

from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.keys import StreamKey
from hub.broker.log import Standing

log_ = structlog.get_logger(__name__)

#: Between two looks; for each SLICE of streams once more, so that many of them do not keep Redis busy.
LOOK_S = 0.05
SLICE = 200
_PAUSE_S = 0.5

_Waiting = tuple[int, "asyncio.Future[Standing | None]"]


class Watch:
    """`run` until cancelled. Redis out of reach is waited for. Bound: one entry a follower."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._waiting: dict[StreamKey, set[_Waiting]] = {}
        self._has_any = asyncio.Event()

    async def beyond(self, key: StreamKey, offset: int) -> Standing | None:
        """How a stream stands once it holds more than `offset` entries or has ended; None: it is gone."""
        future: asyncio.Future[Standing | None] = asyncio.get_running_loop().create_future()
        waiting = (offset, future)
        self._waiting.setdefault(key, set()).add(waiting)
        self._has_any.set()
        try:
            return await future
        finally:
            others = self._waiting[key]
            others.discard(waiting)
            if not others:
                del self._waiting[key]

    async def run(self) -> None:
        is_reached = True
        while True:
            if not self._waiting:
                self._has_any.clear()
                await self._has_any.wait()
            streams = list(self._waiting)
            try:
                for start in range(0, len(streams), SLICE):
                    await self._look(streams[start : start + SLICE])
                    await asyncio.sleep(LOOK_S)
                is_reached = True
            except Unreachable as error:
                if is_reached:
                    log_.warning("redis out of reach, shared answers wait", error=type(error).__name__)
                is_reached = False
                await asyncio.sleep(_PAUSE_S)

    async def _look(self, streams: list[StreamKey]) -> None:
        for key, standing in zip(streams, await self._broker.log.standings(streams), strict=True):
            for offset, future in self._waiting.get(key, ()):
                is_news = standing is None or standing.state == "done" or standing.top > offset
                if is_news and not future.done():
                    future.set_result(standing)
