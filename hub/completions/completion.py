"""A generation as one chat completion: the fold of its log. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.protocol.document import bare
from hub.completions.reading import End, Reading, Reset


class Completion:
    """Feeds on frames. Holds one answer: at most what a log holds. `end` is set when it is complete."""

    def __init__(self, reading: Reading, is_document: bool = False) -> None:
        """`is_document`: a schema was asked for, and a fence around the answer is none of it."""
        self.end: End | None = None
        self._is_document = is_document
        self._reading = reading
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._arguments: list[list[str]] = []

    def feed(self, frame: msgspec.Struct) -> None:
        """What comes after the end is ignored."""
        for step in self._reading.read(frame):
            if self.end is not None:
                return
            if isinstance(step, End):
                self.end = step
            elif isinstance(step, Reset):
                for kept in (self._texts, self._reasoning, self._calls, self._arguments):
                    kept.clear()
            else:
                self._add(step)

    def _add(self, delta: dict[str, Any]) -> None:
        if "content" in delta:
            self._texts.append(delta["content"])
        if "reasoning_content" in delta:
            self._reasoning.append(delta["reasoning_content"])
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                self._calls.append({"id": call["id"], "type": "function", "name": call["function"]["name"]})
                self._arguments.append([])
            self._arguments[call["index"]].append(call["function"]["arguments"])

    def object(self, stream: str, model: str, created: int) -> dict[str, Any]:
        """To be asked once, when it ended well. `model` is what was asked for, `created` Unix time in seconds."""
        assert self.end is not None and self.end.problem is None
        text = "".join(self._texts)
        if self._is_document:
            text = bare(text)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not self._calls else None,
            "refusal": None,
        }
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": "".join(arguments)},
                }
                for call, arguments in zip(self._calls, self._arguments, strict=True)
            ]
        return {
            "id": stream,
            "object": "chat.completion",
            "created": created,
            "model": self._reading.model or model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": self.end.finish}],
            "usage": self._reading.usage,
            **self._reading.aside(),
        }
