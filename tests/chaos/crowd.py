"""The viewers of a chaos run, as a process: `python -m tests.chaos.crowd`, told what to do by JSON on standard input.

Every second it says on standard output how it is doing. The line `stop` lets each viewer finish what it watches;
`end` gives up what is still unfinished.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import sys
import time
import traceback
from collections import Counter, deque
from pathlib import Path

import msgspec
import uvloop

import headrace
from hub.auth import issue
from tests.chaos.client import ClientViewer
from tests.chaos.history import Seen, Watch, write_watch
from tests.chaos.plan import Intent, Plan, intent
from tests.chaos.raw import RawViewer, Surroundings

ORG = "chaos"
#: The share of viewers that ask; the others join what was asked.
ASKING = 0.55
#: … and of those that use the Python client.
CLIENTS = 0.3
#: Streams that may be joined: the newest.
JOINABLE = 25
#: Two viewers of one user share its request keys.
USERS = 20


class Order(msgspec.Struct):
    """The first line on standard input."""

    plan: Plan
    directory: str
    epoch: float
    secret: str
    hubs: list[tuple[int, int]]
    front: str


class Crowd:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._plan = order.plan
        self._directory = Path(order.directory)
        self._stop = asyncio.Event()
        self._give_up = asyncio.Event()
        self._give_up_at = order.epoch + self._plan.seconds + self._plan.settle_s + 60
        self._tokens: dict[str, str] = {}
        self._around = Surroundings(order.hubs, order.front, self._token, order.epoch, stop_at=lambda: self._give_up_at)
        self._joinable: deque[str] = deque(maxlen=JOINABLE)
        self._open: set[str] = set()
        self.sums: Counter[str] = Counter()

    async def run(self) -> None:
        viewers = [asyncio.create_task(self._viewer(number)) for number in range(self._plan.viewers)]
        saying = asyncio.create_task(self._say())
        all_done = asyncio.gather(*viewers)
        giving_up = asyncio.create_task(self._wait_to_give_up())
        try:
            await asyncio.wait((all_done, giving_up), return_when=asyncio.FIRST_COMPLETED)
            if all_done.done():
                await all_done
        finally:
            giving_up.cancel()
            all_done.cancel()
            for task in (*viewers, saying):
                task.cancel()
            await asyncio.gather(*viewers, saying, return_exceptions=True)

    async def _wait_to_give_up(self) -> list[None]:
        await self._give_up.wait()
        return []

    def stop(self) -> None:
        self._stop.set()

    def end(self) -> None:
        self._stop.set()
        self._give_up.set()

    def _token(self, user: str) -> str:
        if user not in self._tokens:
            self._tokens[user] = issue(
                self._order.secret, user=user, org=ORG, scope="streams:read", now=time.time(), ttl_s=86_400
            )
        return self._tokens[user]

    async def _say(self) -> None:
        while True:
            await asyncio.sleep(1)
            sums = {**self.sums, "open": len(self._open), "connections": self._around.reconnects}
            print(msgspec.json.encode(sums).decode(), flush=True)  # noqa: T201

    # -- viewers

    async def _viewer(self, number: int) -> None:
        dice = self._plan.dice(f"viewer:{number}")
        asks = number < self._plan.viewers * ASKING
        user = f"u{number % USERS}"
        is_client = dice.random() < CLIENTS
        await self._pause(dice.uniform(0, 8))
        async with contextlib.AsyncExitStack() as stack:
            client: headrace.Client | None = None
            turn = 0
            while not self._stop.is_set():
                turn += 1
                name = f"v{number:03d}.{turn}"
                mine = random.Random(f"{self._plan.seed}:{name}")
                plan = intent(mine, "ask" if asks else "join")
                if is_client and client is None:
                    client = await self._client(stack, user)
                if asks:
                    await self._ask(name, user, plan, mine, client)
                elif self._joinable:
                    await self._watch(name, user, plan, mine, client, stream=mine.choice(self._joinable))
                await self._pause(mine.uniform(0.2, 5.0))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    async def _client(self, stack: contextlib.AsyncExitStack, user: str) -> headrace.Client | None:
        """A client, once any hub takes one; None when the run ends before."""
        while not self._stop.is_set():
            try:
                return await stack.enter_async_context(headrace.connect(self._order.front, lambda: self._token(user)))
            except headrace.ConnectionFailed:
                await self._pause(0.5)
        return None

    async def _ask(
        self, name: str, user: str, plan: Intent, dice: random.Random, client: headrace.Client | None
    ) -> None:
        request = f"r-{name}"
        if plan.is_unwatched:
            await self._unwatched(name, user, plan, dice, client, request)
            return
        watches = [self._watch(name, user, plan, dice, client, request=request)]
        if plan.is_doubled:
            other = random.Random(f"{self._plan.seed}:{name}:again")
            watches.append(
                self._watch(f"{name}b", user, plan, other, None, request=request, after_s=other.random() * 4)
            )
        await asyncio.gather(*watches)

    async def _unwatched(
        self, name: str, user: str, plan: Intent, dice: random.Random, client: headrace.Client | None, request: str
    ) -> None:
        """Ask with `attach: false`; look at it later."""
        asking = dataclasses.replace(plan, options={**plan.options, "attach": False})
        started = await self._watch(name, user, asking, dice, client, request=request)
        if started.outcome == "started":
            await self._pause(dice.uniform(0.5, 10))
            await self._watch(f"{name}l", user, plan, dice, client, stream=started.stream)

    async def _watch(
        self, name: str, user: str, plan: Intent, dice: random.Random, client: headrace.Client | None,
        *, request: str = "", stream: str = "", after_s: float = 0.0,
    ) -> Watch:  # fmt: skip
        await self._pause(after_s)
        self._open.add(name)
        viewer: RawViewer | ClientViewer
        if client is not None:
            viewer = ClientViewer(
                name, user, self._around, plan, dice, client,
                request=request, stream=stream, on_accepted=self._joinable.append,
            )  # fmt: skip
        else:
            viewer = RawViewer(
                name, user, self._around, plan, dice,
                request=request, stream=stream, on_accepted=self._joinable.append,
            )  # fmt: skip
        try:
            watch = await viewer.run()
        except Exception:  # a defect in here: said at the end, but no reason to end the run
            traceback.print_exc()
            self.sums["broken viewers"] += 1
            watch = viewer.watch
        finally:
            self._open.discard(name)
            write_watch(self._directory, viewer.watch)
        self._count(watch)
        return watch

    def _count(self, watch: Watch) -> None:
        self.sums["watches"] += 1
        self.sums[watch.outcome] += 1
        if watch.request and watch.stream:
            self.sums["accepted"] += 1
        self.sums["ends"] += any(isinstance(event, Seen) and event.kind == "done" for event in watch.events[-4:])


async def main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    order = msgspec.json.decode(await reader.readline(), type=Order)
    crowd = Crowd(order)
    running = asyncio.create_task(crowd.run())

    async def listen() -> None:
        while line := await reader.readline():
            if line.strip() == b"stop":
                crowd.stop()
            elif line.strip() == b"end":
                crowd.end()
        crowd.end()  # nobody is there any more

    listening = asyncio.create_task(listen())
    try:
        await running
    finally:
        listening.cancel()


if __name__ == "__main__":
    uvloop.run(main())
