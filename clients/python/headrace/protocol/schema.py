"""Which JSON Schemas a request may bring, and what is wrong with one (docs/protocol.md §3). Pure.

JSON Schema 2020-12 without what reaches beyond the document (`$id` inside, `$anchor`, `$dynamicRef`, any `$ref` that
is not `#…`) and without `unevaluated…`. A schema within these bounds is checked in a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal
from urllib.parse import unquote

import msgspec

from headrace.protocol.pattern import WrongPattern, prepare

#: Size of a schema as compact JSON, in bytes …
SCHEMA_BYTES: Final = 64 * 1024
#: … how deep schemas lie in each other, and how many there are …
SCHEMA_DEPTH: Final = 32
SCHEMA_COUNT: Final = 2000
#: … and what all its patterns together weigh (see `pattern.prepare`).
PATTERNS_WEIGHT: Final = 4000

TYPES: Final = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
#: Versions whose words are understood; the keywords of 2020-12 are what counts.
_VERSIONS: Final = ("https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema")

Kind = Literal["schema", "schemas", "map", "strings", "map of strings", "count", "number", "text", "flag", "list"]

#: What each keyword holds.
KEYWORDS: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(
        ["additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"], "schema"
    ),
    **dict.fromkeys(["allOf", "anyOf", "oneOf", "prefixItems"], "schemas"),
    **dict.fromkeys(["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"], "map"),
    "required": "strings",
    "dependentRequired": "map of strings",
    **dict.fromkeys(
        [
            *("maxContains", "maxItems", "maxLength", "maxProperties"),
            *("minContains", "minItems", "minLength", "minProperties"),
        ],
        "count",
    ),
    **dict.fromkeys(["exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"], "number"),
    **dict.fromkeys(["$comment", "$ref", "description", "format", "pattern", "title"], "text"),
    **dict.fromkeys(["deprecated", "readOnly", "uniqueItems", "writeOnly"], "flag"),
    **dict.fromkeys(["enum", "examples"], "list"),
}
#: Keywords of JSON Schema that are not taken, each with what to do instead.
_REFUSED: Final = {
    "$anchor": "write `$ref` as a path, as in #/$defs/name",
    "$dynamicAnchor": "write `$ref` as a path, as in #/$defs/name",
    "$dynamicRef": "write `$ref` as a path, as in #/$defs/name",
    "$recursiveRef": "write `$ref` as a path, as in #/$defs/name",
    "unevaluatedItems": "write `items`",
    "unevaluatedProperties": "write `additionalProperties`",
}
_SAYS: Final[Mapping[Kind, str]] = {
    "schema": "must be a schema: an object, true or false",
    "schemas": "must be a list of schemas, not an empty one",
    "map": "must be an object of schemas",
    "strings": "must be a list of strings, each once",
    "map of strings": "must be an object of lists of strings",
    "count": "must be a whole number from 0",
    "number": "must be a number",
    "text": "must be a string",
    "flag": "must be true or false",
    "list": "must be a list",
}
#: Schemas that hold for the same value as the one they stand in.
_IN_PLACE: Final = ("allOf", "anyOf", "oneOf", "dependentSchemas", "not", "if", "then", "else")

Schema = dict[str, Any] | bool
Path = tuple[str | int, ...]


class WrongSchema(ValueError):
    """What cannot be asked for. The text says where in the schema, and why."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{where(path)} {why}")


def where(path: Path) -> str:
    """`$.items[2].price`, at most 200 characters of it."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    text = "$" + "".join(steps)
    return text if len(text) <= 200 else text[:199] + "…"


def check(schema: dict[str, Any], can_run: Callable[[str], str | None]) -> None:
    """Raises WrongSchema. `can_run` says what is wrong with a prepared pattern, None if nothing is."""
    try:
        size = len(msgspec.json.encode(schema))
    except (RecursionError, msgspec.MsgspecError):
        raise WrongSchema((), "is nested too deeply") from None
    if size > SCHEMA_BYTES:
        raise WrongSchema((), f"has {size} bytes, the limit is {SCHEMA_BYTES}")
    _Check(schema, can_run).run()


def resolve(root: dict[str, Any], ref: str) -> Any:
    """What a `$ref` of the form `#…` points to. Raises LookupError."""
    found: Any = root
    for step in unquote(ref[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        found = found[int(step)] if isinstance(found, list) and step.isdecimal() else _member(found, step)
    if ref[1:2] not in ("", "/"):
        raise LookupError
    return found


def _member(found: Any, step: str) -> Any:
    if not isinstance(found, dict):
        raise LookupError
    return found[step]


class _Check:
    def __init__(self, root: dict[str, Any], can_run: Callable[[str], str | None]) -> None:
        self._root = root
        self._can_run = can_run
        self._paths: dict[int, Path] = {}  # of every schema, by its identity
        self._schemas: list[dict[str, Any]] = []
        self._weights: dict[str, int] = {}

    def run(self) -> None:
        waiting: list[tuple[Any, Path, int]] = [(self._root, (), 1)]
        while waiting:
            schema, path, depth = waiting.pop()
            if isinstance(schema, bool) or id(schema) in self._paths:
                continue
            if not isinstance(schema, dict):
                raise WrongSchema(path, _SAYS["schema"])
            if depth > SCHEMA_DEPTH:
                raise WrongSchema(path, f"lies deeper than {SCHEMA_DEPTH} schemas in each other")
            self._paths[id(schema)] = path
            self._schemas.append(schema)
            if len(self._schemas) > SCHEMA_COUNT:
                raise WrongSchema((), f"has more than {SCHEMA_COUNT} schemas in it")
            self._check_words(schema, path)
            waiting += [(each, (*path, *steps), depth + 1) for steps, each in inner(schema)]
            if "$ref" in schema:  # what it points to is a schema wherever it stands
                ref = schema["$ref"]
                waiting.append((self._target(ref, path), tuple(unquote(ref).split("/")[1:]), 1))
        self._check_circles()
        self._check_root()

    def _check_root(self) -> None:
        version = self._root.get("$schema")
        if version is not None and not (isinstance(version, str) and version.rstrip("#") in _VERSIONS):
            raise WrongSchema(("$schema",), f"must be {_VERSIONS[0]}")
        root: Any = self._root
        while isinstance(root, dict) and "type" not in root and "$ref" in root:  # it ends: there are no circles
            root = resolve(self._root, root["$ref"])
        types = root.get("type", "object") if isinstance(root, dict) else "object"
        if not {"object", "array"} & set(types if isinstance(types, list) else [types]):
            raise WrongSchema(("type",), "must be object or array at the top: put anything else into a property")

    def _check_words(self, schema: dict[str, Any], path: Path) -> None:
        for word, value in schema.items():
            kind = KEYWORDS.get(word)
            if kind is not None and not _IS[kind](value):
                raise WrongSchema((*path, word), _SAYS[kind])
            if word in _REFUSED:
                raise WrongSchema((*path, word), f"is not taken: {_REFUSED[word]}")
            if word == "type":
                _check_type(value, path)
            elif word == "multipleOf" and value <= 0:
                raise WrongSchema((*path, word), "must be above 0")
            elif word == "pattern":
                self._check_pattern(value, (*path, word))
            elif word == "patternProperties":
                for pattern in value:
                    self._check_pattern(pattern, (*path, word, pattern))
            elif word == "$id" and path:
                raise WrongSchema((*path, word), "is not taken: there is one document")

    def _target(self, ref: str, path: Path) -> Any:
        if not ref.startswith("#"):
            raise WrongSchema((*path, "$ref"), "must begin with #: nothing is fetched")
        try:
            return resolve(self._root, ref)
        except LookupError:
            raise WrongSchema((*path, "$ref"), "points to nothing") from None

    def _check_pattern(self, pattern: str, path: Path) -> None:
        try:
            ready = prepare(pattern)
        except WrongPattern as error:
            raise WrongSchema(path, str(error)) from None
        if pattern not in self._weights:
            self._weights[pattern] = ready.weight
            if sum(self._weights.values()) > PATTERNS_WEIGHT:
                raise WrongSchema(path, "is too much: all patterns together are too large")
            problem = self._can_run(ready.text)
            if problem is not None:
                raise WrongSchema(path, problem)

    def _check_circles(self) -> None:
        """No schema may come back to itself without going into the value: it would never be done."""
        done: set[int] = set()
        for start in self._schemas:
            if id(start) in done:
                continue
            trail: list[tuple[int, Iterator[dict[str, Any]]]] = [(id(start), self._same_value(start))]
            open_ = {id(start)}
            while trail:
                name, following = trail[-1]
                schema = next(following, None)
                if schema is None:
                    trail.pop()
                    open_.discard(name)
                    done.add(name)
                elif id(schema) in open_:
                    raise WrongSchema(self._paths[id(schema)], "comes back to itself without an end")
                elif id(schema) not in done:
                    open_.add(id(schema))
                    trail.append((id(schema), self._same_value(schema)))

    def _same_value(self, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for steps, each in inner(schema):
            if steps[0] in _IN_PLACE and isinstance(each, dict):
                yield each
        if "$ref" in schema:
            target = resolve(self._root, schema["$ref"])
            if isinstance(target, dict):
                yield target


def inner(schema: dict[str, Any]) -> Iterator[tuple[Path, Any]]:
    """The schemas that stand in `schema`, with the steps to them."""
    for word, value in schema.items():
        kind = KEYWORDS.get(word)
        if kind == "schema":
            yield (word,), value
        elif kind == "schemas":
            yield from (((word, index), each) for index, each in enumerate(value))
        elif kind == "map":
            yield from (((word, name), each) for name, each in value.items())


def _check_type(value: Any, path: Path) -> None:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names) or len(set(names)) < len(names):
        raise WrongSchema((*path, "type"), f"must be one of {', '.join(sorted(TYPES))}, or a list of them")


def _is_strings(value: Any) -> bool:
    is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return is_list and len(set(value)) == len(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_IS: Final[Mapping[Kind, Callable[[Any], bool]]] = {
    "schema": lambda value: isinstance(value, dict | bool),
    "schemas": lambda value: isinstance(value, list) and bool(value),
    "map": lambda value: isinstance(value, dict),
    "strings": _is_strings,
    "map of strings": lambda value: isinstance(value, dict) and all(map(_is_strings, value.values())),
    "count": lambda value: is_number(value) and value >= 0 and (isinstance(value, int) or value.is_integer()),
    "number": is_number,
    "text": lambda value: isinstance(value, str),
    "flag": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
}
