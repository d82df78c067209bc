"""What a run may leave behind, and what not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from hub.broker import keys
from hub.broker.keys import ALL_LANES
from hub.broker.lanes import GROUP
from tests.installation import RunningHub
from workers.worker import Worker


class Leftovers:
    """Looks into one database and the processes over it. `direct` is a client that goes through no proxy."""

    def __init__(self, direct: Any, hubs: Sequence[RunningHub], workers: Sequence[Worker]) -> None:
        self._direct = direct
        self._hubs = hubs
        self._workers = workers

    async def look(self) -> list[str]:
        """After the answer, while hub and worker still run."""
        return [*self._in_processes(), *await self._in_redis()]

    async def after_the_end(self, *, may_leave_consumers: bool) -> list[str]:
        """Hubs and workers have ended: no mailbox, no consumer, nothing that stays for ever, every pool at rest.

        A worker that leaves with a ticket in hand leaves its consumer, too: the ticket would go with it.
        """
        found = await self._in_redis()
        for hub in self._hubs:
            found += _in_use("hub", hub.node.broker.connections.control)
        for worker in self._workers:
            found += _in_use("worker", worker._broker.connections.control)
        for lane in ALL_LANES:
            consumers = await self._consumers(lane)
            if consumers and not may_leave_consumers:
                found.append(f"{consumers} consumers of {lane}")
        async for key in self._direct.scan_iter(match="hr:mail:*"):
            if await self._direct.ttl(key) < 0:
                found.append(f"{key.decode()} stays")
        return found

    def _in_processes(self) -> list[str]:
        found = []
        for hub in self._hubs:
            relay = hub.node.relay
            found += [f"hub watches {key}" for key in relay.tails]
            found += [f"hub may have interest in {key}" for key in relay.strays]
            if hub.node.connections:
                found.append(f"{len(hub.node.connections)} connections of the hub")
        for worker in self._workers:
            found += [f"worker runs {key}" for key in worker.table.runs]
            if worker.intake._free != worker.places:
                found.append(f"{worker.places - worker.intake._free} places of the worker taken")
        return found

    async def _in_redis(self) -> list[str]:
        found = []
        for lane in ALL_LANES:
            if await self._direct.xlen(keys.lane(lane)):
                found.append(f"lane {lane} is not empty")
            try:
                if (await self._direct.xpending(keys.lane(lane), GROUP))["pending"]:
                    found.append(f"lane {lane} has pending entries")
            except ResponseError:
                pass  # no group: no worker was there
        for shard in range(keys.LIVE_SHARDS):
            if await self._direct.zcard(keys.live(shard)):
                found.append("the index of live streams is not empty")
        async for key in self._direct.scan_iter():
            name = key.decode()
            if name.endswith(":interest"):
                found.append(f"{name}: {await self._direct.hgetall(key)}")
            if await self._direct.ttl(key) == -1 and not name.startswith(("hr:{lanes}:", "hr:usage")):
                found.append(f"{name} has no end")
        return found

    async def _consumers(self, lane: str) -> int:
        try:
            return len(await self._direct.xinfo_consumers(keys.lane(lane), GROUP))
        except ResponseError:
            return 0


def _in_use(whose: str, client: Any) -> list[str]:
    number = len(client.connection_pool._in_use_connections)
    return [f"{number} Redis connections of the {whose} in use"] if number else []
