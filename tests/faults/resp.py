"""Where one RESP value ends: just enough to tell commands and replies apart without changing a byte of them."""

from __future__ import annotations

_SIMPLE = b"+-:_#,("
_BULK = b"$!="
_AGGREGATE = {ord("*"): 1, ord("~"): 1, ord(">"): 1, ord("%"): 2}
_ATTRIBUTE = ord("|")


class Cutter:
    """Cuts a byte stream into RESP values. Holds at most one value that is not complete yet."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._open: list[int] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The values that are complete now, each as its own bytes. ValueError if it is not RESP."""
        self._buffer += data
        values = []
        while self._advance():
            values.append(bytes(self._buffer[: self._at]))
            del self._buffer[: self._at]
            self._at = 0
        return values

    def _advance(self) -> bool:
        """Go on to the end of the first value; whether it is there."""
        buffer = self._buffer
        while True:
            line_end = buffer.find(b"\r\n", self._at)
            if line_end < 0:
                return False
            kind, after = buffer[self._at], line_end + 2
            children = 0
            if kind in _BULK:
                size = int(buffer[self._at + 1 : line_end])
                after += size + 2 if size >= 0 else 0
                if len(buffer) < after:
                    return False
            elif kind in _AGGREGATE:
                children = max(0, int(buffer[self._at + 1 : line_end])) * _AGGREGATE[kind]
            elif kind == _ATTRIBUTE:
                children = int(buffer[self._at + 1 : line_end]) * 2 + 1  # what it is an attribute of belongs to it
            elif kind not in _SIMPLE:
                raise ValueError(f"not RESP: {bytes(buffer[self._at : line_end])!r}")
            self._at = after
            if children:
                self._open.append(children)
                continue
            while self._open:
                self._open[-1] -= 1
                if self._open[-1]:
                    break
                self._open.pop()
            if not self._open:
                return True


def words_of(command: bytes) -> list[bytes]:
    """The words of a request, which is an array of bulk strings."""
    words = []
    at = command.index(b"\r\n") + 2
    while at < len(command):
        line_end = command.index(b"\r\n", at)
        size = int(command[at + 1 : line_end])
        words.append(command[line_end + 2 : line_end + 2 + size])
        at = line_end + 2 + size + 2
    return words


def is_push(value: bytes) -> bool:
    """Not the answer to any command."""
    return value.startswith(b">")
