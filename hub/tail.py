"""What a hub holds of a watched stream, and frames cut from it: encoded once per encoding, shared by all viewers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import structlog
from msgspec import UNSET

from headrace.protocol.codec import Codec
from headrace.protocol.cursor import MarkRuns
from headrace.protocol.entries import DELTA_KINDS, Entry, decode_data, delta_text
from headrace.protocol.frames import DELTA_BYTES, Delta, EntryFrame, StreamState
from hub.attachment import Attachment
from hub.broker.keys import StreamKey, stream_of
from hub.broker.mailbox import Part
from hub.demand import Demand

log_ = structlog.get_logger(__name__)

_CONTROL = bytes(range(32))

#: Entries held of one stream; what is older is read from the log.
TAIL_BYTES = 256 * 1024
#: Entries held of all streams of a hub.
HELD_BYTES = 256 * 1024 * 1024
#: What an entry takes beside its data: a tuple, the head of its bytes, a place in the list.
ENTRY_BYTES = 104
#: The schema's own strings: a default is left out of a frame only if it is the same object.
_KIND: dict[str, Any] = {kind: kind for kind in DELTA_KINDS}

#: Packets kept back while a stream is being opened or repaired. What does not fit is read from the log.
BUFFERED_PARTS = 256


class Held:
    """Bytes that all tails of a hub hold together."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Frame:
    """One frame of a stream, encoded at most once for each encoding."""

    __slots__ = ("_frame", "first", "last", "wires")

    def __init__(self, frame: Delta | EntryFrame, first: int) -> None:
        self._frame = frame
        #: The complete WebSocket message in each encoding that was asked for.
        self.wires: dict[Codec, bytes] = {}
        self.first = first
        self.last = frame.offset

    @property
    def is_delta(self) -> bool:
        return type(self._frame) is Delta

    def wire(self, codec: Codec) -> bytes:
        """The frame as a complete WebSocket message."""
        wire = self.wires.get(codec)
        if wire is None:
            try:
                payload = codec.encode(self._frame)
            except (TypeError, ValueError, OverflowError):  # MessagePack holds more than JSON can say
                log_.error("entry cannot be shown", stream=self._frame.stream, offset=self.last)
                payload = codec.encode(EntryFrame(self._frame.stream, self.last, "unreadable", {}, self._frame.mark))
            wire = self.wires[codec] = prepare(payload, codec.is_text)
        return wire


def prepare(payload: bytes, is_text: bool) -> bytes:
    """A server's WebSocket message around `payload` (RFC 6455 §5.2): final, unmasked."""
    opcode = b"\x81" if is_text else b"\x82"
    size = len(payload)
    if size < 126:
        return opcode + bytes((size,)) + payload
    if size < 65536:
        return opcode + b"\x7e" + size.to_bytes(2) + payload
    return opcode + b"\x7f" + size.to_bytes(8) + payload


def cut(stream: str, runs: MarkRuns, first: int, entries: Sequence[Entry]) -> Iterator[Frame]:
    """Frames for `entries`, the first of which has offset `first`. Neighbouring text merges, never across marks."""
    index = 0
    while index < len(entries):
        offset = first + index
        if offset > runs.last_first:  # the common case: inside the newest run
            changed, run_end = None, None
        else:
            mark = runs.at(offset)
            changed = mark if mark != runs.at(offset - 1) else None
            run_end = runs.run_end(offset)
        kind, data = entries[index]
        if kind not in DELTA_KINDS:
            yield Frame(EntryFrame(stream, offset, kind, _shown(kind, data), changed), offset)
            index += 1
            continue
        piece = _piece(kind, data)
        if piece is None:
            yield Frame(EntryFrame(stream, offset, kind, {}, changed), offset)
            index += 1
            continue
        call, text = piece
        texts, size, end = [text], _written(data), index + 1
        while end < len(entries) and entries[end][0] == kind and (run_end is None or first + end <= run_end):
            data = entries[end][1]
            more = _piece(kind, data)
            if more is None or more[0] != call or size + _written(data) > DELTA_BYTES:
                break
            texts.append(more[1])
            size += _written(data)
            end += 1
        last = first + end - 1
        merged = texts[0] if len(texts) == 1 else "".join(texts)
        yield Frame(
            Delta(stream, last, offset if last > offset else UNSET, _KIND[kind], call, merged, changed),
            offset,
        )
        index = end


def _shown(kind: str, data: bytes) -> dict[str, Any]:
    """An entry's map; empty for one that cannot be read: a viewer advances over it (protocol §2)."""
    try:
        return decode_data(kind, data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        log_.error("unreadable entry", kind=kind, bytes=len(data))
        return {}


def _piece(kind: str, data: bytes) -> tuple[str | None, str] | None:
    """(call, text) of a piece of text, None for one that cannot be read."""
    try:
        return delta_text(kind, data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        log_.error("unreadable entry", kind=kind, bytes=len(data))
        return None


def _written(data: bytes) -> int:
    """Bytes that text takes in a message: JSON writes a control character as six (protocol §2, 64 KiB a message)."""
    return len(data) + 5 * (len(data) - len(data.translate(None, _CONTROL)))


class Opening:
    """While a stream is being opened, or repaired from its log: parts that arrive are kept back and merged then."""

    __slots__ = ("ended", "missed", "parts")

    def __init__(self, ended: asyncio.Future[None]) -> None:
        #: Resolves when the tail is open, or given up.
        self.ended = ended
        self.parts: list[tuple[str, Part]] = []
        #: A part did not fit, or a hole was found meanwhile: read the log once more.
        self.missed = False

    def keep(self, sender: str, part: Part) -> None:
        if len(self.parts) < BUFFERED_PARTS:
            self.parts.append((sender, part))
        else:
            self.missed = True


class Tail:
    """The newest entries of one watched stream: offsets `base` + 1 … `top`, without a hole."""

    __slots__ = (
        "_held", "_size", "accepted_at", "attachments", "base", "cancelled", "demand", "disowned", "entries",
        "has_unacked", "idle_since", "is_long", "is_short", "key", "last_news", "opening", "owner", "reads", "runs",
        "stalled", "state", "stream", "suspect", "top",
    )  # fmt: skip

    def __init__(self, key: StreamKey, held: Held, now: float) -> None:
        self.key = key
        self.stream = stream_of(key)
        self.state: StreamState = "queued"
        self.top = 0
        self.base = 0
        self.entries: list[Entry] = []
        self.runs = MarkRuns()
        self.owner = ""
        self.attachments: list[Attachment] = []
        #: Set while it is being opened or repaired; None once it is open.
        self.opening: Opening | None = None
        self.demand = Demand()
        #: A viewer without acks is among the attachments.
        self.has_unacked = False
        #: When the last viewer left.
        self.idle_since: float | None = now
        self.last_news = now
        self.cancelled = False
        self.stalled = False
        #: At the last look the log had lost the end that is held here; its owner may be appending that again.
        self.is_short = False
        #: Times in a row that the announced owner said the stream is not its own.
        self.disowned = 0
        #: A top seen in Redis that has not arrived here yet.
        self.suspect = 0
        #: When this hub accepted the request; None once the first content was delivered, or if another hub did.
        self.accepted_at: float | None = None
        #: More than is held at once: viewers that are behind read pages of their own from the log.
        self.is_long = False
        #: Reads of the log under way, by their first offset (0: all that is not held), and who waits for each.
        self.reads: dict[int, list[Attachment]] = {}
        self._held = held
        self._size = 0

    @property
    def is_open(self) -> bool:
        return self.opening is None

    def begin(self, state: StreamState, top: int, runs: MarkRuns, owner: str) -> None:
        """Take a stream's facts as they are in Redis. What was held before is another history, or nothing."""
        self._let_go(len(self.entries))
        self.state, self.top, self.base, self.runs, self.owner = state, top, top, runs, owner
        self.is_long = False

    def append(self, mark: str, entries: Sequence[Entry]) -> int:
        """Add entries that follow on the top; returns the offset of the first."""
        first = self.top + 1
        if mark != self.runs.last:
            self.runs.add(first, mark)
        self.entries.extend(entries)
        self.top += len(entries)
        self._hold(entries)
        kind = entries[-1][0]
        if kind == "done":
            self.state = "done"
        elif self.state == "queued" and kind != "queued":
            self.state = "running"
        return first

    def prepend(self, first: int, entries: Sequence[Entry]) -> None:
        """Keep entries read from the log, if they reach the ones held and there is room."""
        if not first <= self.base < first + len(entries):
            return
        kept = entries[: self.base + 1 - first]
        size = _weight(kept)
        if self._size + size <= TAIL_BYTES and self._held.bytes + size <= HELD_BYTES:
            self.entries[:0] = kept
            self.base = first - 1
            self._size += size
            self._held.bytes += size
        else:
            self.is_long = True

    def holds(self, offset: int) -> bool:
        return offset > self.base

    def slice(self, first: int, last: int) -> list[Entry]:
        """Entries held, `first` to `last`."""
        return self.entries[first - 1 - self.base : last - self.base]

    def release(self) -> None:
        """Stop holding anything: the stream is not watched any more."""
        self._let_go(len(self.entries))
        self.base = self.top

    def _hold(self, entries: Sequence[Entry]) -> None:
        size = 0
        for _, data in entries:
            size += ENTRY_BYTES + len(data)
        self._size += size
        self._held.bytes += size
        if self._size > TAIL_BYTES or self._held.bytes > HELD_BYTES:
            self.is_long = True
            self._let_go(max(1, len(self.entries) // 2))

    def _let_go(self, count: int) -> None:
        size = _weight(self.entries[:count])
        self._size -= size
        self._held.bytes -= size
        del self.entries[:count]
        self.base += count


def _weight(entries: Sequence[Entry]) -> int:
    """Bytes of memory that entries take."""
    return sum(ENTRY_BYTES + len(data) for _, data in entries)
