"""A JSON document while it arrives: valid snapshots of what is there so far.

Parsing the whole text again for every piece would cost the square of its length. So a snapshot is made when the
text has grown by a twelfth since the last one: the parses of a long document add up to some twelve times its
length, whatever the size of the pieces.
"""

from __future__ import annotations

from typing import Any, Final

from jiter import from_json

from headrace.protocol.document import bare, parse

#: A snapshot is made when the text has grown by this part.
GROWTH: Final = 1 / 12


class PartialJSON:
    """Feed it text; `value` is the newest snapshot.

    A snapshot is valid JSON data and never wrong, but it may be incomplete: strings, lists and objects end where
    the text ends, a key appears with its value, and a number at the very end may still grow (`12` of `123`). It
    lags behind the text by at most a twelfth of it; `finish` is exact.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0
        self._next = 1.0
        #: The newest snapshot; None before the first.
        self.value: Any = None

    def feed(self, text: str) -> bool:
        """Take a piece; True if `value` is a newer snapshot now (perhaps an equal one)."""
        self._pieces.append(text)
        self._length += len(text)
        if self._length < self._next:
            return False
        self._next = self._length * (1 + GROWTH) + 1
        whole = self.text
        self._pieces = [whole]
        try:
            self.value = from_json(bare(whole).encode("utf-8", "replace"), partial_mode="trailing-strings")
        except ValueError:  # nothing yet, or not JSON after all: `finish` will say so
            return False
        return True

    @property
    def text(self) -> str:
        """All that was fed."""
        return "".join(self._pieces)

    def finish(self) -> Any:
        """The value of the whole text, parsed strictly. Raises ValueError if it is not one JSON document."""
        self.value = parse(self.text)
        return self.value
