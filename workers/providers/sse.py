"""Server-sent events out of bytes, however they were cut: what both providers' streams are made of.

Pure and incremental: any chunking of the same bytes gives the same events. Follows the event stream format of
the HTML standard for `event` and `data`; `id` and `retry` belong to a reconnection that no provider offers and
are dropped with the comments. An event that its blank line never ended is not an event.
"""

from __future__ import annotations

import re

#: One event, in bytes, before its fields are parted. More than any provider sends; a bound on what is held.
EVENT_BYTES = 4 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_CR = ord("\r")
#: An event of one of the two shapes that providers send.
_COMMON = re.compile(rb"(?:event: (.*+)\n)?+data: (.*+)\n\n").match

SseEvent = tuple[bytes, bytes]
"""(name, data); the name is empty where the stream gave none."""


class EventTooLarge(ValueError):
    """One event outgrew the splitter's limit: what follows cannot be trusted, give the stream up."""


class SseSplitter:
    """Cuts one stream into events. Holds at most one unfinished event of `limit` bytes plus one chunk."""

    __slots__ = ("_buffer", "_limit", "_skip_newline", "_started")

    def __init__(self, limit: int = EVENT_BYTES) -> None:
        self._buffer = bytearray()
        self._limit = limit
        self._skip_newline = False
        self._started = False

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that `chunk` completes. Raises EventTooLarge."""
        events: list[SseEvent] = []
        at, size = 0, len(chunk)
        if self._started and not self._buffer and not self._skip_newline and _CR not in chunk:
            while at < size and (found := _COMMON(chunk, at)) is not None:
                end = found.end()
                if end - at - len(b"\n\n") > self._limit:
                    raise EventTooLarge
                name, data = found.groups(b"")
                events.append((name, data))
                at = end
        if at < size:
            self._by_lines(chunk[at:], events)
        return events

    def _by_lines(self, chunk: bytes, events: list[SseEvent]) -> None:
        """What `chunk` completes, whatever lines it is of."""
        if self._skip_newline:
            self._skip_newline = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if b"\r" in chunk:
            # A CR that ends the chunk is a line's end already; the LF that may follow belongs to it.
            self._skip_newline = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        for block in self._blocks(chunk):
            if len(block) > self._limit:
                raise EventTooLarge
            event = self._event(block)
            if event is not None:
                events.append(event)

    def _blocks(self, chunk: bytes) -> list[bytes]:
        """What lies between blank lines and is complete, in order."""
        buffer = self._buffer
        scan_from = max(len(buffer) - 1, 0)
        buffer += chunk
        end = buffer.rfind(b"\n\n", scan_from)
        if end >= 0:
            complete = bytes(buffer[:end])
            del buffer[: end + 2]
        if len(buffer) > self._limit:
            raise EventTooLarge
        return complete.split(b"\n\n") if end >= 0 else []

    def _event(self, block: bytes) -> SseEvent | None:
        if not self._started and block:
            self._started = True
            block = block.removeprefix(_BOM)
        name = b""
        data: list[bytes] = []
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif field == b"event":
                name = value.removeprefix(b" ")
        return (name, b"\n".join(data)) if data else None
