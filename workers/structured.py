"""How a model is asked for an answer by a schema: in its provider's own way where that holds it, else in words. Pure.

Whatever a provider promises, the answer is checked against the whole schema at its end (`workers.judging`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from headrace.protocol.body import Body
from headrace.protocol.schema import inner, resolve

#: OpenAI wants a name for every schema.
NAME: Final = "answer"
_INSTRUCTION: Final = (
    "Answer with one JSON document and nothing else: no word before or after it, no code fence around it. It must be "
    "valid by this JSON Schema:\n\n"
)

_STRICT_WORDS: Final = frozenset(
    {
        *("type", "enum", "const", "anyOf", "$ref", "$defs", "definitions", "title", "description"),
        *("properties", "required", "additionalProperties", "items", "minItems", "maxItems"),
        *("pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }
)
_STRICT_FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
)
#: OpenAI's bounds on a strict schema.
_STRICT_DEPTH: Final = 10
_STRICT_VALUES: Final = 1000
#: Of the document, not of the value.
_ABOUT: Final = ("$schema", "$id")

_ANTHROPIC_FORMATS: Final = _STRICT_FORMATS | {"uri"}
#: Words that Anthropic's API does not take and a description can carry.
_TOLD: Final = frozenset(
    {
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"),
        *("minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "pattern", "format", "default"),
    }
)
_SHAPES: Final = frozenset(
    {
        *("type", "enum", "const", "anyOf", "oneOf", "properties", "required", "additionalProperties", "items"),
        *("$defs", "definitions"),
    }
)
_PASSED_OVER: Final = frozenset({*_ABOUT, "$comment", "examples", "readOnly", "writeOnly", "deprecated"})


class _CannotHold(Exception):
    """The provider's own way cannot hold this schema."""


def prompted(body: Body) -> Body:
    """`body` with the schema put into words."""
    if body.schema is None:
        return body
    words = _INSTRUCTION + msgspec.json.encode(body.schema).decode()
    system = f"{body.system}\n\n{words}" if body.system else words
    return msgspec.structs.replace(body, system=system, schema=None)


# -- OpenAI's chat completions and responses


def openai_format(schema: dict[str, Any]) -> dict[str, Any] | None:
    """`name`, `schema` and `strict` as OpenAI's `json_schema` wants them; None if it must be put into words.

    `strict` where the schema keeps OpenAI's rules for it, so that the model cannot break it. Any other object with
    properties is sent all the same, and the model does its best.
    """
    if schema.get("type") != "object" or not schema.get("properties"):
        return None
    told = {"name": NAME, "schema": {word: value for word, value in schema.items() if word not in _ABOUT}}
    return {**told, "strict": True} if is_strict(schema) else told


def is_strict(schema: dict[str, Any]) -> bool:
    """Whether OpenAI's strict mode takes this schema: closed objects, every property required, few keywords."""
    values = 0
    for each, depth in _all({word: value for word, value in schema.items() if word not in _ABOUT}):
        if not isinstance(each, dict) or depth > _STRICT_DEPTH or not each.keys() <= _STRICT_WORDS:
            return False
        if not each.keys() & {"$ref", "type", "enum", "const", "anyOf"}:
            return False
        if each.get("format", "date") not in _STRICT_FORMATS or ("anyOf" in each and depth == 0 and "type" in each):
            return False
        types = each.get("type", [])
        if "object" in types and not _is_whole(each):
            return False
        if "array" in types and "items" not in each:
            return False
        values += len(each.get("enum", ()))
    return values <= _STRICT_VALUES


def _is_whole(schema: dict[str, Any]) -> bool:
    is_closed = schema.get("additionalProperties") is False
    return is_closed and set(schema.get("required", ())) == schema.get("properties", {}).keys()


def _all(schema: Any, depth: int = 0) -> Iterator[tuple[Any, int]]:
    """Every schema in `schema`, itself included, with how many objects and arrays it lies in."""
    yield schema, depth  # whoever gets `true` or `false` goes no further
    for word in ("$defs", "definitions"):
        for each in schema.get(word, {}).values():
            yield from _all(each, depth)
    for each in schema.get("properties", {}).values():
        yield from _all(each, depth + 1)
    if "items" in schema:
        yield from _all(schema["items"], depth + 1)
    for each in schema.get("anyOf", ()):
        yield from _all(each, depth)


# -- Anthropic's messages


def anthropic_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """`schema` in the words that Anthropic's API takes; None if it must be put into words.

    Objects are closed, since it takes no others. Bounds that it does not know stand in descriptions: the model reads
    them, and the check at the end sees to them.
    """
    try:
        return None if _is_recursive(schema) else _for_anthropic(schema)
    except (_CannotHold, RecursionError):
        return None


def _for_anthropic(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise _CannotHold
    words: dict[str, Any] = {word: _by_name(schema[word]) for word in ("$defs", "definitions") if word in schema}
    if "$ref" in schema:
        return {**words, "$ref": schema["$ref"]}
    words |= _shape(schema)
    told = {}
    for word, value in schema.items():
        if _is_known(word, value):
            words[word] = value
        elif word in _TOLD:
            told[word] = value
        elif word not in _SHAPES and word not in _PASSED_OVER:
            raise _CannotHold
    if told:
        bounds = msgspec.json.encode(told).decode()
        words["description"] = f"{words['description']}\n\n{bounds}" if "description" in words else bounds
    return words


def _is_known(word: str, value: Any) -> bool:
    if word == "format":
        return value in _ANTHROPIC_FORMATS
    return word in ("title", "description") or (word == "minItems" and value in (0, 1))


def _shape(schema: dict[str, Any]) -> dict[str, Any]:
    """What kind of value it is: the words that the API holds a model to."""
    kind = schema.get("type")
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        if not values or any(isinstance(value, dict | list) for value in values):
            raise _CannotHold
        return {word: schema[word] for word in ("enum", "const") if word in schema}
    alternatives = schema.get("anyOf", schema.get("oneOf"))
    if alternatives is not None or isinstance(kind, list):
        if schema.keys() & {"properties", "items"} or (alternatives is not None and kind is not None):
            raise _CannotHold  # they would have to hold together
        return {"anyOf": [_for_anthropic(each) for each in alternatives or [{"type": name} for name in kind or ()]]}
    if kind == "object":
        properties = schema.get("properties", {})
        is_open = isinstance(schema.get("additionalProperties"), dict) or not properties
        if is_open or not set(schema.get("required", ())) <= properties.keys():
            raise _CannotHold  # closed, it would be another
        named = {"properties": _by_name(properties), "required": schema.get("required", [])}
        return {"type": kind, **named, "additionalProperties": False}
    if kind == "array":
        return {"type": kind, "items": _for_anthropic(schema.get("items"))}
    if kind is None:
        raise _CannotHold
    return {"type": kind}


def _by_name(schemas: dict[str, Any]) -> dict[str, Any]:
    return {name: _for_anthropic(each) for name, each in schemas.items()}


def _is_recursive(root: dict[str, Any]) -> bool:
    """Whether a schema holds itself, however far down. Raises RecursionError if that is very far."""
    open_: set[int] = set()
    done: set[int] = set()

    def comes_back(schema: Any) -> bool:
        if not isinstance(schema, dict) or id(schema) in done:
            return False
        if id(schema) in open_:
            return True
        open_.add(id(schema))
        following = [each for _, each in inner(schema)]
        if "$ref" in schema:
            following.append(resolve(root, schema["$ref"]))
        found = any(comes_back(each) for each in following)
        open_.discard(id(schema))
        done.add(id(schema))
        return found

    return comes_back(root)
