"""A value that fits a schema, made up: what the scripted provider answers when a document is wanted. Pure.

Enough for the schemas that people write; one with patterns or conditions may get a value that does not fit.
"""

from __future__ import annotations

from typing import Any, Final

from headrace.protocol.schema import resolve

#: Parts of a value, and characters of a string.
VALUES: Final = 10_000
#: Below this, objects and arrays get as little as they allow.
_DEEP: Final = 2
_FORMATS: Final = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "duration": "P1D",
    "email": "river@example.org",
    "hostname": "example.org",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "time": "12:00:00Z",
    "uri": "https://example.org/",
    "uuid": "6f1c9a52-0d3e-4b57-9a3c-2f8e1d7b4c60",
}


class NoExample(ValueError):
    """Nothing small enough fits."""


def example(schema: dict[str, Any] | bool) -> Any:
    """What `schema`, checked, might describe. Raises NoExample."""
    try:
        return _Maker(schema if isinstance(schema, dict) else {}).make(schema, 0, "text")
    except RecursionError:
        raise NoExample("a value that fits this schema has no end") from None


class _Maker:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._left = VALUES

    def make(self, schema: Any, depth: int, name: str) -> Any:
        self._left -= 1
        if self._left < 0:
            raise NoExample(f"a value that fits this schema has more than {VALUES} parts")
        if not isinstance(schema, dict):
            return name
        for word in ("const", "default"):
            if word in schema:
                return schema[word]
        for word in ("examples", "enum"):
            if schema.get(word):
                return schema[word][0]
        if "$ref" in schema:
            return self.make(resolve(self._root, schema["$ref"]), depth, name)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                rest = {key: value for key, value in schema.items() if key != word}
                chosen = schema[word][-1 if depth > _DEEP else 0]  # the last one is null as a rule
                return self.make({**rest, **chosen} if isinstance(chosen, dict) else rest, depth, name)
        if "allOf" in schema:
            return self.make(self._together(schema), depth, name)
        return self._by_type(schema, depth, name)

    def _by_type(self, schema: dict[str, Any], depth: int, name: str) -> Any:
        kind = schema.get("type", "object" if "properties" in schema or not depth else "string")
        if isinstance(kind, list):
            kind = "null" if depth > _DEEP and "null" in kind else kind[0]
        if kind == "object":
            named, required = schema.get("properties", {}), schema.get("required", [])
            names = dict.fromkeys([*(each for each in named if depth <= _DEEP or each in required), *required])
            return {each: self.make(named.get(each, True), depth + 1, each) for each in names}
        if kind == "array":
            return self._array(schema, depth, name)
        if kind == "string":
            text = _FORMATS.get(schema.get("format", ""), name)
            return text.ljust(min(schema.get("minLength", 0), VALUES), ".")[: schema.get("maxLength", VALUES)]
        if kind in ("integer", "number"):
            return _number(schema)
        return None if kind == "null" else True

    def _array(self, schema: dict[str, Any], depth: int, name: str) -> list[Any]:
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        wanted = 0 if depth > _DEEP else min(2, schema.get("maxItems", 2))
        made: list[Any] = []
        while len(made) < max(schema.get("minItems", 0), len(first), wanted):
            item = first[len(made)] if len(made) < len(first) else rest
            made.append(self.make(item, depth + 1, f"{name} {len(made) + 1}"))
        return made

    def _together(self, schema: dict[str, Any]) -> dict[str, Any]:
        """`allOf` as one schema, as far as objects go."""
        merged = {word: value for word, value in schema.items() if word != "allOf"}
        for each in schema["allOf"]:
            part = resolve(self._root, each["$ref"]) if isinstance(each, dict) and "$ref" in each else each
            if isinstance(part, dict):
                properties = {**merged.get("properties", {}), **part.get("properties", {})}
                required = [*merged.get("required", []), *part.get("required", [])]
                merged = {**merged, **part, "properties": properties, "required": required}
        return merged


def _number(schema: dict[str, Any]) -> Any:
    step = schema.get("multipleOf", 1)
    low = schema.get("minimum", schema.get("exclusiveMinimum", step) + ("exclusiveMinimum" in schema))
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 1) - ("exclusiveMaximum" in schema))
    return -(-min(low, high) // step) * step
