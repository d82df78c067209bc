"""What a viewer is sent of a generation, read as the steps of a chat completion. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from headrace.protocol.frames import Attached, Delta, EntryFrame, ErrorFrame
from hub.completions.problem import Problem

#: `finish_reason` by `done.stop_reason`.
FINISH_REASONS: Final = {
    "stop": "stop",
    "tool_calls": "tool_calls",
    "length": "length",
    "context": "length",
    "too_long": "length",
    "refusal": "content_filter",
    "filter": "content_filter",
}
#: Notices told of one answer.
NOTICES: Final = 32


@dataclass(frozen=True, slots=True)
class Reset:
    """All content so far is void."""


@dataclass(frozen=True, slots=True)
class End:
    """The answer is over: a `finish_reason`, or what went wrong."""

    finish: str = ""
    problem: Problem | None = None


Step = dict[str, Any] | Reset | End
"""A dict is a `delta` of OpenAI's chunks."""


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    index: int | None = None
    """Its place in the answer; None while it is not shown."""
    arguments: list[str] = field(default_factory=list)
    """Kept only while it is not shown."""
    has_arguments: bool = False


class Reading:
    """Feeds on the frames of one attachment, in order.

    A call of a tool that the client did not bring may be one that the worker runs itself: it is kept back (at most
    what a log holds) and shown at the end, if the answer ends for the sake of its result.
    """

    def __init__(self, tools: frozenset[str]) -> None:
        #: Who speaks, as `provider/model`; empty until the first content is near.
        self.model = ""
        #: Usage as OpenAI writes it; None while none was reported.
        self.usage: dict[str, Any] | None = None
        self._tools = tools
        self._calls: dict[str, _Call] = {}
        self._shown = 0
        self._source: Any = None
        self._notices: list[Any] = []

    def aside(self) -> dict[str, Any]:
        """What this format has no place for: who speaks and notices, since the last time this was asked."""
        source, notices, self._source, self._notices = self._source, self._notices, None, []
        said: dict[str, Any] = {}
        if source is not None:
            said["source"] = source
        if notices:
            said["notices"] = notices
        return {"headrace": said} if said else {}

    def read(self, frame: msgspec.Struct) -> Iterator[Step]:
        if isinstance(frame, Delta):
            yield from self._piece(frame)
        elif isinstance(frame, EntryFrame):
            if isinstance(frame.data, dict):
                yield from self._entry(frame.kind, frame.data)
        elif isinstance(frame, Attached) and not frame.resumed:
            yield self._reset()
        elif isinstance(frame, ErrorFrame):
            yield End(problem=Problem.told(frame.code, frame.message, frame.retry, frame.after_ms))

    def _piece(self, delta: Delta) -> Iterator[Step]:
        if delta.kind == "text":
            yield {"content": delta.text}
        elif delta.kind == "reasoning":
            yield {"reasoning_content": delta.text}
        elif delta.kind == "tool_input" and delta.call in self._calls:
            yield from self._argue(self._calls[delta.call], delta.text)

    def _entry(self, kind: str, data: dict[str, Any]) -> Iterator[Step]:
        if kind == "source":
            self.model = f"{data.get('provider')}/{data.get('model')}"
            self._source = data
        elif kind == "notice":
            if len(self._notices) < NOTICES:
                self._notices.append(data)
        elif kind == "usage":
            self.usage = _usage(data)
        elif kind == "tool_call":
            call = self._calls[data["call"]] = _Call(data["call"], data["name"])
            if call.name in self._tools:
                yield self._show(call)
        elif kind == "tool_ready":
            ready = self._calls.get(data["call"])
            if ready is not None and not ready.has_arguments and "input" in data:
                yield from self._argue(ready, msgspec.json.encode(data["input"]).decode())
        elif kind == "tool_result":
            self._calls.pop(data["call"], None)
        elif kind == "reset":
            yield self._reset()
        elif kind == "done":
            yield from self._done(data)

    def _argue(self, call: _Call, text: str) -> Iterator[Step]:
        call.has_arguments = True
        if call.index is None:
            call.arguments.append(text)
        else:
            yield {"tool_calls": [{"index": call.index, "function": {"arguments": text}}]}

    def _show(self, call: _Call) -> dict[str, Any]:
        call.index = self._shown
        self._shown += 1
        function = {"name": call.name, "arguments": "".join(call.arguments)}
        call.arguments.clear()
        return {"tool_calls": [{"index": call.index, "id": call.id, "type": "function", "function": function}]}

    def _reset(self) -> Reset:
        self._calls.clear()
        self._shown = 0
        return Reset()

    def _done(self, data: dict[str, Any]) -> Iterator[Step]:
        self.usage = _usage(data["usage"]) if data.get("usage") else self.usage
        status, reason = data["status"], data["stop_reason"]
        finish = FINISH_REASONS.get(reason)
        if status == "cancelled":
            yield End(problem=Problem("cancelled", "the answer was cancelled before it was complete", status=409))
        elif status == "failed" and finish is None:
            error = data.get("error") or {}
            yield End(
                problem=Problem.told(
                    error.get("code", "internal"),
                    error.get("message", "the answer failed"),
                    error.get("retry", "backoff"),
                    error.get("after_ms"),
                )
            )
        else:
            if finish == "tool_calls":
                yield from [self._show(call) for call in self._calls.values() if call.index is None]
            yield End(finish or ("length" if status == "truncated" else "stop"))


def _usage(data: dict[str, Any]) -> dict[str, Any]:
    """What is 0, unknown or false is left out of an entry. `cost_usd` and `estimated` are additions of Headrace."""
    asked, answered = data.get("input_tokens", 0), data.get("output_tokens", 0)
    usage = {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": {"cached_tokens": data.get("cached_tokens", 0)},
    }
    if "reasoning_tokens" in data:
        usage["completion_tokens_details"] = {"reasoning_tokens": data["reasoning_tokens"]}
    return usage | {name: data[name] for name in ("cost_usd", "estimated") if name in data}
