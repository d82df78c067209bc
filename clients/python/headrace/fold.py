"""What a viewer shows: the fold of a log (docs/protocol.md §5). Content appends, `reset` empties, `done` freezes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from headrace.events import (
    Citation,
    Done,
    Event,
    Reasoning,
    Reset,
    Restarted,
    Text,
    ToolCall,
    ToolInput,
    ToolReady,
    ToolResult,
)


@dataclass(slots=True)
class ToolUse:
    """One tool call as far as it is known."""

    call: str
    name: str = ""
    arguments: str = ""  #: JSON text, as it arrives
    input: Any = None  #: the parsed arguments, once complete; None if they are no JSON after all
    output: str | None = None
    error: bool = False
    truncated: bool = False
    ready: bool = False  #: the arguments are complete
    step: int = 0  #: which of the answer's steps made the call, from 0


class Fold:
    """The content of one generation, built event by event.

    Bound: a log holds at most 4 MiB (docs/protocol.md §5), and so does its fold.

    Attributes:
        whole: Whether this is the content from the start. False for a viewer that joined in the middle
            without its prefix; it turns true when the log starts over. Only a whole fold has a digest to check.
        citations: The citations so far.
        tools: The tool calls so far, by their id, in order.
        steps: Where each step but the first begins, in characters of the text. A step is what the model said before
            it was given results of tools that the worker ran.
    """

    __slots__ = (
        "_digest", "_frozen", "_has_results", "_length", "_reasoning", "_size", "_text", "citations", "steps",
        "tools", "whole",
    )  # fmt: skip

    def __init__(self, text: str | None = "") -> None:
        """`text` is what was shown before the first event; None when that is not known."""
        self._empty()
        self.whole = text is not None
        if text:
            self._append(text)

    def _empty(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._digest = hashlib.sha256()
        self._size = 0
        self._length = 0
        self._frozen = False
        self._has_results = False  # of this step: what comes next begins another
        self.steps: list[int] = []
        self.tools: dict[str, ToolUse] = {}
        self.citations: list[dict[str, Any]] = []

    @property
    def text(self) -> str:
        """The answer so far."""
        if len(self._text) > 1:
            self._text = ["".join(self._text)]
        return self._text[0] if self._text else ""

    @property
    def last_text(self) -> str:
        """The text of the last step: where a `schema` was asked for, the document (docs/protocol.md §3)."""
        return "" if self._has_results else self.text[self.steps[-1] if self.steps else 0 :]

    @property
    def reasoning(self) -> str:
        """The visible thinking so far."""
        if len(self._reasoning) > 1:
            self._reasoning = ["".join(self._reasoning)]
        return self._reasoning[0] if self._reasoning else ""

    def add(self, event: Event) -> None:
        """Take the next event. After `done` nothing changes any more, unless the log starts over."""
        if isinstance(event, (Reset, Restarted)):
            self._empty()
            self.whole = True
        elif self._frozen:
            return
        elif isinstance(event, Text):
            self._append(event.text)
        elif isinstance(event, Reasoning):
            self._reasoning.append(event.text)
        elif isinstance(event, Citation):
            self.citations.append(event.data)
        elif isinstance(event, (ToolCall, ToolInput, ToolReady, ToolResult)):
            self._use(event)
        elif isinstance(event, Done):
            self._frozen = True

    def verify(self, done: Done) -> bool | None:
        """Whether the text is the one that was logged; None when this viewer has no prefix to check."""
        if not self.whole:
            return None
        return self._size == done.text_bytes and self._digest.hexdigest() == done.text_sha256

    def _append(self, text: str) -> None:
        self._go_on()
        self._length += len(text)
        data = text.encode("utf-8", "surrogatepass")  # a broken hub makes a wrong digest, not a crash
        self._text.append(text)
        self._digest.update(data)
        self._size += len(data)

    def _use(self, event: ToolCall | ToolInput | ToolReady | ToolResult) -> None:
        if isinstance(event, ToolCall):
            self._go_on()
        tool = self.tools.setdefault(event.call, ToolUse(event.call, step=len(self.steps)))
        if isinstance(event, ToolCall):
            tool.name = event.name
        elif isinstance(event, ToolInput):
            tool.arguments += event.delta
        elif isinstance(event, ToolReady):
            tool.ready = True
            tool.input = event.input if event.input is not None else _parsed(tool.arguments)
        else:
            tool.output, tool.error, tool.truncated = event.output, event.error, event.truncated
            self._has_results = True

    def _go_on(self) -> None:
        if self._has_results:
            self._has_results = False
            self.steps.append(self._length)


def _parsed(arguments: str) -> Any:
    """What was too large to be told once more, or is no JSON at all."""
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return None
