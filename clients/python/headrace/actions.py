"""What the protocol core tells its shell: one small frozen type per thing to do."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.protocol.codes import Retry
from headrace.protocol.cursor import Cursor
from headrace.protocol.frames import (
    Accepted,
    Attached,
    Delta,
    EntryFrame,
    ErrorFrame,
    Live,
    Ok,
    StatusFrame,
    Streams,
    Welcome,
)


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The connection is open."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class Moved:
    """A stream was answered for.

    `restarted`: drop everything shown of it, unread events included. `reconnected`: it was followed on an
    earlier connection.
    """

    key: int
    answer: Accepted | Attached
    restarted: bool
    reconnected: bool


@dataclass(frozen=True, slots=True)
class Delivered:
    """The next frame of a stream, in order; `cursor` is where an entry leads.

    A status that concerns every stream has the key None.
    """

    key: int | None
    frame: Delta | EntryFrame | Live | StatusFrame
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A stream ends here for this client, without a `done`.

    `code` is one of the error codes, or `superseded` (another attachment of this client took over), or
    `protocol_violation` (hub and client do not understand each other).
    """

    key: int
    code: str
    message: str
    retry: Retry = "no"
    after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer of a `cancel`, `detach` or `list`."""

    id: int
    frame: Ok | Streams | ErrorFrame


@dataclass(frozen=True, slots=True)
class TokenExpired:
    """The hub wants a fresh token: in band within its grace, or (`reconnect`) on a new connection at once."""

    message: str
    reconnect: bool


@dataclass(frozen=True, slots=True)
class Postponed:
    """The next connection is not to be made before this many seconds have passed."""

    after_s: float


Action = Welcomed | Moved | Delivered | Refused | Answered | TokenExpired | Postponed
