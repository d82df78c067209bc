"""A line for every answer that begins or ends in a Redis: no text, no user, only how it goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from headrace.protocol.entries import Entry, decode_data
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.keys import StreamKey
from hub.broker.settings import BrokerSettings

#: Unfinished streams stay in the index for at least half a second: none is missed.
_LOOK_S = 0.25
#: Answers followed at a time, from each of the index's shards; more are not shown.
_FOLLOWED = 16
_EVERYTHING = 2**53 - 1
_PAGE = 1000


class Feed:
    """`run` until cancelled. A Redis out of reach is waited for: hub and worker tell of it."""

    def __init__(self, redis_url: str, on_line: Callable[[str], None]) -> None:
        self._redis_url = redis_url
        self._on_line = on_line
        #: What is in the index, and whether its end was told: it stays there until the janitor takes it out.
        self._following: dict[StreamKey, bool] = {}

    async def run(self) -> None:
        broker = Broker.connect(self._redis_url, BrokerSettings())
        try:
            while True:
                try:
                    async with asyncio.timeout(5):
                        await self._look(broker)
                except (*Unreachable, TimeoutError):
                    pass
                await asyncio.sleep(_LOOK_S)
        finally:
            await broker.close()

    async def _look(self, broker: Broker) -> None:
        found = await broker.live.due(_EVERYTHING, _FOLLOWED)
        for key in found:
            if key not in self._following:
                self._following[key] = False
                self._on_line(began(keys.stream_of(key), await broker.log.read(key, 1, 1)))
        open_ = [key for key, is_told in self._following.items() if not is_told]
        for key, standing in zip(open_, await broker.log.standings(open_), strict=True):
            if standing is None or standing.state == "done":
                self._following[key] = True
            if standing is not None and standing.state == "done":
                self._on_line(ended(keys.stream_of(key), await self._sources_and_end(broker, key, standing.top)))
        indexed = set(found)
        self._following = {key: told for key, told in self._following.items() if not told or key in indexed}

    async def _sources_and_end(self, broker: Broker, key: StreamKey, top: int) -> list[Entry]:
        told: list[Entry] = []
        for first in range(1, top + 1, _PAGE):
            told += [entry for entry in await broker.log.read(key, first, _PAGE) if entry[0] in ("source", "done")]
        return told


def began(stream: str, head: list[Entry]) -> str:
    return f"{stream} asked for {_find('queued', head).get('model', 'something')}"


def ended(stream: str, entries: list[Entry]) -> str:
    """Who answered, one after the other, how much, how fast; of a failure the code, never a provider's own words."""
    done = _find("done", entries)
    parts = [f"{stream} {done.get('status', 'ended')}"]
    sources = [decode_data(kind, data) for kind, data in entries if kind == "source"]
    speakers = dict.fromkeys(f"{source.get('provider')}/{source.get('model')}" for source in sources)
    if speakers:
        parts.append(", then ".join(speakers))
    usage = done.get("usage")
    if isinstance(usage, Mapping):
        parts.append(f"{usage.get('output_tokens', 0)} tokens")
    if done.get("ttft_ms") is not None:
        parts.append(f"first word after {done['ttft_ms']} ms")
    error = done.get("error")
    if isinstance(error, Mapping):
        parts.append(str(error.get("code")))
    return " · ".join(parts)


def _find(kind: str, entries: list[Entry]) -> dict[str, Any]:
    return next((decode_data(kind, data) for found, data in entries if found == kind), {})
