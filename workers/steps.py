"""An answer with tools, step by step: what the model calls for, which of it runs here, what it is asked next. Pure.

A step is one telling of the model's, by however many provider calls. It ends in order with calls of tools that run in
this worker; their results, and all turns before, make the next step's request. A call of a tool that is the client's
ends the answer, with its `tool_calls`: the client sends the results in a request of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec

from headrace.protocol.body import Body
from headrace.protocol.frames import TURN_CALLS, Call, Message
from headrace.protocol.tools import forces, read_tool
from workers.providers import Event, Stop, ToolCall, ToolInput, ToolReady, ToolResult

#: Steps of one answer: a model that still calls for tools at the end of the last one is told no more results.
STEPS: Final = 8
#: Characters of a call's id and of a tool's name; what a model makes up beyond it is cut off.
_ID_CHARACTERS: Final = 100
_NAME_CHARACTERS: Final = 128
_RARE: Final = frozenset({ToolCall, ToolInput, ToolReady, ToolResult, Stop})


class Wanted(msgspec.Struct):
    """One call of a tool. `input` is None unless the arguments were valid JSON; meaningless until `is_ready`."""

    call: str
    name: str
    input: Any = None
    is_ready: bool = False


class Steps:
    """Takes the events of one answer's calls. Bounds: STEPS, and TURN_CALLS in each."""

    def __init__(self, body: Body, ours: Collection[str]) -> None:
        """`body` describes all its tools; `ours` are the names of those that run here, the others are the client's."""
        self._body = body
        #: Names of the tools that run here.
        self.ours = frozenset(ours)
        self._theirs = frozenset(read_tool(tool).name for tool in body.tools or ()) - self.ours
        self._number = 1
        self._calls: dict[str, Wanted] = {}
        self._ids: dict[str, str] = {}  # the provider's id → the answer's, of the last call that has it
        self._used = {call.call for message in body.messages for call in message.calls or ()}
        #: The step ended in order, with calls that are to be run here.
        self.is_over = False

    @property
    def body(self) -> Body:
        """What the model is asked in this step."""
        return self._body

    @property
    def wanted(self) -> list[Wanted]:
        """The calls to run here, in order; of tools that nobody knows too: the model is told so."""
        return [call for call in self._ready if call.name not in self._theirs]

    @property
    def waits_for_client(self) -> bool:
        """There are calls of the client's tools too: the answer ends once the others were run."""
        return any(call.name in self._theirs for call in self._ready)

    @property
    def is_last(self) -> bool:
        """The model has called for too much: nothing of it is to be run."""
        return self._number >= STEPS or len(self._ready) > TURN_CALLS

    def begin_call(self) -> None:
        """A provider is asked, for the first time in this step or again: calls that were not run are void."""
        self._used -= self._calls.keys()
        self._calls.clear()

    def hear(self, events: Sequence[Event]) -> Sequence[Event]:
        """`events` as viewers are told them: every call has an id of its own in this conversation, and an end that is
        only the step's is left out.
        """
        if not any(type(event) in _RARE for event in events):
            return events
        return [told for event in events if (told := self._hear(event)) is not None]

    def go_on(self, text: str, results: Sequence[ToolResult]) -> None:
        """The next step: `text` is what the model said in this one, `results` what all calls gave, in their order."""
        messages = list(self._body.messages)
        if messages[-1].role == "assistant":  # the request itself began the answer: one turn, not two
            text = messages.pop().content + text
        calls = [Call(call.call, call.name, _arguments(call.input)) for call in self._ready]
        messages.append(Message("assistant", text, calls=calls))
        messages += [Message("tool", result.output, call=result.call, error=result.error) for result in results]
        choice = self._body.tool_choice
        self._body = msgspec.structs.replace(
            self._body, messages=messages, tool_choice=None if forces(choice) else choice
        )
        self._number += 1
        self._calls.clear()
        self._ids.clear()
        self.is_over = False

    @property
    def _ready(self) -> list[Wanted]:
        return [call for call in self._calls.values() if call.is_ready]

    def _hear(self, event: Event) -> Event | None:
        if isinstance(event, ToolCall):
            id_ = self._ids[event.call] = self._free(_cut(event.call, _ID_CHARACTERS) or "call")
            self._calls[id_] = Wanted(id_, _cut(event.name, _NAME_CHARACTERS) or "unknown")
            return ToolCall(id_, self._calls[id_].name)
        if isinstance(event, ToolInput):
            return ToolInput(self._ids.get(event.call, event.call), event.delta)
        if isinstance(event, ToolReady):
            call = self._calls.get(self._ids.get(event.call, ""))
            if call is None:
                return event
            call.input, call.is_ready = event.input, True
            return ToolReady(call.call, event.input)
        if isinstance(event, ToolResult):  # whoever speaks ran it: a generator of one's own may
            id_ = self._ids.get(event.call, event.call)
            self._calls.pop(id_, None)
            return msgspec.structs.replace(event, call=id_)
        return self._stop(event) if isinstance(event, Stop) else event

    def _stop(self, stop: Stop) -> Stop | None:
        """Some servers call it an end like any other."""
        if stop.reason not in ("tool", "stop") or not self._ready:
            return stop
        self.is_over = bool(self.ours and self.wanted)
        return None if self.is_over else Stop("tool")

    def _free(self, id_: str) -> str:
        """`id_`, with a number if it is taken in this conversation: some servers count from 1 in every step."""
        free, number = id_, 1
        while free in self._used:
            number += 1
            free = f"{id_}_{number}"
        self._used.add(free)
        return free


def _arguments(value: Any) -> dict[str, Any]:
    """As providers take them back: whatever else the model wrote, its result says what was wrong."""
    return value if isinstance(value, dict) else {}


def _cut(text: str, length: int) -> str:
    return text[:length].encode("utf-8", "replace").decode()
