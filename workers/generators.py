"""What your own generator is called with, and what it may yield (docs/generators.md).

    from collections.abc import AsyncIterator

    from workers.generators import Reasoning, Request

    async def echo(request: Request) -> AsyncIterator[str | Reasoning]:
        yield Reasoning("Nothing to think about.")
        for word in request.prompt.split():
            yield word + " "

Registered with `HEADRACE_GENERATORS=my_module:echo` it is the model `generator/echo`. Text is yielded as `str`; this
module has the rest. Returning ends the answer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.protocol.frames import Call, Message

__all__ = [
    "Call", "Citation", "Message", "Reasoning", "Request", "Said", "ToolCall", "ToolResult", "Usage",
]  # fmt: skip


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked. A copy for this one answer."""

    model: str
    """The name that the generator was asked by, without `generator/`."""
    messages: tuple[Message, ...]
    """The conversation, oldest first: each has `role` and `content`; see `headrace.protocol.frames.Message`."""
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    """Tools that the request brings, each `{name, description?, input_schema}`."""
    tool_choice: str | dict[str, Any] | None = None
    schema: dict[str, Any] | None = None
    """The answer is to be JSON that holds to it; Headrace checks that in the end."""

    @property
    def prompt(self) -> str:
        """What the user said last."""
        return next((message.content for message in reversed(self.messages) if message.role == "user"), "")


class Reasoning(msgspec.Struct, frozen=True):
    """A piece of thinking, shown apart from the answer."""

    text: str


class ToolCall(msgspec.Struct, frozen=True):
    """A tool is called. The generator runs it, and says with `ToolResult` what came of it.

    A call of a tool that the request brought, with no result when the generator returns, is left to the client: the
    answer ends with `tool_calls`, and the client asks again with the results.
    """

    call: str
    """Tells this call from the others of the answer."""
    name: str
    input: Any = None
    """The arguments, as JSON has them."""


class ToolResult(msgspec.Struct, frozen=True):
    call: str
    output: str
    error: bool = False


class Citation(msgspec.Struct, frozen=True):
    """A source of what was said: any fields, as JSON has them."""

    data: dict[str, Any]


class Usage(msgspec.Struct, frozen=True):
    """Tokens used for this answer so far. Yield it again when more were used, the last one counts.

    `input_tokens` counts cached ones too, `output_tokens` those of reasoning. Without any, an estimate is recorded.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


Said = str | Reasoning | ToolCall | ToolResult | Citation | Usage
"""All that a generator may yield."""
