"""What a viewer saw of one stream: a `Watch`, written as one line once it is over. Times are seconds since the start.

A raw viewer records every frame. A viewer with the Python client records the events that its application got; it
knows where each ended, not where it began (`Piece.first` is 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from zlib import crc32

import msgspec

#: Watches are spread over so many files by their stream, so that a checker holds one file at a time.
SHARDS = 32


class Opened(msgspec.Struct, array_like=True, tag="open", gc=False):
    """The hub said `welcome`. `hub` is its number, -1 where a balancer chose."""

    at: float
    hub: int


class Lost(msgspec.Struct, array_like=True, tag="lost", gc=False):
    """The connection is gone: `code` is the close code, 0 for a break, -1 after a detach.

    `own` says that the viewer ended it.
    """

    at: float
    code: int
    own: bool


class Asked(msgspec.Struct, array_like=True, tag="ask", gc=False):
    """`generate`, or `attach` with a cursor (offset -1: from the start, -2: from now on)."""

    at: float
    verb: Literal["generate", "attach"]
    offset: int
    mark: str = ""


class Answered(msgspec.Struct, array_like=True, tag="answer", gc=False):
    """`accepted` or `attached`; `is_asked` is false for one that the hub pushed."""

    at: float
    stream: str
    resumed: bool
    offset: int
    mark: str
    top: int
    window: int | None
    is_asked: bool


class Piece(msgspec.Struct, array_like=True, tag="delta", gc=False):
    """A `delta`. `mark` where the frame carried one."""

    at: float
    first: int
    last: int
    kind: str
    text: str
    mark: str = ""


class Seen(msgspec.Struct, array_like=True, tag="entry", gc=False):
    """An `entry`. `data` is kept of those that decide something: started, notice, reset, done."""

    at: float
    offset: int
    kind: str
    mark: str = ""
    data: dict[str, object] | None = None


class Live(msgspec.Struct, array_like=True, tag="live", gc=False):
    at: float


class Told(msgspec.Struct, array_like=True, tag="told", gc=False):
    """A pushed `status`, or an `error` (`is_error`) for this stream or the ask."""

    at: float
    code: str
    is_error: bool


class Acked(msgspec.Struct, array_like=True, tag="ack", gc=False):
    """An ack left, with its window where it named one (-1: it did not, -2: null)."""

    at: float
    offset: int
    window: int = -1


class Cancelled(msgspec.Struct, array_like=True, tag="cancel", gc=False):
    """The hub answered a `cancel` with `ok`."""

    at: float
    asked_at: float


class Quiet(msgspec.Struct, array_like=True, tag="quiet", gc=False):
    """After `done`, a ping was answered: what the hub had to say was said."""

    at: float


Event = Opened | Lost | Asked | Answered | Piece | Seen | Live | Told | Acked | Cancelled | Quiet

Outcome = Literal["done", "over", "told", "left", "rejected", "unfinished", "started"]
"""How a watch ended: `done`; `over`, since a viewer at the top of a finished stream gets nothing; `told` that the
stream is gone or unknown; the viewer `left` of its own will;
`rejected` by an error that repeats; `unfinished` when the run was over; `started` without watching."""


class Watch(msgspec.Struct):
    """One viewer and one stream, across all its connections."""

    viewer: str
    kind: Literal["raw", "client"]
    outcome: Outcome
    stream: str
    """Empty while no hub has accepted the request."""
    user: str
    request: str = ""
    """The request key of one who asked."""
    window: int | None = 256
    is_whole: bool = True
    """Whether the viewer saw the stream from its start: only then it has a digest to check."""
    text_bytes: int = 0
    text_sha256: str = ""
    verified: bool | None = None
    """What the Python client says of its own text."""
    is_cancelled: bool = False
    events: list[Event] = []


class Kept(msgspec.Struct, array_like=True):
    """An entry of a log as Redis keeps it."""

    offset: int
    kind: str
    data: dict[str, object]


class Log(msgspec.Struct):
    """A stream as Redis holds it at the end. No entries: it is not there."""

    stream: str
    state: str = ""
    runs: str = ""
    entries: list[Kept] = []


_encode = msgspec.json.Encoder().encode
_decode_watch = msgspec.json.Decoder(Watch).decode
_decode_log = msgspec.json.Decoder(Log).decode


def shard_of(stream: str) -> int:
    return crc32(stream.encode()) % SHARDS


def _file(directory: Path, what: str, shard: int) -> Path:
    return directory / f"{what}-{shard:02d}.jsonl"


def write_watch(directory: Path, watch: Watch) -> None:
    """Append one watch. One write, so that a killed writer leaves at most one broken last line."""
    with _file(directory, "watches", shard_of(watch.stream)).open("ab") as file:
        file.write(_encode(watch) + b"\n")


def write_log(directory: Path, log: Log) -> None:
    with _file(directory, "logs", shard_of(log.stream)).open("ab") as file:
        file.write(_encode(log) + b"\n")


def read_watches(directory: Path, shard: int) -> Iterator[Watch]:
    for line in _lines(_file(directory, "watches", shard)):
        yield _decode_watch(line)


def read_logs(directory: Path, shard: int) -> Iterator[Log]:
    for line in _lines(_file(directory, "logs", shard)):
        yield _decode_log(line)


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        with path.open("rb") as file:
            yield from file
