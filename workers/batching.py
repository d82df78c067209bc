"""What a provider said and no append has taken yet, as entries that are ready to be logged.

Natural batching, no timers: the first piece is an entry of its own and goes at once; what arrives while an
append is in flight piles up here, consecutive text of one kind in one entry, and goes with the next append.
Kinds keep their order.
"""

from __future__ import annotations

import msgspec

from headrace.protocol.entries import TEXT_BYTES, Entry, ToolInput, encode_data

#: What an entry weighs beside its data, in bytes.
ENTRY_WEIGHT = 16
_REPLACEMENT = "\ufffd".encode()


class _Item(msgspec.Struct, gc=False):
    kind: str
    call: str
    data: bytes

    @property
    def weight(self) -> int:
        return ENTRY_WEIGHT + 4 * len(self.call) + len(self.data)

    @property
    def entry(self) -> Entry:
        if self.kind != "tool_input":
            return self.kind, self.data
        return self.kind, encode_data(ToolInput(self.call, self.data.decode()))


class Outbox:
    """Pending entries of one generation. Its bound is the reader's: see `Generation.may_read`.

    Entries of text, reasoning and tool input hold at most `TEXT_BYTES` of valid UTF-8, cut at character borders;
    halves of a surrogate pair are joined across pieces, and what finds no partner becomes U+FFFD (protocol §5).
    """

    __slots__ = ("_held", "_items", "size")

    def __init__(self) -> None:
        self._items: list[_Item] = []
        self._held: tuple[str, str, str] | None = None  # kind, call, first half of a surrogate pair
        #: Weight of what is pending, in bytes: data, and a little for every entry.
        self.size = 0

    def __len__(self) -> int:
        """Entries pending."""
        return len(self._items)

    def text(self, kind: str, text: str, call: str = "") -> None:
        """Add a piece of `text`, `reasoning`, or of the `tool_input` of `call`."""
        if self._held is not None:
            data = self._mend(kind, call, text) if text else b""
        else:
            try:
                data = text.encode()
            except UnicodeEncodeError:
                data = self._mend(kind, call, text)
        self._append(kind, call, data)

    def entry(self, kind: str, data: bytes) -> None:
        """Add a whole entry. Of `usage` entries in a row only the newest is kept: they are absolute."""
        self.flush()
        last = self._items[-1] if self._items else None
        if last is not None and last.kind == kind == "usage":
            self.size += len(data) - len(last.data)
            last.data = data
        else:
            self._items.append(_Item(kind, "", data))
            self.size += ENTRY_WEIGHT + len(data)

    def flush(self) -> None:
        """No more text follows: a half character that waits for its partner is given up."""
        if self._held is not None:
            kind, call, _ = self._held
            self._held = None
            self._append(kind, call, _REPLACEMENT)

    def trim(self, size: int) -> None:
        """Drop the newest entries until at most `size` bytes remain, or none: a log may be above its bound already."""
        while self._items and self.size > size:
            self.size -= self._items.pop().weight

    def peek(self) -> list[Entry]:
        """What is pending, as `take` would return it."""
        return [item.entry for item in self._items]

    def take(self, limit: int) -> list[Entry]:
        """Remove and return the oldest entries, at least one if there is any, up to `limit` bytes."""
        items = self._items
        if self.size <= limit:
            self._items = []
            self.size = 0
        else:
            count, size = 1, items[0].weight
            while count < len(items) and size + items[count].weight <= limit:
                size += items[count].weight
                count += 1
            self._items = items[count:]
            self.size -= size
            items = items[:count]
        return [item.entry for item in items]

    def _append(self, kind: str, call: str, data: bytes) -> None:
        size = len(data)
        if not size:
            return
        items = self._items
        if items:
            last = items[-1]
            if last.kind == kind and last.call == call and len(last.data) + size <= TEXT_BYTES:
                last.data += data
                self.size += size
                return
        for piece in [data] if size <= TEXT_BYTES else _cut(data):
            item = _Item(kind, call, piece)
            items.append(item)
            self.size += item.weight

    def _mend(self, kind: str, call: str, text: str) -> bytes:
        """Valid UTF-8 of a piece, with the half held before it; a half at its end is held back."""
        if self._held is not None:
            if self._held[:2] == (kind, call):
                text = self._held[2] + text
                self._held = None
            else:
                self.flush()
        if "\ud800" <= text[-1] <= "\udbff":
            self._held = (kind, call, text[-1])
            text = text[:-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _cut(data: bytes) -> list[bytes]:
    """Pieces of at most TEXT_BYTES, none of which begins inside a character."""
    pieces, start = [], 0
    while start < len(data):
        end = start + TEXT_BYTES
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        pieces.append(data[start:end])
        start = end
    return pieces
