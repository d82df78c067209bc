"""Errors that a client is told. Their text is written here, never taken from an exception."""

from __future__ import annotations

from headrace.protocol.codes import ERROR_CODES
from headrace.protocol.frames import ErrorFrame, Id


class Rejected(Exception):
    """A request that is answered with an `error` frame (protocol §8)."""

    def __init__(self, code: str, message: str, after_ms: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.after_ms = after_ms

    def frame(self, id_: Id | None = None, stream: str | None = None) -> ErrorFrame:
        return ErrorFrame(self.code, self.message, ERROR_CODES[self.code], id_, stream, self.after_ms)


def not_found() -> Rejected:
    """Absent, foreign and expired streams get the same bytes."""
    return Rejected("not_found", "no such stream")


def overloaded() -> Rejected:
    """Redis is out of reach. The request may have been accepted all the same."""
    return Rejected(
        "overloaded", "the service cannot reach its store; repeating the same request is safe", after_ms=1000
    )
