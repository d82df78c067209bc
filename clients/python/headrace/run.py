"""An answer that calls this application's functions: asked, the calls run, asked again with their results."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import msgspec

from headrace.errors import GenerationClosed, HeadraceError, RoundsExhausted
from headrace.events import Done, Event, ToolResult
from headrace.fold import ToolUse
from headrace.generation import Generation
from headrace.protocol.frames import Message
from headrace.tools import Tool
from headrace.turns import TOOL_CALLS

Ask = Callable[[list[Message], str], Generation]
"""Starts a generation: messages, idempotency key."""


class Run:
    """A question, answered in as many rounds as the model calls tools. Iterate it for events, or await `text()`.

    Each round is a generation. Its events come as they are; between two rounds there is a `ToolResult` for every
    call that was run here. There is one `Done`, the last round's. A `Reset` or `Restarted` voids what the present
    round showed, which is `generation.text_so_far`; the rounds before it stand.

    The calls of one round run at the same time. A call that fails, takes too long, has wrong arguments or names no
    tool is told to the model as that, and the run goes on. Cancelling the task that reads ends the run.

    Asking the same with the same `request` key, and tools that return the same, is the same run: no model is asked
    twice. One task reads a run.

    Attributes:
        generation: The present round, or the last.
        messages: The conversation so far: what was asked, and every turn that came of it.
    """

    def __init__(self, ask: Ask, messages: list[Message], tools: Sequence[Tool], request: str, rounds: int) -> None:
        self._ask = ask
        self._tools = {tool.name: tool for tool in tools}
        self._request = request
        self._rounds_left = rounds - 1
        self._results: deque[ToolResult] = deque()  # run, not yet told
        self._calling: list[asyncio.Task[ToolResult]] = []
        self._closed: HeadraceError | None = None
        self._is_over = False
        self.messages = messages
        self.generation = ask(messages, request)

    def __repr__(self) -> str:
        return f"<Run {self.generation!r}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises what iterating over a generation raises."""
        while True:
            if self._results:
                return self._results.popleft()
            if self._closed is not None:
                raise self._closed
            if self._is_over:
                raise StopAsyncIteration
            event = await anext(self.generation)
            if not isinstance(event, Done):
                return event
            self.messages = [*self.messages, *self.generation.turns()]
            calls = self.generation.tool_calls
            if event.stop_reason != TOOL_CALLS or not calls or not self._rounds_left:
                self._is_over = True
                return event
            await self._go_on(calls)

    async def text(self) -> str:
        """Read to the end; what the model said last. Events that nobody iterates over are consumed.

        Raises:
            RoundsExhausted: The model still calls tools in the last round that it was given.
            HeadraceError: What `Generation.text` raises.
        """
        async for _ in self:
            pass
        text = await self.generation.text()
        if (await self.generation.done()).stop_reason == TOOL_CALLS:
            raise RoundsExhausted(text, [use.name for use in self.generation.tool_calls])
        return text

    async def cancel(self) -> None:
        """Stop: end the present round for everybody who watches it, or the tools that run."""
        if self._calling:
            self._close("this run was cancelled while its tools ran")
        else:
            await self.generation.cancel()

    async def aclose(self) -> None:
        """Stop watching, and the tools that run. The present round goes on as its `on_abandon` says."""
        self._close("this application stopped watching")
        await self.generation.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _close(self, why: str) -> None:
        if not self._is_over and self._closed is None:
            self._closed = GenerationClosed(why)
        for task in self._calling:
            task.cancel()

    async def _go_on(self, calls: list[ToolUse]) -> None:
        """Run the calls and ask again."""
        results = await self._call(calls)
        if self._closed is not None:
            return
        self._rounds_left -= 1
        self._results.extend(results)
        self.messages = [
            *self.messages,
            *[Message("tool", result.output, call=result.call, error=result.error) for result in results],
        ]
        try:
            self.generation = self._ask(self.messages, _key(self._request, self.messages))
        except HeadraceError as error:
            self._closed = error

    async def _call(self, calls: list[ToolUse]) -> list[ToolResult]:
        """Their results, in order; none if the run was closed meanwhile."""
        self._calling = [asyncio.create_task(self._answer(use)) for use in calls]
        try:
            await asyncio.wait(self._calling)
            return [task.result() for task in self._calling] if self._closed is None else []
        except asyncio.CancelledError:
            self._close("this run was cancelled while its tools ran")
            raise
        finally:
            await asyncio.gather(*self._calling, return_exceptions=True)
            self._calling = []

    async def _answer(self, use: ToolUse) -> ToolResult:
        tool = self._tools.get(use.name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            return ToolResult(use.call, f"there is no tool {use.name}; known: {known}", error=True)
        return await tool.answer(use.call, use.input)


def _key(request: str, messages: list[Message]) -> str:
    """Equal for the same round of the same run, if its tools said the same; nothing else has it."""
    return hashlib.sha256(msgspec.json.encode([request, messages])).hexdigest()
