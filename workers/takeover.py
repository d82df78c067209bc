"""What becomes of an answer whose worker was lost: asked again, gone on with, or ended (protocol §5). Pure."""

from __future__ import annotations

import msgspec

from headrace.protocol.entries import CONTENT_KINDS, TextDigest
from workers.providers import Continues


class Kept:
    """What viewers show of a log, gathered entry by entry from offset 1. Bound: that of a log, LOG_BYTES."""

    __slots__ = ("_kinds", "_last", "_text", "count", "digest", "ran_tool")

    def __init__(self) -> None:
        #: Entries gathered.
        self.count = 0
        #: Length and hash of the text: what `done` vouches for if nothing is added.
        self.digest = TextDigest()
        #: A tool was run, shown or not: what it did outside is done.
        self.ran_tool = False
        self._text: list[bytes] = []
        self._kinds: set[str] = set()
        self._last = ""

    def add(self, kind: str, data: bytes) -> None:
        self.count += 1
        self.digest.add(kind, data)
        if kind == "reset":
            self._text.clear()
            self._kinds.clear()
            self._last = ""
        elif kind in CONTENT_KINDS:
            self._kinds.add(kind)
            self._last = kind
            if kind == "text":
                self._text.append(data)
            elif kind == "tool_result":
                self.ran_tool = True

    @property
    def shows(self) -> bool:
        """Whether there is any content."""
        return bool(self._kinds)

    @property
    def text(self) -> str:
        return b"".join(self._text).decode()

    @property
    def is_prose(self) -> bool:
        """Nothing but text is on the screen, and perhaps the thinking before it, and it says something.

        Inside of reasoning, a tool call or a cited passage no model can be asked to go on.
        """
        return self._kinds <= {"text", "reasoning"} and self._last == "text" and not self.text.isspace()


class StartOver(msgspec.Struct, frozen=True):
    """Ask again; what was shown is void."""


class GoOn(msgspec.Struct, frozen=True):
    """Ask for what follows `text`, which stays."""

    text: str


class GiveUp(msgspec.Struct, frozen=True):
    """End the answer as `worker_lost`; what was shown stays."""


Takeover = StartOver | GoOn | GiveUp


def decide(rule: str, kept: Kept, continues: Continues, *, structured: bool) -> Takeover:
    """What to do by `on_worker_loss`.

    `continues` is what the model that is asked now can do. `structured` answers hold to a schema: half of one and
    half of another is none. Tools cannot be marked repeatable in this version, so that any that ran ends the answer.
    """
    if kept.ran_tool:
        return GiveUp()
    if not kept.shows:
        return StartOver()
    if rule == "fail":
        return GiveUp()
    if rule == "continue" and continues != "no" and kept.is_prose and not structured:
        return GoOn(kept.text)
    return StartOver()
