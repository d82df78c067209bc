"""Bytes to frames and back, in both encodings of the protocol. Decoding never raises anything but `Undecodable`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headrace.protocol import frames
from headrace.protocol.frames import BATCH_FRAMES, ClientFrame, HubFrame

_CLIENT_TYPES: Final = frozenset(cls.__struct_config__.tag for cls in ClientFrame.__args__)
#: What is wrong may be quoted from the frame: an error stays small whatever came.
_REASON_CHARACTERS: Final = 200
_HUB_TYPES: Final = frozenset(cls.__struct_config__.tag for cls in HubFrame.__args__)


class Undecodable(Exception):
    """The message breaks the framing rules of protocol §2; the connection is closed with 4400."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A frame that can be read but not obeyed: answered with `error`, the connection stays."""

    code: str
    message: str
    id: int | str | None = None
    stream: str | None = None


class _Envelope(msgspec.Struct):
    type: str
    id: Any = None
    stream: Any = None


class Codec:
    """One encoding. `JSON` and `MSGPACK` below are the only two instances."""

    def __init__(self, subprotocol: str, encoding: Any, is_text: bool, arrays: frozenset[int]) -> None:
        self.subprotocol = subprotocol
        self.is_text = is_text
        self._arrays = arrays  # first bytes that open an array
        self.encode = encoding.Encoder().encode
        self._client = encoding.Decoder(ClientFrame).decode
        self._hub = encoding.Decoder(HubFrame).decode
        self._batch = encoding.Decoder(list[msgspec.Raw]).decode
        self._envelope = encoding.Decoder(_Envelope).decode
        self._any = encoding.Decoder().decode

    def encode_batch(self, batch: Sequence[msgspec.Struct]) -> bytes:
        """One frame as a map, several as a flat array."""
        data: bytes = self.encode(batch[0] if len(batch) == 1 else list(batch))
        return data

    def decode_client(self, data: bytes) -> list[ClientFrame | Fault]:
        """The frames of one message from a client, in order; frames that cannot be obeyed become faults."""
        return [self._one(item, self._client, _CLIENT_TYPES) for item in self._items(data)]

    def decode_hub(self, data: bytes) -> list[HubFrame]:
        """The frames of one message from a hub. Types unknown to this version are left out."""
        decoded = []
        for item in self._items(data):
            frame = self._one(item, self._hub, _HUB_TYPES)
            if not isinstance(frame, Fault):
                decoded.append(frame)
            elif frame.code != "unsupported":
                raise Undecodable(frame.message)
        return decoded

    def _items(self, data: bytes) -> list[Any]:
        if not self._opens_array(data):
            return [data]
        items: list[Any] = self._guard(self._batch, data)
        if not items:
            return [Fault("invalid_request", "a batch holds at least one frame")]
        if len(items) > BATCH_FRAMES:
            return [Fault("too_large", f"a batch holds at most {BATCH_FRAMES} frames, this one has {len(items)}")]
        if any(self._opens_array(bytes(item)) for item in items):
            raise Undecodable("a batch inside a batch")
        return items

    def _opens_array(self, data: bytes) -> bool:
        head = data.lstrip()[:1] if self.is_text else data[:1]
        return bool(head) and head[0] in self._arrays

    def _one(self, item: Any, decode: Any, types: frozenset[Any]) -> Any:
        if isinstance(item, Fault):
            return item
        try:
            frame = decode(item)
        except msgspec.ValidationError as error:
            return self._fault(item, str(error), types)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            raise Undecodable(f"not decodable: {type(error).__name__}") from None
        if type(frame) is frames.Generate:
            reason = _not_plain(frame)
            if reason:
                return Fault("invalid_request", reason, frame.id)
        return frame

    def _fault(self, item: Any, reason: str, types: frozenset[Any]) -> Fault:
        """Name what is wrong with a frame that failed validation; raises if it has no `type` at all."""
        self._guard(self._any, item)  # validation stops at the first error: what follows may not even parse
        envelope = self._guard(self._envelope, item)
        id_, stream = _if_valid(envelope.id, frames.Id), _if_valid(envelope.stream, frames.StreamId)
        if envelope.type not in types:
            return Fault("unsupported", f"unknown frame type {envelope.type[:32]!r}", id_, stream)
        return Fault("invalid_request", reason[:_REASON_CHARACTERS], id_, stream)

    @staticmethod
    def _guard(decode: Any, data: Any) -> Any:
        try:
            return decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            raise Undecodable(f"not decodable: {error}"[:120]) from None


def _if_valid(value: Any, kind: Any) -> Any:
    """The `id` or `stream` of a frame that is wrong elsewhere, so that its error can be told apart."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None


def _not_plain(frame: frames.Generate) -> str | None:
    """Free-form fields may hold what JSON can hold, and no more: both encodings carry the same values."""
    inputs = [call.input for message in frame.messages for call in message.calls or ()]
    for name in ("tools", "tool_choice", "schema", "metadata", "messages"):
        pending = inputs if name == "messages" else [getattr(frame, name)]
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                if not all(type(key) is str for key in value):
                    return f"keys of `{name}` must be strings"
                pending.extend(value.values())
            elif isinstance(value, list):
                pending.extend(value)
            elif type(value) is int and not -(2**63) <= value < 2**64:
                return f"an integer in `{name}` does not fit 64 bits"
            elif type(value) is float and value - value != 0.0:
                return f"a number in `{name}` is not finite"
            elif type(value) not in (str, int, float, bool, type(None)):
                return f"`{name}` holds a value that JSON cannot carry"
    return None


JSON: Final = Codec("headrace.v1.json", msgspec.json, True, frozenset(b"["))
MSGPACK: Final = Codec("headrace.v1.msgpack", msgspec.msgpack, False, frozenset([*range(0x90, 0xA0), 0xDC, 0xDD]))
CODECS: Final[dict[str, Codec]] = {codec.subprotocol: codec for codec in (JSON, MSGPACK)}
