"""A relay between a log that is played and viewers that trust nobody: for what must hold in any order of events.

Real endpoints, verbs and relay on an event loop; Redis alone is played, so that its answers can come in any order.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from types import SimpleNamespace
from typing import Any

from redis.asyncio import Redis

from headrace.protocol.codec import JSON
from headrace.protocol.cursor import MarkRuns
from headrace.protocol.entries import Entry, encode_data
from headrace.protocol.entries import Started as StartedEntry
from hub.auth import Identity
from hub.broker.keys import stream_key
from hub.broker.log import StreamView
from hub.broker.mailbox import HubPacket, Part
from hub.connection import State
from hub.endpoint import Endpoint
from hub.gate import Gate
from hub.node import Node
from hub.settings import HubSettings
from hub.tail import Tail
from tests.protocol.test_vectors import payload

STREAM = "g_5Zk2mQ9xWb3TnL8r"
KEY = stream_key("dev", STREAM)


class PlayedLog:
    """One stream in Redis. Each call is answered after some turns of the loop, with what is there then."""

    def __init__(self, turns: Iterator[int]) -> None:
        #: Entries asked for by each read.
        self.asked: list[int] = []
        self.entries: list[Entry] = [("queued", encode_data(StartedEntry(0)))]
        self.runs = MarkRuns([(1, "m0")])
        self.attempt("m1")
        self.is_done = False
        self._turns = turns

    @property
    def top(self) -> int:
        return len(self.entries)

    def attempt(self, mark: str) -> None:
        self.runs = MarkRuns([run for run in self.runs if run[0] <= self.top])
        self.runs.add(self.top + 1, mark)
        self.entries.append(("started", encode_data(StartedEntry(1))))

    def append(self, count: int) -> None:
        for _ in range(count):
            self.entries.append(("text", f"[{self.top + 1} {self.runs.last}]".encode()))

    def lose(self, kept: int, mark: str) -> None:
        """Redis forgot the end, and another attempt writes on."""
        del self.entries[max(1, kept) :]
        self.attempt(mark)

    async def _turn(self) -> None:
        for _ in range(next(self._turns)):
            await asyncio.sleep(0)

    async def attach(self, key: Any, **_: Any) -> StreamView:
        await self._turn()
        view = StreamView(
            "done" if self.is_done else "running", self.top, MarkRuns(list(self.runs)), "w1", False
        )  # fmt: skip
        await self._turn()
        return view

    async def read(self, key: Any, first: int, count: int) -> list[Entry]:
        self.asked.append(count)
        await self._turn()
        page = self.entries[first - 1 : first - 1 + count]
        await self._turn()
        return page

    def folded(self, after: int, through: int) -> str:
        return "".join(data.decode() if kind == "text" else f"<{kind}>" for kind, data in self.entries[after:through])


class Viewer:
    """An endpoint whose socket is this object, and a client that obeys the protocol and trusts nobody."""

    def __init__(self, node: Node) -> None:
        self.endpoint = Endpoint(node, self, JSON, "c_1", None, Gate(10, 10))
        self.endpoint.identity = Identity("dev", "dev")
        self.endpoint._connection.state = State.OPEN
        self.start = self.offset = 0
        self.limit: float = 0
        self.window: int | None = None
        self.shown = ""
        self.is_attached = False
        self.asked = self.lives = 0
        #: The marks at `start` and at `offset`, as the hub told them.
        self.start_mark = self.mark = ""
        #: Every `attached` and `error` that came.
        self.told: list[dict[str, Any]] = []

    # a socket
    def writer(self) -> Callable[[bytes], None]:
        return self._receive

    def close_with(self, code: int, reason: str) -> None:
        raise AssertionError(f"closed with {code} {reason}")

    def hold_reading(self, held: bool) -> None: ...

    # a client
    def say(self, **frame: Any) -> None:
        self.endpoint.message_received(json.dumps({"stream": STREAM, **frame}).encode(), True)

    def attach(self, window: int | None, after: Any) -> None:
        self.is_attached = False
        self.window = window
        self.asked += 1
        self.say(type="attach", id=self.asked, window=window, after=after)

    def ack(self, offset: int) -> None:
        if self.is_attached and self.window is not None:
            self.limit = max(self.limit, offset + self.window)
            self.say(type="ack", offset=offset)

    def _receive(self, wire: bytes) -> None:
        frame = json.loads(payload(wire))
        if frame["type"] in ("attached", "error"):
            self.told.append(frame)
        is_answer = frame["type"] == "attached" and frame.get("id") == self.asked
        if frame["type"] == "error" and frame["code"] == "gone":
            self.is_attached = False
        elif frame["type"] == "error":
            assert "took this one's place" in frame["message"] and frame["id"] < self.asked, frame
        elif not self.is_attached and not is_answer:
            pass  # from `attach` to its answer, what comes belongs to the attachment before
        elif frame["type"] == "attached":
            if not frame["resumed"] or not self.is_attached:
                self.start, self.start_mark, self.shown = frame["offset"], frame["mark"], ""
            self.offset, self.mark = frame["offset"], frame["mark"]
            self.is_attached, self.lives = True, 0
            self.limit = float("inf") if self.window is None else self.offset + self.window
        elif frame["type"] in ("delta", "entry"):
            assert self.endpoint.is_writable, "nothing is written to a full socket but answers"
            assert frame.get("first", frame["offset"]) == self.offset + 1, "each entry once, in order"
            assert frame["offset"] <= self.limit, "never past acked + window"
            self.offset, self.mark = frame["offset"], frame.get("mark", self.mark)
            self.shown += frame["text"] if frame["type"] == "delta" else f"<{frame['kind']}>"
        else:
            assert frame["type"] == "live", frame
            self.lives += 1
            assert self.lives == 1, "once"


class Scene:
    def __init__(self, turns: Sequence[int]) -> None:
        self.log = PlayedLog(cycle(turns or [0]))
        connections = SimpleNamespace(control=Redis())  # never connected: nothing here reaches Redis but the log
        settings = HubSettings(auth="none")
        broker: Any = SimpleNamespace(log=self.log, settings=settings, connections=connections, janitor=None)
        self.node = Node(settings, broker)
        self.relay = self.node.relay
        self.relay.mailbox = "h1"
        self.relay.ready.set()
        self.viewers: list[Viewer] = []
        self.losses = 0
        self.relayed = self.log.top

    def deliver(self, first: int, last: int) -> None:
        """Parts of the live path; a part has one mark."""
        runs = self.log.runs
        while first <= last:
            end = min(last, runs.run_end(first) or last)
            part = Part(KEY, runs.at(first), first, self.log.entries[first - 1 : end])
            self.relay._receive(HubPacket("w1", [part]))
            first = end + 1

    def answer(self) -> None:
        """What an owner answers to an announcement."""
        self.relay._receive(HubPacket("w1", [Part(KEY, self.log.runs.last, self.log.top + 1, [])]))

    async def settle(self) -> None:
        """Until nothing moves any more, however long Redis takes."""
        still = 0
        former: Any = None
        while still < 30:
            await asyncio.sleep(0)
            now = [(viewer.offset, viewer.is_attached) for viewer in self.viewers], len(self.relay._tasks)
            still = still + 1 if now == former else 0
            former = now

    async def act(self, action: tuple[Any, ...]) -> None:
        match action:
            case "append", count:
                self.log.append(count)
            case "relay", skipped, again:
                first = self.relayed + 1 + skipped - again
                self.relayed = self.log.top
                if 1 < first <= self.log.top:
                    self.deliver(first, self.log.top)
            case "attach", number, window, after:
                self.attach(number, window, after)
            case "ack", number, behind if number < len(self.viewers):
                viewer = self.viewers[number]
                viewer.ack(max(0, viewer.offset - behind))
            case "full", number if number < len(self.viewers):
                self.viewers[number].endpoint.not_writable()
            case "room", number if number < len(self.viewers):
                self.viewers[number].endpoint.writable_again()
            case "lose", back:
                self.losses += 1
                self.log.lose(self.log.top - back, f"m{self.losses + 1}")
                self.relayed = min(self.relayed, self.log.top - 1)
            case "turns", count:
                for _ in range(count):
                    await asyncio.sleep(0)

    @property
    def tail(self) -> Tail:
        [tail] = self.relay.tails.values()
        return tail

    def attach(self, number: int, window: int | None, after: Any) -> None:
        if number >= len(self.viewers):
            self.viewers.append(Viewer(self.node))
            number = len(self.viewers) - 1
        cursor: Any = after
        if isinstance(after, int):  # a cursor that another hub may have given out: up to the top of the log
            offset = min(after, self.log.top)
            cursor = {"offset": offset, "mark": self.log.runs.at(offset)}
        self.viewers[number].attach(window, cursor)

    async def come_to_rest(self) -> None:
        """Sockets take what is written and clients ack what they got, until nothing moves."""
        self.answer()
        await self.settle()
        for viewer in self.viewers:
            if not viewer.endpoint.is_writable:
                viewer.endpoint.writable_again()
        former = None
        while former != (former := [(viewer.offset, viewer.limit) for viewer in self.viewers]):
            await self.settle()
            for viewer in self.viewers:
                viewer.ack(viewer.offset)

    def check(self) -> None:
        for viewer in self.viewers:
            assert viewer.is_attached
            reached = self.log.top if viewer.window != 0 else viewer.start
            assert viewer.offset == reached, "it had credit"
            assert viewer.mark == self.log.runs.at(viewer.offset), "a cursor of this history"
            assert viewer.start_mark == self.log.runs.at(viewer.start), "it began in this history"
            assert viewer.shown == self.log.folded(viewer.start, viewer.offset)
        assert self.relay.counts.repairs == 0

    async def end(self) -> None:
        for viewer in self.viewers:
            viewer.endpoint.closed()
        for task in list(self.relay._tasks):
            task.cancel()
        await asyncio.gather(*self.relay._tasks, return_exceptions=True)
        assert all(tail.attachments == [] for tail in self.relay.tails.values())
