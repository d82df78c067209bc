"""Code that is not ours runs aside: in a thread with an event loop of its own, where it may block or misbehave.

What it may not do is hurt this worker. A caller that is cancelled waits a second for it and no longer; values cross
over in bounded lists; a loop that stands still is given up and another thread takes what comes next. Against code
that holds the interpreter's lock (a C extension that computes for seconds) nothing inside of one process helps.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Final, Generic, TypeVar, cast

import structlog

log_ = structlog.get_logger(__name__)
_T = TypeVar("_T")

#: A loop that does not answer for so long is given up.
BLOCKED_S: Final = 5.0
#: How long a cancelled caller waits for what it called to end.
LEAVE_S: Final = 1.0
#: What goes on in spite of a cancel is cancelled again this often …
AGAIN_S: Final = 10.0
#: … and with so many of them in a thread, the next call gets a new thread and this one ends with its last good call.
LEFTOVERS: Final = 100
#: With so many blocked threads nothing is called any more: something is wrong for good, and each of them costs memory.
THREADS: Final = 20
#: Looks at the loop until it counts as blocked: a process that was stopped as a whole misses one of them, not all.
_LOOKS: Final = 5


class Blocked(Exception):
    """The thread was given up while this ran in it. `by` names the code that blocked it, if that is known;
    `is_own`: it was this very call.
    """

    def __init__(self, by: str, *, is_own: bool) -> None:
        super().__init__(f"{by or 'something'} blocked its event loop")
        self.by = by
        self.is_own = is_own


class Quit(Exception):
    """The code raised what ends a process or a task, `what`, without having been asked to."""

    def __init__(self, what: str) -> None:
        super().__init__(f"it raised {what}")
        self.what = what


class _GivenUp(BaseException):
    """Raised inside of a blocked thread, so that a loop in Python code does not spin for ever."""


def where(error: BaseException) -> str:
    """The traceback of `error` for a log: files, lines and code. Its text is left out, which may quote a prompt."""
    frames = traceback.format_tb(error.__traceback__)
    return "".join([*frames[-20:], type(error).__name__])


class Aside:
    """A thread for code that is not ours, started when first needed. Belongs to one event loop.

    `call` and `iterate` raise what the code raises; Blocked; or Quit.
    """

    def __init__(self, name: str, *, blocked_s: float = BLOCKED_S) -> None:
        self._name = name
        self._look_s = blocked_s / _LOOKS
        self._side: _Side | None = None
        self._sides: set[_Side] = set()
        self._is_closed = False

    async def call(self, function: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        """The result of a coroutine function. Cancelling this cancels it there, and waits LEAVE_S for its end."""

        async def run() -> _T:
            return await function(*args)

        job = self._place().start(_name_of(function), run)
        try:
            await job.ended.wait()
        finally:
            await job.leave()
        return cast(_T, job.outcome())

    def iterate(
        self, make: Callable[[], AsyncIterator[_T]], bound: int, *, name: str = ""
    ) -> AsyncGenerator[list[_T], None]:
        """What the iterator that `make` makes there yields, in lists of all that is there by then.

        No more than `bound` values wait to be read; until then the iterator is not asked for the next. Closing this
        closes the iterator there, and waits LEAVE_S for its end. `name` stands for the code in logs.
        """
        return self._iterate(make, bound, name or _name_of(make))

    async def _iterate(
        self, make: Callable[[], AsyncIterator[_T]], bound: int, name: str
    ) -> AsyncGenerator[list[_T], None]:
        side = self._place()
        channel: _Channel[_T] = _Channel(side, bound)
        job = side.start(name, lambda: channel.fill(make), channel.stirred)
        try:
            while True:
                channel.stirred.clear()
                has_ended = job.ended.is_set()  # looked at first: what was put before the end is seen
                if values := channel.take():
                    yield values
                elif has_ended:
                    break
                else:
                    await channel.stirred.wait()
        finally:
            channel.is_closed = True
            await job.leave()
        job.outcome()

    async def close(self) -> None:
        """Cancel what runs, and end the thread. A blocked one is left behind; as a daemon it ends with the process."""
        self._is_closed = True
        sides, self._side = list(self._sides), None
        for side in sides:
            side.retire()
            for job in list(side.jobs):
                job.cancel()
        await asyncio.gather(*[job.leave() for side in sides for job in list(side.jobs)])
        for side in sides:
            side.stop()
        await asyncio.gather(*[asyncio.to_thread(side.thread.join, LEAVE_S) for side in sides])
        self._sides.clear()

    def _place(self) -> _Side:
        if self._is_closed:
            raise RuntimeError(f"{self._name} is closed")
        self._sides = {side for side in self._sides if side.thread.is_alive()}
        if len(self._sides) > THREADS:
            raise Blocked("", is_own=False)
        if self._side is not None and self._side.leftovers >= LEFTOVERS:
            log_.error("code goes on in spite of cancels, it gets a new thread", code=self._name, left=LEFTOVERS)
            self._side.retire()
            self._side = None
        if self._side is None or self._side.is_retired:
            self._side = _Side(self._name, self._look_s)
            self._sides.add(self._side)
        return self._side


class _Side:
    """One thread and its loop. Called on the main loop, but for `tell` and what `_live` calls."""

    def __init__(self, name: str, look_s: float) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(_unhandled)
        self.jobs: set[_Job] = set()
        self.is_retired = False
        self._is_stopped = False
        self._main = asyncio.get_running_loop()
        self._name = name
        self._look_s = look_s
        self._looks = 0
        self._has_answered = True
        self._timer: asyncio.TimerHandle | None = None
        self.thread = threading.Thread(target=self._live, name=f"aside-{name}", daemon=True)
        self.thread.start()

    @property
    def leftovers(self) -> int:
        return sum(job.is_cancelled for job in self.jobs)

    def start(self, name: str, function: Callable[[], Awaitable[object]], stirred: asyncio.Event | None = None) -> _Job:
        """`stirred` is set, too, when it ends."""
        job = _Job(self, name, function, stirred or asyncio.Event())
        self.jobs.add(job)
        self.ask(job.begin)
        if self._timer is None:
            self._looks, self._has_answered = 0, True
            self._look()
        return job

    def ask(self, callback: Callable[[], object]) -> None:
        """Call it there. Nothing happens once that loop is closed."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(callback)

    def tell(self, callback: Callable[[], object]) -> None:
        """Call it here; for the thread. Nothing happens once this loop is closed."""
        with contextlib.suppress(RuntimeError):
            self._main.call_soon_threadsafe(callback)

    def ended(self, job: _Job) -> None:
        self.jobs.discard(job)
        if not self.jobs and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._rest()

    def retire(self) -> None:
        """Take nothing new, and end when only those are left that do not end."""
        self.is_retired = True
        self._rest()

    def stop(self) -> None:
        self._is_stopped = True
        self.ask(self.loop.stop)

    def _rest(self) -> None:
        if self.is_retired and self.leftovers == len(self.jobs):
            self.stop()

    def _look(self) -> None:
        """Whether the loop still turns; every look is answered by its next turn."""
        if self._has_answered:
            self._looks, self._has_answered = 0, False
            self.ask(self._answer)
        else:
            self._looks += 1
            if self._looks >= _LOOKS:
                self._give_up()
                return
        self._timer = self._main.call_later(self._look_s, self._look)

    def _answer(self) -> None:
        self._has_answered = True

    def _give_up(self) -> None:
        self._timer = None
        running = asyncio.current_task(self.loop)
        culprit = next((job for job in self.jobs if job.task is not None and job.task is running), None)
        by = culprit.name if culprit else ""
        log_.error("code blocks its event loop, it is left alone", code=by or self._name, at=self._stands_at())
        for job in list(self.jobs):
            job.cancel()
            job.end(Blocked(by, is_own=job is culprit))
        self.retire()
        if self.thread.is_alive() and self.thread.ident is not None:
            ident = ctypes.c_ulong(self.thread.ident)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_GivenUp))

    def _stands_at(self) -> str:
        """Where the thread is: the innermost lines of code, without values."""
        frame = sys._current_frames().get(self.thread.ident or 0)
        if frame is None:
            return ""
        stack = traceback.extract_stack(frame)[-3:]
        return ", ".join(f"{os.path.basename(line.filename)}:{line.lineno} {line.name}" for line in stack)

    def _live(self) -> None:
        with contextlib.suppress(_GivenUp):
            self._turn()
        with contextlib.suppress(BaseException):
            self.loop.run_until_complete(self._clean_up())
        with contextlib.suppress(BaseException):
            self.loop.close()

    def _turn(self) -> None:
        while not self._is_stopped:
            try:
                self.loop.run_forever()
            except BaseException as error:  # a task of the code's own raised SystemExit, or this thread was given up
                if not isinstance(error, _GivenUp):
                    log_.warning("code tried to end the process", code=self._name, error=type(error).__name__)

    async def _clean_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LEAVE_S)
        async with asyncio.timeout(LEAVE_S):
            await self.loop.shutdown_asyncgens()


class _Job:
    """One call. `begin`, and what it leads to, run in the thread; all else on the main loop."""

    def __init__(
        self, side: _Side, name: str, function: Callable[[], Awaitable[object]], stirred: asyncio.Event
    ) -> None:
        self.name = name
        self.ended = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.is_cancelled = False
        self._side = side
        self._function = function
        self._stirred = stirred
        self._result: object = None
        self._error: Exception | None = None

    def begin(self) -> None:
        if not self.is_cancelled:
            self.task = self._side.loop.create_task(self._run(), name=self.name)
        else:
            self._side.tell(lambda: self.end(None))

    async def _run(self) -> None:
        result: object = None
        error: Exception | None = None
        try:
            result = await self._function()
        except Exception as raised:
            error = raised
        except BaseException as raised:  # a SystemExit would end the thread
            error = Quit(type(raised).__name__)
        if error is not None and self.is_cancelled and not isinstance(error, Quit):
            log_.warning("code failed while it was closed", code=self.name, where=where(error))
        self._side.tell(lambda: self.end(error, result))

    def end(self, error: Exception | None, result: object = None) -> None:
        if not self.ended.is_set():
            self._error, self._result = error, result
            self.ended.set()
            self._stirred.set()
        self._side.ended(self)

    def outcome(self) -> object:
        """The result. Raises what it ended with."""
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self) -> None:
        if not (self.is_cancelled or self.ended.is_set()):
            self.is_cancelled = True
            self._side.ask(self._cut)

    async def leave(self) -> None:
        """Cancel it, if it runs, and wait LEAVE_S for its end."""
        self.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self.ended.wait()

    def _cut(self) -> None:
        if self.task is not None and not self.task.done():
            self.task.cancel()
            self._side.loop.call_later(AGAIN_S, self._cut_again)

    def _cut_again(self) -> None:
        if self.task is not None and not self.task.done():
            log_.warning("code goes on in spite of a cancel", code=self.name)
            self._cut()


class _Channel(Generic[_T]):
    """Values on their way from the thread. Bound: `bound` of them."""

    def __init__(self, side: _Side, bound: int) -> None:
        #: The first value is there, or the end.
        self.stirred = asyncio.Event()
        self.is_closed = False
        self._side = side
        self._bound = bound
        self._values: deque[_T] = deque()
        self._lock = threading.Lock()
        self._room: asyncio.Event | None = None

    def take(self) -> list[_T]:
        with self._lock:
            values = list(self._values)
            self._values.clear()
            room, self._room = self._room, None
        if room is not None:
            self._side.ask(room.set)
        return values

    async def fill(self, make: Callable[[], AsyncIterator[_T]]) -> None:
        """In the thread: until the iterator ends. It is closed whatever happens."""
        iterator = make()
        count = 0
        try:
            async for value in iterator:
                if self.is_closed:
                    return
                room = self._put(value)
                count += 1
                if room is not None:
                    await room.wait()
                elif count % self._bound == 0:
                    await asyncio.sleep(0)  # one that never waits must not keep the others from their turn
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()

    def _put(self, value: _T) -> asyncio.Event | None:
        """What to wait for if there is no room for another."""
        with self._lock:
            self._values.append(value)
            is_first = len(self._values) == 1
            room = self._room = asyncio.Event() if len(self._values) >= self._bound else None
        if is_first:
            self._side.tell(self.stirred.set)
        return room


def _name_of(function: Callable[..., object]) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))


def _unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody awaited, without its text."""
    error = context.get("exception")
    kind = type(error).__name__ if error is not None else ""
    log_.warning("code left something behind in its event loop", what=context.get("message", ""), error=kind)
