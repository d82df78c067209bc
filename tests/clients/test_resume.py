"""The promise of the client's core: whatever breaks when, an application gets exactly the log, in order."""

from __future__ import annotations

import json
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.actions import Delivered, Moved, Refused
from headrace.protocol.frames import Delta, EntryFrame
from tests.clients.core_driver import CoreDriver
from tests.clients.model_hub import Frame, Log, Viewer

STEP = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 5)),
    st.tuples(st.just("take"), st.integers(1, 8)),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 0.25, 2.0])),
    st.tuples(st.sampled_from(["cut", "lose", "double", "answer", "rewrite", "push"]), st.just(0)),
)


class World:
    """One client, one hub, one stream, and a wire between them that may break at any step."""

    def __init__(self, pieces: list[str], window: int) -> None:
        self.driver = CoreDriver()
        self.log = Log.of_text(*pieces)
        self.viewer = Viewer(self.log)
        self.window = window
        self.asked: deque[Frame] = deque()
        self.unread: deque[tuple[int, Delta | EntryFrame]] = deque()
        self.shown: list[tuple[str, str]] = []
        self.taken = 0
        self.has_done = self.is_done = False  # received, taken
        self.histories = 1
        self.key = self.driver.ask(window)
        self.driver.open()
        self.driver.core.closed()
        self.connect()

    @property
    def unread_entries(self) -> int:
        return self.unread[-1][0] - self.taken if self.unread else 0

    def connect(self) -> None:
        self.viewer.is_attached = False
        self.asked.clear()
        self.hear(self.driver.open())

    def hear(self, frames: list[Frame]) -> None:
        for frame in frames:
            if frame["type"] == "ack":
                self.viewer.ack(frame)
            elif frame["type"] in ("generate", "attach"):
                self.viewer.is_attached = False  # superseded; the answer comes later
                self.asked.append(frame)

    def answer(self) -> None:
        if self.asked:
            frame = self.asked.popleft()
            if not self.asked:
                self.deliver(self.viewer.accept(frame) if frame["type"] == "generate" else self.viewer.attach(frame))

    def deliver(self, frame: Frame | None) -> None:
        if frame is None:
            return
        for action in self.driver.receive(frame):
            assert not isinstance(action, Refused), action
            if isinstance(action, Moved) and action.restarted:
                self.unread.clear()
                self.shown.clear()
                self.taken = action.answer.offset
            elif isinstance(action, Delivered):
                assert action.cursor is not None and isinstance(action.frame, (Delta, EntryFrame))
                self.has_done |= action.frame.offset == self.log.top
                self.unread.append((action.cursor.offset, action.frame))
        self.hear(self.driver.sent())

    def take(self, count: int) -> None:
        for _ in range(min(count, len(self.unread))):
            offset, frame = self.unread.popleft()
            self.taken = offset
            if isinstance(frame, Delta):
                self.shown += [("text", letter) for letter in frame.text]
            else:
                self.shown.append((frame.kind, ""))
                self.is_done |= frame.kind == "done"
            self.driver.core.consumed(self.key, offset, self.driver.now)
        self.hear(self.driver.sent())

    def step(self, verb: str, size: float) -> None:
        if verb == "send":
            self.deliver(self.viewer.next_frame(int(size)))
        elif verb == "take":
            self.take(int(size))
        elif verb == "wait":
            self.driver.now += size
            self.hear(self.driver.sent())
        elif verb == "cut":
            self.driver.core.closed()
            self.connect()
        elif verb == "answer":
            self.answer()
        elif verb == "lose" and self.viewer.sent + 2 < self.viewer.limit:  # a hole shows by what follows
            self.viewer.next_frame(2)
        elif verb == "double":
            frame = self.viewer.next_frame(2)
            self.deliver(frame)
            if self.viewer.is_attached:  # after `done` it would be nobody's
                self.deliver(frame)
        elif verb == "rewrite" and not self.has_done:  # who has the end, is done with the stream
            self.rewrite()
        elif verb == "push" and self.viewer.is_attached:
            self.push(resumed=True)

    def rewrite(self) -> None:
        """Redis lost writes: the same stream with another history. Hubs tell whoever is attached."""
        self.histories += 1
        letters = [data["text"] for kind, data in self.log.entries if kind == "text"]
        self.log = Log.of_text(*(piece.upper() for piece in letters), mark=f"h{self.histories}")
        was_attached, self.viewer.log = self.viewer.is_attached, self.log
        if was_attached:
            self.push(resumed=False)

    def push(self, resumed: bool) -> None:
        """`attached` without an id: what attaching with the cursor of the last sent entry would answer."""
        after = {"offset": self.viewer.sent, "mark": self.log.mark_at(self.viewer.sent)} if resumed else None
        frame = self.viewer.attach({"id": 0, "after": after, "window": self.viewer.window})
        del frame["id"]
        self.deliver(frame | {"resumed": resumed})

    def finish(self) -> None:
        """No more faults: run until the application has the end."""
        for _ in range(400):
            if self.is_done:
                return
            self.answer()
            self.deliver(self.viewer.next_frame(3))
            self.take(3)
            self.driver.now += 0.3
            self.hear(self.driver.sent())
        raise AssertionError(f"stuck: {json.dumps([vars(self.viewer)['sent'], self.viewer.limit, len(self.unread)])}")

    def expected(self) -> list[tuple[str, str]]:
        entries: list[tuple[str, str]] = []
        for kind, data in self.log.entries:
            entries += [("text", letter) for letter in data["text"]] if kind == "text" else [(kind, "")]
        return entries


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=20),
    st.integers(1, 12),
    st.lists(STEP, max_size=60),
)
def test_any_cut_and_resume_yields_exactly_the_entries_once_and_in_order(
    pieces: list[str], window: int, steps: list[tuple[str, float]]
) -> None:
    world = World(pieces, window)
    repairs = 0
    for verb, size in steps:
        repairs += verb in ("lose", "double")
        if repairs > 4 and verb in ("lose", "double"):
            continue  # a hub that never fits is given up: that has a test of its own
        world.step(verb, size)
        assert world.unread_entries <= window
    world.finish()
    assert world.shown == world.expected()
