"""Whether a value fits its schema, and where it does not (docs/protocol.md §3). Pure.

Written for schemas and values that nobody vouches for: what it does is counted, step by step, and ends at a bound;
patterns run in an engine that is linear in the text. Of JSON Schema 2020-12 it knows what
`headrace.protocol.schema.check` lets in; `format` and the other annotations demand nothing.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator
from typing import Any, Final

from pydantic_core import SchemaValidator, core_schema

from headrace.protocol.pattern import prepare
from headrace.protocol.schema import resolve, where

#: Steps that one check may take: about a microsecond each.
STEPS: Final = 1_000_000
#: Characters of a string, times its pattern's weight, that count as one step; and characters that are compared.
_MATCH: Final = 1000
#: Of a value, in a message.
_QUOTED: Final = 40


class _TooMuch(Exception):
    """The steps are used up."""


class Misfit:
    """What is wrong at one place of a value. `steps` lead there, the last one first."""

    __slots__ = ("steps", "text")

    def __init__(self, text: str) -> None:
        self.steps: list[str | int] = []
        self.text = text

    def inside(self, step: str | int) -> Misfit:
        self.steps.append(step)
        return self

    def __str__(self) -> str:
        return f"{where(tuple(reversed(self.steps)))} {self.text}"


Check = Callable[[Any], Misfit | None]


def _engine(text: str) -> Callable[[str], bool]:
    schema = core_schema.str_schema(pattern=text, regex_engine="rust-regex", strict=True)
    return SchemaValidator(schema).isinstance_python


class Validator:
    """Checks values against one schema, which must have passed `check`. For one thread at a time."""

    def __init__(self, schema: dict[str, Any], steps: int = STEPS) -> None:
        self._root = schema
        self._steps = steps
        self._left = steps
        #: By the identity of schemas, which live as long as this.
        self._made: dict[int, Check] = {}

    def misfit(self, value: Any) -> str | None:
        """Where `value` does not fit and why, as `$.items[2].price is not a number: "x"`; None if it fits.

        Of alternatives (`anyOf`, `oneOf`) the one that goes furthest into the value is named.
        """
        self._left = self._steps
        try:
            misfit = self._check_of(self._root)(value)
        except _TooMuch:
            return "$ takes too long to be checked against this schema"
        except RecursionError:
            return "$ is nested too deeply to be checked"
        return None if misfit is None else str(misfit)

    def _check_of(self, schema: dict[str, Any] | bool) -> Check:
        if isinstance(schema, bool):
            return _anything if schema else _nothing
        made = self._made.get(id(schema))
        if made is None:
            made = self._made[id(schema)] = self._make(schema)
        return made

    def _make(self, schema: dict[str, Any]) -> Check:
        first, last = list(self._fixed(schema)), list(self._combined(schema))
        numeric = list(_number(schema))
        own: dict[type, list[Check]] = {
            dict: list(self._object(schema)),
            list: list(self._array(schema)),
            str: list(self._string(schema)),
            int: numeric,
            float: numeric,
            bool: [],
            type(None): [],
        }
        by_type = {kind: [*_typed(schema, kind), *first, *checks, *last] for kind, checks in own.items()}
        cost = 1 + len(schema) // 2

        def check(value: Any) -> Misfit | None:
            self._left -= cost
            if self._left < 0:
                raise _TooMuch
            for each in by_type[type(value)]:
                misfit = each(value)
                if misfit is not None:
                    return misfit
            return None

        return check

    # -- whatever the type

    def _fixed(self, schema: dict[str, Any]) -> Iterator[Check]:
        if "$ref" in schema:
            target = resolve(self._root, schema["$ref"])
            yield lambda value: self._check_of(target)(value)  # made when first needed: it may be this one
        if "enum" in schema:
            values = {self._key(each) for each in schema["enum"]}
            yield (
                lambda value: (
                    None
                    if self._key(value) in values
                    else Misfit(f"is not one of the values it may have{_quoted(value)}")
                )
            )
        if "const" in schema:
            only = self._key(schema["const"])
            yield (
                lambda value: (
                    None if self._key(value) == only else Misfit(f"is not the value it must have{_quoted(value)}")
                )
            )

    def _combined(self, schema: dict[str, Any]) -> Iterator[Check]:
        yield from map(self._check_of, schema.get("allOf", ()))
        if "anyOf" in schema:
            yield self._any_of([self._check_of(each) for each in schema["anyOf"]])
        if "oneOf" in schema:
            yield self._one_of([self._check_of(each) for each in schema["oneOf"]])
        if "not" in schema:
            never = self._check_of(schema["not"])
            yield lambda value: Misfit("is what it may not be") if never(value) is None else None
        if "if" in schema:
            question = self._check_of(schema["if"])
            then, otherwise = self._check_of(schema.get("then", True)), self._check_of(schema.get("else", True))
            yield lambda value: then(value) if question(value) is None else otherwise(value)

    @staticmethod
    def _any_of(checks: list[Check]) -> Check:
        def any_of(value: Any) -> Misfit | None:
            misfits = []
            for each in checks:
                misfit = each(value)
                if misfit is None:
                    return None
                misfits.append(misfit)
            return _furthest(misfits, value)

        return any_of

    @staticmethod
    def _one_of(checks: list[Check]) -> Check:
        def one_of(value: Any) -> Misfit | None:
            misfits = [misfit for misfit in (each(value) for each in checks) if misfit is not None]
            if len(misfits) == len(checks):
                return _furthest(misfits, value)
            return Misfit("is more than one of what it may be one of") if len(misfits) < len(checks) - 1 else None

        return one_of

    # -- objects

    def _object(self, schema: dict[str, Any]) -> Iterator[Check]:
        if schema.get("required"):
            yield self._required(schema["required"])
        yield from (
            self._dependent(name, self._required(others, f"has {_name(name)} and "))
            for name, others in schema.get("dependentRequired", {}).items()
        )
        yield from _sized(schema, "Properties", "properties")
        yield from (
            self._dependent(name, self._check_of(each)) for name, each in schema.get("dependentSchemas", {}).items()
        )
        if any(word in schema for word in ("properties", "patternProperties", "additionalProperties")):
            yield self._members(schema)
        if "propertyNames" in schema:
            fits = self._check_of(schema["propertyNames"])
            yield lambda value: next((_unwanted(name) for name in value if fits(name) is not None), None)

    def _required(self, names: list[str], having: str = "has ") -> Check:
        def required(value: dict[str, Any]) -> Misfit | None:
            self._spend(len(names) // 4)
            for name in names:
                if name not in value:
                    return Misfit(f"{having}no {_name(name)}")
            return None

        return required

    def _dependent(self, name: str, check: Check) -> Check:
        def dependent(value: dict[str, Any]) -> Misfit | None:
            self._spend(1)
            return check(value) if name in value else None

        return dependent

    def _members(self, schema: dict[str, Any]) -> Check:
        named = {name: self._check_of(each) for name, each in schema.get("properties", {}).items()}
        patterned = [
            (self._matching(pattern), self._check_of(each))
            for pattern, each in schema.get("patternProperties", {}).items()
        ]
        is_closed = schema.get("additionalProperties") is False
        others = self._check_of(schema.get("additionalProperties", True))

        def members(value: dict[str, Any]) -> Misfit | None:
            self._spend(len(value))
            for name, member in value.items():
                checks = [named[name]] if name in named else []
                if patterned:
                    checks += [each for matches, each in patterned if matches(name)]
                if is_closed and not checks:
                    return _unwanted(name)
                for each in checks or (others,):
                    misfit = each(member)
                    if misfit is not None:
                        return misfit.inside(name)
            return None

        return members

    # -- arrays

    def _array(self, schema: dict[str, Any]) -> Iterator[Check]:
        yield from _sized(schema, "Items", "items")
        if "prefixItems" in schema or "items" in schema:
            yield self._items(
                [self._check_of(each) for each in schema.get("prefixItems", ())],
                self._check_of(schema.get("items", True)),
            )
        if schema.get("uniqueItems"):
            yield (
                lambda value: (
                    Misfit("has an item twice") if len({self._key(item) for item in value}) < len(value) else None
                )
            )
        if "contains" in schema:
            yield self._contains(self._check_of(schema["contains"]), schema)

    def _items(self, first: list[Check], rest: Check) -> Check:
        def items(value: list[Any]) -> Misfit | None:
            self._spend(len(value) // 4)
            for index, item in enumerate(value):
                misfit = (first[index] if index < len(first) else rest)(item)
                if misfit is not None:
                    return misfit.inside(index)
            return None

        return items

    def _contains(self, check: Check, schema: dict[str, Any]) -> Check:
        least, most = schema.get("minContains", 1), schema.get("maxContains", float("inf"))

        def contains(value: list[Any]) -> Misfit | None:
            fitting = sum(check(item) is None for item in value)
            if fitting < least:
                return Misfit("has too few items of the kind it must contain")
            return Misfit("has too many items of the kind it must contain") if fitting > most else None

        return contains

    # -- strings

    def _string(self, schema: dict[str, Any]) -> Iterator[Check]:
        yield from _sized(schema, "Length", "characters")
        if "pattern" in schema:
            matches = self._matching(schema["pattern"])
            yield lambda value: None if matches(value) else Misfit(f"does not match its pattern{_quoted(value)}")

    def _matching(self, pattern: str) -> Callable[[str], bool]:
        ready = prepare(pattern)
        matches = _engine(ready.text)

        def matching(text: str) -> bool:
            self._spend(1 + len(text) * ready.weight // _MATCH)
            return matches(text)

        return matching

    # -- what costs

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise _TooMuch

    def _key(self, value: Any) -> str:
        """Equal for what JSON Schema calls equal: `1` and `1.0`, but not `1` and `true`; in any order of keys."""
        self._spend(1)
        if isinstance(value, str):
            self._spend(len(value) // _MATCH)
        elif isinstance(value, dict):
            return "{" + ",".join(f"{json.dumps(name)}:{self._key(value[name])}" for name in sorted(value)) + "}"
        elif isinstance(value, list):
            return "[" + ",".join(map(self._key, value)) + "]"
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        return json.dumps(value)


def _anything(value: Any) -> None:
    """Whatever it is, it fits."""


def _nothing(value: Any) -> Misfit:
    return Misfit("is not allowed here")


def _typed(schema: dict[str, Any], kind: type) -> Iterator[Check]:
    """What `type` says to values of this Python type."""
    types = schema.get("type", list(_NAMES))
    names = types if isinstance(types, list) else [types]
    if any(kind in _KINDS[name] for name in names):
        return
    said = "is not " + " or ".join(_NAMES[name] for name in names)
    if kind is float and "integer" in names:
        yield lambda value: None if value.is_integer() else Misfit(said + _quoted(value))
    else:
        yield lambda value: Misfit(said + _quoted(value))


def _number(schema: dict[str, Any]) -> Iterator[Check]:
    for word, is_wrong, said in _BOUNDS:
        if word in schema:
            yield _bound(schema[word], is_wrong, f"{said} {schema[word]}")
    if "multipleOf" in schema:
        yield _bound(schema["multipleOf"], _is_no_multiple, f"is not a multiple of {schema['multipleOf']}")


def _bound(bound: float, is_wrong: Callable[[Any, Any], bool], said: str) -> Check:
    return lambda value: Misfit(said + _quoted(value)) if is_wrong(value, bound) else None


def _is_no_multiple(value: float, of: float) -> bool:
    if isinstance(value, int) and isinstance(of, int):
        return value % of != 0
    try:
        quotient = value / of
    except OverflowError:
        return False  # more digits than can be told
    return abs(quotient) < 1e15 and abs(quotient - round(quotient)) > 1e-9


def _sized(schema: dict[str, Any], what: str, name: str) -> Iterator[Check]:
    least, most = schema.get(f"min{what}"), schema.get(f"max{what}")
    if least is not None:
        yield (
            lambda value: (
                Misfit(f"has {len(value)} {name}, it must have {least} or more") if len(value) < least else None
            )
        )
    if most is not None:
        yield lambda value: Misfit(f"has {len(value)} {name}, it may have {most}") if len(value) > most else None


def _furthest(misfits: list[Misfit], value: Any) -> Misfit:
    """The misfit deepest inside the value; if none goes into it, they are as good as each other."""
    best = max(misfits, key=lambda misfit: len(misfit.steps))
    return best if best.steps or len(misfits) == 1 else Misfit(f"is none of what it may be{_quoted(value)}")


def _unwanted(name: str) -> Misfit:
    return Misfit(f"may not have the property {_name(name)}")


def _name(text: str) -> str:
    quoted = json.dumps(text[: _QUOTED + 1], ensure_ascii=False)
    return quoted if len(text) <= _QUOTED else quoted[: _QUOTED - 1] + "…"


def _quoted(value: Any) -> str:
    """A value behind a colon, at most `_QUOTED` characters of it; nothing of what has parts."""
    if isinstance(value, dict | list):
        return ""
    return ": " + _name(value) if isinstance(value, str) else f": {json.dumps(value)[:_QUOTED]}"


_NAMES: Final = {
    "array": "an array",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}
_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (type(None),),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}
_BOUNDS: Final[tuple[tuple[str, Callable[[Any, Any], bool], str], ...]] = (
    ("minimum", operator.lt, "is below"),
    ("maximum", operator.gt, "is above"),
    ("exclusiveMinimum", operator.le, "is not above"),
    ("exclusiveMaximum", operator.ge, "is not below"),
)
