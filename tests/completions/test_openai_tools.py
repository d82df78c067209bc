"""Tools with OpenAI's own Python package: the client's, the workers', and what it sends back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.conftest import StartWorker
from tests.installation import RunningHub, token

PROMPT = "Oslo"
LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}
FIND: Any = {"type": "function", "function": {"name": "find"}}
ADD: Any = {"type": "worker", "name": "add"}


@pytest.fixture
async def client(hub: RunningHub, start_worker: StartWorker) -> AsyncIterator[AsyncOpenAI]:
    await start_worker(tools="tests.integration.sample_tools")
    async with AsyncOpenAI(
        base_url=f"http://127.0.0.1:{hub.port}/v1", api_key=token(), max_retries=0, timeout=20
    ) as client:
        yield client


async def message_of(client: AsyncOpenAI, streams: bool, **options: Any) -> tuple[dict[str, Any], str]:
    """The assistant's message as its sender would keep it, and the finish reason."""
    if not streams:
        [choice] = (await client.chat.completions.create(**options)).choices
        return choice.message.model_dump(exclude_none=True), choice.finish_reason
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: list[dict[str, Any]] = []
    finish = None
    async for chunk in await client.chat.completions.create(**options, stream=True):
        [choice] = chunk.choices
        message["content"] += choice.delta.content or ""
        for part in choice.delta.tool_calls or ():
            assert part.function is not None
            if part.index == len(calls):
                assert part.id and part.type == "function" and part.function.name
                calls.append(
                    {"id": part.id, "type": "function", "function": {"name": part.function.name, "arguments": ""}}
                )
            else:
                assert part.id is None and part.function.name is None
            calls[part.index]["function"]["arguments"] += part.function.arguments or ""
        finish = choice.finish_reason or finish
    assert finish is not None
    return message | ({"tool_calls": calls} if calls else {}), finish


@pytest.mark.parametrize("streams", [True, False])
async def test_calls_are_made_answered_and_heard(client: AsyncOpenAI, streams: bool) -> None:
    asked: dict[str, Any] = {"model": "scripted/tool=look+find,rate=0", "tools": [LOOK, FIND]}
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    message, finish = await message_of(client, streams, messages=messages, **asked)
    assert finish == "tool_calls"
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]
    assert calls == [("look", {"at": PROMPT}), ("find", {})]
    ids = [call["id"] for call in message["tool_calls"]]
    results = [
        {"role": "tool", "tool_call_id": id_, "content": content}
        for id_, content in zip(ids, ["blue", "red"], strict=True)
    ]
    told, finish = await message_of(client, streams, messages=[*messages, message, *results], **asked)
    assert (told["content"], finish) == ("The result is: blue, red", "stop")
    assert "tool_calls" not in told


@pytest.mark.parametrize("streams", [True, False])
async def test_what_the_worker_runs_is_not_the_clients_to_answer(client: AsyncOpenAI, streams: bool) -> None:
    messages = [{"role": "user", "content": '{"a": 1, "b": 2}'}]
    told = await message_of(client, streams, model="scripted/tool=add,rate=0", messages=messages, tools=[ADD])
    assert told == ({"role": "assistant", "content": "The result is: 3"}, "stop")


@pytest.mark.parametrize("streams", [True, False])
async def test_of_calls_of_both_kinds_the_client_sees_its_own(client: AsyncOpenAI, streams: bool) -> None:
    messages = [{"role": "user", "content": '{"a": 1, "b": 2, "at": "x"}'}]
    message, finish = await message_of(
        client, streams, model="scripted/tool=add+look,rate=0", messages=messages, tools=[ADD, LOOK]
    )
    assert ([call["function"]["name"] for call in message["tool_calls"]], finish) == (["look"], "tool_calls")


async def test_a_choice_of_one_tool_goes_the_way_that_openai_writes_it(client: AsyncOpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "look"}}
    messages = [{"role": "user", "content": PROMPT}]
    asked: dict[str, Any] = {"model": "scripted/tool=look,rate=0", "messages": messages, "tools": [LOOK]}
    message, _ = await message_of(client, False, **asked, tool_choice=choice)
    assert len(message["tool_calls"]) == 1
    with pytest.raises(openai.BadRequestError) as refused:
        await message_of(client, False, **asked, tool_choice={"type": "function", "function": {"name": "absent"}})
    assert refused.value.param == "tool_choice"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [LOOK], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [LOOK, LOOK]}, "tools[1]"),
        ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools[0]"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"messages": [{"role": "tool", "tool_call_id": "t1", "content": "x"}]}, "messages[0]"),
    ],
)
async def test_what_cannot_be_is_named(client: AsyncOpenAI, options: dict[str, Any], param: str) -> None:
    asked: dict[str, Any] = {"model": "scripted/rate=0", "messages": [{"role": "user", "content": PROMPT}]}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(**(asked | options))
    assert refused.value.param == param
