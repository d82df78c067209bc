"""What a provider is to a worker: a stream of events, whoever speaks and in whatever format.

An adapter turns one provider's bytes into these events and its failures into `ProviderError`. It yields one
list of events per socket read, so that a burst costs one wake-up, and it ends only after a `Stop` event: a
stream that merely ends is a failed answer, never a short one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final, Literal, Protocol

import msgspec

from headrace.protocol.body import Body
from headrace.protocol.codes import DONE_ERROR_CODES, Retry
from workers.chain import Fault

#: Of one tool's output, in bytes of UTF-8: what an entry takes, names and all.
OUTPUT_BYTES: Final = 24 * 1024


class Event(msgspec.Struct, gc=False):
    """Base of everything that a provider can say."""


class Text(Event, gc=False):
    text: str


class Reasoning(Event, gc=False):
    text: str


class ToolCall(Event, gc=False):
    """A tool call opens; its arguments follow as `ToolInput` and end with `ToolReady`."""

    call: str
    name: str


class ToolInput(Event, gc=False):
    call: str
    delta: str


class ToolReady(Event):
    """The arguments are complete; `input` is None when they are not valid JSON."""

    call: str
    input: Any


class ToolResult(Event):
    """What a tool returned that was run here. `output` has at most OUTPUT_BYTES in UTF-8; `truncated`: it had more."""

    call: str
    output: str
    error: bool = False
    truncated: bool = False


class Citation(Event):
    data: dict[str, Any]


class Usage(Event, gc=False):
    """Tokens so far, absolute. `input_tokens` is the grand total: read from a cache, written to one, and the rest.
    `output_tokens` includes reasoning.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None
    """What the worker makes of it, for viewers; no provider says so."""


class Speaker(Event, gc=False):
    """The model that the provider says is answering, when it differs from what was asked or is first known."""

    model: str


class Stop(Event, gc=False):
    """The provider ended its answer in an orderly way.

    `reason` is one of `stop`, `length`, `tool`, `refusal`, `filter`, `context`.
    """

    reason: str


_FAULTS: Final[dict[str, Fault]] = {
    "provider_rate_limited": "rate_limited",
    "provider_overloaded": "overloaded",
    "provider_timeout": "silent",
    "context_length_exceeded": "context",
    "content_blocked": "blocked",
    "overloaded": "busy",
    "internal": "request",
}


class ProviderError(Exception):
    """A provider failed. `message` is shown to viewers: it never holds a secret, a prompt or a provider's body.

    `fault` is what went wrong, for whoever decides who is asked next; without one it follows from the code.
    `refused` means that the request itself was not accepted, before any answer: another one might be.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        fault: Fault | None = None,
        after_ms: int | None = None,
        retry: Retry | None = None,
        refused: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fault: Fault = fault or _FAULTS.get(code, "server")
        self.after_ms = after_ms
        self.retry: Retry = retry or DONE_ERROR_CODES[code]
        self.refused = refused


Continues = Literal["no", "prefix", "turn"]
"""How a model goes on with an answer that was cut off: not at all; from the text as the beginning of its own answer;
or asked, in a turn after the text, to write the rest."""


class Provider(Protocol):
    """One provider, shared by all generations of a worker."""

    name: str
    mode: str
    """`live`, or `fallback` for the responder that needs no model."""

    def continues(self, model: str) -> Continues:
        """What `model` can do with the beginning of an answer."""
        ...

    def stream(self, model: str, body: Body, kept: str = "") -> AsyncGenerator[list[Event], None]:
        """Ask `model` and yield what it says. Closing the generator closes the provider's socket.

        With `kept`, the beginning of the answer without white space at its end: yield what follows it, as far as
        `continues` allows. Raises ProviderError.
        """
        ...

    async def close(self) -> None:
        """Close pooled connections. Running streams must have ended."""
        ...
