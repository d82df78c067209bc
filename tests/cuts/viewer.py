"""A viewer that does what a client must do, and holds everything it is sent against the protocol's promises."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from websockets.exceptions import InvalidHandshake

from tests.installation import question, token
from tests.wire import Closed, Map, Wire

#: A client waits longer; order, not patience, is what is looked at here.
PAUSE_S = 0.1
#: An answer to a frame that did not come in this time will not come.
ANSWER_S = 6.0


class Viewer:
    """One person with one stream. What is wrong is collected in `faults`, what it was told of in `told`."""

    def __init__(self, name: str, hubs: Sequence[str], *, subprotocol: str) -> None:
        self.name = name
        self._hubs = hubs
        self._subprotocol = subprotocol
        self._turn = 0
        self._wire: Wire | None = None
        self.stream = ""
        self.offset = 0
        self.mark = ""
        self.text = ""
        self.done: Map | None = None
        self.connects = 0
        self.told: list[str] = []
        self.faults: list[str] = []
        self._is_attached = False
        self._next_id = 0

    # -- a life

    async def ask(self, request: str, model: str) -> None:
        """Ask until it is accepted, with the same request key each time."""

        async def generate() -> Map | None:
            frame = question(request, id=self._id(), model=model, on_abandon="continue")
            return await self._answer(frame, "accepted")

        accepted = await self._until_answered(generate)
        if self.stream and self.stream != accepted["stream"]:
            self._fault(f"the same request made {self.stream} and {accepted['stream']}")
        self.stream = accepted["stream"]
        self._begin(accepted["offset"], accepted["mark"])

    async def attach(self) -> None:
        """From where this viewer is; from the start at first."""

        async def attach() -> Map | None:
            frame: Map = {"type": "attach", "id": self._id(), "stream": self.stream}
            if self.mark:
                frame["after"] = {"offset": self.offset, "mark": self.mark}
            return await self._answer(frame, "attached")

        answer = await self._until_answered(attach)
        self._obey(answer)

    async def watch(self, until: Callable[[], bool] = lambda: False) -> None:
        """Fold what comes, up to `done` or as long as `until` does not hold. Reconnects as a client does."""
        while self.done is None and not until():
            if not self._is_attached:
                await self.attach()
                continue
            try:
                frame = await self._next(ANSWER_S * 10)
            except Closed:
                self.drop()
                continue
            self._take(frame)

    async def request(self, type_: str) -> None:
        """Something else that is answered, tried until it is."""

        async def ask() -> Map | None:
            return await self._answer({"type": type_, "id": self._id(), "stream": self.stream}, "ok")

        await self._until_answered(ask)

    def drop(self) -> None:
        """As a phone in a tunnel."""
        self._is_attached = False
        if self._wire is not None:
            self._wire.abort()
            self._wire = None

    async def close(self) -> None:
        if self._wire is not None:
            await self._wire.close()
            self._wire = None

    # -- asking

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id

    async def _until_answered(self, ask: Callable[[], Awaitable[Map | None]]) -> Map:
        while True:
            try:
                answer = await ask()
            except (Closed, OSError):
                self.drop()
                answer = None
            if answer is not None:
                return answer
            await asyncio.sleep(PAUSE_S)

    async def _answer(self, frame: Map, type_: str) -> Map | None:
        """The answer to a frame; None for an error that says to try again. Other frames are obeyed."""
        wire = await self._connected()
        await wire.send(frame)
        async with asyncio.timeout(ANSWER_S):
            while True:
                answer = await self._next(ANSWER_S)
                if answer.get("id") != frame["id"]:
                    if self._is_attached or answer["type"] == "status":
                        self._take(answer)
                    continue
                if answer["type"] == "error":
                    self.told.append(f"error {answer['code']}")
                    if answer["retry"] not in ("after", "backoff", "now"):
                        self._fault(f"{frame['type']} was answered {answer['code']}: {answer['message']}")
                        raise AssertionError(self.faults[-1])
                    return None
                if answer["type"] != type_:
                    self._fault(f"{frame['type']} was answered {answer['type']}")
                return answer

    async def _connected(self) -> Wire:
        while self._wire is None:
            try:
                async with asyncio.timeout(ANSWER_S):
                    hub = self._hubs[self._turn % len(self._hubs)]
                    self._turn += 1
                    wire = await Wire.open(hub, subprotocol=self._subprotocol)
                    await wire.send({"type": "hello", "token": token()})
                    await wire.expect("welcome")
                    self._wire = wire
                    self.connects += 1
            except (Closed, OSError, EOFError, InvalidHandshake):
                await asyncio.sleep(PAUSE_S)
        return self._wire

    async def _next(self, within: float) -> Map:
        assert self._wire is not None
        return await self._wire.next(within)

    # -- taking

    def _begin(self, offset: int, mark: str) -> None:
        self._is_attached = True
        self.offset, self.mark, self.text = offset, mark, ""
        if offset:
            self._fault(f"begins at {offset}")

    def _obey(self, attached: Map) -> None:
        if not attached["resumed"] and self.mark:
            self.told.append("resumed: false")
            self._begin(attached["offset"], attached["mark"])
            return
        if self.mark and (attached["offset"], attached["mark"]) != (self.offset, self.mark):
            self._fault(f"asked for {self.offset} {self.mark}, resumed at {attached['offset']} {attached['mark']}")
        if not self.mark:
            self._begin(attached["offset"], attached["mark"])
        self._is_attached = True

    def _take(self, frame: Map) -> None:
        match frame["type"]:
            case "delta" | "entry":
                self._entry(frame)
            case "attached":
                self._obey(frame)
            case "error":
                self.told.append(f"error {frame['code']}")
                self._fault(f"told {frame['code']}: {frame['message']}")
                if frame["code"] == "gone":
                    self._is_attached = False
            case "status":
                self.told.append(frame["state"])
            case "live" | "drain" | "welcome":
                pass
            case other:
                self._fault(f"an unexpected {other}")

    def _entry(self, frame: Map) -> None:
        first = frame.get("first", frame["offset"])
        if frame["stream"] != self.stream:
            self._fault("an entry of another stream")
        elif self.done is not None:
            self._fault(f"entry {first} after `done`")
        elif first != self.offset + 1:
            self._fault(f"entry {first} after {self.offset}")
        self.offset = frame["offset"]
        self.mark = frame.get("mark", self.mark)
        if frame["type"] == "delta":
            self.text += frame["text"] if frame.get("kind", "text") == "text" else ""
        elif frame["kind"] == "reset":
            self.told.append("reset")
            self.text = ""
        elif frame["kind"] == "done":
            self.done = frame["data"]
            self._is_attached = False

    def _fault(self, what: str) -> None:
        self.faults.append(f"{self.name}: {what}")
