"""The client over a long life: sockets, hubs, workers and Redis fail in any order, and the screen stays true.

A state machine with everything real but the socket: `Client`, `Connection`, `Generation`, `Fold`. Frames lie in two
queues, so that what an old attachment still had in flight, late answers and crossing acks arise by themselves.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import headrace
from headrace.attachment import REPAIRS
from headrace.protocol.codec import JSON
from headrace.protocol.frames import Ack
from tests.clients.model_hub import Frame, Log
from tests.clients.model_installation import Entry, HubSide, Redis
from tests.clients.scripted_hub import WELCOME
from tests.clients.shell import Shell

#: One character, or one entry of another kind, of what an application was shown.
Shown = tuple[str, str]


def letters(history: list[Entry]) -> list[Shown]:
    """What an application is to be shown of a history, piece by piece."""
    shown: list[Shown] = []
    for kind, data, _ in history:
        shown += [("text", letter) for letter in data["text"]] if kind == "text" else [(kind, "")]
    return shown


def screen(shown: list[Shown]) -> str:
    """The fold: text appends, `reset` empties."""
    text = ""
    for kind, letter in shown:
        text = "" if kind == "reset" else text + letter
    return text


class Viewer:
    """An application that takes one event after the other, and remembers what it was shown."""

    def __init__(self, generation: headrace.Generation, shown: list[Shown], offset: int) -> None:
        self.generation = generation
        self.shown = shown
        self.offset = offset
        self.error: Exception | None = None
        self.is_over = False
        self._next: asyncio.Future[Any] | None = None

    async def take(self) -> bool:
        """Take the next event if there is one. What waits for it goes on waiting: a wake-up that is lost is seen."""
        if self._next is None:
            self._next = asyncio.ensure_future(self.generation.__anext__())
        for _ in range(3):
            await asyncio.sleep(0)
        return self.taken()

    def taken(self) -> bool:
        """Show what the last `take` got, perhaps only later."""
        if self._next is None or not self._next.done():
            return False
        event, self._next = self._next, None
        if event.exception() is not None:
            self.is_over = True
            if not isinstance(event.exception(), StopAsyncIteration):
                self.error = event.exception()
            return False
        self._show(event.result())
        return True

    def _show(self, event: headrace.Event) -> None:
        assert self.generation.cursor is not None or isinstance(event, headrace.Status)
        if isinstance(event, headrace.Restarted):
            self.shown.clear()
            self.offset = 0
        elif isinstance(event, headrace.Text):
            self.shown += [("text", letter) for letter in event.text]
        elif self.shown[-1:] == [("done", "")]:
            assert isinstance(event, headrace.Done), "an app that kept the end is told of it again, and of nothing else"
        elif not isinstance(event, headrace.Live | headrace.Status):
            self.shown.append((type(event).__name__.lower(), ""))
        if self.generation.cursor is not None:
            assert self.generation.cursor.offset >= self.offset, "never back, unless told"
            self.offset = self.generation.cursor.offset

    async def leave(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)


class ClientLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.redis = Redis()
        self.hub: HubSide | None = None
        self.viewers: list[Viewer] = []
        self.pushed = False  # an ack of another history may have crossed with what put the viewer back
        self.known: dict[tuple[str, int, str], str] = {}  # screens by place
        self.heard_at = 0.0
        self.errors = 0  # of the hub, not repaired yet
        self.run(self._start())

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def _start(self) -> None:
        self.client = headrace.connect("ws://model")
        self.shell = Shell(self.client)
        self.core = self.client._core
        self.core._chance = lambda: 0.5

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.run(self._stop())
            self.loop.close()

    async def _stop(self) -> None:
        for viewer in self.viewers:
            await viewer.leave()

    @initialize(window=st.integers(1, 9), pieces=st.integers(0, 20))
    def an_answer_is_under_way(self, window: int, pieces: int) -> None:
        self.generate(window, False)
        self.connect(4096)
        self.exchange(0, 1, 0)
        self.worker_writes(0, [letter for letter in "abcdefghijklmnopqrst"[:pieces]])
        self.redis.take_over(self.redis.logs["g_1"])

    # What the application does

    @precondition(lambda self: len(self.redis.requests) < 2)
    @rule(window=st.integers(1, 9), repeats=st.booleans())
    def generate(self, window: int, repeats: bool) -> None:
        """A new question, or the last one under the same key, by an app that forgot that it asked."""
        number = len(self.viewers) if not repeats else max(0, len(self.viewers) - 1)

        async def work() -> None:
            generation = self.client.generate("?", request=f"r{number}", window=window)
            self.viewers.append(Viewer(generation, [], 0))

        self.run(work())

    @precondition(lambda self: any(viewer.generation.cursor for viewer in self.viewers) and len(self.viewers) < 5)
    @rule(which=st.integers(0, 5), window=st.integers(1, 9))
    def resume_after_a_restart_of_the_app(self, which: int, window: int) -> None:
        """The stream is followed anew from what was kept; whoever followed it before on this client is told so."""
        able = [viewer for viewer in self.viewers if viewer.generation.cursor]
        old = able[which % len(able)]
        cursor, text = old.generation.cursor, old.generation.text_so_far

        async def work() -> None:
            stream = old.generation.stream
            assert stream is not None and cursor is not None
            generation = self.client.attach(stream, cursor, text=text, window=window)
            self.viewers.append(Viewer(generation, list(old.shown), cursor.offset))

        self.run(work())

    @precondition(lambda self: self.viewers)
    @rule(which=st.integers(0, 5), count=st.integers(1, 12))
    def take(self, which: int, count: int) -> None:
        viewer = self.viewers[which % len(self.viewers)]
        for _ in range(count):
            if viewer.is_over or not self.run(viewer.take()):
                break

    @precondition(lambda self: self.viewers)
    @rule(which=st.integers(0, 5))
    def detach(self, which: int) -> None:
        self.run(self.viewers[which % len(self.viewers)].generation.detach())

    # The wire, and the hub

    @precondition(lambda self: self.hub is None)
    @rule(window_limit=st.sampled_from([2, 5, 4096]))
    def connect(self, window_limit: int) -> None:
        self.hub = HubSide(self.redis, window_limit)
        self.heard_at = self.shell.time
        self.core.opened("t", self.shell.time)
        self.shell.settle()
        self.hub.outbox.append(WELCOME)
        self.client_sends()

    @precondition(lambda self: self.hub is not None)
    @rule()
    def cut(self) -> None:
        """A drop, a drained hub, a killed one: what was in flight is gone."""
        self.hub = None
        self.core.closed()
        self.shell.settle()

    @precondition(lambda self: self.hub is not None)
    @rule(sends=st.integers(0, 9), takes=st.integers(0, 3), window_limit=st.sampled_from([2, 4096]))
    def come_back(self, sends: int, takes: int, window_limit: int) -> None:
        """To another hub, with events still unread."""
        self.cut()
        self.connect(window_limit)
        self.exchange(sends, 1, takes)

    @precondition(lambda self: self.hub is not None)
    @rule()
    def client_sends(self) -> None:
        assert self.hub is not None
        for frame in self.core.frames_to_send(self.shell.time):
            if isinstance(frame, Ack):
                assert self.core._streams[frame.stream].asked is None, "no ack between an attach and its answer"
            self.hub.inbox.append(json.loads(JSON.encode(frame)))

    @precondition(lambda self: self.hub is not None and self.hub.inbox)
    @rule(count=st.integers(1, 4))
    def hub_reads(self, count: int) -> None:
        assert self.hub is not None
        for _ in range(min(count, len(self.hub.inbox))):
            self.hub.read()

    @precondition(lambda self: self.hub is not None and self.hub.waiting)
    @rule(index=st.integers(0, 3))
    def hub_answers(self, index: int) -> None:
        assert self.hub is not None
        self.hub.answer(index)

    @precondition(lambda self: self.hub is not None and self.hub.waiting and "stream" in self.hub.waiting[0])
    @rule()
    def hub_is_overloaded(self) -> None:
        assert self.hub is not None
        self.hub.refuse_for_now()

    @precondition(lambda self: self.hub is not None and self.hub.viewers)
    @rule(which=st.integers(0, 1), merge=st.integers(1, 5), count=st.integers(1, 4))
    def hub_sends(self, which: int, merge: int, count: int) -> None:
        assert self.hub is not None
        stream = sorted(self.hub.viewers)[which % len(self.hub.viewers)]
        while count and stream in self.hub.viewers and self.hub.send(stream, merge):
            count -= 1

    @precondition(lambda self: self.hub is not None and self.hub.viewers and self.may_err())
    @rule(which=st.integers(0, 1))
    def hub_loses_an_entry(self, which: int) -> None:
        assert self.hub is not None
        self.errors += 1
        self.hub.lose(sorted(self.hub.viewers)[which % len(self.hub.viewers)])

    @precondition(lambda self: self.hub is not None and self.hub.outbox and self.may_err())
    @rule(index=st.integers(0, 9), copies=st.integers(1, 2))
    def hub_repeats_itself(self, index: int, copies: int) -> None:
        """A frame comes again, at once or later: an offer made twice, or what an old attachment had in flight."""
        assert self.hub is not None
        frame = self.hub.outbox[index % len(self.hub.outbox)]
        if frame["type"] in ("delta", "entry", "live") or frame.get("id") is not None:
            self.errors += 1
            self.hub.outbox.extend([frame] * copies)

    def may_err(self) -> bool:
        """A hub that never fits is given up, which has a test of its own: here it errs twice between two entries."""
        assert self.hub is not None
        if not self.hub.outbox and all(item.repairs == 0 for item in self.core._attachments.values()):
            self.errors = 0
        return self.errors < 2

    @precondition(lambda self: self.hub is not None and self.hub.outbox)
    @rule(count=st.integers(1, 6))
    def client_receives(self, count: int) -> None:
        assert self.hub is not None
        if self.hub.outbox:
            self.heard_at = self.shell.time
        for _ in range(min(count, len(self.hub.outbox))):
            self.receive(self.hub.arrive())

    def receive(self, frame: Frame) -> None:
        async def work() -> None:
            for decoded in JSON.decode_hub(json.dumps(frame).encode()):
                self.core.receive(decoded, self.shell.time)
            self.shell.settle()

        self.pushed |= frame["type"] == "attached" and "id" not in frame
        self.run(work())

    @rule(seconds=st.sampled_from([0.1, 0.25, 2.0, 12.0]))
    def wait(self, seconds: float) -> None:
        self.shell.time += seconds
        if self.hub is not None and self.core.overdue(self.heard_at, self.shell.time):
            self.cut()

    @precondition(lambda self: self.hub is not None)
    @rule(sends=st.integers(0, 9), merge=st.integers(1, 4), takes=st.integers(0, 6))
    def exchange(self, sends: int, merge: int, takes: int) -> None:
        """Both sides say what they have to say; the application takes a part of it."""
        assert self.hub is not None
        self.client_sends()
        self.hub_reads(len(self.hub.inbox))
        while self.hub.waiting:
            self.hub.answer()
        for which in range(len(self.hub.viewers)):
            if self.hub.viewers:
                self.hub_sends(which, merge, sends)
        self.client_receives(len(self.hub.outbox))
        for which in range(len(self.viewers)):
            self.take(which, takes)

    # Workers and Redis

    def log_at(self, which: int) -> Log | None:
        logs = sorted(self.redis.logs)
        return self.redis.logs[logs[which % len(logs)]] if logs else None

    @rule(which=st.integers(0, 1), text=st.lists(st.text("abcä🌤", min_size=1, max_size=3), min_size=1, max_size=12))
    def worker_writes(self, which: int, text: list[str]) -> None:
        log = self.log_at(which)
        if log is not None and log.entries[-1][0] != "done":
            for piece in text:
                log.add("text", {"text": piece})

    @rule(which=st.integers(0, 1))
    def worker_is_done(self, which: int) -> None:
        log = self.log_at(which)
        if log is not None and log.entries[-1][0] != "done":
            log.finish()

    @rule(which=st.integers(0, 1))
    def worker_takes_over(self, which: int) -> None:
        log = self.log_at(which)
        if log is not None and log.entries[-1][0] != "done":
            self.redis.take_over(log)

    @rule(which=st.integers(0, 1), count=st.integers(0, 9))
    def redis_loses_the_end(self, which: int, count: int) -> None:
        log = self.log_at(which)
        if log is not None:
            self.redis.lose_end(log, count)

    @rule(which=st.integers(0, 1), sure=st.integers(0, 3))
    def redis_is_flushed(self, which: int, sure: int) -> None:
        log = self.log_at(which)
        if log is not None and sure == 0:
            self.redis.flush(log.stream)

    # What must hold

    @invariant()
    def what_is_shown_is_the_beginning_of_one_history(self) -> None:
        for viewer in self.viewers:
            viewer.taken()
            generation = viewer.generation
            if generation.cursor is None or generation.stream not in self.redis.histories:
                assert not viewer.shown
                continue
            offset, mark = generation.cursor.offset, generation.cursor.mark
            histories = self.redis.all_histories(generation.stream)
            fitting = [h for h in histories if offset == 0 or (offset <= len(h) and h[offset - 1][2] == mark)]
            assert fitting, "a cursor names an entry that is or was in the log"
            assert any(viewer.shown == letters(history[:offset]) for history in fitting)
            assert generation.text_so_far == screen(viewer.shown)
            known = self.known.setdefault((generation.stream, offset, mark), screen(viewer.shown))
            assert known == screen(viewer.shown) or offset == 0, "the same place, and two screens"

    @invariant()
    def what_is_unread_stays_within_the_window(self) -> None:
        for item in self.core._attachments.values():
            if item._window is not None and not self.pushed:
                assert item.received - item._taken <= item._window

    # What must come to pass

    def finish(self) -> None:
        """No more faults: everybody reaches the end of its log, or is told why not, within so many steps."""
        for log in self.redis.logs.values():
            if log.entries[-1][0] != "done":
                log.finish()
        for _ in range(600):
            if all(viewer.is_over for viewer in self.viewers):
                break
            self.one_good_round()
        stuck = [viewer.generation for viewer in self.viewers if not viewer.is_over]
        assert not stuck, f"{stuck} stand still, and nothing is to happen"
        for viewer in self.viewers:
            self.check_end(viewer)

    def one_good_round(self) -> None:
        if self.hub is None:
            self.connect(4096)
        assert self.hub is not None
        self.client_sends()
        self.hub_reads(len(self.hub.inbox))
        while self.hub.waiting:
            self.hub.answer()
        for log in self.redis.logs.values():
            if log.entries[-1][0] != "done":
                log.finish()  # asked for only now
        for stream in sorted(self.hub.viewers):
            while stream in self.hub.viewers and self.hub.send(stream, 3):
                pass
        self.client_receives(len(self.hub.outbox))
        for index in range(len(self.viewers)):
            self.take(index, 1000)
        self.what_is_shown_is_the_beginning_of_one_history()
        self.wait(0.3)

    def check_end(self, viewer: Viewer) -> None:
        generation = viewer.generation
        if viewer.error is not None:
            if isinstance(viewer.error, headrace.StreamGone | headrace.NotFound):
                assert generation.stream not in self.redis.logs, "only what is gone is told to be gone"
            elif not isinstance(viewer.error, headrace.GenerationClosed):  # a hub may notice first that another follows
                assert isinstance(viewer.error, headrace.RequestRejected), viewer.error
                assert viewer.error.code == "invalid_request", viewer.error
                assert len([other for other in self.viewers if other.generation.stream == generation.stream]) > 1
            return
        assert generation.stream is not None
        whole = [letters(history) for history in self.redis.all_histories(generation.stream)]
        assert viewer.shown in whole and viewer.shown[-1] == ("done", "")
        assert generation.verified is True


assert REPAIRS > 4, "the machine errs twice at most between two entries, and each may cost two repairs"

ClientLife.TestCase.settings = settings(
    max_examples=70, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestClientLife = ClientLife.TestCase
