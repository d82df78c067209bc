"""The look at everything after the faults: is each accepted stream at its end, and is nothing left behind?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from headrace.protocol.entries import decode_data
from hub.auth import issue
from tests.chaos.crowd import ORG
from tests.chaos.front import get
from tests.chaos.history import SHARDS, Kept, Log, Watch, read_watches, write_log, write_watch
from tests.chaos.plan import Intent, Plan
from tests.chaos.process import Process
from tests.chaos.raw import RawViewer, Surroundings
from tests.chaos.stage import SECRET, Stage

#: Fresh viewers at a time.
AT_ONCE = 30
#: What lives without an end: bounded by its own rules, not by time.
LASTING = ("hr:{lanes}:", "hr:live:", "hr:usage")
#: A process may keep more than it began with: pools of connections, and the allocator's memory.
SPARE_FILES = 45
SPARE_KIB = 80 * 1024


@dataclass
class Measure:
    """What one process holds."""

    rss_kib: int
    files: int


def measure(processes: Iterable[Process]) -> dict[str, Measure]:
    return {process.name: Measure(process.rss_kib(), process.files()) for process in processes if process.state == "up"}


class Auditor:
    def __init__(self, plan: Plan, stage: Stage, epoch: float, directory: Path) -> None:
        self._plan = plan
        self._stage = stage
        self._epoch = epoch
        self._directory = directory
        self.redis: Any = Redis.from_url(stage.redis.direct_url, socket_timeout=30)

    async def close(self) -> None:
        await self.redis.aclose()

    # -- streams

    async def until_terminal(self, within_s: float) -> int:
        """Wait until every stream that Redis knows is done; how many are not."""
        deadline = time.monotonic() + within_s
        while True:
            metas = await self._keys("hr:*:meta")
            states = [await self.redis.hget(meta, "state") for meta in metas]
            left: int = sum(state != b"done" for state in states)
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(1)

    async def write_logs(self) -> set[str]:
        """Write every accepted stream's log as Redis holds it; the streams."""
        accepted = {
            watch.stream for shard in range(SHARDS) for watch in read_watches(self._directory, shard) if watch.stream
        }
        known = {_stream(meta): meta.removesuffix(b":meta") for meta in await self._keys("hr:*:meta")}
        for stream in sorted(accepted | known.keys()):
            log = Log(stream)
            if stream in known:
                log = await self._log(stream, known[stream])
            write_log(self._directory, log)
        return accepted

    async def _log(self, stream: str, key: bytes) -> Log:
        state, runs = await self.redis.hmget(key + b":meta", "state", "runs")
        rows = await self.redis.xrange(key + b":log")
        entries = [
            Kept(int(id_.split(b"-")[0]), fields[b"k"].decode(), decode_data(fields[b"k"].decode(), fields[b"d"]))
            for id_, fields in rows
        ]
        return Log(stream, (state or b"").decode(), (runs or b"").decode(), entries)

    async def attach_to_all(self, streams: Iterable[str]) -> None:
        """A fresh viewer for each accepted stream, on any hub, from the start: it must get to `done`."""
        token = issue(SECRET, user="auditor", org=ORG, scope="streams:read", now=time.time(), ttl_s=86_400)
        until = time.monotonic() + 120
        around = Surroundings(
            list(enumerate(self._stage.ports)), "", lambda user: token, self._epoch, stop_at=lambda: until
        )
        places = asyncio.Semaphore(AT_ONCE)

        async def look(stream: str) -> None:
            async with places:
                dice = self._plan.dice(f"audit:{stream}")
                viewer = RawViewer("audit", "auditor", around, Intent("", "", window=4096), dice, stream=stream)
                watch: Watch = await viewer.run()
            write_watch(self._directory, watch)

        await asyncio.gather(*(look(stream) for stream in sorted(streams)))

    async def _keys(self, pattern: str) -> list[bytes]:
        return [key async for key in self.redis.scan_iter(match=pattern, count=1000)]

    # -- leaks

    async def leaks(self, baseline: dict[str, Measure], within_s: float) -> list[str]:
        """What is left behind once everybody is gone, looked at until nothing is, or time is over."""
        deadline = time.monotonic() + within_s
        while True:
            found = [*self._process_leaks(baseline), *await self._hub_leaks(), *await self._redis_leaks()]
            if not found or time.monotonic() > deadline:
                return found
            await asyncio.sleep(1)

    def _process_leaks(self, baseline: dict[str, Measure]) -> list[str]:
        found = []
        for name, now in measure([*self._stage.hubs, *self._stage.workers]).items():
            before = baseline[name]
            if now.files > before.files + SPARE_FILES:
                found.append(f"{name} holds {now.files} files, {before.files} at its start")
            if now.rss_kib > before.rss_kib + SPARE_KIB:
                found.append(f"{name} holds {now.rss_kib // 1024} MiB, {before.rss_kib // 1024} at its start")
        return found

    async def _hub_leaks(self) -> list[str]:
        found = []
        for hub, port in zip(self._stage.hubs, self._stage.ports, strict=True):
            try:
                exposition = await get(port, "/metrics")
            except (OSError, TimeoutError):
                found.append(f"{hub.name} does not answer /metrics")
                continue
            gauges = dict(line.rpartition(" ")[::2] for line in exposition.splitlines() if line.startswith("headrace_"))
            for name in ("headrace_connections", "headrace_watched_streams"):
                if float(gauges.get(name, 0)):
                    found.append(f"{hub.name}: {name} is {gauges[name]}")
        return found

    async def _redis_leaks(self) -> list[str]:
        found = []
        if interests := await self._keys("hr:*:interest"):
            found.append(f"{len(interests)} interest hashes, for example {interests[0].decode()}")
        mailboxes = await self._keys("hr:mail:*")
        living = sum(process.state == "up" for process in [*self._stage.hubs, *self._stage.workers])
        if len(mailboxes) > living:
            found.append(f"{len(mailboxes)} mailboxes for {living} processes")
        for key in await self._keys("hr:*"):
            name = key.decode()
            if name.startswith("hr:live:"):
                if left := await self.redis.zcard(key):
                    found.append(f"{left} streams in the index {name}")
            elif await self.redis.ttl(key) == -1 and not name.startswith(LASTING):
                found.append(f"{name} lives for ever")
        for lane in await self._keys("hr:{lanes}:*"):
            found += await self._lane_leaks(lane)
        return found

    async def _lane_leaks(self, lane: bytes) -> list[str]:
        found = []
        name = lane.decode()
        if await self.redis.type(lane) != b"stream" or name.endswith(":dead"):
            return []
        if length := await self.redis.xlen(lane):
            found.append(f"{name} holds {length} entries")
        for group in await self.redis.xinfo_groups(lane):
            consumers, pending = _field(group, "consumers"), _field(group, "pending")
            if consumers > len(self._stage.workers):
                found.append(f"{name} has {consumers} consumers, {len(self._stage.workers)} workers live")
            if pending:
                found.append(f"{name} has {pending} pending entries")
        return found


def _field(row: Any, name: str) -> int:
    return int(row[name] if name in row else row[name.encode()])


def _stream(meta: bytes) -> str:
    return meta.decode().split("{", 1)[1].split("}", 1)[0].partition(":")[2]
