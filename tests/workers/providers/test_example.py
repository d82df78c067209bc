"""What the scripted provider makes up fits the schema, and has an end."""

from __future__ import annotations

import time
from typing import Any

import pytest

from workers.providers.example import NoExample, example
from workers.validation import Validator

RECURSIVE: dict[str, Any] = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["name", "next"],
        }
    },
}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"properties": {"a": {}, "b": True}, "required": ["a", "c"]},
        {"type": ["array", "null"], "items": {"type": "integer", "minimum": 7, "multipleOf": 4}},
        {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": {"const": 5}, "minItems": 3},
        {"type": "array", "maxItems": 0},
        {"properties": {"a": {"enum": ["x"]}, "b": {"default": 3}, "c": {"examples": [[1]]}, "d": {"const": None}}},
        {"properties": {"a": {"type": "string", "minLength": 30}, "b": {"type": "string", "maxLength": 1}}},
        {"properties": {"a": {"type": "string", "format": "date"}, "b": {"type": "string", "format": "unknown"}}},
        {"properties": {"a": {"type": "number", "exclusiveMinimum": 1}}},
        {"properties": {"a": {"type": "number", "exclusiveMaximum": -1}}},
        {"oneOf": [{"type": "object"}, {"type": "array"}], "title": "x"},
        {"anyOf": [True]},
        {
            "allOf": [{"$ref": "#/$defs/a"}, True, {"properties": {"b": {"type": "integer"}}, "required": ["b"]}],
            "$defs": {"a": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}},
        },
        RECURSIVE,
        {"properties": {"a": {"type": "array", "items": {"$ref": "#"}}, "b": {"type": ["object", "null"]}}},
    ],
)  # fmt: skip
def test_what_is_made_up_fits(schema: dict[str, Any]) -> None:
    assert Validator(schema).misfit(example(schema)) is None


def test_what_a_schema_says_of_itself_is_used() -> None:
    assert example(
        {"properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "string"}}}}
    ) == {
        "city": "city",
        "days": ["days 1", "days 2"],
    }


WIDE = {
    f"d{n}": {"properties": {each: {"$ref": f"#/$defs/d{n + 1}"} for each in "ab"}, "required": ["a", "b"]}
    for n in range(30)
}  # fmt: skip


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/d0", "$defs": {**WIDE, "d30": {}}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "minItems": 10**9},
    ],
)
def test_what_would_have_no_end_is_told(schema: dict[str, Any]) -> None:
    began = time.process_time()
    with pytest.raises(NoExample):
        example(schema)
    assert time.process_time() - began < 2
    assert len(example({"properties": {"a": {"type": "string", "minLength": 10**9}}})["a"]) < 100_000
