"""The vectors that clients in other languages test against, held against this code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from headrace.protocol.codec import JSON, MSGPACK, Codec
from headrace.protocol.cursor import Cursor, MarkRuns
from headrace.protocol.frames import ErrorFrame, Hello
from headrace.protocol.window import SendWindow
from hub.connection import Close, Connection
from hub.recovery import resume_at
from hub.tail import cut

VECTORS = Path(__file__).parents[1] / "vectors"


def vectors(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((VECTORS / name).read_text())
    assert len({case["name"] for case in loaded}) == len(loaded), "names are unique"
    return loaded


def cases(name: str) -> Any:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in vectors(name)])


def messages(case: dict[str, Any]) -> list[tuple[Codec, bytes]]:
    found = []
    if case["json"] is not None:
        found.append((JSON, case["json"].encode()))
    if case["msgpack"] is not None:
        found.append((MSGPACK, bytes.fromhex(case["msgpack"])))
    return found


def test_every_file_is_read_here() -> None:
    names = {"frames.json", "invalid.json", "cursors.json", "windows.json", "logs.json"}
    assert {path.name for path in VECTORS.glob("*.json")} == names


@cases("frames.json")
def test_a_valid_message_says_the_same_in_both_encodings(case: dict[str, Any]) -> None:
    (json_codec, text), (msgpack_codec, packed) = messages(case)
    assert json.loads(text) == msgpack.unpackb(packed)
    if case["direction"] == "hub":
        decoded = json_codec.decode_hub(text)
        assert decoded == msgpack_codec.decode_hub(packed)
        assert (decoded == []) is case.get("ignored", False)
    else:
        frames = json_codec.decode_client(text)
        assert frames == msgpack_codec.decode_client(packed)
        assert not [frame for frame in frames if type(frame).__name__ == "Fault"]


@cases("invalid.json")
def test_a_wrong_message_gets_its_error_or_its_close(case: dict[str, Any]) -> None:
    assert messages(case)
    for codec, message in messages(case):
        connection = Connection(codec, frames_per_second=400, message_bytes=262_144, now=0.0)
        if not case.get("first"):
            assert list(connection.receive(codec.encode(Hello()), codec.is_text, 0.0)) == [Hello()]
        outcome = list(connection.receive(message, codec.is_text, 0.0))[-1]
        if "close" in case:
            assert isinstance(outcome, Close)
            assert outcome.code == case["close"]
        else:
            assert isinstance(outcome, ErrorFrame)
            assert (outcome.code, outcome.id, outcome.stream) == (case["error"], case.get("id"), case.get("stream"))


@cases("cursors.json")
def test_a_cursor_is_resumed_or_begins_again(case: dict[str, Any]) -> None:
    runs = MarkRuns([(first, mark) for first, mark in case["runs"]])
    after = Cursor(**case["after"]) if case["after"] else None
    resumed, offset = resume_at(after, case["top"], runs)
    assert (resumed, offset, runs.at(offset)) == (case["resumed"], case["offset"], case["mark"])


@cases("windows.json")
def test_a_window_lets_through_what_it_should(case: dict[str, Any]) -> None:
    window = SendWindow(case["window"], case["start"], ahead=0)
    for step in case["steps"]:
        if "send" in step:
            assert (step["send"] <= window.limit) is step["ok"], step
            window.sent = step["send"] if step["ok"] else window.sent
        else:
            assert window.ack(step["ack"], step.get("window", -1)) is step["ok"], step


@cases("logs.json")
def test_a_log_is_cut_into_these_frames(case: dict[str, Any]) -> None:
    runs = MarkRuns([(first, mark) for first, mark in case["runs"]])
    entries = [
        (entry["kind"], entry["text"].encode() if "text" in entry else msgpack.packb(entry["data"]))
        for entry in case["entries"]
    ]
    frames = list(cut("g_5Zk2mQ9xWb3TnL8r", runs, case["first"], entries))
    for codec, unpack in ((JSON, json.loads), (MSGPACK, msgpack.unpackb)):
        assert [unpack(payload(frame.wire(codec))) for frame in frames] == case["frames"]
    # A viewer that starts with the mark of the entry before and obeys `mark` always knows its cursor.
    mark, cursors = runs.at(case["first"] - 1), []
    for frame in case["frames"]:
        mark = frame.get("mark", mark)
        cursors.append({"offset": frame["offset"], "mark": mark})
    assert cursors == case["cursors"]


def payload(wire: bytes) -> bytes:
    """What a final, unmasked WebSocket message carries."""
    size = wire[1]
    head, size = (2, size) if size < 126 else (4, int.from_bytes(wire[2:4])) if size == 126 else (10, -1)
    assert len(wire) == head + size if size >= 0 else wire[2:10] == (len(wire) - 10).to_bytes(8)
    return wire[head:]
