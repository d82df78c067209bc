"""Where the text of a lost worker and its continuation meet: what the model says twice is shown once.

Pure. Nothing is ever removed but from the very beginning of a continuation, and only what the screen ends with
already. Two rules, in this order:

1. *Repetition*, for a model that was asked in a further turn to write the rest (some begin with the last sentence
   again): the longest passage that ends the kept text and begins the continuation, of OVERLAP_LEAST to
   OVERLAP_MOST characters. A passage that is a pattern (its first half says all: rulers, indentation, `ha ha ha`)
   stays: nobody can tell a repetition from more of the same. Shorter ones stay too: a word twice is better than
   one lost.
2. *White space* at the end of the kept text, which is not given to the model (some refuse it): so much of it as the
   continuation begins with.
"""

from __future__ import annotations

from collections.abc import Sequence

from workers.providers import Continues, Event, Text

OVERLAP_LEAST = 16
OVERLAP_MOST = 256


class Seam:
    """Takes the events of one continuation. Holds back at most OVERLAP_MOST characters, until they are decided."""

    __slots__ = ("_held", "_seeks", "_space", "_tail", "given")

    def __init__(self, kept: str, continues: Continues) -> None:
        #: The kept text as the model gets it.
        self.given = kept.rstrip()
        self._space = kept[len(self.given) :]
        self._tail = self.given[-OVERLAP_MOST:]
        self._seeks = continues == "turn"
        self._held = ""

    def join(self, events: Sequence[Event]) -> Sequence[Event]:
        """`events` without what the screen shows already. Anything but text decides what was held back."""
        if not (self._seeks or self._space):
            return events
        joined: list[Event] = []
        for event in events:
            text = self._take(event.text) if isinstance(event, Text) else self._decide()
            if text:
                joined.append(Text(text))
            if not isinstance(event, Text):
                joined.append(event)
        return joined

    def end(self) -> Sequence[Event]:
        """What is held back still: the continuation is over."""
        text = self._decide()
        return [Text(text)] if text else []

    def _take(self, text: str) -> str:
        if not self._seeks:
            return self._trim(text)
        self._held += text
        return "" if self._may_grow() else self._decide()

    def _may_grow(self) -> bool:
        """Whether more of the continuation could make a longer repetition than there is by now."""
        tail, held = self._tail, self._held
        return any(tail.startswith(held, start) for start in range(len(tail) - max(len(held), OVERLAP_LEAST - 1)))

    def _decide(self) -> str:
        """What of the held text is new. Nothing is held from here on."""
        if not (self._seeks and self._held):
            return ""
        held, self._held, self._seeks = self._held, "", False
        return self._trim(held[overlap(self._tail, held) :])

    def _trim(self, text: str) -> str:
        """`text` without white space that is on the screen already."""
        same = 0
        while same < min(len(text), len(self._space)) and text[same] == self._space[same]:
            same += 1
        self._space = self._space[same:] if same == len(text) else ""
        return text[same:]


def overlap(tail: str, text: str) -> int:
    """How many characters of `text` repeat the end of `tail`: rule 1 above; 0 for none."""
    for start in range(max(0, len(tail) - OVERLAP_MOST), len(tail) - OVERLAP_LEAST + 1):
        if text.startswith(tail[start:]):
            return 0 if _is_pattern(tail[start:]) else len(tail) - start
    return 0


def _is_pattern(passage: str) -> bool:
    """Whether a part of at most half its length, repeated and perhaps cut at the end, makes the whole passage."""
    return any(passage.startswith(passage[shift:]) for shift in range(1, len(passage) // 2 + 1))
