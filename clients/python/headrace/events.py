"""What an application sees of a generation: one small frozen type per kind of entry (docs/protocol.md §5).

`Live`, `Status` and `Restarted` are no entries: they tell how the stream is delivered.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import msgspec

from headrace.protocol.codes import Retry
from headrace.protocol.frames import Delta, EntryFrame, StatusFrame

State = Literal["queued", "running", "stalled", "paused", "degraded"]


class Queued(msgspec.Struct, frozen=True):
    """The hub accepted the request."""

    model: str
    tier: str | None = None


class Started(msgspec.Struct, frozen=True):
    """A worker has the request; `attempt` counts from 1."""

    attempt: int


class Source(msgspec.Struct, frozen=True):
    """Who speaks from here on."""

    provider: str
    model: str
    mode: Literal["live", "fallback", "cached"]
    reason: str | None = None


class Text(msgspec.Struct, frozen=True):
    """A piece of the answer: append it."""

    text: str


class Reasoning(msgspec.Struct, frozen=True):
    """A piece of the model's visible thinking, kept apart from the answer."""

    text: str


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call opens."""

    call: str
    name: str


class ToolInput(msgspec.Struct, frozen=True):
    """A piece of the arguments of an open tool call, as JSON text."""

    call: str
    delta: str


class ToolReady(msgspec.Struct, frozen=True):
    """The arguments are complete and parsed; `input` is `None` when they were too large to repeat."""

    call: str
    input: Any = None


class ToolResult(msgspec.Struct, frozen=True):
    """What the tool returned."""

    call: str
    output: str
    error: bool = False
    truncated: bool = False


class Citation(msgspec.Struct, frozen=True):
    """The source of a passage, with whatever fields its provider gives."""

    data: dict[str, Any]


class Notice(msgspec.Struct, frozen=True):
    """Worth telling the reader: `worker_lost`, `stalled`, `retrying`, …"""

    code: str
    provider: str | None = None
    after_ms: int | None = None
    parameter: str | None = None
    """With `parameter_dropped` or `parameter_lowered`: what of the request the model does not take."""


class Reset(msgspec.Struct, frozen=True):
    """All content so far is void: empty what is shown. What is kept follows as events."""

    reason: str


class Usage(msgspec.Struct, frozen=True):
    """Tokens and cost so far, or in all."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float | None = None
    estimated: bool = False


class DoneError(msgspec.Struct, frozen=True):
    """Why a generation failed, and what may be done about it."""

    code: str
    message: str
    retry: Retry
    after_ms: int | None = None


class Done(msgspec.Struct, frozen=True):
    """The end, exactly once. `status` says how it ended; only `completed` and `truncated` have an answer."""

    status: Literal["completed", "truncated", "cancelled", "failed"]
    stop_reason: str
    text_bytes: int
    text_sha256: str
    usage: Usage | None = None
    ttft_ms: int | None = None
    error: DoneError | None = None
    retry_token: str | None = None


class Entry(msgspec.Struct, frozen=True):
    """An entry of a kind that this version does not know, or of a session; safe to ignore."""

    kind: str
    data: dict[str, Any]


class Live(msgspec.Struct, frozen=True):
    """Everything older was delivered; from here on entries come as they are made."""


class Status(msgspec.Struct, frozen=True):
    """How the stream is doing. Never logged, may be lost; only the newest unread one is kept."""

    state: State
    position: int | None = None
    after_ms: int | None = None


class Restarted(msgspec.Struct, frozen=True):
    """The log was replaced by another history: drop everything shown. The log follows from its start."""

    reason: Literal["history", "digest"] = "history"


Event = (
    Queued
    | Started
    | Source
    | Text
    | Reasoning
    | ToolCall
    | ToolInput
    | ToolReady
    | ToolResult
    | Citation
    | Notice
    | Reset
    | Usage
    | Done
    | Entry
    | Live
    | Status
    | Restarted
)

_KINDS: Final[dict[str, type[msgspec.Struct]]] = {
    "queued": Queued,
    "started": Started,
    "source": Source,
    "text": Text,
    "reasoning": Reasoning,
    "tool_call": ToolCall,
    "tool_input": ToolInput,
    "tool_ready": ToolReady,
    "tool_result": ToolResult,
    "notice": Notice,
    "reset": Reset,
    "usage": Usage,
    "done": Done,
}
CONTENT: Final = (Text, Reasoning, ToolCall, ToolInput, ToolReady, ToolResult, Citation)
"""Events that a viewer sees."""


def of_delta(frame: Delta) -> Event:
    """The event of merged text."""
    if frame.kind == "text":
        return Text(frame.text)
    if frame.kind == "reasoning":
        return Reasoning(frame.text)
    return ToolInput(frame.call or "", frame.text)


def of_entry(frame: EntryFrame) -> Event:
    """The event of one entry. Fields it does not know are ignored, kinds it does not know become `Entry`.

    Raises:
        msgspec.ValidationError: A `done` that cannot be read: without it there is no end.
    """
    data = frame.data
    assert isinstance(data, dict), "only a hub holds encoded data"
    if frame.kind == "citation":
        return Citation(data)
    try:
        event: Event = msgspec.convert(data, _KINDS[frame.kind])  # type: ignore[assignment]
    except KeyError:
        return Entry(frame.kind, data)
    except msgspec.ValidationError:
        if frame.kind == "done":
            raise
        return Entry(frame.kind, data)
    return event


def of_status(frame: StatusFrame) -> Status | None:
    """The event of a pushed status; None for a state that this version does not know."""
    if frame.state not in get_args(State):
        return None
    return Status(frame.state, frame.position, frame.after_ms)  # type: ignore[arg-type]
