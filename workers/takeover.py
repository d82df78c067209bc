"""What becomes of an answer whose worker was lost: asked again, gone on with, or ended (protocol §5). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from headrace.protocol.entries import CONTENT_KINDS, Entry, TextDigest, ToolCall, ToolReady, ToolResult
from workers.providers import Continues

_T = TypeVar("_T", bound=msgspec.Struct)


class Kept:
    """What viewers show of a log, gathered entry by entry from offset 1. Bound: that of a log, LOG_BYTES."""

    __slots__ = ("_begun", "_has_run", "_kinds", "_last", "_names", "_text", "_thought", "_tools", "count", "digest")

    def __init__(self, tools: Mapping[str, bool] | None = None) -> None:
        """`tools` are those that workers ran for this log, by name, and whether they are repeatable."""
        #: Entries gathered.
        self.count = 0
        #: Length and hash of the text: what `done` vouches for if nothing is added.
        self.digest = TextDigest()
        self._tools = tools or {}
        self._names: dict[str, str] = {}  # of the calls
        self._has_run = False
        self._begun: set[str] = set()  # calls of tools that may run, without a result
        self._text: list[bytes] = []
        self._thought: list[bytes] = []
        self._kinds: set[str] = set()
        self._last = ""

    @classmethod
    def of(cls, text: str, entries: Iterable[Entry]) -> Kept:
        """What viewers have who had `text` before `entries`."""
        kept = cls()
        if text:
            kept.add("text", text.encode())
        for kind, data in entries:
            kept.add(kind, data)
        return kept

    def add(self, kind: str, data: bytes) -> None:
        self.count += 1
        self.digest.add(kind, data)
        if kind == "reset":
            self._text.clear()
            self._thought.clear()
            self._kinds.clear()
            self._begun.clear()  # a step is void only as long as nothing of it was run
            self._last = ""
        elif kind in CONTENT_KINDS:
            self._kinds.add(kind)
            self._last = kind
            if kind == "text":
                self._text.append(data)
            elif kind == "reasoning":
                self._thought.append(data)
            else:
                self._add_tool(kind, data)

    def _add_tool(self, kind: str, data: bytes) -> None:
        """Any result counts, unless it is known to be a repeatable tool's."""
        if kind == "tool_call":
            call = _decode(data, ToolCall)
            if call is not None:
                self._names[call.call] = call.name
        elif kind == "tool_ready":
            ready = _decode(data, ToolReady)
            if ready is not None and self._tools.get(self._names.get(ready.call, "")) is False:
                self._begun.add(ready.call)
        elif kind == "tool_result":
            result = _decode(data, ToolResult)
            name = "" if result is None else self._names.get(result.call, "")
            self._has_run |= not self._tools.get(name, False)

    @property
    def ran_tool(self) -> bool:
        """A tool was run, or may have been, that is not to be run again: what it did outside is done."""
        return self._has_run or bool(self._begun)

    @property
    def shows(self) -> bool:
        """Whether there is any content."""
        return bool(self._kinds)

    @property
    def text(self) -> str:
        return b"".join(self._text).decode()

    @property
    def thought(self) -> str:
        return b"".join(self._thought).decode()

    @property
    def is_in_words(self) -> bool:
        """Nothing but text and thinking is on the screen."""
        return self._kinds <= {"text", "reasoning"}

    @property
    def has_results(self) -> bool:
        """Tools answered: what is asked now is not what was asked at first."""
        return "tool_result" in self._kinds

    @property
    def is_prose(self) -> bool:
        """Nothing but text is on the screen, and perhaps the thinking before it, and it says something.

        Inside of reasoning, a tool call or a cited passage no model can be asked to go on.
        """
        return self._kinds <= {"text", "reasoning"} and self._last == "text" and not self.text.isspace()


class StartOver(msgspec.Struct, frozen=True):
    """Ask again; what was shown is void."""


class GoOn(msgspec.Struct, frozen=True):
    """Ask for what follows `text`, which stays."""

    text: str


class GiveUp(msgspec.Struct, frozen=True):
    """End the answer as `worker_lost`; what was shown stays."""


class ReadOn(msgspec.Struct, frozen=True):
    """A provider still writes the answer: read it again. If that fails, do what would have been done `otherwise`."""

    otherwise: StartOver | GoOn
    stays: bool
    """What is shown stays, and is gone on with from where it ends; else it is void, and told anew."""
    text: str = ""
    thought: str = ""


Takeover = StartOver | GoOn | GiveUp | ReadOn


def decide(rule: str, kept: Kept, continues: Continues, *, structured: bool) -> Takeover:
    """What to do by `on_worker_loss`.

    `continues` is what the model that is asked now can do. `structured` answers hold to a schema: half of one and
    half of another is none. Repeatable tools are run again, with the whole answer.
    """
    if kept.ran_tool:
        return GiveUp()
    if not kept.shows:
        return StartOver()
    if rule == "fail":
        return GiveUp()
    if rule == "continue" and continues != "no" and kept.is_prose and not structured:
        return GoOn(kept.text)
    return StartOver()


def read_on(kept: Kept, otherwise: Takeover) -> Takeover:
    """What to do where a provider still writes the answer. Nothing is paid for twice, whatever the rule is; but a
    generation that is to end is not saved by it, and an answer to a tool's results is not the whole.
    """
    if not isinstance(otherwise, StartOver | GoOn) or kept.has_results:
        return otherwise
    if kept.is_in_words:
        return ReadOn(otherwise, True, kept.text, kept.thought)
    return ReadOn(otherwise, False)


def _decode(data: bytes, kind: type[_T]) -> _T | None:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.DecodeError:
        return None
