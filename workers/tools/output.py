"""What a tool returned, as the text that the model gets and viewers see. Pure."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from workers.providers import OUTPUT_BYTES


class NoText(ValueError):
    """A tool returned what JSON cannot hold. The text is for the model."""


def text_of(value: Any) -> str:
    """A text as it is, anything else as JSON. Raises NoText."""
    if isinstance(value, str):
        return str(value)
    try:
        return to_json(value).decode()
    except (PydanticSerializationError, ValueError, RecursionError):
        raise NoText(f"the tool returned what JSON cannot hold ({type(value).__name__})") from None


def cut(text: str) -> tuple[str, bool]:
    """At most OUTPUT_BYTES of it, in whole characters, and whether there was more."""
    data = text[: OUTPUT_BYTES + 1].encode("utf-8", "replace")
    if len(data) <= OUTPUT_BYTES:
        return data.decode(), False
    return data[:OUTPUT_BYTES].decode("utf-8", "ignore"), True
