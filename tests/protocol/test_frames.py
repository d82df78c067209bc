"""The literal frames of docs/protocol.md, and what constructors refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from headrace.protocol import frames
from headrace.protocol.codec import JSON, MSGPACK, Codec, Fault
from headrace.protocol.cursor import Cursor
from headrace.protocol.frames import Attach, ClientFrame, Generate, HubFrame, Message

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"


def literal_frames() -> list[dict[str, Any]]:
    """Every frame in a `json` block, one a line."""
    blocks = re.findall(r"^```json\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return [json.loads(line) for block in blocks for line in block.splitlines() if line.strip()]


FRAMES = literal_frames()
LITERALS = pytest.mark.parametrize("literal", FRAMES, ids=[f"{n}-{frame['type']}" for n, frame in enumerate(FRAMES)])
CLIENT_TYPES = {cls.__struct_config__.tag for cls in ClientFrame.__args__}
HUB_TYPES = {cls.__struct_config__.tag for cls in HubFrame.__args__}


def decode(codec: Codec, literal: dict[str, Any], message: bytes) -> Any:
    [frame] = codec.decode_client(message) if literal["type"] in CLIENT_TYPES else codec.decode_hub(message)
    assert not isinstance(frame, Fault), frame
    return frame


def test_the_document_shows_every_type_of_frame_and_no_other() -> None:
    assert {frame["type"] for frame in FRAMES} == CLIENT_TYPES | HUB_TYPES


def test_each_line_of_the_tables_of_codes_is_what_the_code_has() -> None:
    from headrace.protocol.codes import DONE_ERROR_CODES, ERROR_CODES, CloseCode

    text = DOCUMENT.read_text().split("## 8. Errors and closing")[1].split("## 9.")[0]
    rows = re.findall(r"^\| ([a-z_,; ()\-:'A-Z]+) \| (no|reauth|after|backoff) \|$", text, re.MULTILINE)
    documented = {
        code: retry for codes, retry in rows for code in re.findall(r"[a-z_]+", re.sub(r"\([^)]*\)", "", codes))
    }
    assert documented == ERROR_CODES
    in_done = re.search(r"In `done.error`[^:]*: ([a-z_, ]+)\.", text)
    assert in_done and set(in_done[1].split(", ")) == set(DONE_ERROR_CODES)
    assert {int(code) for code in re.findall(r"\b(4\d\d\d) [a-z]", text)} >= {int(code) for code in CloseCode}


@LITERALS
def test_a_literal_frame_reads_the_same_from_both_encodings(literal: dict[str, Any]) -> None:
    from_json = decode(JSON, literal, json.dumps(literal).encode())
    from_msgpack = decode(MSGPACK, literal, msgpack.packb(literal))
    assert from_json == from_msgpack


@LITERALS
@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
def test_a_literal_frame_comes_back_from_a_round_trip(codec: Codec, literal: dict[str, Any]) -> None:
    frame = decode(codec, literal, json.dumps(literal).encode() if codec is JSON else msgpack.packb(literal))
    message = codec.encode(frame)
    independent = json.loads(message) if codec is JSON else msgpack.unpackb(message)
    # Nothing is invented; what is left out again (a default) decodes to the same frame.
    assert {name: value for name, value in literal.items() if name in independent} == {
        name: value for name, value in independent.items() if name in literal
    }
    assert decode(codec, literal, message) == frame


@LITERALS
def test_the_hot_codec_writes_the_bytes_that_msgpack_writes(literal: dict[str, Any]) -> None:
    assert msgspec.msgpack.encode(literal) == msgpack.packb(literal)
    message = MSGPACK.encode(decode(MSGPACK, literal, msgpack.packb(literal)))
    if literal["type"] == "generate":  # more than 15 fields: written with the longer form of a map's head
        assert message[:1] == b"\xde"
        message = bytes((0x80 | message[2],)) + message[3:]
    assert message == msgpack.packb(msgpack.unpackb(message)), "the same map in the same order is the same bytes"


@LITERALS
def test_both_encodings_say_the_same(literal: dict[str, Any]) -> None:
    frame = decode(JSON, literal, json.dumps(literal).encode())
    assert json.loads(JSON.encode(frame)) == msgpack.unpackb(MSGPACK.encode(frame))


@pytest.mark.parametrize(
    "text",
    ["", "a", "é", "日本語", "👩‍👩‍👧", "\u0000", '"\\\n', "x" * 31, "x" * 32, "x" * 255, "x" * 256, "x" * 70_000],
)
def test_text_of_every_length_form_is_the_same_bytes(text: str) -> None:
    delta = frames.Delta(stream="g_5Zk2mQ9xWb3TnL8r", first=msgspec.UNSET, offset=91, text=text)
    fields = {"type": "delta", "stream": "g_5Zk2mQ9xWb3TnL8r", "offset": 91} | ({"text": text} if text else {})
    assert MSGPACK.encode(delta) == msgpack.packb(fields)
    assert json.loads(JSON.encode(delta)) == fields


@pytest.mark.parametrize("number", [0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**53 - 1])
def test_integers_of_every_length_form_are_the_same_bytes(number: int) -> None:
    fields = {"type": "ack", "stream": "g_x", "offset": number}
    assert MSGPACK.encode(frames.Ack("g_x", number)) == msgpack.packb(fields)
    assert MSGPACK.decode_client(msgpack.packb(fields)) == [frames.Ack("g_x", number)]


def test_a_delta_of_one_entry_is_short() -> None:
    delta = frames.Delta(stream="g_5Zk2mQ9xWb3TnL8r", first=msgspec.UNSET, offset=91, text=" blue")
    assert JSON.encode(delta) == b'{"type":"delta","stream":"g_5Zk2mQ9xWb3TnL8r","offset":91,"text":" blue"}'


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []}, {"messages": [1]}, {"request": ""}, {"request": "x" * 129}, {"id": 1.5}, {"id": "x" * 65},
        {"id": 2**53}, {"model": ""}, {"max_tokens": 0}, {"max_tokens": 1_000_001}, {"temperature": 2.5},
        {"stop": [""]}, {"stop": ["a"] * 17}, {"window": -1}, {"window": 1.5}, {"window": 2**63}, {"pace_ms": -1},
        {"pace_ms": 5001}, {"on_abandon": "stop"}, {"abandon_after_ms": -1}, {"abandon_after_ms": 86_400_001},
        {"on_worker_loss": "retry"}, {"cache": "maybe"}, {"attach": 1},
    ],
    ids=repr,
)  # fmt: skip
def test_a_generate_that_breaks_a_rule_can_be_neither_decoded_nor_constructed(wrong: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"id": 1, "request": "r", "messages": [{"role": "user", "content": "x"}]} | wrong
    [fault] = MSGPACK.decode_client(msgpack.packb({"type": "generate"} | fields))
    assert isinstance(fault, Fault)
    if isinstance(fields["messages"], list) and "messages" not in wrong:
        fields["messages"] = [Message("user", "x")]
    with pytest.raises(msgspec.ValidationError, match=f"in `{next(iter(wrong))}`"):
        Generate(**fields)


@pytest.mark.parametrize(("role", "content"), [("system", "x"), ("user", ""), ("user", 5), ("user", ["x"])])
def test_a_message_that_breaks_a_rule_can_be_neither_decoded_nor_constructed(role: Any, content: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        Message(role, content)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"role": role, "content": content}, Message)


@pytest.mark.parametrize("after", ["later", 57, {"offset": -1}], ids=repr)
def test_an_attach_after_no_cursor_cannot_be_constructed(after: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        Attach(1, "g_x", after)


def test_what_is_valid_can_be_constructed() -> None:
    Generate("id", "r" * 128, [Message("assistant", "x")], window=None, temperature=0.0, metadata={"a": 1})
    Attach(-1, "g_x", Cursor(0, ""), window=0)
    Attach(-1, "g_x", "now", pace_ms=5000)
