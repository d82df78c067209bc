"""Redis, hubs and the wire to one client, pure: everything in flight lies in queues that a test empties as it likes.

Nothing here knows how the client works. What a client must never do is asserted; what a hub may do wrong (a frame
lost, doubled, an answer late, a refusal) is a verb of its own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tests.clients.model_hub import Frame, Log, Viewer

Entry = tuple[str, dict[str, Any], str]
"""Kind, data and mark."""


@dataclass
class Redis:
    """The logs, every history that they ever had, and the request keys."""

    logs: dict[str, Log] = field(default_factory=dict)
    histories: dict[str, list[list[Entry]]] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)
    marks: int = 0

    def mark(self) -> str:
        self.marks += 1
        return f"m{self.marks}"

    def accept(self, request: str) -> Log:
        """The stream of a request key: one key, one stream."""
        stream = self.requests.setdefault(request, f"g_{len(self.requests) + 1}")
        if stream not in self.histories:
            self.logs[stream] = log = Log(stream, first_mark=self.mark())
            log.add("queued", {"model": "standard"})
            self.histories[stream] = []
        return self.logs[stream]

    def take_over(self, log: Log) -> None:
        """A worker claims: a new mark, and a reset where content was shown. Attempt numbers may repeat."""
        shown = any(kind == "text" for kind, _ in log.entries)
        log.add("started", {"attempt": 1}, self.mark())
        if shown:
            log.add("reset", {"reason": "worker_lost"})

    def lose_end(self, log: Log, count: int) -> None:
        """A failover without the last writes, and a worker that goes on from there."""
        self.histories[log.stream].append(self.history(log))
        keep = max(1, log.top - count)
        del log.entries[keep:], log.marks[keep:]
        self.take_over(log)

    def flush(self, stream: str) -> None:
        self.histories[stream].append(self.history(self.logs.pop(stream)))

    def history(self, log: Log) -> list[Entry]:
        return [(kind, data, mark) for (kind, data), mark in zip(log.entries, log.marks, strict=True)]

    def all_histories(self, stream: str) -> list[list[Entry]]:
        now = [self.history(self.logs[stream])] if stream in self.logs else []
        return [*self.histories[stream], *now]


class HubSide:
    """A hub's end of one connection."""

    def __init__(self, redis: Redis, window_limit: int = 4096) -> None:
        self.redis = redis
        self.window_limit = window_limit
        self.inbox: deque[Frame] = deque()  # from the client, not read yet
        self.outbox: deque[Frame] = deque()  # to the client, in flight
        self.viewers: dict[str, Viewer] = {}
        self.sent_marks: dict[str, str] = {}
        self.waiting: deque[Frame] = deque()  # attaches and requests under way
        self.unseen: set[str] = set()  # streams with an unsolicited `attached` or an error in flight

    # what the client said

    def read(self) -> None:
        """Take one frame. Acks never wait behind an attach."""
        frame = self.inbox.popleft()
        kind = frame["type"]
        if kind == "ack":
            self._ack(frame)
        elif kind in ("attach", "generate"):
            for old in [other for other in self.waiting if kind == "attach" and other.get("stream") == frame["stream"]]:
                self.waiting.remove(old)
                self._error("invalid_request", "no", id=old["id"])
            if kind == "attach":
                self.viewers.pop(frame["stream"], None)
            self.waiting.append(frame)
        elif kind == "detach":
            self.viewers.pop(frame["stream"], None)
            for old in [other for other in self.waiting if other.get("stream") == frame["stream"]]:
                self.waiting.remove(old)
                self._error("invalid_request", "no", id=old["id"])
        elif kind == "cancel":
            self.outbox.append({"type": "ok", "id": frame["id"]})
        else:
            assert kind == "hello", frame

    def _ack(self, frame: Frame) -> None:
        stream = frame["stream"]
        viewer = self.viewers.get(stream)
        if viewer is None:
            return
        if frame["offset"] > viewer.sent:
            assert stream in self.unseen, "an ack past the last entry sent"
            self._error("bad_ack", "no", stream=stream)
        else:
            viewer.ack(frame)

    # what it answers

    def answer(self, index: int = 0) -> None:
        """Answer one of those under way, in any order."""
        frame = self.waiting[index % len(self.waiting)]
        self.waiting.remove(frame)
        if frame.get("window") is not None:
            frame = frame | {"window": min(frame["window"], self.window_limit)}
        if frame["type"] == "generate":
            known = self.redis.requests.get(frame["request"])
            if known is not None and known not in self.redis.logs:
                return self._error("gone", "no", id=frame["id"])
            log = self.redis.accept(frame["request"])
            for other in [o for o in self.waiting if o.get("stream") == log.stream]:
                self.waiting.remove(other)
                self._error("invalid_request", "no", id=other["id"])
            viewer = self.viewers[log.stream] = Viewer(log)
            self.outbox.append(viewer.accept(frame))
        else:
            log_ = self.redis.logs.get(frame["stream"])
            if log_ is None:
                return self._error("not_found", "no", id=frame["id"])
            log = log_
            viewer = self.viewers[log.stream] = Viewer(log)
            self.outbox.append(viewer.attach(frame))
        self.sent_marks[log.stream] = log.mark_at(viewer.sent)
        return None

    def refuse_for_now(self) -> None:
        frame = self.waiting.popleft()
        self._error("overloaded", "after", id=frame["id"], after_ms=500)

    def _error(self, code: str, retry: str, **fields: Any) -> None:
        if "stream" in fields:
            self.unseen.add(fields["stream"])
        self.outbox.append({"type": "error", "code": code, "message": "", "retry": retry} | fields)

    # what it sends

    def notice(self, stream: str) -> bool:
        """Compare a viewer with the facts: put it back, or tell it that its stream is gone. True if it did."""
        viewer = self.viewers[stream]
        log = self.redis.logs.get(stream)
        if log is None:
            del self.viewers[stream]
            self._error("gone", "no", stream=stream)
            return True
        sent = {"offset": viewer.sent, "mark": self.sent_marks[stream]}
        if viewer.log is log and log.holds(sent):
            return False
        resumed = log.holds(sent)
        answer = viewer.attach({"id": 0, "after": sent if resumed else None, "window": viewer.window})
        self.sent_marks[stream] = log.mark_at(viewer.sent)
        del answer["id"]
        self.unseen.add(stream)
        self.outbox.append(answer | {"resumed": resumed})
        return True

    def send(self, stream: str, merge: int) -> bool:
        """Send the next frame of a stream, if there is one and the window admits it."""
        if self.notice(stream):
            return True
        viewer = self.viewers[stream]
        frame = viewer.next_frame(merge)
        if frame is None:
            return False
        self.sent_marks[stream] = viewer.log.mark_at(viewer.sent)
        self.outbox.append(frame)
        if not viewer.is_attached:
            del self.viewers[stream]
        return True

    def lose(self, stream: str) -> bool:
        """Skip an entry, as a hub with a bug would. Only where a later one shows it. True if it did."""
        if self.notice(stream):
            return False
        viewer = self.viewers[stream]
        if viewer.sent + 2 > viewer.limit:
            return False
        viewer.next_frame(1)
        self.sent_marks[stream] = viewer.log.mark_at(viewer.sent)
        return self.send(stream, 1)

    def arrive(self) -> Frame:
        """The next frame that reaches the client."""
        frame = self.outbox.popleft()
        if "stream" in frame and frame["type"] in ("attached", "error"):
            self.unseen.discard(frame["stream"])
        return frame
