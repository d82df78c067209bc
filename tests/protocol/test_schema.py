"""Which schemas are taken: what jsonschema takes for one, within bounds, and nothing that reaches beyond it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from headrace.protocol import schema as bounds
from headrace.protocol.schema import KEYWORDS, WrongSchema, check, resolve, where
from hub.patterns import pattern_problem


def wrong(schema: dict[str, Any]) -> str:
    with pytest.raises(WrongSchema) as raised:
        check(schema, pattern_problem)
    return str(raised.value)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "array"},
        {"type": ["object", "null"]},
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$id": "https://example.org/x",
            "definitions": {"a": True},
        },
        {
            "$ref": "#/$defs/node",
            "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
        },
        {"properties": {"a": {"$ref": "#"}, "b": False, "c": {"minLength": 1.0}}},
        {"properties": {"a/b": {"$ref": "#/properties/c~0d"}, "c~d": {"$ref": "#/prefixItems/0"}}, "prefixItems": [{}]},
        {"properties": {"a": {"$ref": "#/elsewhere/x%20y"}}, "elsewhere": {"x y": {"type": "string"}}},
        {"title": "t", "unknown": {"type": "nonsense"}, "default": {"type": 5}, "discriminator": {"propertyName": "x"}},
        {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"properties": {"x": {"$ref": "#"}}}}},
        {"$ref": "#/$defs/a", "$defs": {"a": True}},
        nested(bounds.SCHEMA_DEPTH),
        {"pattern": "^a+$", "patternProperties": {"^a+$": {"pattern": "^a+$"}}},
    ],
)
def test_a_schema_is_taken(schema: dict[str, Any]) -> None:
    check(schema, pattern_problem)
    Draft202012Validator.check_schema({word: value for word, value in schema.items() if word != "$schema"})


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "strin"}, "$.type must be one of array, boolean, integer, null, number, object, string, or a list"),
        ({"type": []}, "$.type must be one of"),
        ({"type": [5]}, "$.type must be one of"),
        ({"type": ["array", "array"]}, "$.type must be one of"),
        ({"type": "string"}, "$.type must be object or array at the top: put anything else into a property"),
        ({"type": ["string", "null"]}, "$.type must be object or array"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}, "$.type must be object or array"),
        ({"properties": []}, "$.properties must be an object of schemas"),
        ({"properties": {"a": 5}}, "$.properties.a must be a schema: an object, true or false"),
        ({"items": [{}]}, "$.items must be a schema: an object, true or false"),
        ({"allOf": []}, "$.allOf must be a list of schemas, not an empty one"),
        ({"prefixItems": [{}, {"not": 1}]}, "$.prefixItems[1].not must be a schema"),
        ({"required": "a"}, "$.required must be a list of strings, each once"),
        ({"required": ["a", "a"]}, "$.required must be a list of strings, each once"),
        ({"dependentRequired": {"a": "b"}}, "$.dependentRequired must be an object of lists of strings"),
        ({"minLength": -1}, "$.minLength must be a whole number from 0"),
        ({"minLength": 1.5}, "$.minLength must be a whole number from 0"),
        ({"maxItems": float("inf")}, "$.maxItems must be a whole number from 0"),
        ({"maxItems": True}, "$.maxItems must be a whole number from 0"),
        ({"minimum": "1"}, "$.minimum must be a number"),
        ({"multipleOf": 0}, "$.multipleOf must be above 0"),
        ({"pattern": 1}, "$.pattern must be a string"),
        ({"uniqueItems": "yes"}, "$.uniqueItems must be true or false"),
        ({"enum": "a"}, "$.enum must be a list"),
        ({"properties": {"a": {"pattern": "(?=a)"}}}, "$.properties.a.pattern is no pattern that can be run in linear"),
        ({"pattern": "(a{999}){999}"}, "$.pattern is too large: write smaller repetitions"),
        ({"patternProperties": {"[": {}}}, "$.patternProperties.[ is no pattern"),
        ({"allOf": [{"pattern": f"{letter}{{1800}}"} for letter in "abc"]}, "$.allOf[0].pattern is too much"),
        ({"$ref": "https://example.org/x"}, "$.$ref must begin with #: nothing is fetched"),
        ({"$ref": "other.json#/a"}, "$.$ref must begin with #: nothing is fetched"),
        ({"$ref": "#/nowhere"}, "$.$ref points to nothing"),
        ({"$ref": "#name"}, "$.$ref points to nothing"),
        ({"$ref": "#/required/x", "required": ["a"]}, "$.$ref points to nothing"),
        ({"$ref": "#/required/9", "required": ["a"]}, "$.$ref points to nothing"),
        ({"$ref": "#/title/x", "title": "t"}, "$.$ref points to nothing"),
        ({"properties": {"a": {"$ref": "#/required"}}, "required": ["a"]}, "$.required must be a schema"),
        ({"$dynamicRef": "#x"}, "$.$dynamicRef is not taken: write `$ref` as a path"),
        ({"unevaluatedProperties": False}, "$.unevaluatedProperties is not taken: write `additionalProperties`"),
        ({"properties": {"a": {"$id": "x"}}}, "$.properties.a.$id is not taken: there is one document"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "$.$schema must be https://json-schema.org/draft/2020"),
        ({"$schema": 5}, "$.$schema must be"),
        ({"$ref": "#"}, "$ comes back to itself without an end"),
        ({"anyOf": [{"not": {"$ref": "#"}}]}, "$ comes back to itself without an end"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"if": {"$ref": "#/$defs/a"}}}}, "$.$defs.a comes back to itself"),
        (nested(bounds.SCHEMA_DEPTH + 1), "$" + ".items" * 32 + " lies deeper than 32 schemas in each other"),
        ({"anyOf": [{} for _ in range(bounds.SCHEMA_COUNT)]}, "$ has more than 2000 schemas in it"),
        ({"title": "x" * bounds.SCHEMA_BYTES}, "$ has 65548 bytes, the limit is 65536"),
        (nested(10_000), "$ is nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_no_schema_is_told(schema: dict[str, Any], said: str) -> None:
    assert wrong(schema).startswith(said)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.5, 1.0, "a", "object", "string", "#", "#/$defs/a"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*KEYWORDS, "type", "a"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from([*KEYWORDS, "type", "a"]), ANYTHING, max_size=4))
def test_nothing_is_taken_that_is_no_schema_to_others(schema: dict[str, Any]) -> None:
    try:
        check(schema, pattern_problem)
    except WrongSchema:
        return
    Draft202012Validator.check_schema(schema)


def test_the_largest_schemas_are_checked_in_no_time() -> None:
    wide: dict[str, Any] = {"properties": {f"property {n}": {"type": "string"} for n in range(1500)}}
    chain = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(900)}
    long: dict[str, Any] = {"$ref": "#/$defs/d0", "$defs": {**chain, "d900": {}}}
    heavy = {"allOf": [{"pattern": rf"\p{{L}}{{9}}{n}x"} for n in range(4)]}
    for schema in (wide, long, heavy):
        began = time.process_time()
        check(schema, pattern_problem)
        assert time.process_time() - began < 0.5


def test_a_place_is_written_as_a_path_and_cut_when_it_is_long() -> None:
    assert where(()) == "$"
    assert where(("items", 2, "price")) == "$.items[2].price"
    assert len(where(("x" * 500,))) == 200


def test_a_reference_is_followed_through_lists_and_escapes() -> None:
    assert resolve({"a": [{"b/c": 1}]}, "#/a/0/b~1c") == 1
