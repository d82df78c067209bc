"""What is read out of a chat completion request, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Call, Message
from hub.completions.problem import Problem
from hub.completions.request import NEUTRAL, read_request

HELLO: Any = [{"role": "user", "content": "Hello?"}]


def read(key: str | None = None, **fields: Any) -> Any:
    body = {"model": "standard", "messages": HELLO} | fields
    return read_request(json.dumps(body).encode(), key, "made-up")


def refused(**fields: Any) -> Problem:
    with pytest.raises(Problem) as raised:
        read(**fields)
    return raised.value


def test_what_changes_the_answer_is_in_the_body_that_makes_requests_equal() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    question = read(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo?"}]},
            {"role": "assistant", "content": "Yes?", "refusal": None},
            {"role": "developer", "content": "In English.", "name": "dev"},
            {"role": "user", "content": "Go on."},
        ],
        max_completion_tokens=7,
        temperature=0,
        stop="END",
        tools=[tool],
        tool_choice="required",
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
        fallbacks=["openai/gpt-6-luna"],
        cache="use",
        stream=True,
        stream_options={"include_usage": True},
        user="u-1",
        metadata={"a": "b"},
        store=False,
        seed=5,
    )
    body = Body.of(question.frame)
    assert [(turn.role, turn.content) for turn in body.messages] == [
        ("user", "Hello?"),
        ("assistant", "Yes?"),
        ("user", "Go on."),
    ]
    assert body == Body(
        body.messages,
        "Be brief.\n\nIn English.",
        "standard",
        fallbacks=["openai/gpt-6-luna"],
        max_tokens=7,
        temperature=0.0,
        stop=["END"],
        tools=[tool],
        tool_choice="required",
        schema=schema,
    )
    assert (question.streams, question.include_usage, question.tools) == (True, True, {"look"})
    assert question.frame.cache == "use"


def test_a_request_without_a_key_gets_one_and_is_not_kept_for_anybody_to_come_back() -> None:
    assert read().frame.request == "made-up"
    assert read("mine").frame.request == "mine"
    assert read().frame.abandon_after_ms < read("mine").frame.abandon_after_ms
    assert {read().frame.on_abandon, read("mine").frame.on_abandon} <= {None, "cancel"}


def test_only_what_is_shown_as_it_comes_goes_on_where_a_lost_worker_stopped() -> None:
    assert read(stream=True).frame.on_worker_loss == "continue"
    assert read().frame.on_worker_loss == "restart"


def test_tools_that_are_not_there_are_not_chosen_among() -> None:
    frame = read(tools=[], tool_choice="auto").frame
    assert (frame.tools, frame.tool_choice) == (None, None)


CALLS: Any = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}},
        {"id": "t2", "type": "function", "function": {"name": "look", "arguments": ""}},
    ],
}
RESULTS: Any = [
    {
        "role": "tool",
        "tool_call_id": "t2",
        "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "thing"}],
    },
    {"role": "tool", "tool_call_id": "t1", "content": ""},
]


def test_calls_and_their_results_are_the_turns_that_they_are_on_a_socket() -> None:
    assert Body.of(read(messages=[*HELLO, CALLS, *RESULTS]).frame).messages == [
        Message("user", "Hello?"),
        Message("assistant", calls=[Call("t1", "look", {"at": 1}), Call("t2", "look", {})]),
        Message("tool", "nothing", call="t2"),
        Message("tool", "", call="t1"),
    ]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([*HELLO, CALLS, RESULTS[0]], "messages"),
        ([*HELLO, CALLS, RESULTS[0], *HELLO], "messages[4]"),
        ([*HELLO, RESULTS[0]], "messages[2]"),
        ([*HELLO, CALLS, *RESULTS, RESULTS[0]], "messages[5]"),
    ],
)
def test_a_result_that_is_missing_or_nobody_asked_for_is_named_as_the_client_counts(messages: Any, param: str) -> None:
    problem = refused(messages=[{"role": "system", "content": "Be brief."}, *messages])
    assert (problem.status, problem.param) == (400, param)
    if param != "messages":
        assert problem.message.startswith(param)


def test_a_tool_of_the_workers_is_named_and_not_the_clients() -> None:
    own = {"type": "function", "function": {"name": "look"}}
    question = read(tools=[own, {"type": "worker", "name": "search"}])
    assert question.frame.tools == [own, {"type": "worker", "name": "search"}]
    assert question.tools == {"look"}


def test_calls_one_by_one_cannot_be_promised() -> None:
    tools = [{"type": "worker", "name": "search"}]
    problem = refused(tools=tools, parallel_tool_calls=False)
    assert (problem.status, problem.code, problem.param) == (400, "unsupported", "parallel_tool_calls")
    for harmless in (None, True):
        read(tools=tools, parallel_tool_calls=harmless)
    read(parallel_tool_calls=False)


@pytest.mark.parametrize(
    ("kind", "schema"), [({"type": "text"}, None), ({"type": "json_object"}, {"type": "object"}), (None, None)]
)
def test_a_response_format_is_a_schema(kind: Any, schema: Any) -> None:
    assert read(response_format=kind).frame.schema == schema


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_field_that_would_change_the_answer_is_refused_and_its_default_is_not(name: str) -> None:
    for neutral in NEUTRAL[name]:
        read(**{name: neutral})
    problem = refused(**{name: {"something": "else"}})
    assert (problem.status, problem.param) == (400, name)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hello?"}, "messages"),
        ({"messages": [{"content": "Hello?"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*HELLO, {"role": "function", "name": "f", "content": "x"}]}, "messages[1]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"messages": [*HELLO, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls[0]"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"a": 2**70}}}]}, None),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"fallbacks": "openai/x"}, "fallbacks"),
        ({"cache": "always"}, "cache"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_named(fields: dict[str, Any], param: str | None) -> None:
    problem = refused(**fields)
    assert (problem.status, problem.param, problem.is_final) == (400, param, True)


def test_a_key_that_is_too_long_is_named_as_the_header_that_it_came_in() -> None:
    with pytest.raises(Problem) as raised:
        read("k" * 129)
    assert raised.value.param == "Idempotency-Key"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b'"x"', b"\xff\xfe", b'{"messages":' + b"[" * 5000, b'{"a": 1e999}', b"null"]
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(Problem) as raised:
        read_request(body, None, "made-up")
    assert raised.value.status == 400
