"""The text on a screen, as its digest. Written apart from the client's own: a checker must not share its mistakes."""

from __future__ import annotations

import hashlib


class Screen:
    """Text since the last reset."""

    __slots__ = ("_hash", "size")

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.size = 0

    def clear(self) -> None:
        self._hash = hashlib.sha256()
        self.size = 0

    def add(self, text: str) -> None:
        data = text.encode()
        self._hash.update(data)
        self.size += len(data)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
