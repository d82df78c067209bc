"""How models are asked by a schema: never in a way that their provider refuses, and never for something else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from workers.structured import anthropic_schema, is_strict, openai_format, prompted

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "born": {"type": "integer"}},
    "required": ["name", "born"],
    "additionalProperties": False,
}


def changed(**words: Any) -> dict[str, Any]:
    return {word: value for word, value in {**PERSON, **words}.items() if value is not None}


def with_name(**words: Any) -> dict[str, Any]:
    """PERSON, whose name is described so."""
    return changed(properties={**PERSON["properties"], "name": words})


# -- in words


@pytest.mark.parametrize(
    ("system", "start"), [("Be brief.", "Be brief.\n\nAnswer with one"), (None, "Answer with one")]
)
def test_the_schema_is_put_into_words_behind_the_system_text(system: str | None, start: str) -> None:
    body = prompted(Body([Message("user", "Who?")], system, schema=PERSON))
    assert body.schema is None and body.system is not None and body.system.startswith(start)
    assert msgspec.json.decode(body.system[body.system.index("{") :]) == PERSON


def test_a_request_without_a_schema_stays_as_it_is() -> None:
    body = Body([Message("user", "Who?")])
    assert prompted(body) is body


# -- OpenAI


def test_a_closed_schema_is_sent_as_strict_and_without_what_is_about_the_document() -> None:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "x", **PERSON}
    assert openai_format(schema) == {"name": "answer", "schema": PERSON, "strict": True}


def test_any_other_object_is_sent_and_is_not_strict() -> None:
    schema = changed(additionalProperties=None)
    assert openai_format(schema) == {"name": "answer", "schema": schema}


@pytest.mark.parametrize(
    "schema", [{}, {"type": "object"}, {"type": "array", "items": PERSON}, {"anyOf": [PERSON]}, {"$ref": "#/$defs/a"}]
)
def test_what_is_no_object_with_properties_goes_into_words(schema: dict[str, Any]) -> None:
    assert openai_format(schema) is None


@pytest.mark.parametrize(
    "schema",
    [
        with_name(type=["string", "null"], pattern="^a", format="email"),
        with_name(type="array", items={"$ref": "#/$defs/x"}, minItems=2) | {"$defs": {"x": {"enum": ["a"]}}},
        with_name(anyOf=[{"type": "null"}, {"$ref": "#"}]),
        with_name(const="a", title="t", description="d"),
        with_name(**PERSON),
        changed(properties={}, required=[]),
    ],
)
def test_these_are_strict(schema: dict[str, Any]) -> None:
    assert is_strict(schema)


def deep(levels: int) -> dict[str, Any]:
    schema = PERSON
    for _ in range(levels):
        schema = with_name(**schema)
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        changed(additionalProperties=None),
        changed(additionalProperties={"type": "string"}),
        changed(required=["name"]),
        changed(anyOf=[{}]),
        changed(anyOf=[{"type": "object"}]),
        changed(oneOf=[PERSON]),
        changed(maxProperties=3),
        with_name(),
        with_name(type="string", minLength=1),
        with_name(type="string", format="uri-template"),
        with_name(type="array"),
        with_name(type=["object", "null"]),
        with_name(enum=[f"value {n}" for n in range(1001)]),
        changed(properties={"name": True, "born": {}}),
        changed(**{"$defs": {"x": {"allOf": [{}]}}}),
        deep(10),
    ],
)
def test_these_are_not(schema: dict[str, Any]) -> None:
    assert not is_strict(schema)


# -- Anthropic


@pytest.mark.parametrize(
    ("schema", "sent"),
    [
        (PERSON, PERSON),
        ({"$schema": "x", "$comment": "y", **changed(additionalProperties=None)}, PERSON),
        (changed(additionalProperties=True, required=None), changed(required=[])),
        (
            with_name(type="string", minLength=1, description="Whole name."),
            with_name(type="string", description='Whole name.\n\n{"minLength":1}'),
        ),
        (with_name(type="string", default="x"), with_name(type="string", description='{"default":"x"}')),
        (with_name(type="string", format="date"), with_name(type="string", format="date")),
        (with_name(type="string", format="regex"), with_name(type="string", description='{"format":"regex"}')),
        (with_name(type="string", enum=["a", None]), with_name(enum=["a", None])),
        (with_name(const=1, title="t"), with_name(const=1, title="t")),
        (with_name(type=["string", "null"]), with_name(anyOf=[{"type": "string"}, {"type": "null"}])),
        (
            with_name(oneOf=[{"type": "string"}, PERSON]),
            with_name(anyOf=[{"type": "string"}, PERSON]),
        ),
        (
            with_name(type="array", items={"type": "null"}, minItems=1),
            with_name(type="array", items={"type": "null"}, minItems=1),
        ),
        (
            with_name(type="array", items={"type": "null"}, minItems=2),
            with_name(type="array", items={"type": "null"}, description='{"minItems":2}'),
        ),
        (
            {"$ref": "#/$defs/p", "description": "x", "$defs": {"p": changed(additionalProperties=None)}},
            {"$ref": "#/$defs/p", "$defs": {"p": PERSON}},
        ),
        (
            with_name(**{"$ref": "#/definitions/n"}) | {"definitions": {"n": {"type": "string", "maxLength": 9}}},
            with_name(**{"$ref": "#/definitions/n"})
            | {"definitions": {"n": {"type": "string", "description": '{"maxLength":9}'}}},
        ),
    ],
)
def test_a_schema_in_the_words_that_anthropic_takes(schema: dict[str, Any], sent: dict[str, Any]) -> None:
    assert anthropic_schema(schema) == sent


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        changed(additionalProperties={"type": "string"}),
        changed(required=["name", "other"]),
        changed(patternProperties={"a": {}}),
        changed(allOf=[{"type": "object"}]),
        changed(**{"if": {}}),
        with_name(enum=[{"a": 1}]),
        with_name(enum=[]),
        with_name(const=[1]),
        with_name(type="array"),
        with_name(type=["array", "null"], items={"type": "null"}),
        with_name(type="string", anyOf=[{"type": "null"}]),
        with_name(anyOf=[True]),
        with_name(description="anything"),
        with_name(**{"$ref": "#"}),
        {"$ref": "#/$defs/p", "$defs": {"p": with_name(**{"$ref": "#/$defs/p"})}},
        {"type": "object", "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(1500)} | {"d1500": {}}},
    ],
)
def test_these_go_into_words(schema: dict[str, Any]) -> None:
    assert anthropic_schema(schema) is None
