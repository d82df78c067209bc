"""An answer with tools as the turns that continue its conversation."""

from __future__ import annotations

from typing import Any

from headrace import Done, Event, Fold, Reset, Text, ToolCall, ToolInput, ToolReady, ToolResult
from headrace.protocol.frames import Call, Message
from headrace.protocol.tools import check_turns
from headrace.turns import open_calls, turns_of


def call(name: str, arguments: dict[str, Any] | None = None, tool: str = "look") -> list[Event]:
    return [ToolCall(name, tool), ToolReady(name, arguments or {})]


def told(*events: Event | list[Event]) -> Fold:
    fold = Fold()
    for event in events:
        for each in event if isinstance(event, list) else [event]:
            fold.add(each)
    return fold


def turns(fold: Fold, *, open_: bool = True) -> list[Message]:
    told = turns_of(fold, with_open_calls=open_)
    check_turns([*told, *[Message("tool", call=use.call) for use in open_calls(fold) if open_]])
    return told


def test_an_answer_without_tools_is_one_turn_and_nothing_is_none() -> None:
    assert turns(told(Text("Because "), Text("of the air."))) == [Message("assistant", "Because of the air.")]
    assert turns(told()) == []


def test_calls_of_the_client_wait_for_their_results() -> None:
    fold = told(Text("Let me see."), call("c1", {"q": 1}), call("c2", tool="find"))
    assert turns(fold) == [Message("assistant", "Let me see.", [Call("c1", "look", {"q": 1}), Call("c2", "find", {})])]
    assert [use.call for use in open_calls(fold)] == ["c1", "c2"]
    assert turns(fold, open_=False) == [Message("assistant", "Let me see.")]


def test_what_the_workers_tools_returned_stands_between_the_steps() -> None:
    fold = told(
        Text("First."), call("c1"), call("c2"), ToolResult("c1", "one"), ToolResult("c2", "no", error=True),
        call("c3"), Text("Then é."), ToolResult("c3", "three"),
        Text("So: "), Text("42"),
    )  # fmt: skip
    assert turns(fold) == [
        Message("assistant", "First.", [Call("c1", "look", {}), Call("c2", "look", {})]),
        Message("tool", "one", call="c1"),
        Message("tool", "no", call="c2", error=True),
        Message("assistant", "Then é.", [Call("c3", "look", {})]),
        Message("tool", "three", call="c3"),
        Message("assistant", "So: 42"),
    ]
    assert open_calls(fold) == []


def test_calls_of_both_kinds_in_one_step_stay_together() -> None:
    fold = told(call("ours"), call("theirs"), ToolResult("theirs", "", error=False))
    assert turns(fold) == [
        Message("assistant", calls=[Call("ours", "look", {}), Call("theirs", "look", {})]),
        Message("tool", "", call="theirs"),
    ]
    assert [use.call for use in open_calls(fold)] == ["ours"]
    assert turns(fold, open_=False) == [
        Message("assistant", calls=[Call("theirs", "look", {})]),
        Message("tool", "", call="theirs"),
    ]


def test_half_a_call_is_no_call() -> None:
    fold = told(Text("Let"), ToolCall("c1", "look"), ToolInput("c1", '{"q":'))
    assert (turns(fold), open_calls(fold)) == ([Message("assistant", "Let")], [])


def test_a_reset_voids_calls_and_steps_alike() -> None:
    fold = told(Text("a"), call("c1"), ToolResult("c1", "x"), Text("b"), Reset("failover"), Text("anew"))
    assert turns(fold) == [Message("assistant", "anew")]
    assert fold.steps == []


def test_arguments_too_large_to_be_repeated_are_read_from_their_pieces() -> None:
    fold = told(ToolCall("c1", "look"), ToolInput("c1", '{"q":'), ToolInput("c1", "[1]}"), ToolReady("c1"))
    assert [use.input for use in open_calls(fold)] == [{"q": [1]}]


def test_arguments_that_are_no_object_are_sent_back_as_none() -> None:
    for arguments in ("nonsense", "[1]", "[" * 100_000):
        fold = told(ToolCall("c1", "look"), ToolInput("c1", arguments), ToolReady("c1"))
        [turn] = turns(fold)
        assert turn.calls == [Call("c1", "look", {})]
        assert not isinstance(open_calls(fold)[0].input, dict)


def test_what_comes_after_the_end_changes_nothing() -> None:
    fold = told(call("c1"), Done("completed", "tool_calls", 0, ""), ToolResult("c1", "late"))
    assert [use.call for use in open_calls(fold)] == ["c1"]
