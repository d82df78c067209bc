"""A generation as OpenAI's event stream. Pure.

Only `data:` lines: a comment behind an `id:`, and an `event:` or `retry:` line alone, break OpenAI's clients.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hub.completions.problem import Problem
from hub.completions.reading import End, Reading, Reset

_json = msgspec.json.Encoder().encode
_DONE = b"data: [DONE]\n\n"


class Chunks:
    """Feeds on frames; `take` gives what is to be written. `end` is set when no more is to come."""

    def __init__(self, reading: Reading, stream: str, model: str, created: int, include_usage: bool) -> None:
        """`model` is what was asked for: it is named until somebody answers. `created` is Unix time in seconds."""
        self.end: End | None = None
        self._reading = reading
        self._stream = stream
        self._asked = model
        self._created = created
        self._include_usage = include_usage
        #: Events that wait to be taken: at most what a window holds.
        self._waiting: list[bytes] = []
        #: The event with the role is among them, or was taken.
        self._has_role = False
        #: Content was taken: it cannot be taken back.
        self._has_told = False

    def feed(self, frame: msgspec.Struct) -> None:
        """What comes after the end is ignored."""
        for step in self._reading.read(frame):
            if self.end is not None:
                return
            if isinstance(step, End):
                self.end = step
            elif not isinstance(step, Reset):
                self._add(step)
            elif self._has_told:
                self.end = End(problem=_taken_back())
            else:
                self._waiting.clear()
                self._has_role = False

    def take(self) -> bytes:
        """Everything told since the last time, and how it ended. After this nothing of it can be taken back."""
        self._has_told |= bool(self._waiting)
        if self.end is not None:
            self._add_end(self.end)
        taken = b"".join(self._waiting)
        self._waiting.clear()
        return taken

    def keep_alive(self) -> bytes:
        """Something for whoever counts the time between bytes."""
        return self._event([_choice({})])

    def _add(self, delta: dict[str, Any], finish: str | None = None) -> None:
        if not self._has_role:
            delta = {"role": "assistant", **({} if "content" in delta else {"content": ""}), **delta}
            self._has_role = True
        self._waiting.append(self._event([_choice(delta, finish)]))

    def _add_end(self, end: End) -> None:
        if end.problem is not None:
            self._waiting.append(b"data: " + _json(end.problem.object()) + b"\n\n")
            return
        self._add({}, end.finish)
        if self._include_usage:
            self._waiting.append(self._event([], usage=self._reading.usage))
        self._waiting.append(_DONE)

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        chunk = {
            "id": self._stream,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._reading.model or self._asked,
            "choices": choices,
            **self._reading.aside(),
            **more,
        }
        return b"data: " + _json(chunk) + b"\n\n"


def _choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _taken_back() -> Problem:
    return Problem(
        "answer_restarted",
        "the answer had to begin again, and this format cannot take back what was shown; repeat the request",
        status=502,
        is_final=False,
    )
