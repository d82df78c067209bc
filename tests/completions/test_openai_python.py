"""OpenAI's own Python package against a real hub and worker: whoever has such a client needs no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk

from tests.conftest import StartHub
from tests.installation import RunningHub, eventually, token
from tests.wire import text_of
from workers.worker import Worker

ASKED: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]
FIVE = "0000 0001 0002 0003 0004 "
TOOL: Any = {
    "type": "function",
    "function": {"name": "lookup", "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}}},
}


def client_of(hub: RunningHub, **options: Any) -> AsyncOpenAI:
    chosen: dict[str, Any] = {"api_key": token(), "max_retries": 0, "timeout": 20} | options
    return AsyncOpenAI(base_url=f"http://127.0.0.1:{hub.port}/v1", **chosen)


@pytest.fixture
async def client(hub: RunningHub) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(hub) as client:
        yield client


async def stream(client: AsyncOpenAI, model: str, **options: Any) -> list[ChatCompletionChunk]:
    chunks = await client.chat.completions.create(model=model, messages=ASKED, stream=True, **options)
    return [chunk async for chunk in chunks]


def content(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def test_a_whole_answer_names_who_gave_it(client: AsyncOpenAI, worker: Worker) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="scripted/tokens=5,rate=0", messages=ASKED)
    answer = raw.parse()
    assert answer.choices[0].message.content == FIVE
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "scripted/tokens=5,rate=0"
    assert answer.usage is not None and answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    assert answer.id == raw.headers["x-headrace-stream"] == answer._request_id


async def test_a_streamed_answer_is_the_same(client: AsyncOpenAI, worker: Worker) -> None:
    chunks = await stream(client, "scripted/tokens=5,rate=50,reasoning=2")
    assert content(chunks) == FIVE
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    reasoning = [(chunk.choices[0].delta.model_extra or {}).get("reasoning_content", "") for chunk in chunks]
    assert "".join(reasoning) == "0000 0001 "
    assert {chunk.model for chunk in chunks} == {"scripted/tokens=5,rate=50,reasoning=2"}
    assert {chunk.id[:2] for chunk in chunks} == {"g_"} and len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


async def test_usage_comes_last_and_only_if_it_is_asked_for(client: AsyncOpenAI, worker: Worker) -> None:
    *chunks, last = await stream(client, "scripted/tokens=3,rate=0", stream_options={"include_usage": True})
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 3
    assert all(chunk.choices for chunk in chunks)


async def test_the_synchronous_client_reads_it_too(hub: RunningHub, worker: Worker) -> None:
    def ask() -> tuple[str, list[str]]:
        with OpenAI(base_url=f"http://127.0.0.1:{hub.port}/v1", api_key=token(), max_retries=0) as client:
            chunks = client.chat.completions.create(model="scripted/tokens=5,rate=0", messages=ASKED, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            return text, [model.id for model in client.models.list()]

    text, models = await asyncio.to_thread(ask)
    assert text == FIVE
    assert {"fast", "standard", "premium"} <= set(models)


async def test_an_answer_of_many_windows_is_whole_both_ways(client: AsyncOpenAI, worker: Worker) -> None:
    model = "scripted/size=1500,tokens=700,rate=0"
    answer = await client.chat.completions.create(model=model, messages=ASKED)
    text = answer.choices[0].message.content
    assert text is not None and len(text) == 700 * 1500
    assert content(await stream(client, model)) == text


async def test_an_answer_cut_by_max_tokens_says_so(client: AsyncOpenAI, worker: Worker) -> None:
    answer = await client.chat.completions.create(
        model="scripted/tokens=9,rate=0", messages=ASKED, max_completion_tokens=2
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == "0000 0001 "


async def test_tool_calls_arrive_whole_and_in_pieces(client: AsyncOpenAI, worker: Worker) -> None:
    model = "scripted/tokens=1,rate=0,tools=2"
    answer = await client.chat.completions.create(model=model, messages=ASKED)
    calls: Any = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("call_1", "lookup", '{"number": 1}'),
        ("call_2", "lookup", '{"number": 2}'),
    ]
    chunks = await stream(client, model)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    arguments = ["", ""]
    for chunk in chunks:
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.function is not None
            arguments[call.index] += call.function.arguments or ""
    assert arguments == ['{"number": 1}', '{"number": 2}']


async def test_an_answer_of_the_fallback_is_labelled(client: AsyncOpenAI, worker: Worker) -> None:
    answer = await client.chat.completions.create(model="standard", messages=ASKED)
    assert answer.model.startswith("fallback/")
    assert (answer.model_extra or {})["headrace"]["source"]["mode"] == "fallback"


async def test_a_model_is_looked_up_by_its_name(client: AsyncOpenAI) -> None:
    assert (await client.models.retrieve("fast")).owned_by == "headrace"
    assert (await client.models.retrieve("scripted/story")).owned_by == "scripted"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody/anything")


# -- what goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "code"), [("nonsense", "invalid_api_key"), (token(ttl_s=-90), "token_expired")])
async def test_a_key_that_is_no_valid_token_is_refused(hub: RunningHub, key: str, code: str) -> None:
    async with client_of(hub, api_key=key, max_retries=2) as client:
        for asked in (client.chat.completions.create(model="fast", messages=ASKED), client.models.list()):
            with pytest.raises(openai.AuthenticationError) as refused:
                await asked
            assert refused.value.code == code


async def test_an_unknown_model_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(model="gpt-4o", messages=ASKED)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


async def test_a_fallback_that_nobody_knows_is_named(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(model="fast", messages=ASKED, extra_body={"fallbacks": ["nobody/x"]})
    assert refused.value.param == "fallbacks"


async def test_a_fallback_answers_for_a_model_that_fails(client: AsyncOpenAI, worker: Worker) -> None:
    answer = await client.chat.completions.create(
        model="scripted/rate=0,fail_after=0,fault=overloaded",
        messages=ASKED,
        extra_body={"fallbacks": ["scripted/tokens=2,rate=0"]},
    )
    assert (answer.choices[0].message.content, answer.model) == ("0000 0001 ", "scripted/tokens=2,rate=0")


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    ("code", "kind", "status"),
    [
        ("provider_rate_limited", openai.RateLimitError, 429),
        ("provider_overloaded", openai.InternalServerError, 503),
        ("provider_error", openai.InternalServerError, 502),
        ("context_length_exceeded", openai.BadRequestError, 400),
    ],
)
async def test_a_failure_before_the_first_content_has_a_status(
    client: AsyncOpenAI, worker: Worker, code: str, kind: type[openai.APIStatusError], status: int, streams: bool
) -> None:
    with pytest.raises(kind) as failed:
        await client.chat.completions.create(
            model=f"scripted/rate=0,fail_after=0,code={code}", messages=ASKED, stream=streams
        )
    assert (failed.value.status_code, failed.value.code) == (status, code)


async def test_a_failure_after_content_ends_the_stream_with_an_error(client: AsyncOpenAI, worker: Worker) -> None:
    texts = []
    chunks = await client.chat.completions.create(model="scripted/rate=20,fail_after=3", messages=ASKED, stream=True)
    with pytest.raises(openai.APIError) as failed:
        async for chunk in chunks:
            texts.append(chunk.choices[0].delta.content)
    assert "".join(text or "" for text in texts) == "0000 0001 0002 "
    assert failed.value.code == "provider_error"


async def test_a_hub_that_ends_says_so_on_its_streams(start_hub: StartHub, worker: Worker) -> None:
    hub = await start_hub()
    async with client_of(hub) as client:
        chunks = await client.chat.completions.create(model="scripted/rate=20", messages=ASKED, stream=True)
        with pytest.raises(openai.APIError, match="about to end"):
            async for _ in chunks:
                if not hub.node.is_draining:
                    await hub.node.drain()
        with pytest.raises(openai.InternalServerError, match="about to end"):
            await client.chat.completions.create(model="scripted/rate=20", messages=ASKED)


# -- the same stream, seen from elsewhere --------------------------------------------------------------------


async def test_the_same_idempotency_key_is_the_same_answer(client: AsyncOpenAI, worker: Worker) -> None:
    headers = {"Idempotency-Key": "once"}
    model = "scripted/stamp=1,tokens=3,rate=0"
    first = await client.chat.completions.create(model=model, messages=ASKED, extra_headers=headers)
    again = await stream(client, model, extra_headers=headers)
    assert content(again) == first.choices[0].message.content
    assert again[0].id == first.id
    with pytest.raises(openai.ConflictError) as refused:
        await client.chat.completions.create(model="fast", messages=ASKED, extra_headers=headers)
    assert refused.value.code == "request_conflict"


async def test_a_socket_watches_what_a_completion_asked(hub: RunningHub, client: AsyncOpenAI, worker: Worker) -> None:
    chunks = await client.chat.completions.create(model="scripted/tokens=20,rate=40", messages=ASKED, stream=True)
    name = chunks.response.headers["x-headrace-stream"]
    wire = await hub.join()
    await wire.send({"type": "attach", "id": 1, "stream": name})
    told = content([chunk async for chunk in chunks])
    assert text_of(await wire.until("entry", kind="done")) == told


async def test_a_client_that_goes_away_ends_its_answer(
    hub: RunningHub, client: AsyncOpenAI, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.completions.request.ABANDON_AFTER_MS", 100)
    chunks = await client.chat.completions.create(model="scripted/tokens=1000,rate=20", messages=ASKED, stream=True)
    name = chunks.response.headers["x-headrace-stream"]
    await anext(aiter(chunks))
    await chunks.close()
    await eventually(lambda: not hub.node.connections, "leaving")
    wire = await hub.join()

    async def is_over() -> bool:  # to look by attaching would be to watch
        await wire.send({"type": "list", "id": 1, "state": "done"})
        return bool((await wire.expect("streams"))["streams"])

    await eventually(is_over, "the end of an answer that nobody watches")
    await wire.send({"type": "attach", "id": 2, "stream": name})
    [*_, done] = await wire.until("entry", kind="done")
    assert (done["data"]["status"], done["data"]["stop_reason"]) == ("cancelled", "abandoned")
