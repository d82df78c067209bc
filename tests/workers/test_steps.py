"""What follows from a model's tool calls, without any I/O: which are run here, and what it is asked next."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Call, Message
from workers.providers import Event, Reasoning, Stop, Text, ToolCall, ToolInput, ToolReady, ToolResult
from workers.steps import STEPS, Steps, Wanted

OURS = {"name": "weather", "input_schema": {"type": "object"}}
THEIRS = {"type": "function", "function": {"name": "locate"}}


def body(*messages: Message, **fields: Any) -> Body:
    return Body(list(messages) or [Message("user", "Will it rain?")], **{"tools": [OURS, THEIRS]} | fields)


def steps(asked: Body | None = None, *ours: str) -> Steps:
    return Steps(asked or body(), ours or ["weather"])


def call(id_: str = "t1", name: str = "weather", given: Any = None) -> list[Event]:
    given = {"city": "Vienna"} if given is None else given
    return [ToolCall(id_, name), ToolInput(id_, "{…}"), ToolReady(id_, given)]


def result(id_: str = "t1", output: str = "rain", error: bool = False) -> ToolResult:
    return ToolResult(id_, output, error)


def test_an_answer_without_calls_goes_through_as_it_is() -> None:
    answer = steps()
    events: list[Event] = [Text("No"), Reasoning("hm")]
    assert answer.hear(events) is events
    assert answer.hear([Text("."), Stop("stop")]) == [Text("."), Stop("stop")]
    assert not answer.is_over


def test_calls_of_our_tools_end_the_step_and_not_the_answer() -> None:
    answer = steps()
    answer.begin_call()
    assert answer.hear([Text("Let me look."), *call(), Stop("tool")]) == [Text("Let me look."), *call()]
    assert answer.is_over and not answer.waits_for_client and not answer.is_last
    assert answer.wanted == [Wanted("t1", "weather", {"city": "Vienna"}, True)]
    answer.go_on("Let me look.", [result()])
    assert not answer.is_over and answer.wanted == []
    assert answer.body.messages == [
        Message("user", "Will it rain?"),
        Message("assistant", "Let me look.", calls=[Call("t1", "weather", {"city": "Vienna"})]),
        Message("tool", "rain", call="t1"),
    ]


def test_what_was_heard_in_pieces_is_one_step() -> None:
    answer = steps()
    for event in [*call("t1"), *call("t2", given={}), Stop("tool")]:
        answer.hear([event])
    assert [each.call for each in answer.wanted] == ["t1", "t2"]
    answer.go_on("", [result("t1"), result("t2", "no such city", error=True)])
    turn, *results = answer.body.messages[1:]
    assert (turn.content, [each.call for each in turn.calls or ()]) == ("", ["t1", "t2"])
    assert results == [Message("tool", "rain", call="t1"), Message("tool", "no such city", call="t2", error=True)]


def test_calls_of_the_client_s_tools_end_the_answer() -> None:
    answer = steps()
    assert answer.hear([*call("t1", "locate"), Stop("tool")])[-1] == Stop("tool")
    assert not answer.is_over


def test_of_mixed_calls_ours_are_run_and_the_client_is_waited_for() -> None:
    answer = steps()
    assert answer.hear([*call("t1", "locate"), *call("t2"), Stop("tool")]) == [*call("t1", "locate"), *call("t2")]
    assert answer.is_over and answer.waits_for_client
    assert [each.call for each in answer.wanted] == ["t2"]


def test_a_tool_that_nobody_offered_is_for_us_to_refuse_unless_none_is_ours() -> None:
    answer = steps()
    answer.hear([*call("t1", "made_up"), Stop("tool")])
    assert answer.is_over and answer.wanted[0].name == "made_up"
    clients = Steps(body(tools=[THEIRS]), [])
    assert clients.hear([*call("t1", "made_up"), Stop("tool")])[-1] == Stop("tool")
    assert not clients.is_over


@pytest.mark.parametrize("reason", ["tool", "stop"])
def test_a_server_that_calls_it_an_end_like_any_other_is_understood(reason: str) -> None:
    answer, clients = steps(), Steps(body(tools=[THEIRS]), [])
    assert answer.hear([*call(), Stop(reason)]) == call() and answer.is_over
    assert clients.hear([*call("t1", "locate"), Stop(reason)])[-1] == Stop("tool")


@pytest.mark.parametrize("reason", ["length", "filter", "refusal", "context"])
def test_an_answer_that_was_cut_off_runs_nothing(reason: str) -> None:
    answer = steps()
    assert answer.hear([*call(), Stop(reason)])[-1] == Stop(reason)
    assert not answer.is_over


def test_a_call_that_is_not_complete_is_none() -> None:
    answer = steps()
    assert answer.hear([ToolCall("t1", "weather"), ToolInput("t1", "{"), Stop("tool")])[-1] == Stop("tool")
    assert not answer.is_over


def test_what_a_broken_call_asked_for_is_void() -> None:
    answer = steps()
    answer.begin_call()
    answer.hear(call("t1"))
    answer.begin_call()
    assert answer.hear([*call("t1"), Stop("tool")]) == call("t1")
    assert [each.call for each in answer.wanted] == ["t1"]


def test_ids_are_unique_in_the_whole_conversation() -> None:
    asked = body(
        Message("user", "Rain?"), Message("assistant", calls=[Call("t1", "locate", {})]), Message("tool", call="t1")
    )
    answer = steps(asked)
    answer.begin_call()
    assert answer.hear([*call("t1"), *call("t1"), Stop("tool")]) == [*call("t1_2"), *call("t1_3")]
    answer.go_on("", [result("t1_2"), result("t1_3")])
    answer.begin_call()
    assert answer.hear([*call("t1"), Stop("tool")]) == call("t1_4")


def test_events_of_a_call_that_was_never_opened_are_passed_on() -> None:
    answer = steps()
    events: list[Event] = [ToolInput("t9", "{}"), ToolReady("t9", {})]
    assert answer.hear(events) == events


def test_a_call_that_came_with_its_result_is_done() -> None:
    answer = steps()
    told = answer.hear([*call("t1", "own"), result("t1"), result("t9"), Stop("stop")])
    assert told == [*call("t1", "own"), result("t1"), result("t9"), Stop("stop")]
    assert not answer.is_over


def test_ids_and_names_that_a_provider_made_up_fit_into_a_turn() -> None:
    answer = steps()
    [opened, *_] = answer.hear([*call("x" * 500, "n" * 500), *call("", ""), *call("\ud800", "\ud800"), Stop("tool")])
    assert opened == ToolCall("x" * 100, "n" * 128)
    assert [(each.call, each.name) for each in answer.wanted[1:]] == [("call", "unknown"), ("?", "?")]
    answer.go_on("", [result(each.call) for each in answer.wanted])
    assert len(answer.body.messages) == 5


@pytest.mark.parametrize("given", [[1], "text", 7, None])
def test_arguments_that_are_no_object_are_given_back_as_an_empty_one(given: Any) -> None:
    answer = steps()
    answer.hear([ToolCall("t1", "weather"), ToolReady("t1", given), Stop("tool")])
    assert answer.wanted == [Wanted("t1", "weather", given, True)]
    answer.go_on("", [result(error=True)])
    assert answer.body.messages[1].calls == [Call("t1", "weather", {})]


def test_an_answer_that_the_request_began_stays_one_turn() -> None:
    answer = steps(body(Message("user", "Rain?"), Message("assistant", "I think")))
    answer.hear([*call(), Stop("tool")])
    answer.go_on(" it will", [result()])
    assert [message.role for message in answer.body.messages] == ["user", "assistant", "tool"]
    assert answer.body.messages[1].content == "I think it will"


@pytest.mark.parametrize(
    ("choice", "then"),
    [
        (None, None), ("auto", "auto"), ("none", "none"), ("required", None), ("any", None),
        ({"type": "auto"}, {"type": "auto"}), ({"type": "tool", "name": "weather"}, None),
    ],
)  # fmt: skip
def test_a_tool_that_was_forced_is_forced_once(choice: Any, then: Any) -> None:
    answer = steps(body(tool_choice=choice))
    answer.hear([*call(), Stop("tool")])
    answer.go_on("", [result()])
    assert answer.body.tool_choice == then


def test_steps_are_bounded() -> None:
    answer = steps()
    for number in range(1, STEPS + 1):
        answer.begin_call()
        answer.hear([*call(), Stop("tool")])
        assert answer.is_over and answer.is_last == (number == STEPS)
        answer.go_on("", [result(each.call) for each in answer.wanted])


def test_so_are_the_calls_of_one_step() -> None:
    answer = steps()
    for number in range(129):
        answer.hear(call(f"t{number}"))
        assert not answer.is_last or number == 128
    answer.hear([Stop("tool")])
    assert answer.is_over and answer.is_last
