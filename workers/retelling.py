"""A second telling of an answer that broke off, event by event: silent while it repeats what viewers have. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from workers.providers import Event, Reasoning, Speaker, Text, Usage
from workers.splice import Splice

#: Thinking that is held back with the repeated text, in characters; more is left out.
THOUGHT_CHARACTERS = 256 * 1024


class Retelling:
    """Takes the events of one call. Bounds: the text that viewers have, and THOUGHT_CHARACTERS."""

    #: The model gets no beginning: it is asked as if for the first time.
    given = ""

    def __init__(self, shown: str) -> None:
        self._splice = Splice(shown)
        self._thought: list[Event] = []
        self._thought_size = 0
        self._is_released = False

    @property
    def has_diverged(self) -> bool:
        """It is another answer, and `release` was not called yet."""
        return self._splice.has_diverged and not self._is_released

    def join(self, events: Sequence[Event]) -> Sequence[Event]:
        """What is new. Of a divergence on: everything that follows what `release` returns."""
        if self._is_released or (self._splice.is_joined and not self._thought):
            return events
        joined: list[Event] = []
        for event in events:
            splice = self._splice
            if splice.is_joined or splice.has_diverged or isinstance(event, Usage | Speaker):
                joined.append(event)
            elif isinstance(event, Text):
                if text := splice.feed(event.text):
                    joined.append(Text(text))
            elif isinstance(event, Reasoning):
                self._hold(event)
            else:
                splice.end()  # one that stops here, or goes on with something else, is another answer
                joined.append(event)
        if self._splice.is_joined:
            self._thought = []
        return joined

    def release(self) -> list[Event]:
        """What the other answer said up to the divergence. It is passed through from here on."""
        self._is_released = True
        told, thought, self._thought = self._splice.told, self._thought, []
        return [*thought, *([Text(told)] if told else [])]

    def end(self) -> Sequence[Event]:
        """It broke off too: nothing of it was new, or all that was is told."""
        return []

    def _hold(self, event: Reasoning) -> None:
        self._thought_size += len(event.text)
        if self._thought_size <= THOUGHT_CHARACTERS:
            self._thought.append(event)
