"""Whether the text of a finished answer is what its request's schema asks for (docs/protocol.md §3)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from headrace.protocol.document import NoDocument, parse
from headrace.protocol.entries import Entry
from workers.generation import Ending
from workers.validation import Validator


def final_text(entries: Iterable[Entry]) -> str:
    """The document: what is shown after the last result of a tool, or in all if there was none."""
    pieces: list[bytes] = []
    for kind, data in entries:
        if kind == "text":
            pieces.append(data)
        elif kind in ("reset", "tool_result"):
            pieces.clear()
    return b"".join(pieces).decode()


def judge(schema: dict[str, Any], text: str) -> Ending | None:
    """How the answer ends if `text` is not a document that fits `schema`. It may take seconds."""
    try:
        value = parse(text)
    except NoDocument as error:
        return _invalid(f"the answer is not one JSON document: {error}")
    misfit = Validator(schema).misfit(value)
    return None if misfit is None else _invalid(f"the answer does not fit the schema: {misfit}")


def _invalid(message: str) -> Ending:
    return Ending.failed("invalid_output", message)


class Court:
    """Judges in a thread, one answer at a time, so that neither a long answer nor a hard schema holds up the others."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def judge(self, schema: dict[str, Any], entries: Iterable[Entry]) -> Ending | None:
        """As `judge`, on what `entries` show. Cancelled, it does not wait for the thread, which ends within seconds."""
        text = final_text(entries)
        async with self._turn:
            return await asyncio.to_thread(judge, schema, text)
