"""Pairs of people who watch the same answers, one after the other, whatever breaks between."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Self

import headrace
from headrace.protocol.frames import Attached, HubFrame
from hub.cli.viewer import Watcher
from hub.cli.witness import Witness

#: An answer of some five seconds; its length varies by the number of the question.
_MODEL = "scripted/tokens={tokens},rate=24"
_TOKENS = (90, 120, 150)
#: After a refusal (`overloaded`, while Redis is away) the question is asked again.
_PAUSE_S = 0.5


class Viewer(Watcher):
    """Watches one answer after the other, with a new witness for each."""

    def see(self, frame: HubFrame) -> None:
        stream = getattr(frame, "stream", None)
        if self.generation is not None and stream == self.generation.stream or isinstance(frame, Attached):
            super().see(frame)


class Pair:
    """One asks, the other joins; `figures` counts what both were sent."""

    def __init__(self, name: str, hubs: Mapping[str, tuple[str, int]]) -> None:
        self.name = name
        self.viewers = (Viewer(hubs), Viewer(dict(reversed(list(hubs.items())))))
        self.figures: Counter[str] = Counter()
        self.tokens = _TOKENS[0]

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            for viewer in self.viewers:
                await opened.enter_async_context(viewer)
            self._opened = opened.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def talk(self, until: float) -> None:
        """Ask one question after the other; the last begins before `until`, monotonic seconds."""
        number = 0
        while time.monotonic() < until:
            self.tokens = _TOKENS[number % len(_TOKENS)]
            number += 1
            asker, joiner = self.viewers
            for viewer in self.viewers:
                viewer.witness = Witness()
            asker.generation = asker.client.generate("Go on.", model=_MODEL.format(tokens=self.tokens))
            try:
                stream = await asker.generation.accepted()
            except headrace.HeadraceError:
                self.figures["refused, and said so"] += 1
                await asyncio.sleep(_PAUSE_S)
                continue
            joiner.generation = joiner.client.attach(stream)
            await asyncio.gather(*(self._read(viewer) for viewer in self.viewers))
            self.figures["answers"] += 1

    async def _read(self, viewer: Viewer) -> None:
        generation = viewer.generation
        assert generation is not None, "an answer is read after it was asked for"
        try:
            async for event in generation:
                self.figures["started over, and said so"] += isinstance(event, headrace.Reset | headrace.Restarted)
                if isinstance(event, headrace.Done):
                    self.figures["failed, and said so"] += event.status == "failed"
        except headrace.HeadraceError:
            self.figures["gone, and said so"] += 1
        witness = viewer.witness
        self.figures["entries delivered"] += witness.last
        self.figures["reconnects"] += generation.reconnects
        self.figures["lost"] += witness.gaps
        self.figures["doubled"] += witness.duplicates
        self.figures["wrong texts"] += generation.verified is False
        self.figures["never ended"] += generation.verified is None and generation.error is None
