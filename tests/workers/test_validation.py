"""Whether a value fits its schema: as jsonschema sees it, in words a person can use, and within a bound."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from headrace.protocol.schema import WrongSchema, check
from hub.patterns import pattern_problem
from workers.validation import Validator


def misfit(schema: dict[str, Any], value: Any) -> str | None:
    check({"properties": {"value": schema}}, pattern_problem)
    return Validator(schema).misfit(value)


# -- as others see it

NAMES = ("a", "b", "c", "ab")
SCALARS = (None, True, False, 0, 1, -1, 3, 0.0, 1.0, 2.5, -0.5, 1e300, "", "a", "b", "ab", "é", "1")
TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
PATTERNS = ("a", "^a", "b$", "^[ab]*$", ".")


def some(chance: random.Random, pool: Sequence[str], least: int = 0, most: int = 2) -> list[str]:
    return chance.sample(pool, chance.randint(least, most))


def value_of(chance: random.Random, depth: int) -> Any:
    kind = chance.random() if depth else 0
    if kind < 0.4:
        return chance.choice(SCALARS)
    if kind < 0.7:
        return [value_of(chance, depth - 1) for _ in range(chance.randint(0, 3))]
    return {name: value_of(chance, depth - 1) for name in some(chance, NAMES, most=3)}


def schema_of(chance: random.Random, depth: int) -> Any:
    """A schema of one to four words, with others in it to this depth."""
    if depth == 0 or chance.random() < 0.1:
        return chance.random() < 0.6
    words: dict[str, Callable[[], Any]] = {
        "type": lambda: chance.choice((chance.choice(TYPES), some(chance, TYPES, 1, 3))),
        "enum": lambda: [value_of(chance, 2) for _ in range(3)],
        "const": lambda: value_of(chance, 1),
        "required": lambda: some(chance, NAMES),
        "dependentRequired": lambda: {name: some(chance, NAMES) for name in some(chance, NAMES)},
        "patternProperties": lambda: {each: schema_of(chance, depth - 1) for each in some(chance, PATTERNS)},
        "uniqueItems": lambda: chance.random() < 0.8,
        "pattern": lambda: chance.choice(PATTERNS),
        "multipleOf": lambda: chance.choice((1, 2, 0.5)),
        "$ref": lambda: chance.choice(("#/$defs/one", "#/$defs/two", "#")),
    }
    for what in ("Properties", "Items", "Length", "Contains"):
        words |= {f"{bound}{what}": lambda: chance.randint(0, 3) for bound in ("min", "max")}
    for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        words[word] = lambda: chance.choice((-1, 0, 1, 2.0, 0.5))
    for word in ("additionalProperties", "propertyNames", "items", "contains", "not", "if", "then", "else"):
        words[word] = lambda: schema_of(chance, depth - 1)
    for word in ("allOf", "anyOf", "oneOf", "prefixItems"):
        words[word] = lambda: [schema_of(chance, depth - 1) for _ in range(chance.randint(1, 3))]
    for word in ("properties", "dependentSchemas"):
        words[word] = lambda: {name: schema_of(chance, depth - 1) for name in some(chance, NAMES, 1)}
    return {word: words[word]() for word in some(chance, list(words), 1, 4)}


def agrees(seed: int) -> bool | None:
    """Whether the value of this seed fits its schema; None if it is no schema to ask for."""
    chance = random.Random(seed)
    schema: Any = {}
    while not isinstance(schema, dict) or not schema:
        schema = schema_of(chance, 3)
    schema["$defs"] = {"one": schema_of(chance, 2), "two": schema_of(chance, 1)}
    value = value_of(chance, 3)
    try:
        check({**schema, "type": "object"}, pattern_problem)
    except WrongSchema as error:
        assert "comes back to itself" in str(error), schema
        return None
    fits = Validator(schema).misfit(value) is None
    assert fits is Draft202012Validator(schema).is_valid(value), (seed, schema, value)
    return fits


def test_a_value_fits_exactly_where_jsonschema_says_so() -> None:
    found = Counter(agrees(seed) for seed in range(1500))
    assert min(found[True], found[False]) > 300, "both are tried"


# -- in words

ITEM = {
    "type": "object",
    "properties": {"price": {"type": "number", "minimum": 0}, "name": {"type": "string", "maxLength": 60}},
    "required": ["price"],
    "additionalProperties": False,
}
ORDER: dict[str, Any] = {"type": "object", "properties": {"items": {"type": "array", "items": ITEM}}}


@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        (ORDER, {"items": [{"price": 1}, {"price": 2.5, "name": "x"}]}, None),
        (ORDER, {"items": [{"price": 1}, {"price": "x"}]}, '$.items[1].price is not a number: "x"'),
        (ORDER, {"items": [{"price": -1}]}, "$.items[0].price is below 0: -1"),
        (ORDER, {"items": [{"name": "x"}]}, '$.items[0] has no "price"'),
        (ORDER, {"items": [{"price": 1, "x": 1}]}, '$.items[0] may not have the property "x"'),
        (ORDER, {"items": [{"price": 1, "name": "n" * 61}]}, "$.items[0].name has 61 characters, it may have 60"),
        (ORDER, [], "$ is not an object"),
        ({"type": ["integer", "null"]}, 1.5, "$ is not a whole number or null: 1.5"),
        ({"type": "boolean"}, 0, "$ is not true or false: 0"),
        ({"type": "string"}, None, "$ is not a string: null"),
        ({"type": "integer"}, "s" * 90, '$ is not a whole number: "' + "s" * 38 + "…"),
        ({"type": "string"}, 10**50, "$ is not a string: 1" + "0" * 39),
        ({"enum": ["a", 1]}, "b", '$ is not one of the values it may have: "b"'),
        ({"const": {"a": 1}}, {"a": 2}, "$ is not the value it must have"),
        ({"minProperties": 1}, {}, "$ has 0 properties, it must have 1 or more"),
        ({"maxItems": 1}, [1, 2], "$ has 2 items, it may have 1"),
        ({"uniqueItems": True}, [{"a": 1}, {"a": 1.0}], "$ has an item twice"),
        ({"contains": {"type": "string"}}, [1], "$ has too few items of the kind it must contain"),
        ({"contains": {}, "maxContains": 1}, [1, 2], "$ has too many items of the kind it must contain"),
        ({"pattern": "^a"}, "b", '$ does not match its pattern: "b"'),
        ({"exclusiveMinimum": 1}, 1, "$ is not above 1: 1"),
        ({"exclusiveMaximum": 1}, 1, "$ is not below 1: 1"),
        ({"maximum": 1}, 2, "$ is above 1: 2"),
        ({"multipleOf": 0.01}, 0.07, None),
        ({"multipleOf": 0.01}, 0.071, "$ is not a multiple of 0.01: 0.071"),
        ({"multipleOf": 0.5}, 10**400, None),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, '$ has "a" and no "b"'),
        ({"propertyNames": {"maxLength": 1}}, {"ab": 1}, '$ may not have the property "ab"'),
        ({"properties": {"a": False}}, {"a": 1}, "$.a is not allowed here"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, 1, "$ is none of what it may be: 1"),
        ({"anyOf": [{"type": "string"}]}, 1, "$ is not a string: 1"),
        ({"anyOf": [{"type": "null"}, ORDER]}, {"items": [1]}, "$.items[0] is not an object: 1"),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, [1], "$ is none of what it may be"),
        ({"oneOf": [{"minimum": 1}, {"minimum": 2}]}, 3, "$ is more than one of what it may be one of"),
        ({"not": {"type": "null"}}, None, "$ is what it may not be"),
        ({"properties": {"if": {"pattern": "é"}}}, {"if": "a\nb"}, r'$.if does not match its pattern: "a\nb"'),
        ({"format": "date", "description": "x"}, "no date", None),
    ],
)  # fmt: skip
def test_a_misfit_says_where_and_why(schema: dict[str, Any], value: Any, said: str | None) -> None:
    assert misfit(schema, value) == said


# -- within a bound


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


DOUBLED: dict[str, Any] = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}


WORDS = [f"name {n}" for n in range(3000)]
TOO_LONG = "$ takes too long to be checked against this schema"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$ref": "#/$defs/d0", "$defs": {**DOUBLED, "d40": {"type": "string"}}}, {}),
        ({"items": {"required": WORDS}}, [dict.fromkeys(WORDS)] * 9),
        ({"items": {"dependentRequired": {WORDS[0]: WORDS}}}, [dict.fromkeys(WORDS)] * 9),
        ({"dependentSchemas": {each: {} for each in WORDS}}, {}),
        ({"items": {"enum": [[n] for n in range(2000)]}}, [1]),
        ({"items": {"const": "x" * 60_000}}, ["x" * 60_000] * 99),
        ({"uniqueItems": True}, [{"a": n} for n in range(9000)]),
        ({"items": {"pattern": "[ab]*a[ab]{300}c"}}, ["ab" * 2000] * 9),
        ({"patternProperties": {"x$": {}}}, dict.fromkeys(WORDS)),
        ({"additionalProperties": {"type": "integer"}}, {each: 1 for each in WORDS}),
        ({"propertyNames": {"maxLength": 99}}, dict.fromkeys(WORDS)),
        ({"items": {"type": "integer"}}, [1] * 9000),
        ({"contains": {"type": "integer"}}, [1] * 9000),
    ],
)
def test_every_check_ends_at_its_steps(schema: dict[str, Any], value: Any) -> None:
    began = time.process_time()
    assert Validator(schema, steps=1000).misfit(value) == TOO_LONG
    assert time.process_time() - began < 2


def test_a_validator_is_as_good_as_new_after_a_check_that_was_too_long() -> None:
    validator = Validator({"items": {"type": "integer"}}, steps=1000)
    for _ in range(3):
        assert validator.misfit([1] * 9000) == TOO_LONG
        assert validator.misfit([1, "x"]) == '$[1] is not a whole number: "x"'


def test_what_is_nested_too_deeply_is_told() -> None:
    assert Validator({"items": {"$ref": "#"}}).misfit(nested(900)) == "$ is nested too deeply to be checked"


def test_an_ordinary_document_takes_a_few_steps_a_value() -> None:
    validator = Validator(ORDER)
    assert validator.misfit({"items": [{"price": n, "name": "x"} for n in range(1000)]}) is None
    assert validator._steps - validator._left < 12_000
