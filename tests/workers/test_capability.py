"""What a model cannot do is not sent to it, and is said."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.protocol.body import Body
from headrace.protocol.entries import Notice
from headrace.protocol.frames import Message
from workers.capability import fitted
from workers.catalog import ModelEntry

TOOLS = [{"name": "a", "input_schema": {"type": "object"}}]


@pytest.mark.parametrize(
    ("can", "asked", "left"),
    [
        (ModelEntry(sampling=False), {"temperature": 0.5}, {"temperature": None}),
        (ModelEntry(forced_tools=False), {"tools": TOOLS, "tool_choice": "required"}, {"tool_choice": None}),
        (ModelEntry(forced_tools=False), {"tools": TOOLS, "tool_choice": {"name": "a"}}, {"tool_choice": None}),
        (ModelEntry(forced_tools=False), {"tools": TOOLS, "tool_choice": "auto"}, {}),
        (ModelEntry(tools=False), {"tools": TOOLS, "tool_choice": "auto"}, {"tools": None, "tool_choice": None}),
        (ModelEntry(max_output=10), {"max_tokens": 20}, {"max_tokens": 10}),
        (ModelEntry(max_output=10), {"max_tokens": 5}, {}),
        (ModelEntry(), {"temperature": 0.5, "tools": TOOLS, "tool_choice": "any"}, {}),
    ],
)
def test_a_request_is_fitted_to_its_model(can: ModelEntry, asked: dict[str, Any], left: dict[str, Any]) -> None:
    body, notices = fitted(Body([Message("user", "hi")], **asked), can, "acme/small")
    assert body == Body([Message("user", "hi")], **(asked | left))
    assert notices == [
        Notice("parameter_lowered" if value else "parameter_dropped", "acme/small", parameter=name)
        for name, value in left.items()
    ]
