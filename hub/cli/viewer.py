"""One viewer of the demonstration: a client behind its own switch, and a witness of what it is sent."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Self

import headrace
from headrace.protocol.frames import Attached, HubFrame
from hub.cli.switch import Switch
from hub.cli.witness import Witness


class Watcher:
    """A client behind its own switch, with a witness that sees every frame before the library does."""

    def __init__(self, hubs: Mapping[str, tuple[str, int]]) -> None:
        self.witness = Witness()
        self.switch = Switch(hubs, lambda hub: None)
        self.generation: headrace.Generation | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            await opened.enter_async_context(self.switch)
            self.client = headrace.connect(self.switch.url)
            self._tap()
            await opened.enter_async_context(self.client)
            self._opened = opened.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    def see(self, frame: HubFrame) -> None:
        """Called with every frame."""
        self.witness.see(frame)

    def _tap(self) -> None:
        core = self.client._core
        receive = core.receive

        def tap(frame: HubFrame, now: float) -> None:
            self.see(frame)
            receive(frame, now)

        core.receive = tap  # type: ignore[method-assign]


class Viewer(Watcher):
    """`async with`; then `ask` or `join`, and `watch` to the end."""

    def __init__(self, name: str, hubs: Mapping[str, tuple[str, int]], say: Callable[[str], None]) -> None:
        super().__init__(hubs)
        self.name = name
        #: The first word came.
        self.spoken = asyncio.Event()
        self._say = say

    def see(self, frame: HubFrame) -> None:
        super().see(frame)
        if isinstance(frame, Attached) and frame.resumed and frame.offset:
            self._say(f"{self.name} is back, on {self.switch.hub}, and resumes after entry {frame.offset}")

    async def ask(self, prompt: str, model: str) -> str:
        """Ask for an answer; the stream's id."""
        self.generation = self.client.generate(prompt, model=model)
        return await self.generation.accepted()

    def join(self, stream: str) -> None:
        self.generation = self.client.attach(stream)

    async def watch(self) -> None:
        """Read to the end."""
        assert self.generation is not None, "a viewer watches what it asked for or joined"
        async for event in self.generation:
            if isinstance(event, headrace.Text):
                self.spoken.set()

    @property
    def text(self) -> str:
        return self.generation.text_so_far if self.generation else ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def reconnects(self) -> int:
        return self.generation.reconnects if self.generation else 0
