"""Who watches which generation and with which demand; what goes to which hub. Pure.

Every appended batch becomes one part for each watching hub; parts pile up per hub and leave as packets with the
next write. A hub is somebody's mailbox: a name that is never used twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from headrace.protocol.entries import Entry
from hub.broker.keys import StreamKey
from hub.broker.mailbox import HubPacket, Part, relay_packets


class Watch(msgspec.Struct, gc=False):
    """One hub watching one generation. A demand of 0 is withdrawn: it still gets every entry."""

    demand: int
    heard_at: float
    """When it last said so, monotonic seconds."""


class Routing:
    """Bounds: one number per hub and generation; parts are drained with every write of the appender."""

    def __init__(self) -> None:
        self._streams: dict[StreamKey, dict[str, Watch]] = {}
        self._hubs: dict[str, set[StreamKey]] = {}
        self._parts: dict[str, list[Part]] = {}
        self._not_mine: dict[str, list[StreamKey]] = {}

    # -- who watches

    @property
    def hubs(self) -> list[str]:
        return list(self._hubs)

    @property
    def has_news(self) -> bool:
        """Whether `packets` yields any."""
        return bool(self._parts) or bool(self._not_mine)

    def watches(self, key: StreamKey, hub: str) -> bool:
        return hub in self._streams.get(key, ())

    def demand(self, key: StreamKey) -> int:
        """The greatest demand on a generation, 0 when no hub holds any."""
        return max((watch.demand for watch in self._streams.get(key, {}).values()), default=0)

    def is_watched(self, key: StreamKey) -> bool:
        return bool(self._streams.get(key))

    def watch(self, key: StreamKey, hub: str, demand: int, now: float) -> None:
        """Every batch relayed after this goes to `hub` too. A repeat renews the demand: it is absolute."""
        self._streams.setdefault(key, {})[hub] = Watch(demand, now)
        self._hubs.setdefault(hub, set()).add(key)

    def leave(self, key: StreamKey, hub: str) -> None:
        watchers = self._streams.get(key)
        if watchers is not None and watchers.pop(hub, None) is not None:
            streams = self._hubs[hub]
            streams.discard(key)
            if not streams:
                del self._hubs[hub]

    def drop_hub(self, hub: str) -> list[StreamKey]:
        """Forget a hub that is gone; returns the generations it watched."""
        self._parts.pop(hub, None)
        self._not_mine.pop(hub, None)
        streams = list(self._hubs.get(hub, ()))
        for key in streams:
            self.leave(key, hub)
        return streams

    def forget(self, key: StreamKey) -> None:
        """The generation is not this worker's any more."""
        for hub in list(self._streams.get(key, ())):
            self.leave(key, hub)
        self._streams.pop(key, None)

    def reconcile(self, key: StreamKey, registered: Mapping[str, int], asked_at: float) -> list[str]:
        """Compare with the interest that Redis held at `asked_at` or later; returns the hubs that were missing.

        A hub that is known keeps its demand, which is newer. One that is not registered any more is dropped,
        unless it was heard of since: its registration may have come after the answer.
        """
        watchers = self._streams.get(key, {})
        for hub in [hub for hub, watch in watchers.items() if hub not in registered and watch.heard_at < asked_at]:
            self.leave(key, hub)
        missing = [hub for hub in registered if hub not in watchers]
        for hub in missing:
            self.watch(key, hub, registered[hub], asked_at)
        return missing

    # -- what goes out

    def relay(self, key: StreamKey, mark: str, first: int, entries: list[Entry]) -> None:
        """Entries that are in the log now."""
        watchers = self._streams.get(key)
        if not watchers:
            return
        part = Part(key, mark, first, entries)
        parts = self._parts
        for hub in watchers:
            pending = parts.get(hub)
            if pending is None:
                parts[hub] = [part]
            else:
                pending.append(part)

    def answer(self, key: StreamKey, mark: str, hub: str, relayed: int) -> None:
        """Tell a hub up to where entries were relayed: what it lacks of them it reads from the log."""
        self._parts.setdefault(hub, []).append(Part(key, mark, relayed + 1, []))

    def disown(self, key: StreamKey, hub: str) -> None:
        """Tell a hub that the generation is not this worker's: it asks for the owner again."""
        self._not_mine.setdefault(hub, []).append(key)

    def packets(self, sender: str) -> Iterator[tuple[str, HubPacket]]:
        """All that waits, by hub. What is yielded is forgotten here."""
        parts, self._parts = self._parts, {}
        for hub, pending in parts.items():
            for packet in relay_packets(sender, pending):
                yield hub, packet
        not_mine, self._not_mine = self._not_mine, {}
        for hub, keys in not_mine.items():
            yield hub, HubPacket(sender, [], keys)
