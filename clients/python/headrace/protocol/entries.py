"""Entries of a generation: what a log holds and what a viewer folds (protocol §5).

`text` and `reasoning` carry their text as it is; every other kind carries a MessagePack map. That is how an
entry lies in Redis, travels between worker and hub, and is turned into a frame once per encoding.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from headrace.protocol.codes import Retry

#: Kinds whose consecutive entries a `delta` merges.
DELTA_KINDS = frozenset({"text", "reasoning", "tool_input"})
#: Kinds that a viewer sees.
CONTENT_KINDS = frozenset({"text", "reasoning", "tool_call", "tool_input", "tool_ready", "tool_result", "citation"})
#: An entry of text holds at most this many bytes of UTF-8.
TEXT_BYTES = 2048
#: Any other entry, encoded.
ENTRY_BYTES = 32 * 1024
#: A whole log; then the answer is `truncated`, `too_long`.
LOG_BYTES = 4 * 1024 * 1024

Status = Literal["completed", "truncated", "cancelled", "failed"]


class Data(msgspec.Struct, omit_defaults=True):
    """Base of all entry data that is a map."""


class Queued(Data):
    model: str
    tier: str | None = None


class Started(Data):
    attempt: int


class Source(Data):
    provider: str
    model: str
    mode: Literal["live", "fallback", "cached"]
    reason: str | None = None
    call: int | None = None
    """The number of the provider call in its attempt, from 2 on."""


class ToolCall(Data):
    call: str
    name: str


class ToolInput(Data):
    call: str
    delta: str


class ToolReady(Data):
    call: str
    input: Any = msgspec.UNSET


class ToolResult(Data):
    call: str
    output: str
    error: bool = False
    truncated: bool = False


class Notice(Data):
    code: str
    provider: str | None = None
    after_ms: int | None = None
    parameter: str | None = None


class Reset(Data):
    reason: str


class Usage(Data):
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float | None = None
    estimated: bool = False


class DoneError(Data):
    code: str
    message: str
    retry: Retry
    after_ms: int | None = None


class Done(Data):
    status: Status
    stop_reason: str
    text_bytes: int
    text_sha256: str
    usage: Usage | None = None
    ttft_ms: int | None = None
    error: DoneError | None = None
    retry_token: str | None = None


_encoder = msgspec.msgpack.Encoder()
_decode_map = msgspec.msgpack.Decoder(dict[str, Any]).decode
_decode_tool_input = msgspec.msgpack.Decoder(ToolInput).decode

Entry = tuple[str, bytes]
"""One item of a log: its kind and its data."""


def encode_data(data: Data) -> bytes:
    """Entry data as it lies in the log."""
    return _encoder.encode(data)


def decode_data(kind: str, data: bytes) -> dict[str, Any]:
    """The map that an entry frame shows. Text kinds become `{"text": …}`."""
    if kind in ("text", "reasoning"):
        return {"text": data.decode()}
    return _decode_map(data)


def delta_text(kind: str, data: bytes) -> tuple[str | None, str]:
    """(call, text) of an entry whose kind is one of `DELTA_KINDS`."""
    if kind == "tool_input":
        piece = _decode_tool_input(data)
        return piece.call, piece.delta
    return None, data.decode()


class TextDigest:
    """Length and SHA-256 of the folded text, kept while entries pass by. A `reset` empties it."""

    __slots__ = ("_hash", "size")

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.size = 0

    def add(self, kind: str, data: bytes) -> None:
        if kind == "text":
            self._hash.update(data)
            self.size += len(data)
        elif kind == "reset":
            self._hash = hashlib.sha256()
            self.size = 0

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
