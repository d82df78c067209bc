"""Bytes of one answer → events: what does not depend on whose format it is.

Pure. Any chunking of the same bytes gives the same events in the same order. `feed` never raises: what is
wrong with a stream is kept in `error`, so that the events before it are delivered first.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import msgspec

from workers.providers import Event, ProviderError, Reasoning, Text, ToolCall, ToolInput, ToolReady
from workers.providers.sse import EventTooLarge, SseSplitter
from workers.providers.surrogates import Channel, SurrogateJoiner

#: Arguments of one tool call that are kept to be parsed, in characters. Longer ones become ready without `input`.
TOOL_INPUT_CHARS = 1024 * 1024

Wire = TypeVar("Wire", bound=msgspec.Struct)


class MalformedStream(ValueError):
    """The provider sent what its own format does not allow."""


class AnswerDecoder(ABC, Generic[Wire]):
    """One answer of one provider. A subclass says what each event of its format means."""

    def __init__(self, wire: type[Wire]) -> None:
        self._splitter = SseSplitter()
        self._joiner = SurrogateJoiner()
        self._decode = msgspec.json.Decoder(wire).decode
        self._wire = wire
        #: The event that is being taken may hold half a character.
        self._lone = False
        self._tools: dict[int, _Tool] = {}
        self._called: set[str] = set()
        #: Why nothing that follows can be trusted. What was decoded before it stands.
        self.error: Exception | None = None
        #: The model said that it stopped: an end of the stream is orderly from here on.
        self.stopping = False
        #: `Stop` was given, the last event.
        self.stopped = False

    @abstractmethod
    def _take(self, name: bytes, wire: Wire, events: list[Event]) -> None:
        """Append what one event says. Raises MalformedStream, or ProviderError for an error inside the stream."""

    @abstractmethod
    def _known(self, data: Any) -> bool:
        """Whether this JSON claims to be an event that the format knows, so that another shape is an error."""

    def feed(self, chunk: bytes) -> list[Event]:
        """What `chunk` completes. Nothing once there is an `error` or the answer has stopped."""
        events: list[Event] = []
        if self.error is not None or self.stopped:
            return events
        decode = self._decode
        try:
            for name, data in self._splitter.feed(chunk):
                try:
                    wire = decode(data)
                except (ValueError, RecursionError) as error:
                    self._take_other(name, data, error, events)
                else:
                    self._take(name, wire, events)
                if self.stopped:
                    break
        except (MalformedStream, EventTooLarge, ProviderError) as error:
            self.error = error
        return events

    def end(self) -> list[Event]:
        """The stream is over: the `Stop` that is still due. Empty if the model never said that it stopped."""
        events: list[Event] = []
        if self.stopping and not self.stopped:
            self._stop(events)
        return events

    @abstractmethod
    def _stop(self, events: list[Event]) -> None:
        """Append `Stop` with what was noted; set `stopped`."""

    # -- JSON ------------------------------------------------------------------------------------------------

    def _take_other(self, name: bytes, data: bytes, error: Exception, events: list[Event]) -> None:
        """The same for an event that is not simply one of the format's. Raises as `_take` does."""
        wire = self._decode_other(data, error)
        if wire is not None:
            self._lone = True
            self._take(name, wire, events)
            self._lone = False

    def _decode_other(self, data: bytes, error: Exception) -> Wire | None:
        """The event, or None if it is of a kind that the format does not know. Raises MalformedStream."""
        if not isinstance(error, msgspec.ValidationError) and b"\\u" not in data:
            raise MalformedStream from error  # otherwise perhaps half a surrogate pair, which msgspec refuses
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise MalformedStream from error
        try:
            return msgspec.convert(raw, self._wire)
        except ValueError as error:
            if self._known(raw):
                raise MalformedStream from error
            return None

    # -- text ------------------------------------------------------------------------------------------------

    def _join(self, channel: Channel, text: str) -> str:
        return self._joiner.join(channel, text) if self._lone or self._joiner.held else text

    def _text(self, channel: Channel, text: str, events: list[Event]) -> None:
        if self._lone or self._joiner.held:
            text = self._joiner.join(channel, text)
        if text:
            events.append(Text(text))

    def _reasoning(self, channel: Channel, text: str, events: list[Event]) -> None:
        if text := self._join(channel, text):
            events.append(Reasoning(text))

    # -- tools -----------------------------------------------------------------------------------------------

    def _open_tool(self, index: int, call: str, name: str, events: list[Event]) -> None:
        call, name = (self._joiner.join("names", text) + self._joiner.flush("names") for text in (call, name))
        own, number = call, 1
        while own in self._called:  # some servers give one id to all calls of an answer
            number += 1
            own = f"{call}_{number}"
        self._called.add(own)
        self._tools[index] = _Tool(own)
        events.append(ToolCall(own, name))

    def _tool_input(self, index: int, delta: str, events: list[Event]) -> None:
        tool = self._tools.get(index)
        if tool is not None and (delta := self._join(index, delta)):
            tool.add(delta)
            events.append(ToolInput(tool.call, delta))

    def _close_tool(self, index: int, events: list[Event]) -> None:
        tool = self._tools.pop(index, None)
        if tool is not None:
            if rest := self._joiner.flush(index):
                tool.add(rest)
                events.append(ToolInput(tool.call, rest))
            events.append(ToolReady(tool.call, tool.parsed()))


class _Tool:
    """A tool call whose arguments arrive."""

    __slots__ = ("_parts", "_size", "call")

    def __init__(self, call: str) -> None:
        self.call = call
        self._parts: list[str] = []
        self._size = 0

    def add(self, delta: str) -> None:
        self._size += len(delta)
        if self._size <= TOOL_INPUT_CHARS:
            self._parts.append(delta)

    def parsed(self) -> Any:
        """The arguments; None unless they are valid JSON that a log entry can carry. No arguments at all are `{}`."""
        if self._size > TOOL_INPUT_CHARS:
            return None
        text = "".join(self._parts)
        try:
            value = msgspec.json.decode(text) if text.strip() else {}
            msgspec.msgpack.encode(value)  # refuses integers above 64 bits
        except (ValueError, OverflowError, RecursionError):
            return None
        return value
