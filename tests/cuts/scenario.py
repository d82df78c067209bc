"""The scenario: one generation, two viewers, one hub, one worker, one real Redis.

A asks, watches, drops off; the hub leaves the stream; A comes back and resumes while B joins; both see the end, and
A cancels what is over, which is fine. `run` does this once with at most one thing going wrong, and looks at what
is left afterwards.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from redis.asyncio import Redis

from headrace.protocol.entries import decode_data
from hub.broker import keys
from tests.cuts.calls import SCRIPT_NAMES, Address, Mode, Side, kind_of
from tests.cuts.leftovers import Leftovers
from tests.cuts.trial import TRIAL, Await, Trial
from tests.cuts.viewer import Viewer
from tests.faults.pace import LATE_S, LEASE_S, SETTINGS
from tests.faults.redis_proxy import CUT_AFTER, CUT_BEFORE, Call, Fault, RedisProxy, delay_command
from tests.installation import RunningHub, eventually, running_hub, running_worker
from tests.wire import JSON, MSGPACK
from workers.worker import Worker

TOKENS = 40
MODEL = f"scripted/tokens={TOKENS},rate=45"
TEXT = "".join(f"{number:04d} " for number in range(TOKENS))
#: From the first question until both viewers are at the end; a lost worker costs some two seconds.
DEADLINE_S = 30.0

Owner = Literal["socket", "hub", "worker"]
"""Who goes with a cancelled task. Another hub, or worker, takes the place of one that goes."""

#: Half of what a lease keeper has between its doubt and the end of a lease.
MOST_LAG_S = LEASE_S / 5

_FAULTS: dict[Mode, Fault] = {"before": CUT_BEFORE, "after": CUT_AFTER, "late": delay_command(LATE_S)}


@dataclass(frozen=True)
class Cut:
    """One Redis call that fails in one way."""

    address: Address
    mode: Mode

    def __str__(self) -> str:
        return f"{self.address}, {self.mode}"


@dataclass(frozen=True)
class Cancel:
    """One await that is cancelled, as it is when the viewer's socket goes or the process is told to leave now."""

    at: Await
    by: Owner

    def __str__(self) -> str:
        return f"{self.at}, with its {self.by}"


@dataclass
class Outcome:
    """What came of one run. Right is one without `faults`."""

    what: Cut | Cancel | None
    faults: list[str] = field(default_factory=list)
    #: Whether the thing that was to go wrong came up at all.
    was_hit: bool = False
    told: Counter[str] = field(default_factory=Counter)
    counts: Counter[tuple[Side, str]] = field(default_factory=Counter)
    awaits: dict[tuple[str, int], int] = field(default_factory=dict)
    #: From the question to the end of both viewers.
    took_s: float = 0.0
    logs: list[str] = field(default_factory=list)
    #: The longest that this process waited for its turn meanwhile.
    lag_s: float = 0.0
    #: How often it was done before, to no avail.
    tries: int = 0

    @property
    def is_void(self) -> bool:
        """Went wrong, on a machine that is too busy for leases and timeouts this short: that says nothing."""
        return bool(self.faults) and self.lag_s > MOST_LAG_S


class Scenario:
    """Runs on one database of one Redis; several may run side by side on different ones."""

    def __init__(self, unix_socket: str, database: int) -> None:
        self._target = unix_socket
        self._database = database

    async def run(self, what: Cut | Cancel | None = None) -> Outcome:
        """Do it once, in a task of its own. Raises nothing: whatever goes wrong is in the outcome."""
        trial = Trial()
        TRIAL.set(trial)
        outcome = Outcome(what)
        run = _Run(trial, outcome, self._target, self._database)
        try:
            await run.play()
        except Exception as error:  # a defect of any part is what is looked for
            outcome.faults.append(f"{type(error).__name__}: {error}")
        await asyncio.sleep(0)
        outcome.faults += [f"a task is left: {task.get_coro()!r}" for task in trial.left()]
        outcome.faults += trial.errors()
        outcome.logs = [f"{level:9} {event} {fields or ''}" for level, event, fields in trial.logs]
        outcome.awaits = dict(trial.awaits)
        outcome.was_hit |= trial.was_cancelled
        return outcome


class _Run:
    def __init__(self, trial: Trial, outcome: Outcome, target: str, database: int) -> None:
        self.trial = trial
        self.outcome = outcome
        self._target = target
        self._database = database
        self._hubs: list[RunningHub] = []
        self._workers: list[Worker] = []
        self._urls: list[str] = []
        self._viewers: list[Viewer] = []
        self._replacing: asyncio.Task[None] | None = None
        if isinstance(outcome.what, Cancel):
            trial.cancel_at, trial.cancel = outcome.what.at, self._cancel

    async def play(self) -> None:
        async with AsyncExitStack() as stack:
            self._direct: Any = Redis(unix_socket_path=self._target, db=self._database)
            stack.push_async_callback(self._direct.aclose)
            await self._direct.flushdb()
            hub_redis = await self._proxy(stack, "hub")
            worker_redis = await self._proxy(stack, "worker")
            self._hub_redis, self._worker_redis = self._url(hub_redis), self._url(worker_redis)
            async with AsyncExitStack() as self._hub_stack, AsyncExitStack() as self._worker_stack:
                await self._start_hub(self._hub_stack)
                await self._start_worker(self._worker_stack)
                self.trial.is_armed = True
                await self._story()
                self.trial.is_armed = False
                if self._replacing is not None:
                    await self._replacing
                await self._check(Leftovers(self._direct, self._hubs[-1:], self._workers[-1:]))
            await self._gone(lambda: self._closed(hub_redis, worker_redis), "the end of all Redis connections")
            was_left = isinstance(self.outcome.what, Cancel) and self.outcome.what.by == "worker"
            everything = Leftovers(self._direct, self._hubs, self._workers)
            self.outcome.faults += await everything.after_the_end(may_leave_consumers=was_left)

    async def _start_hub(self, stack: AsyncExitStack) -> None:
        hub = await stack.enter_async_context(running_hub(self._hub_redis, **SETTINGS, heartbeat_s=2.0))
        self._hubs.append(hub)
        self._urls.append(hub.url)

    async def _start_worker(self, stack: AsyncExitStack) -> None:
        self._workers.append(await stack.enter_async_context(running_worker(self._worker_redis, **SETTINGS)))

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        assert isinstance(self.outcome.what, Cancel)
        match self.outcome.what.by:
            case "socket":
                owner = frame_self(task)
                task.cancel()
                getattr(owner, "_socket", owner).transport.abort()
            case "hub":
                task.cancel()
                self._replacing = asyncio.create_task(self._replace(self._hub_stack, self._start_hub))
            case "worker":
                task.cancel()
                for _ in range(2):
                    self._workers[0].stop()
                self._replacing = asyncio.create_task(self._replace(self._worker_stack, self._start_worker))

    async def _replace(self, stack: AsyncExitStack, start: Callable[[AsyncExitStack], Awaitable[None]]) -> None:
        former = stack.pop_all()
        await asyncio.gather(former.aclose(), start(stack))

    async def _proxy(self, stack: AsyncExitStack, side: Side) -> RedisProxy:
        proxy = await stack.enter_async_context(RedisProxy(self._target, scripts=SCRIPT_NAMES))
        proxy.decide = lambda call: self._decide(side, call)
        return proxy

    def _url(self, proxy: RedisProxy) -> str:
        return f"redis://{proxy.host}:{proxy.port}/{self._database}"

    def _decide(self, side: Side, call: Call) -> Fault | None:
        kind = kind_of(call)
        counts = self.outcome.counts
        counts[side, kind] += 1
        what = self.outcome.what
        if not isinstance(what, Cut) or what.address != Address(side, kind, counts[side, kind]):
            return None
        self.outcome.was_hit = True
        return _FAULTS[what.mode]

    async def _story(self) -> None:
        began = time.monotonic()
        a = Viewer("A", self._urls, subprotocol=JSON)
        b = Viewer("B", self._urls, subprotocol=MSGPACK)
        self._viewers = [a, b]
        try:
            async with asyncio.timeout(DEADLINE_S):
                await a.ask("r1", MODEL)
                b.stream = a.stream
                await a.watch(until=lambda: a.offset >= 8)
                a.drop()
                await self._left()
                async with asyncio.TaskGroup() as group:
                    group.create_task(a.watch())
                    group.create_task(b.watch())
                await a.request("cancel")
        except TimeoutError:
            state = [f"{viewer.name} at {viewer.offset} after {viewer.told}" for viewer in self._viewers]
            self.outcome.faults.append(f"no end within {DEADLINE_S:g} s: {state}")
        finally:
            self.outcome.took_s = time.monotonic() - began
            await asyncio.gather(a.close(), b.close())

    async def _left(self) -> None:
        """The hub withdraws its interest; when it does not, for what went wrong, there is nothing to wait for."""
        deadline = time.monotonic() + 1
        await eventually(lambda: not self._hubs[-1].node.relay.tails or time.monotonic() > deadline)

    async def _check(self, leftovers: Leftovers) -> None:
        faults = self.outcome.faults
        for viewer in self._viewers:
            faults += viewer.faults
            self.outcome.told.update(viewer.told)
        faults += await self._check_log(self._viewers[0].stream)
        await self._gone(leftovers.look, "the clearing up")

    async def _check_log(self, stream: str) -> list[str]:
        key = keys.stream_key("alice", stream)
        key = next((found for found in await self._streams() if keys.stream_of(found) == stream), key)
        rows = await self._direct.xrange(keys.log(key))
        entries = [(fields[b"k"].decode(), fields[b"d"]) for _, fields in rows]
        faults = []
        if [int(id_.split(b"-")[0]) for id_, _ in rows] != list(range(1, len(rows) + 1)):
            faults.append("the log's offsets are not dense")
        if [kind for kind, _ in entries].count("done") != 1 or entries[-1][0] != "done":
            return [*faults, f"the log's kinds are {[kind for kind, _ in entries]}"]
        text = ""
        for kind, data in entries:
            text = "" if kind == "reset" else text + data.decode() if kind == "text" else text
        done = decode_data(*entries[-1])
        if done["status"] != "completed" or text != TEXT:
            faults.append(f"the answer ended {done['status']} {done.get('error', '')}, with {len(text)} characters")
        for viewer in self._viewers:
            if viewer.text != text or viewer.offset != len(rows) or viewer.done != done:
                faults.append(f"{viewer.name} has {len(viewer.text)} of {len(text)} characters, done={viewer.done}")
        return [*faults, *await self._check_request()]

    async def _check_request(self) -> list[str]:
        """One request is one stream, and the list of the user's streams agrees."""
        listed = [name async for name in self._direct.scan_iter(match="hr:{*}:streams")]
        numbers = [len(await self._streams()), *[await self._direct.zcard(name) for name in listed]]
        return [] if numbers == [1, 1] else [f"one request made {numbers} streams"]

    async def _streams(self) -> list[keys.StreamKey]:
        found = [key.decode() async for key in self._direct.scan_iter(match="hr:{*}:meta")]
        return [keys.StreamKey(key.split("{")[1].split("}")[0]) for key in found]

    async def _closed(self, *proxies: RedisProxy) -> list[str]:
        return [f"{proxy.connections} connections of {proxy.port}" for proxy in proxies if proxy.connections]

    async def _gone(self, look: Callable[[], Awaitable[list[str]]], what: str) -> None:
        """Wait until `look` finds nothing more."""
        deadline = time.monotonic() + 8
        while found := await look():
            if time.monotonic() > deadline:
                self.outcome.faults.append(f"{what} did not happen: {found}")
                return
            await asyncio.sleep(0.02)


def frame_self(task: asyncio.Task[Any]) -> Any:
    """The object whose method a watched task runs."""
    return task.get_coro()._inner.cr_frame.f_locals["self"]  # type: ignore[union-attr]
