"""Which patterns the engine of a schema's check takes (docs/protocol.md §3). Pure."""

from __future__ import annotations

from pydantic_core import SchemaError, SchemaValidator, core_schema


def pattern_problem(text: str) -> str | None:
    """Why the engine does not take a pattern, as `headrace.protocol.pattern.prepare` gave it; None if it does."""
    try:
        SchemaValidator(core_schema.str_schema(pattern=text, regex_engine="rust-regex"))
    except SchemaError as error:
        said = str(error).strip().splitlines()[-1].strip()
        return f"is no pattern that can be run in linear time: {said.removeprefix('error: ')}"
    return None
