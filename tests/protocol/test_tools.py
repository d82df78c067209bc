"""Tools in a request: every form that is understood, and what is said of every other."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.protocol.frames import Call, Message
from headrace.protocol.tools import (
    ToolSpec,
    WorkerTool,
    WrongTools,
    check_tools,
    check_turns,
    chosen_tool,
    forces,
    read_tool,
)

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
EMPTY = {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("tool", "read"),
    [
        ({"name": "a"}, ToolSpec("a", "", EMPTY)),
        ({"name": "a", "description": "says a", "input_schema": SCHEMA}, ToolSpec("a", "says a", SCHEMA)),
        ({"name": "a", "description": None, "input_schema": {}}, ToolSpec("a", "", EMPTY)),
        ({"type": "custom", "name": "a-b_C9", "parameters": SCHEMA}, ToolSpec("a-b_C9", "", SCHEMA)),
        ({"name": "a", "input_schema": SCHEMA, "parameters": 7}, ToolSpec("a", "", SCHEMA)),
        ({"type": "function", "function": {"name": "a", "parameters": SCHEMA}}, ToolSpec("a", "", SCHEMA)),
        ({"type": "function", "function": {"name": "a", "description": "b"}}, ToolSpec("a", "b", EMPTY)),
        ({"type": "function", "name": "a", "parameters": SCHEMA}, ToolSpec("a", "", SCHEMA)),
        ({"type": "worker", "name": "weather"}, WorkerTool("weather")),
    ],
)
def test_every_form_of_a_tool_is_read(tool: dict[str, Any], read: ToolSpec | WorkerTool) -> None:
    assert read_tool(tool) == read


@pytest.mark.parametrize(
    ("tool", "place"),
    [
        ({}, "tools[0] has no `name`"),
        ({"name": 7}, "tools[0] has no `name`"),
        ({"type": "function", "function": {}}, "tools[0].function has no `name`"),
        ({"type": "function", "function": "a"}, "tools[0].function has no `name`"),
        ({"type": "worker"}, "tools[0] has no `name`"),
        ({"name": ""}, "tools[0].name"),
        ({"name": "a b"}, "tools[0].name"),
        ({"name": "a" * 65}, "tools[0].name"),
        ({"name": "wéather"}, "tools[0].name"),
        ({"type": "worker", "name": "a\n"}, "tools[0].name"),
        ({"name": "a", "description": 7}, "tools[0].description"),
        ({"name": "a", "input_schema": {"type": "string"}}, "tools[0].input_schema"),
        ({"name": "a", "input_schema": {"properties": {}}}, "tools[0].input_schema"),
        ({"name": "a", "input_schema": ["type"]}, "tools[0].input_schema"),
        ({"type": "function", "function": {"name": "a", "parameters": "{}"}}, "tools[0].function.parameters"),
        ({"type": "web_search_20250305", "name": "web_search"}, "tools[0].type"),
        ({"type": 7, "name": "a"}, "tools[0].type"),
    ],
)
def test_what_is_no_tool_is_told_with_its_place(tool: dict[str, Any], place: str) -> None:
    with pytest.raises(WrongTools) as wrong:
        check_tools([tool], None)
    assert str(wrong.value).startswith(place)


def test_a_described_tool_is_written_as_it_was_read() -> None:
    for spec in (ToolSpec("a", "", EMPTY), ToolSpec("a", "says a", SCHEMA)):
        assert read_tool(spec.written()) == spec


def test_names_are_unique_and_tools_are_bounded() -> None:
    with pytest.raises(WrongTools, match=r"tools\[2\] has the name of tools\[0\]"):
        check_tools([{"name": "a"}, {"name": "b"}, {"type": "worker", "name": "a"}], None)
    check_tools([{"name": f"t{number}"} for number in range(128)], None)
    with pytest.raises(WrongTools, match="129 tools, at most 128"):
        check_tools([{"name": f"t{number}"} for number in range(129)], None)


CHOICES: list[tuple[Any, str | None, bool]] = [
    (None, None, False),
    ("auto", None, False),
    ("none", None, False),
    ("required", None, True),
    ("any", None, True),
    ({"type": "auto"}, None, False),
    ({"type": "none"}, None, False),
    ({"type": "any"}, None, True),
    ({"name": "a"}, "a", True),
    ({"type": "tool", "name": "a"}, "a", True),
    ({"type": "function", "function": {"name": "a"}}, "a", True),
]


@pytest.mark.parametrize(("choice", "name", "is_forced"), CHOICES)
def test_every_form_of_a_choice_is_read(choice: Any, name: str | None, is_forced: bool) -> None:
    check_tools([{"name": "a"}], choice)
    assert choice is None or chosen_tool(choice) == name
    assert forces(choice) is is_forced


@pytest.mark.parametrize(
    ("tools", "choice", "why"),
    [
        ([], "auto", "nothing to choose from"),
        ([{"name": "a"}], "always", "is one of auto, none, required, any"),
        ([{"name": "a"}], {}, "is one of"),
        ([{"name": "a"}], {"type": "tool", "name": 7}, "is one of"),
        ([{"name": "a"}], {"type": "allowed_tools"}, "is one of"),
        ([{"name": "a"}, {"name": "c"}], {"name": "b"}, "names none of the tools: a, c"),
    ],
)
def test_a_choice_that_means_nothing_is_told(tools: list[dict[str, Any]], choice: Any, why: str) -> None:
    with pytest.raises(WrongTools, match=why):
        check_tools(tools, choice)


# -- turns

USER = Message("user", "Rain?")


def calls(*ids: str, given: Any = None) -> Message:
    return Message("assistant", calls=[Call(id_, "weather", given) for id_ in ids])


def answer(id_: str) -> Message:
    return Message("tool", "rain", call=id_)


@pytest.mark.parametrize(
    "turns",
    [
        [USER],
        [USER, calls("a"), answer("a")],
        [USER, calls("a", "b", given={"x": 1}), answer("b"), answer("a"), USER],
        [USER, calls("a"), answer("a"), calls("a"), answer("a"), Message("assistant", "Yes."), USER],
    ],
)
def test_calls_that_are_answered_are_in_order(turns: list[Message]) -> None:
    check_turns(turns)


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([USER, answer("a")], r"messages\[1\] answers the call “a”, which"),
        ([USER, calls("a"), answer("b")], r"messages\[2\] answers the call “b”, which"),
        ([USER, calls("a"), answer("a"), USER, answer("a")], r"messages\[4\] answers the call “a”, which"),
        ([USER, calls("a"), answer("a"), answer("a")], r"messages\[3\] answers the call “a” a second time"),
        ([USER, calls("a", "b"), answer("a"), USER], r"messages\[3\] comes before .* missing for “b”"),
        ([USER, calls("a"), calls("b"), answer("b")], r"messages\[2\] comes before"),
        ([USER, calls("a", "b")], "`messages` ends before .* missing for “a”, “b”"),
        ([USER, calls("a", "a"), answer("a")], r"messages\[1\].calls has two calls with one id"),
        ([USER, calls("a", given=[1]), answer("a")], r"messages\[1\].calls\[0\].input is an object"),
    ],
)
def test_turns_that_no_provider_takes_are_told(turns: list[Message], why: str) -> None:
    with pytest.raises(WrongTools, match=why):
        check_turns(turns)
