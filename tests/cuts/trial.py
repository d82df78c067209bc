"""One run under watch: the tasks it starts, what it logs, and which of its tasks is cancelled where."""

from __future__ import annotations

import asyncio
import logging
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

import structlog

TRIAL: ContextVar[Trial | None] = ContextVar("trial", default=None)
"""Tasks inherit it, so that many trials run side by side on one loop."""


@dataclass(frozen=True, order=True)
class Await:
    """The `suspension`-th time that the `ordinal`-th task of this name waits."""

    name: str
    ordinal: int
    suspension: int

    def __str__(self) -> str:
        return f"{self.name} #{self.ordinal}, await {self.suspension}"


@dataclass(eq=False)
class Trial:
    """What one run did. `cancel_at` is where `cancel` is called, once, with the task that waits there."""

    cancel_at: Await | None = None
    cancel: Callable[[asyncio.Task[Any]], None] = lambda task: None
    tasks: weakref.WeakSet[asyncio.Task[Any]] = field(default_factory=weakref.WeakSet)
    logs: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    #: How often each task waited, while armed.
    awaits: Counter[tuple[str, int]] = field(default_factory=Counter)
    is_armed: bool = False
    was_cancelled: bool = False
    _names: Counter[str] = field(default_factory=Counter)

    def errors(self) -> list[str]:
        """What no outage explains. Connections that were not given back are looked for where they are missed."""
        return [
            f"logged: {event} {fields}"
            for level, event, fields in self.logs
            if level in ("error", "exception") and "Unclosed Pipeline" not in event
        ]

    def left(self) -> list[asyncio.Task[Any]]:
        me = asyncio.current_task()
        return [task for task in self.tasks if not task.done() and task is not me]

    def enter(self, name: str) -> int:
        self._names[name] += 1
        return self._names[name]

    def waits(self, name: str, ordinal: int, task: Callable[[], asyncio.Task[Any] | None]) -> None:
        if not self.is_armed:
            return
        self.awaits[name, ordinal] += 1
        if not self.was_cancelled and self.cancel_at == Await(name, ordinal, self.awaits[name, ordinal]):
            waiting = task()
            if waiting is not None:
                self.was_cancelled = True
                # At once, yet after the task has begun to wait: before anything that it waits for can happen.
                asyncio.get_running_loop().call_soon(self.cancel, waiting)


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine whose suspensions are counted."""

    def __init__(self, inner: Coroutine[Any, Any, Any], name: str, trial: Trial) -> None:
        self._inner = inner
        self._name = name
        self._trial = trial
        self._ordinal = trial.enter(name)
        self.task: Callable[[], asyncio.Task[Any] | None] = lambda: None
        self.__name__ = getattr(inner, "__name__", name)
        self.__qualname__ = name

    def send(self, value: Any) -> Any:
        return self._suspended(self._inner.send(value))

    def throw(self, *error: Any) -> Any:
        return self._suspended(self._inner.throw(*error))

    def _suspended(self, awaited: Any) -> Any:
        self._trial.waits(self._name, self._ordinal, self.task)
        return awaited

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise TypeError("a task's coroutine")


def _factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    trial = TRIAL.get()
    if trial is None:
        return asyncio.Task(coro, loop=loop, **options)
    counted = _Counted(coro, getattr(coro, "__qualname__", type(coro).__name__), trial)
    task: asyncio.Task[Any] = asyncio.Task(counted, loop=loop, **options)
    counted.task = weakref.ref(task)
    trial.tasks.add(task)
    return task


class _LibraryLogs(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        trial = TRIAL.get()
        if trial is not None and record.name != "tests":
            text = record.getMessage() + (f" {record.exc_info[1]!r}" if record.exc_info else "")
            trial.logs.append((record.levelname.lower(), f"{record.name}: {text}", {}))


def _keep(_: Any, method: str, event: MutableMapping[str, Any]) -> NoReturn:
    trial = TRIAL.get()
    if trial is not None:
        fields = {name: value for name, value in event.items() if name not in ("event", "level")}
        if method == "exception":
            fields["error"] = repr(sys.exc_info()[1])
        trial.logs.append((method, event["event"], fields))
    raise structlog.DropEvent


@contextmanager
def watching() -> Iterator[None]:
    """While this lasts, the running loop's tasks and all logs belong to the trial in whose context they are made."""
    loop = asyncio.get_running_loop()
    former, factory = structlog.get_config(), loop.get_task_factory()
    structlog.configure(processors=[_keep], cache_logger_on_first_use=False)
    handler = _LibraryLogs(logging.WARNING)
    logging.getLogger().addHandler(handler)
    loop.set_task_factory(_factory)
    try:
        yield
    finally:
        loop.set_task_factory(factory)
        logging.getLogger().removeHandler(handler)
        structlog.configure(**former)
