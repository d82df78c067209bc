"""A viewer that keeps the promises in mind: what it is shown fits together, or it was told that it does not."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from tests.installation import question
from tests.wire import Map, Wire


class Screen:
    """Folds the frames of one stream, as an SDK does. AssertionError for a hole, a double, or a second end."""

    def __init__(self, accepted: Map) -> None:
        self.stream: str = accepted["stream"]
        self.offset: int = accepted["offset"]
        self.mark: str = accepted["mark"]
        self.text = ""
        #: What the viewer was told about its history, in order: `resumed: false`, `reset`, `gone`.
        self.told: list[str] = []
        self.done: Map | None = None
        self.kinds: list[str] = []

    @property
    def is_over(self) -> bool:
        return self.done is not None or "gone" in self.told

    @property
    def cursor(self) -> Map:
        return {"offset": self.offset, "mark": self.mark}

    def take(self, frame: Map) -> None:
        assert not self.is_over, f"after the end came {frame}"
        if frame["type"] in ("attached", "accepted"):
            self._attached(frame)
        elif frame["type"] in ("delta", "entry"):
            self._entries(frame)
        elif frame["type"] == "error" and frame["code"] == "gone":
            self.told.append("gone")

    def _attached(self, frame: Map) -> None:
        if frame["resumed"]:
            assert (frame["offset"], frame["mark"]) == (self.offset, self.mark), frame
            return
        self.told.append("resumed: false")
        self.text, self.offset, self.mark = "", frame["offset"], frame["mark"]
        self.kinds = []

    def _entries(self, frame: Map) -> None:
        first = frame.get("first", frame["offset"])
        assert first == self.offset + 1, f"{first} follows {self.offset}"
        self.offset, self.mark = frame["offset"], frame.get("mark", self.mark)
        kind = frame.get("kind", "text")
        self.kinds += [kind] * (self.offset - first + 1)
        if frame["type"] == "delta":
            self.text += frame["text"] if kind == "text" else ""
        elif kind == "text":
            self.text += frame["data"]["text"]
        elif kind == "reset":
            self.told.append("reset")
            self.text = ""
        elif kind == "done":
            self.done = frame["data"]
            assert self.done["text_sha256"] == hashlib.sha256(self.text.encode()).hexdigest(), "the digest does not fit"


class Viewer:
    """Everything that one connection is shown, each stream on a screen of its own."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.screens: dict[str, Screen] = {}
        #: Frames that belong to no screen, as they came.
        self.others: list[Map] = []

    async def generate(self, request: str, model: str) -> Screen:
        """Ask. While the hub says that it cannot, ask the same again, which is safe."""
        ask = question(request, model=model, window=None)
        while True:
            await self.wire.send(ask)
            reply = await self.reply(request)
            if reply["type"] == "accepted":
                return self.show(reply)
            assert reply["code"] == "overloaded", reply
            await asyncio.sleep(reply["after_ms"] / 5000)

    async def attach(self, screen: Screen) -> Screen:
        """The same stream once more, from its start, on a new screen."""
        self.screens.pop(screen.stream, None)
        await self.wire.send({"type": "attach", "id": "again", "stream": screen.stream, "window": None})
        reply = await self.reply("again")
        assert reply["type"] == "attached", reply
        return self.show(reply)

    def show(self, answer: Map) -> Screen:
        screen = self.screens[answer["stream"]] = Screen(answer)
        return screen

    async def reply(self, id_: Any) -> Map:
        """The answer to what was sent with this id."""
        while True:
            frame = await self.wire.next(20)
            if frame.get("id") == id_:
                return frame
            self._take(frame)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._take(await self.wire.next(20))

    async def watch(self, *screens: Screen) -> None:
        """Until these are over; all of them, where none is named."""
        chosen = screens or tuple(self.screens.values())
        await self.until(lambda: all(screen.is_over for screen in chosen))

    async def see(self, screen: Screen, pieces: int) -> None:
        """Until so many pieces of text were shown."""
        await self.until(lambda: len(screen.text) >= 5 * pieces)

    def _take(self, frame: Map) -> None:
        screen = self.screens.get(frame.get("stream", ""))
        if screen is None:
            self.others.append(frame)
        else:
            screen.take(frame)


def pieces(number: int) -> str:
    """What `scripted/tokens=<number>` says."""
    return "".join(f"{piece:04d} " for piece in range(number))
