"""A hub's side of one stream, pure: a log with marks, and a viewer with a window. Frames are plain dicts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

Frame = dict[str, Any]


@dataclass
class Log:
    """Entries of one stream; `marks[i]` is the mark of the entry at offset i + 1."""

    stream: str = "g_1"
    entries: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    first_mark: str = "m1"

    @classmethod
    def of_text(cls, *pieces: str, stream: str = "g_1", mark: str = "m1") -> Log:
        """A finished answer of these pieces."""
        log = cls(stream, first_mark=mark)
        log.add("source", {"provider": "scripted", "model": "story", "mode": "live"})
        for piece in pieces:
            log.add("text", {"text": piece})
        log.finish()
        return log

    @property
    def top(self) -> int:
        return len(self.entries)

    @property
    def text(self) -> str:
        """The folded text."""
        text = ""
        for kind, data in self.entries:
            text = "" if kind == "reset" else text + data["text"] if kind == "text" else text
        return text

    def mark_at(self, offset: int) -> str:
        return self.marks[offset - 1] if offset else self.first_mark

    def add(self, kind: str, data: dict[str, Any], mark: str | None = None) -> None:
        self.marks.append(mark or (self.marks[-1] if self.marks else self.first_mark))
        self.entries.append((kind, data))

    def finish(self, status: str = "completed", **fields: Any) -> None:
        text = self.text.encode()
        digest = hashlib.sha256(text).hexdigest()
        data = {"status": status, "stop_reason": "end_turn", "text_bytes": len(text), "text_sha256": digest}
        self.add("done", data | fields)

    def holds(self, after: Frame | None) -> bool:
        if after is None or after["offset"] == 0:
            return True
        return after["offset"] <= self.top and self.mark_at(after["offset"]) == after["mark"]

    def frame(self, first: int, last: int) -> Frame:
        """The frame of these entries; several only where `mergeable` says so."""
        kind, data = self.entries[first - 1]
        if kind == "text":
            text = "".join(data["text"] for _, data in self.entries[first - 1 : last])
            frame: Frame = {"type": "delta", "stream": self.stream, "offset": last, "text": text}
            if first != last:
                frame["first"] = first
        else:
            frame = {"type": "entry", "stream": self.stream, "offset": last, "kind": kind, "data": data}
        before = self.marks[first - 2] if first > 1 else self.first_mark
        if self.marks[first - 1] != before:
            frame["mark"] = self.marks[first - 1]
        return frame

    def mergeable(self, first: int, limit: int) -> int:
        """The last offset that may travel in one frame with `first`."""
        last = first
        while last < min(limit, self.top) and self.entries[first - 1][0] == self.entries[last][0] == "text":
            if self.marks[last] != self.marks[first - 1]:
                break
            last += 1
        return last


class Viewer:
    """One attachment at the hub. Asserts what a client must never do."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.sent = 0
        self.acked = 0
        self.window: int | None = 256
        self.is_attached = False
        self.live_sent = False

    def accept(self, frame: Frame) -> Frame:
        """Answer a `generate`."""
        return self._answer(frame, "accepted", 0)

    def attach(self, frame: Frame) -> Frame:
        """Answer an `attach`."""
        after = frame.get("after")
        if after == "now":
            return self._answer(frame, "attached", self.log.top) | {"resumed": True}
        resumed = self.log.holds(after)
        return self._answer(frame, "attached", after["offset"] if after and resumed else 0) | {"resumed": resumed}

    def _answer(self, frame: Frame, type: str, offset: int) -> Frame:
        self.sent = self.acked = offset
        self.window = frame.get("window", 256)
        self.is_attached, self.live_sent = True, False
        done = self.log.entries and self.log.entries[-1][0] == "done"
        return {
            "type": type,
            "id": frame["id"],
            "stream": self.log.stream,
            "offset": offset,
            "mark": self.log.mark_at(offset),
            "top": self.log.top,
            "state": "done" if done else "running",
            "window": self.window,
        }

    def ack(self, frame: Frame) -> None:
        if not self.is_attached:
            return
        assert frame["offset"] <= self.sent, "bad_ack"
        self.acked = max(self.acked, frame["offset"])
        self.window = frame.get("window", self.window)

    @property
    def limit(self) -> int:
        return self.log.top if self.window is None else min(self.log.top, self.acked + self.window)

    def next_frame(self, merge: int = 1) -> Frame | None:
        """The next frame that the window admits, of at most `merge` entries; None when there is none."""
        if not self.is_attached or self.sent >= self.limit:
            return None
        first = self.sent + 1
        last = self.log.mergeable(first, min(self.limit, first + merge - 1))
        self.sent = last
        if self.log.entries[last - 1][0] == "done":
            self.is_attached = False
        return self.log.frame(first, last)
