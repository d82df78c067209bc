"""What a demonstration is shown on: a picture that is drawn in place, and what happened, a line each."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text


class Screen(ABC):
    """On a terminal everything is drawn in place; anywhere else each event is one line."""

    def __init__(self, console: Console, *, events: int, pictures_a_second: int) -> None:
        """The newest `events` are kept."""
        self.console = console
        self._began_at = time.monotonic()
        self._events: deque[Text] = deque(maxlen=events)
        self._live = Live(self, console=console, refresh_per_second=pictures_a_second, vertical_overflow="crop")

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    @abstractmethod
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Called for every picture, so that it always shows what is."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_at

    def say(self, text: str, style: str = "") -> None:
        """Note an event."""
        line = Text(f"{self.seconds:5.1f} s  ", "dim")
        line.append(text, style)
        self._events.append(line)
        if not self.console.is_terminal:
            self.console.print(line, soft_wrap=True)
