"""The Responses API with the real SDK: what is asked, and answers that go on without their reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Call, Message
from tests.fakes import FakeProvider, Script, responses
from tests.fakes.messages import Refusal
from tests.fakes.script import Record
from tests.workers.listener import eventually
from tests.workers.providers.test_sdk_providers import ask, full_body, text_of
from workers.catalog import WrongCatalog, load, parse
from workers.providers import ProviderError, Stop
from workers.providers import responses as module
from workers.providers.background import Background, BackgroundProvider
from workers.providers.registry import Providers
from workers.providers.responses import ResponsesProvider

MODEL = "gpt-6-luna"
WORDS = [f"{number:03d} " for number in range(40)]
ENTRY = msgspec.structs.replace(load(None).providers["openai"], format="responses", background=True)


@pytest.fixture
async def provider(fake: FakeProvider) -> AsyncIterator[ResponsesProvider]:
    provider = ResponsesProvider("openai", ENTRY)
    await provider.warm()
    yield provider
    await provider.close()


def reread(fake: FakeProvider) -> list[int]:
    return [record.resumed_after for record in fake.records if record.resumed_after is not None]


def begun(fake: FakeProvider) -> Record:
    return next(record for record in fake.records if record.response)


# -- what is asked


async def test_it_is_asked_in_its_own_words(provider: ResponsesProvider, fake: FakeProvider) -> None:
    await ask(provider, full_body(), MODEL)
    assert (fake.last.path, fake.last.status) == ("/v1/responses", 200)
    body = fake.last.body
    assert body.pop("tools")[0] == {
        "type": "function", "name": "a", "description": "first", "parameters": {"type": "object"}, "strict": False,
    }  # fmt: skip
    form = {"type": "json_schema", "name": "answer", "schema": full_body().schema, "strict": True}
    assert body.pop("text") == {"format": form}
    assert body == {
        "model": MODEL, "stream": True, "background": True, "store": True, "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ],
        "max_output_tokens": 77, "temperature": 0.5, "tool_choice": {"type": "function", "name": "a"},
    }  # fmt: skip


async def test_without_the_background_nothing_is_stored(fake: FakeProvider, body: Body) -> None:
    provider = ResponsesProvider("openai", msgspec.structs.replace(ENTRY, background=False))
    events = await ask(provider, body, MODEL)
    assert fake.last.body["store"] is False and "background" not in fake.last.body
    assert not any(isinstance(event, Background) for event in events)
    await provider.close()


async def test_tool_turns_are_items_of_their_own(provider: ResponsesProvider, fake: FakeProvider) -> None:
    calls = [Call("c1", "look", {"q": "sky"}), Call("c2", "look")]
    turns = [
        Message("user", "Why?"),
        Message("assistant", "Let me see.", calls=calls),
        Message("tool", "blue", call="c1"),
        Message("tool", "no such thing", call="c2", error=True),
    ]
    await ask(provider, Body(turns, max_tokens=1), MODEL)
    assert fake.last.status == 200 and fake.last.body["max_output_tokens"] == 16, "the API takes no less"
    assert fake.last.body["input"] == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"q":"sky"}'},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "blue"},
        {"type": "function_call_output", "call_id": "c2", "output": "no such thing"},
    ]


def test_the_fake_knows_every_field_that_the_sdk_can_send() -> None:
    from openai.types.responses.response_create_params import ResponseCreateParamsStreaming as Params

    assert set(Params.__required_keys__ | Params.__optional_keys__) == responses.FIELDS


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_tokens": 5}, "max_tokens"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "No tool call found"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0]"),
        ({"max_output_tokens": 5}, "max_output_tokens"),
        ({"background": True, "store": False}, "store"),
        ({"tools": [{"type": "function", "name": "x", "parameters": {}}]}, "strict"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"stream": False}, "only streams"),
    ],
)
def test_the_fake_refuses_what_the_api_refuses(change: dict[str, Any], told: str) -> None:
    request = {"model": MODEL, "stream": True, "input": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": "Bearer k"}
    responses.check(headers, request)
    with pytest.raises(Refusal) as refused:
        responses.check(headers, {**request, **change})
    assert told in str(refused.value) + str(refused.value.fields)


# -- the catalog


def test_the_format_is_chosen_in_the_catalog_and_knows_no_stop_sequences() -> None:
    table = {"format": "responses", "background": True, "key": ["OPENAI_API_KEY"]}
    providers = Providers.from_env({"OPENAI_API_KEY": "k"}, catalog=parse({"providers": {"openai": table}}))
    provider = providers.get("openai")
    assert isinstance(provider, ResponsesProvider) and isinstance(provider, BackgroundProvider)
    [candidate] = providers.route(Body([Message("user", "hi")], model="openai/any")).candidates
    assert not providers.model(candidate).stop


def test_only_this_format_writes_in_the_background() -> None:
    with pytest.raises(WrongCatalog, match=r"providers\.x\.background needs format"):
        parse({"providers": {"x": {"format": "openai", "background": True}}})


# -- connections that break


@pytest.mark.parametrize("fault", ["reset", "cut", "end", "malformed", "invalid_utf8"])
@pytest.mark.parametrize("after", [0, 7])
async def test_an_answer_is_read_on_where_its_connection_broke(
    provider: ResponsesProvider, fake: FakeProvider, body: Body, fault: Any, after: int
) -> None:
    tools = [("look", ['{"q":', "1}"])]
    fake.queue.append(Script(texts=WORDS, tools=tools, fault=fault, fault_after=after, again=(fault, fault)))
    broken = await ask(provider, body, MODEL)
    fake.queue.append(Script(texts=WORDS, tools=tools))
    whole = await ask(provider, body, MODEL)
    assert broken[1:] == whole[1:], "but for its name"
    assert (fake.begun, len(reread(fake))) == (2, 3)
    assert begun(fake).cancelled_at is None


async def test_an_answer_that_cannot_be_read_on_fails_as_it_broke_and_is_cancelled(
    provider: ResponsesProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(Script(texts=WORDS * 100, gap_s=0.02, fault="reset", fault_after=3, again=(404,)))
    with pytest.raises(ProviderError) as caught:
        await ask(provider, body, MODEL)
    assert caught.value.fault == "broken"
    await eventually(lambda: begun(fake).cancelled_at, "the end at the provider")


async def test_it_is_tried_a_few_times(
    provider: ResponsesProvider, fake: FakeProvider, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSES_S", (0.0, 0.0, 0.0))
    fake.queue.append(Script(texts=WORDS, fault="cut", fault_after=3, again=(503, 503)))
    assert text_of(await ask(provider, body, MODEL)) == "".join(WORDS)
    fake.queue.append(Script(texts=WORDS, fault="cut", fault_after=3, again=(503, 503, 503)))
    with pytest.raises(ProviderError, match="broke"):
        await ask(provider, body, MODEL)
    assert len(reread(fake)) == 6


async def test_an_error_of_the_answer_itself_is_not_read_on(
    provider: ResponsesProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(Script(texts=WORDS, fault="error", fault_after=3))
    with pytest.raises(ProviderError) as caught:
        await ask(provider, body, MODEL)
    assert (caught.value.fault, reread(fake)) == ("server", [])


# -- readers that go


async def first_words(provider: ResponsesProvider, body: Body, *, hold: bool) -> str:
    """Read a little and leave; the answer's name."""
    name = ""
    async with aclosing(provider.stream(MODEL, body)) as stream:
        async for events in stream:
            for event in events:
                if isinstance(event, Background):
                    name = event.response
                    if hold:
                        provider.hold(name)
            if text_of(events):
                break
    return name


async def test_an_answer_whose_reader_goes_is_cancelled_unless_somebody_holds_it(
    provider: ResponsesProvider, fake: FakeProvider, body: Body
) -> None:
    fake.default = Script(texts=WORDS * 100, gap_s=0.01)
    dropped = fake.background.answers[await first_words(provider, body, hold=False)]
    held = fake.background.answers[await first_words(provider, body, hold=True)]
    await eventually(lambda: dropped.record.cancelled_at, "the end at the provider")
    assert held.record.cancelled_at is None and not held.is_over
    provider.drop(held.response)
    await eventually(lambda: held.record.cancelled_at, "the end at the provider")
    provider.drop("resp_unknown")  # any number of times, and whatever became of it


async def test_an_answer_that_is_held_is_read_again_by_another(
    provider: ResponsesProvider, fake: FakeProvider, body: Body
) -> None:
    fake.default = Script(texts=WORDS, gap_s=0.01)
    name = await first_words(provider, body, hold=True)
    other = ResponsesProvider("openai", ENTRY)
    events = [event async for events in other.read_again(MODEL, name, 0) for event in events]
    assert (text_of(events), events[-1], fake.begun) == ("".join(WORDS), Stop("stop"), 1)
    assert begun(fake).cancelled_at is None
    with pytest.raises(ProviderError) as caught:
        [events async for events in other.read_again(MODEL, "resp_unknown", 0)]
    assert caught.value.fault == "absent"
    await other.close()


async def test_closing_waits_for_what_is_being_cancelled(
    provider: ResponsesProvider, fake: FakeProvider, body: Body
) -> None:
    fake.default = Script(texts=WORDS * 100, gap_s=0.01)
    await first_words(provider, body, hold=False)
    await provider.close()
    assert begun(fake).cancelled_at is not None


async def test_an_answer_that_cannot_be_cancelled_is_tried_again_and_then_said(
    monkeypatch: pytest.MonkeyPatch, logs: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_CANCEL_PAUSES_S", (0.0, 0.0))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    provider = ResponsesProvider("openai", ENTRY)
    await provider.warm()
    provider.drop("resp_1")
    await eventually(lambda: "could not be cancelled" in logs.text, "a word about it")
    await provider.close()


async def test_cancelling_the_reader_s_task_frees_its_place(
    provider: ResponsesProvider, fake: FakeProvider, body: Body
) -> None:
    fake.default = Script(texts=WORDS * 100, gap_s=0.01)
    task = asyncio.create_task(ask(provider, body, MODEL))
    await eventually(lambda: fake.background.answers, "the request")
    await eventually(lambda: begun(fake).tokens > 3, "some words")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: begun(fake).cancelled_at, "the end at the provider")
    fake.default = Script(texts=["x"])
    assert text_of(await ask(provider, body, MODEL)) == "x"
