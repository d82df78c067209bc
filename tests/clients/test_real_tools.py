"""Tools of the application and of the workers, through a real hub, a real worker and both providers' formats."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

import headrace
from headrace import Message, Text, ToolInput, ToolReady, ToolResult
from tests.conftest import StartHub
from tests.fakes import FakeProvider, Script
from tests.installation import RunningHub, running_worker, token
from tests.integration.failover import MODELS, entry
from workers.catalog import parse
from workers.providers.registry import Providers


def double(number: int) -> int:
    """Twice as much."""
    return 2 * number


class Scene:
    """One client, and the provider behind the worker. Tools of the worker are those of tests/integration."""

    def __init__(self, client: headrace.Client, hub: RunningHub, fake: FakeProvider) -> None:
        self.client = client
        self.hub = hub
        self.fake = fake

    def plan(self, *scripts: Script) -> None:
        self.fake.queue.extend(scripts)


@pytest.fixture
async def scene(start_hub: StartHub, redis_url: str) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeProvider())
        catalog = parse({"providers": {name: entry(name, fake.port) for name in MODELS}})
        providers = Providers(frozenset({*MODELS, "scripted", "fallback"}), catalog=catalog, environ={})
        stack.push_async_callback(providers.close)
        hub = await start_hub(providers=",".join(["scripted", "fallback", *MODELS]))
        await stack.enter_async_context(
            running_worker(redis_url, providers=providers, tools="tests.integration.sample_tools")
        )
        client = await stack.enter_async_context(headrace.connect(hub.url, token("alice")))
        yield Scene(client, hub, fake)


def calls_of(format_: str, body: dict[str, Any]) -> list[Any]:
    """Arguments and results in what a provider was sent last."""
    if format_ == "responses":
        items = body["input"]
        made = [json.loads(item["arguments"]) for item in items if item.get("type") == "function_call"]
        return made + [item["output"] for item in items if item.get("type") == "function_call_output"]
    if format_ == "openai":
        made = [json.loads(call["function"]["arguments"]) for call in body["messages"][-3]["tool_calls"]]
        return made + [message["content"] for message in body["messages"][-2:]]
    blocks = [block for message in body["messages"][-2:] for block in message["content"]]
    made = [block["input"] for block in blocks if block["type"] == "tool_use"]
    return made + [block["content"] for block in blocks if block["type"] == "tool_result"]


@pytest.mark.parametrize("format_", MODELS)
async def test_a_function_is_called_and_the_model_hears_what_it_returned(scene: Scene, format_: str) -> None:
    scene.plan(
        Script(texts=["Let me see. "], tools=[("double", ['{"number":', " 4}"]), ("double", ['{"number": "x"}'])]),
        Script(texts=["It is ", "8."]),
    )
    model = f"{format_}/{MODELS[format_]}"
    run = scene.client.run("Twice 4?", tools=[double], model=model)
    events = [event async for event in run]
    assert await run.text() == "It is 8."
    assert run.generation.verified is True
    wrong = "ValidationError: Expected `int`, got `str` - at `$.number`"
    assert [(event.output, event.error) for event in events if isinstance(event, ToolResult)] == [
        ("8", False), (wrong, True),
    ]  # fmt: skip
    first, second = (record.body for record in scene.fake.records)
    assert len(first["tools"]) == 1 and first["tools"] == second["tools"]
    told = calls_of(format_, second)
    assert told[:2] == [{"number": 4}, {"number": "x"}]
    assert str(told[2]).startswith("8") and "Expected `int`" in str(told[3])
    # and the conversation goes on from there
    scene.plan(Script(texts=["You are welcome."]))
    more = scene.client.run([*run.messages, Message("user", "Thanks!")], tools=[double], model=model)
    assert await more.text() == "You are welcome."


async def test_a_tool_of_the_workers_is_offered_by_its_name(scene: Scene) -> None:
    scene.plan(
        Script(texts=["Hm. "], tools=[("add", ['{"a": 1, ', '"b": 2}'])]),
        Script(texts=["So: "], tools=[("double", ['{"number": 3}'])]),
        Script(texts=["It is 6."]),
    )
    run = scene.client.run("Twice 1 + 2?", tools=[double, "add"], model=f"openai/{MODELS['openai']}")
    events = [event async for event in run]
    assert [event.output for event in events if isinstance(event, ToolResult)] == ["3", "6"]
    shown = [event for event in events if isinstance(event, Text | ToolInput | ToolReady | ToolResult)]
    assert [type(event) for event in shown[-2:]] == [ToolResult, Text]
    assert await run.text() == "It is 6."
    assert [(turn.role, turn.content) for turn in run.messages] == [
        ("user", "Twice 1 + 2?"),
        ("assistant", "Hm. "),
        ("tool", "3"),
        ("assistant", "So: "),
        ("tool", "6"),
        ("assistant", "It is 6."),
    ]
    assert len(scene.fake.records) == 3


async def test_an_interrupted_run_that_is_repeated_pays_nothing_twice(scene: Scene) -> None:
    scene.plan(Script(tools=[("double", ['{"number": 3}'])]), Script(texts=["six"]))
    model = f"openai/{MODELS['openai']}"
    async with scene.client.run("?", tools=[double], model=model, request="kept") as run:
        async for event in run:
            if isinstance(event, ToolResult):
                break
    again = scene.client.run("?", tools=[double], model=model, request="kept")
    assert await again.text() == "six"
    assert len(scene.fake.records) == 2


async def test_large_arguments_are_read_from_their_pieces(scene: Scene) -> None:
    """The hub leaves them out of `tool_ready` above 32 KiB."""

    def measure(text: str) -> int:
        return len(text)

    text = "x" * 40_000
    pieces = json.dumps({"text": text})
    scene.plan(
        Script(tools=[("measure", [pieces[at : at + 1000] for at in range(0, len(pieces), 1000)])]),
        Script(texts=["long"]),
    )
    run = scene.client.run("?", tools=[measure], model=f"openai/{MODELS['openai']}")
    events = [event async for event in run]
    assert [event.input for event in events if isinstance(event, ToolReady)] == [None]
    assert [event.output for event in events if isinstance(event, ToolResult)] == ["40000"]
    assert await run.text() == "long"


async def test_generate_alone_leaves_the_calls_to_the_application(scene: Scene) -> None:
    generation = scene.client.generate("4", tools=[double], model="scripted/tool=double,rate=0")
    assert await generation.text() == ""
    assert (await generation.done()).stop_reason == "tool_calls"
    [use] = generation.tool_calls
    assert (use.name, use.input, use.arguments) == ("double", {"number": 1}, '{"number":1}')
    messages = [Message("user", "4"), *generation.turns(), Message("tool", "2", call=use.call)]
    again = scene.client.generate(messages, tools=[double], model="scripted/tool=double,rate=0")
    assert await again.text() == "The result is: 2"
    assert again.tool_calls == []


async def test_two_tools_of_one_name_are_refused_where_they_stand(scene: Scene) -> None:
    with pytest.raises(headrace.RequestRejected, match=r"tools\[1\]"):
        await scene.client.run("?", tools=[double, double]).text()
