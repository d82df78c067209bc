"""Documents at the client: snapshots that are true at any moment and cheap in all, and one strict value in the end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

import headrace
from headrace import Done, DoneError, Event, Fold, Reset, Restarted, Text, ToolCall, ToolResult, partial
from headrace.protocol.document import bare
from headrace.structured import schema_of, snapshots, value_of
from tests.clients.model_hub import Log
from tests.clients.test_generation import Scene, entry, frames_of

DOCUMENT = {"title": "The river", "parts": [{"name": "source", "length": 12.5}, {"name": "mouth", "length": 3}]}
TEXT = json.dumps(DOCUMENT)


# -- the schema of a type


@dataclasses.dataclass
class Part:
    name: str
    length: float


class River(msgspec.Struct):
    """Where water goes."""

    title: str
    parts: list[Part]
    mouth: str | None = None


class Node(msgspec.Struct):
    next: Node | None


class Point(TypedDict):
    x: int


class Model(pydantic.BaseModel):
    title: str


def test_a_type_is_described_with_closed_objects_and_itself_at_the_top() -> None:
    part = {
        "title": "Part",
        "type": "object",
        "properties": {"name": {"type": "string"}, "length": {"type": "number"}},
        "required": ["name", "length"],
        "additionalProperties": False,
    }
    assert schema_of(Part) == part
    assert schema_of(River) == {
        "title": "River",
        "description": "Where water goes.",
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}},
            "mouth": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        },
        "required": ["title", "parts"],
        "additionalProperties": False,
        "$defs": {"Part": part},
    }


def test_a_type_that_holds_itself_keeps_its_definition() -> None:
    schema = schema_of(Node)
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    assert {"$ref": "#/$defs/Node"} in schema["properties"]["next"]["anyOf"] and "Node" in schema["$defs"]


def test_other_kinds_of_types_are_described_too() -> None:
    assert schema_of(Point)["properties"] == {"x": {"type": "integer"}}
    assert schema_of(Model)["required"] == ["title"] and schema_of(Model)["additionalProperties"] is False
    assert schema_of(dict) == {"type": "object"}
    with pytest.raises(TypeError):
        schema_of(asyncio.Event)


def test_a_value_is_read_strictly_and_made_into_its_type() -> None:
    assert value_of(TEXT) == DOCUMENT
    assert value_of(TEXT, River).parts[1] == Part("mouth", 3.0)
    assert value_of('{"title": "x"}', Model) == Model(title="x")
    for text, kind in (("{} x", None), ('{"title": 1, "parts": []}', River), ('{"title": 1}', Model)):
        with pytest.raises(ValueError):
            value_of(text, kind)


# -- snapshots


async def told(events: Sequence[Event], fold: Fold) -> AsyncIterator[Event]:
    for event in events:
        fold.add(event)
        yield event


async def shown(*events: Event, before: Sequence[Event] = (), text: str | None = "") -> list[Any]:
    fold = Fold(text)
    for event in before:
        fold.add(event)
    return [value async for value in snapshots(told(events, fold), fold)]


async def test_snapshots_begin_with_what_is_there_and_end_with_the_document() -> None:
    values = await shown(*map(Text, TEXT))
    assert values[0] == {} and values[-1] == DOCUMENT
    assert {"title": "The r"} in values
    assert all(isinstance(value, dict) for value in values)


async def test_the_last_snapshot_is_the_document_also_when_the_last_pieces_made_none() -> None:
    assert (await shown(Text(TEXT[:-1]), Text("}")))[-1] == DOCUMENT
    assert await shown(Text('{"a": 1}')) == [{"a": 1}]


async def test_what_was_taken_before_is_in_the_first_snapshot() -> None:
    assert (await shown(Text(TEXT[40:]), before=[Text(TEXT[:40])]))[0]["title"] == "The river"
    assert (await shown(Text(TEXT[40:]), text=TEXT[:40]))[-1] == DOCUMENT


@pytest.mark.parametrize("event", [Reset("failover"), Restarted(), ToolResult("t1", "42")])
async def test_what_is_void_empties_the_snapshots(event: Event) -> None:
    assert await shown(Text('{"a": 1'), event, Text('{"b": 2}')) == [{"a": 1}, None, {"b": 2}]
    assert await shown(event, Text('{"b": 2}')) == [{"b": 2}]


async def test_the_document_comes_after_the_tools() -> None:
    events = [Text("I look."), ToolCall("t1", "look"), ToolResult("t1", "42")]
    assert await shown(*events, Text('{"b": 2}')) == [{"b": 2}]
    assert await shown(Text('{"b": 2}'), before=events) == [{"b": 2}]
    assert await shown(Text("2}"), before=[*events, Text('{"b": ')]) == [{}, {"b": 2}]


async def test_a_viewer_that_joins_in_the_middle_sees_nothing_false() -> None:
    assert await shown(Text('12, "b": 2}'), text=None) == []
    assert await shown(Text('12, "b": 2}'), Restarted(), Text("[1]"), text=None) == [[1]]


async def test_snapshots_of_what_is_no_document_end_without_an_error() -> None:
    assert await shown(Text("I would rather not.")) == []
    assert await shown(Text('{"a": 1'), Done("truncated", "length", 7, "")) == [{"a": 1}]


async def test_all_snapshots_together_read_some_twelve_times_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever pieces it comes: one reading a piece would be thousands of times."""
    text = json.dumps([{"name": f"item {n}", "text": "more or less the same words" * 2} for n in range(800)])
    read: list[int] = []

    def counted(whole: str) -> str:
        read.append(len(whole))
        return bare(whole)

    monkeypatch.setattr(partial, "bare", counted)
    values = await shown(*(Text(text[at : at + 4]) for at in range(0, len(text), 4)))
    assert values[-1] == json.loads(text)
    assert len(text) > 60_000 and len(read) < 150
    assert sum(read) < 14 * len(text)


# -- a generation


async def test_the_type_that_was_asked_for_is_what_comes() -> None:
    scene = Scene(schema=River).accept()
    assert scene.asked["schema"] == schema_of(River)
    scene.receive(*frames_of(Log.of_text(TEXT[:20], TEXT[20:])))
    assert [value async for value in scene.generation.snapshots()][-1] == DOCUMENT
    river = await scene.generation.value()
    assert river == River("The river", [Part("source", 12.5), Part("mouth", 3.0)])
    assert await scene.generation.value(dict) == DOCUMENT


async def test_without_a_type_the_value_is_data() -> None:
    scene = Scene(schema={"type": "object"}).accept()
    scene.receive(*frames_of(Log.of_text(TEXT)))
    assert await scene.generation.value() == DOCUMENT


def test_an_error_of_the_hub_and_one_of_this_client_read_alike() -> None:
    done = Done("completed", "stop", 1, "")
    theirs = msgspec.structs.replace(done, status="failed", error=DoneError("invalid_output", "$ has no “a”", "now"))
    for error in (headrace.InvalidOutput(theirs, "g_1", "x"), headrace.InvalidOutput(done, "g_1", "x", "$ has no “a”")):
        assert str(error) == "invalid_output: $ has no “a”"
        assert (error.code, error.retry, error.text, error.stream) == ("invalid_output", "now", "x", "g_1")


async def test_an_answer_that_its_worker_found_invalid_raises_with_its_text() -> None:
    scene = Scene(schema=River).accept()
    log = Log()
    log.add("text", {"text": "{}"})
    error = {"code": "invalid_output", "message": "the answer does not fit the schema", "retry": "now"}
    log.finish("failed", error=error)
    scene.receive(*frames_of(log))
    with pytest.raises(headrace.InvalidOutput, match="does not fit") as raised:
        await scene.generation.value()
    assert raised.value.text == "{}"


async def test_a_viewer_without_the_beginning_has_no_value() -> None:
    scene = Scene().accept()
    generation = scene.shell.client.attach("g_2", after="now")
    asked = scene.shell.sent()[-1]
    scene.receive({
        "type": "attached", "id": asked["id"], "stream": "g_2", "resumed": True, "offset": 3, "mark": "m", "top": 3,
        "state": "running", "window": 256,
    })  # fmt: skip
    end = entry(4, "done", status="completed", stop_reason="stop", text_bytes=9, text_sha256="0") | {"stream": "g_2"}
    scene.receive(end)
    with pytest.raises(headrace.InvalidOutput, match="joined in the middle"):
        await generation.value()
