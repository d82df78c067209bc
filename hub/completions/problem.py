"""What goes wrong, as OpenAI's clients expect to hear it: an HTTP status and an error object. Pure."""

from __future__ import annotations

import re
from math import ceil
from typing import Any, Final

from hub.errors import Rejected

Headers = list[tuple[bytes, bytes]]

#: The status of every code of protocol §8, of `error` frames and of `done.error`.
STATUS: Final = {
    "unsupported": 400,
    "too_large": 413,
    "bad_ack": 400,
    "invalid_request": 400,
    "request_conflict": 409,
    "unauthenticated": 401,
    "token_expired": 401,
    "forbidden": 403,
    "not_found": 404,
    "gone": 410,
    "rate_limited": 429,
    "too_many_connections": 429,
    "too_many_generations": 429,
    "budget_exceeded": 429,
    "overloaded": 503,
    "prompt_rejected": 400,
    "prompt_too_long": 400,
    "unknown_model": 404,
    "internal": 500,
    "provider_rate_limited": 429,
    "provider_overloaded": 503,
    "provider_timeout": 504,
    "provider_error": 502,
    "context_length_exceeded": 400,
    "content_blocked": 400,
    "invalid_output": 502,
    "worker_lost": 503,
    "too_long": 400,
}
#: Codes that OpenAI's clients know by another name.
_NAMES: Final = {
    "unauthenticated": "invalid_api_key",
    "unknown_model": "model_not_found",
    "content_blocked": "content_filter",
    "budget_exceeded": "insufficient_quota",
}
#: A field that a message names, in quotes, or as the place that it begins with.
_FIELD = re.compile(r"`(\w+)`|^((?:tools|messages)\[\d+\])")
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Problem(Exception):
    """Answered with an HTTP status while none was sent, and with an error in the event stream after that."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        param: str | None = None,
        is_final: bool = True,
        after_ms: int | None = None,
    ) -> None:
        """`is_final`: repeating the same request is of no use."""
        super().__init__(message)
        self.status = status or STATUS.get(code, 500)
        self.code = _NAMES.get(code, code)
        self.message = message
        self.param = param
        self.is_final = is_final
        self.after_ms = after_ms

    @classmethod
    def rejected(cls, rejected: Rejected) -> Problem:
        """What a verb answers with an `error` frame."""
        frame = rejected.frame()
        named = _FIELD.search(frame.message)
        param = named[1] or named[2] if named else "model" if frame.code == "unknown_model" else None
        param = "response_format" if param == "schema" else param
        return cls.told(frame.code, frame.message, frame.retry, frame.after_ms, param)

    @classmethod
    def told(
        cls, code: str, message: str, retry: str, after_ms: int | None = None, param: str | None = None
    ) -> Problem:
        """A code of protocol §8 with its retry rule."""
        return cls(code, message, param=param, is_final=retry in ("no", "reauth"), after_ms=after_ms)

    def object(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        if self.code == "insufficient_quota":
            kind = "insufficient_quota"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> Headers:
        """When to repeat the request; `x-should-retry` keeps clients from repeating what cannot succeed."""
        if self.is_final:
            return [(b"x-should-retry", b"false")]
        if self.after_ms is None:
            return []
        return [
            (b"retry-after", b"%d" % max(1, ceil(self.after_ms / 1000))),
            (b"retry-after-ms", b"%d" % self.after_ms),
        ]


def internal() -> Problem:
    return Problem("internal", "something broke here; try again", is_final=False)
