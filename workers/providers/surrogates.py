"""JSON text from providers that cut a character in two.

JSON writes a character above U+FFFF as two escapes. A provider that cuts its text by UTF-16 units puts the first
in one event and the second in the next; neither half is valid UTF-8. A first half is held back until the text of
the same channel goes on. What finds no partner becomes U+FFFD (protocol §5: text is valid UTF-8).
"""

from __future__ import annotations

import re

_HIGH_AT_END = re.compile("[\ud800-\udbff]$")
_PAIR = re.compile("([\ud800-\udbff])([\udc00-\udfff])")
_LONE = re.compile("[\ud800-\udfff]")

REPLACEMENT = "\ufffd"

Channel = str | int
"""Texts that are cut independently of each other: the answer, the reasoning, each tool call's arguments."""


def _join(match: re.Match[str]) -> str:
    high, low = match.groups()
    return chr(0x10000 + ((ord(high) - 0xD800) << 10) + (ord(low) - 0xDC00))


class SurrogateJoiner:
    """Joins halves across the texts of each channel. Holds at most one half a channel."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        #: Halves that wait. While there are none, text without surrogates need not pass through `join`.
        self.held: dict[Channel, str] = {}

    def join(self, channel: Channel, text: str) -> str:
        """`text` with the half held before it, valid UTF-8; a half at its end stays back."""
        text = self.held.pop(channel, "") + text
        if _HIGH_AT_END.search(text):
            self.held[channel] = text[-1]
            text = text[:-1]
        return _LONE.sub(REPLACEMENT, _PAIR.sub(_join, text))

    def flush(self, channel: Channel) -> str:
        """The replacement for a half whose partner will not come, or nothing."""
        return REPLACEMENT if self.held.pop(channel, None) else ""
