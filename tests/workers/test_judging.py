"""What is looked at when an answer by a schema ends, and what a bad one ends as."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from headrace.protocol.entries import Entry
from tests.installation import eventually
from workers import judging
from workers.judging import Court, final_text, judge

SCHEMA: dict[str, Any] = {"type": "object", "required": ["a"]}


def text(said: str) -> Entry:
    return ("text", said.encode())


def test_the_document_is_what_is_shown_after_the_last_result_of_a_tool() -> None:
    assert final_text([]) == ""
    assert final_text([text("I look."), ("tool_call", b""), ("tool_result", b""), text("{"), text("}")]) == "{}"
    assert final_text([text("x"), ("reasoning", b"hm"), ("reset", b""), text("[é"), ("usage", b""), text("]")]) == "[é]"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ('{"a": 1}', None),
        ('```json\n{"a": 1}\n```', None),
        ("{}", 'the answer does not fit the schema: $ has no "a"'),
        ("Sorry.", "the answer is not one JSON document: expecting value (line 1, column 1)"),
    ],
)
def test_a_document_that_does_not_fit_is_invalid_output(said: str, why: str | None) -> None:
    ending = judge(SCHEMA, said)
    if why is None:
        assert ending is None
    else:
        assert ending is not None and ending.error is not None
        assert (ending.status, ending.error.code, ending.error.retry) == ("failed", "invalid_output", "now")
        assert ending.error.message == why


async def test_answers_are_judged_one_at_a_time_and_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each judgement waits until the loop has seen it run alone: on the loop itself, none would ever end."""
    seen: list[str] = []
    allowed = threading.Semaphore(0)

    def slow(schema: dict[str, Any], said: str) -> None:
        seen.append(said)
        assert allowed.acquire(timeout=20)

    monkeypatch.setattr(judging, "judge", slow)
    court = Court()
    async with asyncio.TaskGroup() as tasks:
        for said in ("one", "two"):
            tasks.create_task(court.judge(SCHEMA, [text(said)]))
        for so_far in (["one"], ["one", "two"]):
            await eventually(lambda: seen == so_far)  # noqa: B023 - it is awaited here
            for _ in range(5):
                await asyncio.sleep(0)
            assert seen == so_far
            allowed.release()
