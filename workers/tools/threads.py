"""Threads for tools that are plain functions: one a call, so that one that hangs holds up nobody but itself."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final

#: Plain functions that run at a time in one worker, those included whose callers have gone. The next one waits.
THREADS: Final = 64


class Ended(Exception):
    """The function raised what ends a thread or a process, `what`."""

    def __init__(self, what: str) -> None:
        super().__init__(f"it raised {what}")
        self.what = what


class Threads:
    """Belongs to one event loop. Threads are daemons: one that never ends does not keep the process."""

    def __init__(self, threads: int = THREADS) -> None:
        self._slots = asyncio.Semaphore(threads)

    async def call(self, function: Callable[[], Any], name: str) -> Any:
        """What `function` returns, from a thread of its own; raises what it raises, or Ended.

        A thread cannot be cancelled: with the caller gone it runs on, and its result is dropped.
        """
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()

        def end(result: Any, error: Exception | None) -> None:
            self._slots.release()
            if not outcome.done():
                if error is None:
                    outcome.set_result(result)
                else:
                    outcome.set_exception(error)

        def run() -> None:
            result: Any = None
            error: Exception | None = None
            try:
                result = function()
            except StopIteration as raised:  # a future cannot hold it
                error = Ended(type(raised).__name__)
            except Exception as raised:
                error = raised
            except BaseException as raised:
                error = Ended(type(raised).__name__)
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(end, result, error)

        try:
            threading.Thread(target=run, name=f"tool-{name}", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            self._slots.release()
            raise
        return await outcome
