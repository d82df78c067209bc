"""Runs tools: whatever a tool does becomes a result that the model is told, and hurts nobody else."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Collection
from functools import partial
from typing import Any

import structlog

from workers.aside import Aside, Blocked, Quit, where
from workers.providers import ToolResult
from workers.steps import Wanted
from workers.tools.asker import Caller, running
from workers.tools.declared import ToolError
from workers.tools.described import Tool, WrongArguments
from workers.tools.output import NoText, cut, text_of
from workers.tools.threads import Ended, Threads
from workers.tools.toolbox import Toolbox

log_ = structlog.get_logger(__name__)

#: The longest text about a failure that a tool chose itself.
_ERROR_CHARACTERS = 2000


class ToolRunner:
    """One per worker. Belongs to one event loop; `close` it when nothing runs any more."""

    def __init__(self, toolbox: Toolbox, timeout_s: float) -> None:
        """`timeout_s` holds for tools that have no limit of their own."""
        self.toolbox = toolbox
        self._timeout_s = timeout_s
        self._aside = Aside("tools")
        self._threads = Threads()

    async def run(self, wanted: Wanted, offered: Collection[str], caller: Caller) -> ToolResult:
        """Cancelling this cancels the tool, or leaves it alone if it is a plain function. Never fails: what went
        wrong is the result. Arguments and output are in no log.

        `offered` are the tools that the request named: a model that makes up the name of another gets no other.
        """
        tool = self.toolbox.get(wanted.name) if wanted.name in offered else None
        if tool is None:
            there = ", ".join(sorted(offered))
            return ToolResult(wanted.call, f"there is no tool “{wanted.name}”; there are: {there}"[:1000], True)
        try:
            output, truncated = await self._run(tool, wanted.input, caller)
        except _Failed as failed:
            text, truncated = cut(failed.text)
            return ToolResult(wanted.call, text, True, truncated)
        return ToolResult(wanted.call, output, False, truncated)

    async def _run(self, tool: Tool, given: Any, caller: Caller) -> tuple[str, bool]:
        limit_s = tool.timeout_s or self._timeout_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                if tool.is_async:
                    return await self._aside.call(_called, tool, given, caller)
                called = partial(_called_plainly, tool, given, caller)
                result: tuple[str, bool] = await self._threads.call(called, tool.name)
                return result
        except (WrongArguments, NoText) as error:
            raise _Failed(str(error)) from None
        except ToolError as error:
            raise _Failed(str(error)[:_ERROR_CHARACTERS] or "the tool failed") from None
        except (Quit, Ended) as error:
            raise _failed(tool, f"the tool failed ({error.what})") from None
        except Blocked as blocked:
            why = "blocked its event loop" if blocked.is_own else "was interrupted: another one blocked its event loop"
            raise _failed(tool, f"the tool {why}") from None
        except Exception as error:
            if limit.expired() and isinstance(error, TimeoutError):
                raise _failed(tool, f"the tool did not answer within {limit_s:g} s") from None
            raise _failed(tool, f"the tool failed ({type(error).__name__})", where(error)) from None

    async def close(self) -> None:
        """What still runs is cancelled, or left behind."""
        await self._aside.close()


class _Failed(Exception):
    """`text` is the result."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def _failed(tool: Tool, text: str, at: str = "") -> _Failed:
    log_.warning("a tool failed", tool=tool.name, reason=text, **({"where": at} if at else {}))
    return _Failed(text)


async def _called(tool: Tool, given: Any, caller: Caller) -> tuple[str, bool]:
    running.set(caller)  # of this task, or this thread, alone
    return cut(text_of(await tool.function(**tool.arguments(given))))


def _called_plainly(tool: Tool, given: Any, caller: Caller) -> tuple[str, bool]:
    running.set(caller)
    value = tool.function(**tool.arguments(given))
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise NoText("the tool returned something to be awaited; it must be an `async def` itself")
    return cut(text_of(value))
