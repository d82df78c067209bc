"""All viewers of a measurement, in this process: connects them, acks for them, and stops at the first surprise."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from bench.process import BenchError
from bench.viewer import Received, Viewer
from headrace.protocol.codec import JSON, Codec

T = TypeVar("T")

#: One timer looks at all viewers this often: an ack is at most this late.
ACK_LOOK_S = 0.05
#: Connections that are being set up at the same time.
AT_ONCE = 64


class Audience:
    """Use as `async with`. Counts what must not happen; raises BenchError where going on makes no sense."""

    def __init__(self, codec: Codec) -> None:
        encoding = msgspec.json if codec is JSON else msgspec.msgpack
        self.codec = codec
        self.decode: Callable[[bytes], Any] = encoding.Decoder(Received).decode
        self.opcode = 1 if codec.is_text else 2
        self.first_byte = 0x80 | self.opcode
        self.viewers: list[Viewer] = []
        #: Entries skipped, and entries seen twice.
        self.missing = 0
        self.doubled = 0
        self.restarts = 0
        self.resets = 0
        self.acks = 0
        #: Set while a hub is killed on purpose.
        self.may_lose = False
        self._failure: asyncio.Future[None] | None = None
        self._acking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Audience:
        loop = asyncio.get_running_loop()
        self._failure = loop.create_future()
        self._former_handler = loop.get_exception_handler()
        loop.set_exception_handler(self._unexpected)
        self._acking = asyncio.create_task(self._ack_all())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.may_lose = True
        asyncio.get_running_loop().set_exception_handler(self._former_handler)
        for viewer in self.viewers:
            viewer.close()
        if self._acking is not None:
            self._acking.cancel()
            with suppress(asyncio.CancelledError):
                await self._acking
        if self._failure is not None and self._failure.done():
            self._failure.exception()  # it was raised to whoever waited, or the measurement is over

    # -- what viewers tell

    def fail(self, what: str) -> None:
        """Whoever waits for this audience gets a BenchError."""
        if self._failure is not None and not self._failure.done() and not self.may_lose:
            self._failure.set_exception(BenchError(what))

    def torn(self, by: int) -> None:
        """Offsets did not follow on each other: `by` entries are missing, or -by came twice."""
        if by > 0:
            self.missing += by
        else:
            self.doubled -= by

    def connection_lost(self, viewer: Viewer) -> None:
        self.fail(f"viewer {viewer.name} lost its connection")

    def _unexpected(self, _: Any, context: dict[str, Any]) -> None:
        self.fail(f"{context.get('message')}: {context.get('exception')!r}")

    # -- what a measurement asks

    def add(self, make: type[Viewer] = Viewer, name: str = "") -> Viewer:
        viewer = make(self, name or str(len(self.viewers)))
        self.viewers.append(viewer)
        return viewer

    async def wait(self, work: Awaitable[T], deadline_s: float, what: str) -> T:
        """Await `work`. Raises BenchError when anything fails meanwhile, or after `deadline_s`."""
        failure = self._failure
        assert failure is not None
        task = asyncio.ensure_future(work)
        waited: set[asyncio.Future[Any]] = {task, failure}
        done, _ = await asyncio.wait(waited, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        if task in done and failure not in done:
            return task.result()
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
        if failure in done:
            await failure
        raise BenchError(f"{what}: not over within {deadline_s:g} s")

    async def each(
        self, viewers: Sequence[Viewer], act: Callable[[Viewer], Awaitable[None]], spread_s: float = 0.0
    ) -> None:
        """Run `act` for every viewer, AT_ONCE at a time, their starts spread evenly over `spread_s`."""
        gate = asyncio.Semaphore(AT_ONCE)
        began = time.monotonic()

        async def one(index: int, viewer: Viewer) -> None:
            await asyncio.sleep(began + spread_s * index / len(viewers) - time.monotonic())
            async with gate:
                await act(viewer)

        await asyncio.gather(*(one(index, viewer) for index, viewer in enumerate(viewers)))

    @property
    def mismatches(self) -> int:
        """Viewers whose text is not what `done` says."""
        return sum(not is_whole(viewer) for viewer in self.viewers)

    async def _ack_all(self) -> None:
        while True:
            await asyncio.sleep(ACK_LOOK_S)
            now = time.monotonic()
            for viewer in self.viewers:
                schedule = viewer.schedule
                if schedule is not None:
                    due_at = schedule.due_at()
                    if due_at is not None and due_at <= now:
                        viewer.ack(schedule)


def is_whole(viewer: Viewer) -> bool:
    """Whether what a viewer folded is what the stream's `done` says, by length and SHA-256."""
    if viewer.done is None:
        return False
    text = "".join(viewer.texts).encode()
    return (len(text), hashlib.sha256(text).hexdigest()) == (viewer.done["text_bytes"], viewer.done["text_sha256"])
