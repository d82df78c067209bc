"""An answer read again from its beginning by whoever took it over, silent until what viewers have went by. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from workers.providers import Event, Reasoning, Speaker, Text, Usage
from workers.splice import Splice


class Rereading:
    """Takes the events of one answer that a lost worker read before. Bound: what viewers have of it.

    Text and thinking are matched each for itself. It is the same answer, so that it differs only if what is stored
    of it was damaged on either side; then it is told anew, as a whole.
    """

    given = ""

    def __init__(self, text: str, thought: str) -> None:
        self._text = Splice(text)
        self._thought = Splice(thought)
        self._said: list[Event] = []
        self._is_released = False

    @property
    def has_diverged(self) -> bool:
        """It is not what viewers have, and `release` was not called yet."""
        return (self._text.has_diverged or self._thought.has_diverged) and not self._is_released

    def join(self, events: Sequence[Event]) -> Sequence[Event]:
        """What is new. Of a divergence on: everything that follows what `release` returns."""
        text, thought = self._text, self._thought
        if self._is_released or (text.is_joined and thought.is_joined):
            return events
        joined: list[Event] = []
        for event in events:
            if isinstance(event, Usage | Speaker):
                joined.append(event)
                continue
            self._said.append(event)
            if isinstance(event, Text):
                if new := text.feed(event.text):
                    joined.append(Text(new))
            elif isinstance(event, Reasoning):
                if new := thought.feed(event.text):
                    joined.append(Reasoning(new))
            else:
                text.end()  # one that stops here, or goes on with something else, is not what viewers have
                thought.end()
                joined.append(event)
        if self.has_diverged:
            return [event for event in joined if isinstance(event, Usage | Speaker)]
        if text.is_joined and thought.is_joined:
            self._said = []
        return joined

    def release(self) -> list[Event]:
        """All that it said until now. What follows is passed through."""
        self._is_released = True
        said, self._said = self._said, []
        return said

    def end(self) -> Sequence[Event]:
        """It broke off too: all that was new of it is told."""
        return []
