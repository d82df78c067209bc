"""Bytes of one answer of OpenAI's Responses API → events. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from workers.providers import Citation, Event, Reasoning, Speaker, Stop, Text, Usage
from workers.providers.background import Background
from workers.providers.decoder import AnswerDecoder, MalformedStream
from workers.providers.failures import Account, Failure, provider_failure
from workers.providers.openai import ACCOUNT
from workers.providers.sse import SseSplitter

#: Why an answer is incomplete; any other reason is a limit too.
_INCOMPLETE: Final = {"content_filter": "filter", "steered": "stop"}
#: Between two parts of the thinking, and between two messages of one answer.
_PARAGRAPH: Final = "\n\n"


class _Item(msgspec.Struct, gc=False):
    type: str = ""
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class _InputDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Reason(msgspec.Struct, gc=False):
    reason: str | None = None


class _Response(msgspec.Struct, gc=False):
    id: str = ""
    model: str | None = None
    error: Any = None
    incomplete_details: _Reason | None = None
    usage: _Usage | None = None


class _Wire(msgspec.Struct, gc=False):
    type: str = ""
    sequence_number: int | None = None
    delta: str | None = None
    output_index: int = 0
    arguments: str | None = None
    summary_index: int = 0
    item: _Item | None = None
    response: _Response | None = None
    annotation: dict[str, Any] | None = None
    error: Any = None
    code: Any = None
    message: str | None = None


class ResponsesDecoder(AnswerDecoder[_Wire]):
    """`completed` and `incomplete` end an answer; `failed` and either form of `error` break it off.

    With `background` the answer's name is told first. With `response` and `event` it reads on in the middle of one.
    """

    def __init__(
        self, account: Account = ACCOUNT, *, background: bool = False, response: str = "", event: int = -1
    ) -> None:
        super().__init__(_Wire)
        self._account = account
        self._is_background = background
        #: How the provider calls the answer, if it goes on without a reader; empty until it is known.
        self.response = response
        #: The number of the last event that was read.
        self.event = event
        #: The provider writes no more of it.
        self.is_over = False
        self._broke_off = False
        self._skip_to = event
        self._model = ""
        self._reason = "stop"
        self._has_text = False
        self._opened: set[int] = set()

    @property
    def can_go_on(self) -> bool:
        """Whether the answer can be read on over another connection."""
        return bool(self.response) and not self.is_over and not self._broke_off

    def cut(self) -> None:
        """The connection broke. What follows event `event` comes over the next one; what it repeats is passed over."""
        self._splitter = SseSplitter()
        self._skip_to = self.event
        self.error = None

    def _known(self, data: Any) -> bool:
        return not isinstance(data, dict) or data.get("type") in _KNOWN

    def _take_other(self, name: bytes, data: bytes, error: Exception, events: list[Event]) -> None:
        if data != b"[DONE]":  # compatible servers' habit
            super()._take_other(name, data, error, events)

    def _take(self, name: bytes, wire: _Wire, events: list[Event]) -> None:
        number = wire.sequence_number
        if number is not None:
            if number <= self._skip_to:
                return
            self.event = max(self.event, number)
        if wire.type == "response.output_text.delta":
            if wire.delta:
                self._has_text = True
                self._text("text", wire.delta, events)
        elif (take := _TAKES.get(wire.type)) is not None:
            take(self, wire, events)

    # -- the answer as a whole

    def _lifecycle(self, wire: _Wire, events: list[Event]) -> None:
        response = wire.response
        if response is None:
            raise MalformedStream
        if self._is_background and not self.response and response.id and wire.sequence_number is not None:
            self.response = response.id
            events.append(Background(response.id, wire.sequence_number))
        if response.model and response.model != self._model:
            self._model = response.model
            events.append(Speaker(response.model))

    def _complete(self, wire: _Wire, events: list[Event]) -> None:
        self._lifecycle(wire, events)
        self.is_over = True
        response = wire.response
        assert response is not None
        for channel in ("text", "reasoning"):
            tell = self._text if channel == "text" else self._reasoning
            tell(channel, self._joiner.flush(channel), events)
        for index in list(self._tools):
            self._close_tool(index, events)
        if wire.type == "response.incomplete":
            details = response.incomplete_details
            self._reason = _INCOMPLETE.get((details and details.reason) or "", "length")
        elif self._reason == "stop" and self._opened:
            self._reason = "tool"
        if response.usage is not None:
            events.append(_usage(response.usage))
        self.stopping = True
        self._stop(events)

    def _stop(self, events: list[Event]) -> None:
        self.stopped = True
        events.append(Stop(self._reason))

    def _failed(self, wire: _Wire, events: list[Event]) -> None:
        self.is_over = True
        raise provider_failure(self._account, _in_band(wire.response and wire.response.error), now=0.0)

    def _error(self, wire: _Wire, events: list[Event]) -> None:
        """Flat or nested. Whether the provider writes on is not known: nobody reads on."""
        error = wire.error if wire.error is not None else {"code": wire.code, "message": wire.message}
        self._broke_off = True
        raise provider_failure(self._account, _in_band(error), now=0.0)

    # -- its parts

    def _item_added(self, wire: _Wire, events: list[Event]) -> None:
        item = wire.item
        if item is None:
            raise MalformedStream
        if item.type == "function_call":
            self._open(wire.output_index, item, events)
        elif item.type == "message" and self._has_text:
            events.append(Text(_PARAGRAPH))

    def _item_done(self, wire: _Wire, events: list[Event]) -> None:
        item = wire.item
        if item is None:
            raise MalformedStream
        if item.type == "function_call":
            if wire.output_index not in self._opened:
                self._open(wire.output_index, item, events)
                self._tool_input(wire.output_index, item.arguments or "", events)
            self._close_tool(wire.output_index, events)

    def _open(self, index: int, item: _Item, events: list[Event]) -> None:
        self._opened.add(index)
        self._open_tool(index, item.call_id or item.id or f"call_{index}", item.name or "", events)

    def _arguments(self, wire: _Wire, events: list[Event]) -> None:
        self._tool_input(wire.output_index, wire.delta or "", events)

    def _arguments_done(self, wire: _Wire, events: list[Event]) -> None:
        self._close_tool(wire.output_index, events)

    def _thought(self, wire: _Wire, events: list[Event]) -> None:
        self._reasoning("reasoning", wire.delta or "", events)

    def _thought_part(self, wire: _Wire, events: list[Event]) -> None:
        if wire.summary_index:
            events.append(Reasoning(_PARAGRAPH))

    def _refusal(self, wire: _Wire, events: list[Event]) -> None:
        self._reason = "refusal"
        self._text("text", wire.delta or "", events)

    def _annotation(self, wire: _Wire, events: list[Event]) -> None:
        if wire.annotation:
            events.append(Citation(wire.annotation))


_TAKES: Final[dict[str, Any]] = {
    "response.created": ResponsesDecoder._lifecycle,
    "response.queued": ResponsesDecoder._lifecycle,
    "response.in_progress": ResponsesDecoder._lifecycle,
    "response.completed": ResponsesDecoder._complete,
    "response.incomplete": ResponsesDecoder._complete,
    "response.failed": ResponsesDecoder._failed,
    "error": ResponsesDecoder._error,
    "response.output_item.added": ResponsesDecoder._item_added,
    "response.output_item.done": ResponsesDecoder._item_done,
    "response.function_call_arguments.delta": ResponsesDecoder._arguments,
    "response.function_call_arguments.done": ResponsesDecoder._arguments_done,
    "response.reasoning_summary_text.delta": ResponsesDecoder._thought,
    "response.reasoning_text.delta": ResponsesDecoder._thought,
    "response.reasoning_summary_part.added": ResponsesDecoder._thought_part,
    "response.refusal.delta": ResponsesDecoder._refusal,
    "response.output_text.annotation.added": ResponsesDecoder._annotation,
}
_KNOWN: Final = frozenset({"response.output_text.delta", *_TAKES})


def _usage(usage: _Usage) -> Usage:
    read, written = usage.input_tokens_details or _InputDetails(), usage.output_tokens_details or _OutputDetails()
    return Usage(
        input_tokens=usage.input_tokens or 0,
        output_tokens=usage.output_tokens or 0,
        cached_tokens=read.cached_tokens or 0,
        cache_write_tokens=read.cache_write_tokens or 0,
        reasoning_tokens=written.reasoning_tokens or 0,
    )


def _in_band(error: Any) -> Failure:
    if not isinstance(error, dict):
        return Failure(0, frozenset())
    kinds = frozenset(value for value in (error.get("type"), error.get("code")) if isinstance(value, str))
    return Failure(0, kinds, str(error.get("message") or ""))
