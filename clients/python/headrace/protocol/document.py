"""The JSON document that an answer is, read strictly: the same for workers and clients (docs/protocol.md §3). Pure."""

from __future__ import annotations

import json
import re
from typing import Any, Final

_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


class NoDocument(ValueError):
    """The text is not one JSON document. The message says why, without quoting the text."""


def bare(text: str) -> str:
    """The text without a code fence around it: models that are asked for JSON in words like to write one."""
    fenced = text.lstrip()
    if not fenced.startswith("```"):
        return text
    _, _, inside = fenced.partition("\n")
    return inside.rstrip().removesuffix("```")


def parse(text: str) -> Any:
    """The value of the whole text, but for a fence around it. Raises NoDocument.

    Nothing may stand before or after the document, no object may name a key twice, every number must be finite and
    every string valid Unicode: what one reader takes and another does not is not taken.
    """
    if not text.strip():
        raise NoDocument("there is no text")
    try:
        value = json.loads(
            bare(text), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_key_twice
        )
    except json.JSONDecodeError as error:
        raise NoDocument(f"{_lower(error.msg)} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise NoDocument("it is nested too deeply") from None
    except ValueError as error:
        raise NoDocument(str(error) if isinstance(error, NoDocument) else "a number has too many digits") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise NoDocument("a string holds half of a surrogate pair") from None
    return value


def _no_constant(name: str) -> Any:
    raise NoDocument(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise NoDocument("a number is too large")
    return value


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise NoDocument("an object names a key twice")
    return members


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
