"""Every code that crosses the wire: errors with their retry rule, and close codes (protocol §8)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Literal

Retry = Literal["no", "now", "after", "backoff", "reauth"]

#: Codes of `error` frames, each with what a client may do about it.
ERROR_CODES: Final[dict[str, Retry]] = {
    "unsupported": "no",
    "too_large": "no",
    "bad_ack": "no",
    "invalid_request": "no",
    "request_conflict": "no",
    "unauthenticated": "reauth",
    "token_expired": "reauth",
    "forbidden": "no",
    "not_found": "no",
    "gone": "no",
    "rate_limited": "after",
    "too_many_connections": "after",
    "too_many_generations": "after",
    "budget_exceeded": "after",
    "overloaded": "after",
    "prompt_rejected": "no",
    "prompt_too_long": "no",
    "unknown_model": "no",
    "internal": "backoff",
}

#: Codes of `done.error`; never sent as `error` frames.
DONE_ERROR_CODES: Final[dict[str, Retry]] = {
    "provider_rate_limited": "after",
    "provider_overloaded": "backoff",
    "provider_timeout": "backoff",
    "provider_error": "backoff",
    "context_length_exceeded": "no",
    "content_blocked": "no",
    "invalid_output": "now",
    "worker_lost": "backoff",
    "overloaded": "after",
    "too_long": "no",
    "internal": "backoff",
}


class CloseCode(IntEnum):
    """WebSocket close codes. The range is the contract: see `close_action`."""

    DRAIN = 4000
    MAX_AGE = 4001
    REPLACED = 4003
    INTERNAL = 4100
    OVERLOADED = 4101
    NO_SIGN_OF_LIFE = 4102
    FLOODING = 4103
    TOO_MANY_CONNECTIONS = 4104
    NO_HELLO = 4105
    TOKEN_EXPIRED = 4200
    TOKEN_REVOKED = 4201
    BAD_FRAME = 4400
    UNAUTHENTICATED = 4401
    FORBIDDEN = 4403


CloseAction = Literal["reconnect", "backoff", "reauth", "stop"]


def close_action(code: int | None) -> CloseAction:
    """What a client does after a close with `code` (None: the socket vanished without one).

    Codes outside the ranges are network drops: reconnect with backoff. 4003 is the exception in its
    range: the same device already holds a newer connection, and fighting it would never end.
    """
    if code is None:
        return "backoff"
    if code == CloseCode.REPLACED:
        return "stop"
    if 4000 <= code <= 4099:
        return "reconnect"
    if 4200 <= code <= 4299:
        return "reauth"
    if 4400 <= code <= 4499:
        return "stop"
    return "backoff"
