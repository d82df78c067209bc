"""Answers that are documents: the schema of a type, snapshots while the document arrives, and its value."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from headrace.events import Event, Reset, Restarted, Text, ToolResult
from headrace.fold import Fold
from headrace.partial import PartialJSON
from headrace.protocol.document import parse

_ROOT = "#/$defs/"


def schema_of(kind: type) -> dict[str, Any]:
    """The JSON Schema of a dataclass, TypedDict, msgspec.Struct or pydantic model. Raises TypeError.

    Objects are closed: providers hold a model only to those, and what a type does not name nobody would read.
    """
    own = getattr(kind, "model_json_schema", None)
    schema: dict[str, Any] = msgspec.json.schema(kind) if own is None else own()
    definitions = schema.get("$defs", {})
    root = schema.get("$ref", "")
    if root.startswith(_ROOT):  # providers want the top itself, not a reference to it
        name = root.removeprefix(_ROOT)
        is_recursive = root in _refs(definitions)
        schema = {**definitions[name], "$defs": definitions if is_recursive else _without(definitions, name)}
    for each in [schema, *definitions.values()]:
        if each.get("type") == "object" and "properties" in each:
            each.setdefault("additionalProperties", False)
    if not schema.get("$defs"):
        schema.pop("$defs", None)
    return schema


def value_of(text: str, kind: Any = None) -> Any:
    """The document `text`, read strictly; as a `kind`, if there is one. Raises ValueError."""
    value = parse(text)
    if kind is None:
        return value
    own = getattr(kind, "model_validate", None)
    return msgspec.convert(value, kind) if own is None else own(value)


async def snapshots(events: AsyncIterator[Event], fold: Fold) -> AsyncIterator[Any]:
    """See `Generation.snapshots`. `fold` has what was taken of `events` before, and takes what is taken here."""
    partial = PartialJSON()
    if fold.whole and partial.feed(fold.last_text):
        yield partial.value
    async for event in events:
        if isinstance(event, Text):
            if fold.whole and partial.feed(event.text):
                yield partial.value
        elif isinstance(event, Reset | Restarted | ToolResult):
            had_any, partial = partial.value is not None, PartialJSON()
            if had_any:
                yield None
    former = partial.value
    try:
        if partial.finish() != former:
            yield partial.value
    except ValueError:
        return  # what is wrong with it, `value` says


def _refs(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_refs, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
    return own.union(*map(_refs, schema.values()))


def _without(definitions: dict[str, Any], name: str) -> dict[str, Any]:
    return {other: each for other, each in definitions.items() if other != name}
