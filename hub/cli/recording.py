"""The file that `record` writes and `replay` reads: MessagePack objects, one after the other.

The first is the header, `{"headrace": "recording", "version": 1, "stream": …}`. Each further one is an entry, or
several of one kind that came merged:

| field  | meaning                                                        |
|--------|----------------------------------------------------------------|
| offset | of the (last) entry; dense from 1                              |
| first  | offset of the first one, where several came merged             |
| mark   | of the history that the entry belongs to                       |
| kind   | as in docs/protocol.md §5; `restarted`: another history begins |
| data   | the entry's map; merged text is one string                     |
| ms     | since the first entry was received                             |
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import msgpack  # type: ignore[import-untyped]
import msgspec

from headrace.protocol.cursor import Mark, Offset

VERSION: Final = 1
RESTARTED: Final = "restarted"
#: No entry is near this size (docs/protocol.md §5): a larger object is not ours, and is not read into memory.
OBJECT_BYTES: Final = 1024 * 1024


class Corrupt(Exception):
    """The file is not what `record` writes; the text says where and why."""


class Header(msgspec.Struct):
    headrace: str
    version: int
    stream: str


class Recorded(msgspec.Struct, omit_defaults=True):
    """One entry of the file. Checked when it is read."""

    offset: Offset
    mark: Mark
    kind: str
    data: dict[str, Any]
    ms: Offset
    first: Offset | None = None


class Writer:
    """Appends to an open file. Every object is flushed: what was received is there, whatever ends this."""

    def __init__(self, file: BinaryIO, stream: str) -> None:
        self._file = file
        self._pack = msgpack.Packer().pack
        self._write(Header("recording", VERSION, stream))

    def add(self, entry: Recorded) -> None:
        self._write(entry)

    def _write(self, item: Header | Recorded) -> None:
        self._file.write(self._pack(msgspec.to_builtins(item)))
        self._file.flush()


def read(file: BinaryIO) -> Iterator[Header | Recorded]:
    """The header, then every entry, read piece by piece. Raises Corrupt, as late as the fault stands in the file.

    Offsets are checked: each entry follows the one before it.
    """
    size = os.fstat(file.fileno()).st_size
    unpacker = msgpack.Unpacker(file, max_buffer_size=OBJECT_BYTES, ext_hook=_refuse, strict_map_key=True)
    header: Header | None = None
    offset = 0
    while unpacker.tell() < size:
        at = unpacker.tell()
        try:
            item = unpacker.unpack()
            if header is None:
                header = _header(item)
                yield header
                continue
            entry = msgspec.convert(item, Recorded)
        except msgpack.OutOfData:
            raise Corrupt(f"it ends in the middle of an object, at byte {at}: the file was cut off") from None
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise Corrupt(f"it cannot be read from byte {at} on ({_why(error)})") from None
        first = entry.offset if entry.first is None else entry.first
        if entry.kind == RESTARTED:
            offset = entry.offset
        elif first != offset + 1 or entry.offset < first:
            raise Corrupt(f"entry {first} follows entry {offset}, at byte {at}")
        else:
            offset = entry.offset
        yield entry
    if header is None:
        raise Corrupt("it is empty")


def _header(item: object) -> Header:
    try:
        header = msgspec.convert(item, Header)
    except msgspec.ValidationError:
        header = Header("", 0, "")
    if header.headrace != "recording":
        raise Corrupt("it is no recording: make one with `headrace record STREAM`")
    if header.version != VERSION:
        raise Corrupt(f"it has version {header.version} and this program reads version {VERSION}: use a newer one")
    return header


def _refuse(code: int, data: bytes) -> object:
    raise ValueError("an extension type")


def _why(error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError):
        return str(error)
    return {"BufferFull": "an object above 1 MiB", "ValueError": str(error)[:60] or "a bad value"}.get(
        type(error).__name__, "no MessagePack"
    )
