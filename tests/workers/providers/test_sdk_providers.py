"""Both adapters, with the real SDKs, against the fake provider over HTTP."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from collections.abc import AsyncIterator

import aiohttp
import httpx2
import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Call, Message
from tests.fakes import FakeProvider, Script
from tests.fakes.messages import MessagesFormat
from tests.faults.ports import deaf_port, free_port
from tests.installation import eventually
from tests.workers.providers.conftest import MODELS, SECRET_KEY, SECRET_PROMPT, make
from workers.catalog import ModelEntry
from workers.providers import Citation, Event, ProviderError, Reasoning, Speaker, Stop, Text, ToolReady, Usage
from workers.providers import sdk as sdk_module
from workers.providers.anthropic import request_fields as anthropic_fields
from workers.providers.openai import request_fields
from workers.providers.responses_request import request_fields as responses_fields
from workers.providers.sdk import TOLD_CHARACTERS, SdkProvider
from workers.providers.watchdog import Watchdog


async def ask(provider: SdkProvider, body: Body, model: str | None = None) -> list[Event]:
    return [event async for events in provider.stream(model or MODELS[provider.name], body) for event in events]


async def failure(provider: SdkProvider, body: Body, model: str | None = None) -> ProviderError:
    """How asking fails. Whatever it says holds neither the key nor the prompt."""
    with pytest.raises(ProviderError) as caught:
        await ask(provider, body, model)
    assert SECRET_KEY not in caught.value.message
    assert SECRET_PROMPT not in caught.value.message
    return caught.value


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


async def test_an_answer_comes_with_reasoning_text_tools_usage_and_stop(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    tools = [("search", ['{"q":', ' "sky"}'])]
    fake.queue.append(Script(texts=["Grüße", " 👋"], reasoning=["hm", "…"], tools=tools))
    events = await ask(provider, body)
    assert events[0] == Speaker(MODELS[provider.name])
    assert "".join(event.text for event in events if isinstance(event, Reasoning)) == "hm…"
    assert text_of(events) == "Grüße 👋"
    assert [event.input for event in events if isinstance(event, ToolReady)] == [{"q": "sky"}]
    assert events[-2:] == [Usage(input_tokens=12, output_tokens=2), Stop("tool")]


async def test_a_citation_is_passed_on(anthropic: SdkProvider, fake: FakeProvider, body: Body) -> None:
    fake.queue.append(Script(citation={"type": "web_search_result_location", "url": "https://example.org"}))
    events = await ask(anthropic, body)
    assert Citation({"type": "web_search_result_location", "url": "https://example.org"}) in events


async def test_one_list_of_events_comes_per_read_not_per_token(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(Script(tokens=2000))
    lists = [events async for events in provider.stream(MODELS[provider.name], body)]
    assert sum(len(events) for events in lists) > 2000
    assert len(lists) < 500


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
async def test_an_answer_written_byte_by_byte_is_the_same(
    provider: SdkProvider, fake: FakeProvider, body: Body, newline: bytes
) -> None:
    script = dict(texts=["Grüße", "👋"], reasoning=["hm"], newline=newline)
    fake.queue.extend([Script(**script), Script(**script, split=True)])  # type: ignore[arg-type]
    assert await ask(provider, body) == await ask(provider, body)


async def test_a_pair_of_surrogates_in_two_events_is_one_character(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(Script(texts=["a\ud83d", "\ude00b", "\ud83d"]))
    assert text_of(await ask(provider, body)) == "a😀b\ufffd"


async def test_comments_and_unknown_events_are_ignored(provider: SdkProvider, fake: FakeProvider, body: Body) -> None:
    fake.queue.append(Script(extra=b': still here\n\nevent: news\ndata: {"type":"news","choices":[]}\n\n'))
    assert text_of(await ask(provider, body)) == "0000 0001 0002 "


async def test_a_body_that_is_compressed_against_our_wish_is_read_all_the_same(
    anthropic: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    plain = Script(texts=["so ", "small"])
    form = MessagesFormat(plain, {"model": MODELS["anthropic"]})
    stream = b"".join([*form.opening(), *map(form.token, plain.pieces()), *form.closing()])
    packed = ("text/event-stream", gzip.compress(stream))
    fake.queue.append(Script(raw_body=packed, headers={"content-encoding": "gzip"}))
    assert text_of(await ask(anthropic, body)) == "so small"


async def test_what_is_not_compressed_is_read_past_the_iterators_of_httpx2(
    provider: SdkProvider, fake: FakeProvider, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost as much as all the rest. If this fails, the packages keep aiohttp's reader elsewhere: see `_opened`."""
    monkeypatch.delattr(httpx2.Response, "aiter_raw")
    assert text_of(await ask(provider, body)) == "0000 0001 0002 "


async def test_without_aiohttps_reader_httpx2s_iterators_do(
    provider: SdkProvider, fake: FakeProvider, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterated = []
    aiter_raw = httpx2.Response.aiter_raw

    def note(response: httpx2.Response) -> AsyncIterator[bytes]:
        iterated.append(response)
        return aiter_raw(response)

    monkeypatch.setattr(httpx2.Response, "aiter_raw", note)
    monkeypatch.setattr(sdk_module, "_AIOHTTP_RESPONSE", "_elsewhere")
    assert text_of(await ask(provider, body)) == "0000 0001 0002 "
    assert iterated


async def test_the_connection_is_used_again(provider: SdkProvider, fake: FakeProvider, body: Body) -> None:
    for _ in range(3):
        await ask(provider, body)
    assert len(fake.records) == 3
    assert fake.connections_made == 1


# -- requests --------------------------------------------------------------------------------------------------


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def full_body() -> Body:
    """Everything that a request may hold, but for what excludes another."""
    return Body(
        messages=[Message("user", "one"), Message("assistant", "two"), Message("user", "three")],
        system="Be brief.",
        max_tokens=77,
        temperature=0.5,
        stop=["END"],
        tools=[
            {"name": "a", "description": "first", "input_schema": {"type": "object"}},
            {"type": "function", "function": {"name": "b", "parameters": {"type": "object"}}},
        ],
        tool_choice={"name": "a"},
        schema=CITY,
    )


async def test_anthropic_is_asked_in_its_own_words(anthropic: SdkProvider, fake: FakeProvider) -> None:
    await ask(anthropic, full_body(), "claude-haiku-4-6")
    record = fake.last
    assert record.path == "/v1/messages"
    assert record.headers["accept-encoding"] == "identity"
    assert record.body == {
        "model": "claude-haiku-4-6",
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ],
        "system": "Be brief.",
        "max_tokens": 77,
        "temperature": 0.5,
        "stop_sequences": ["END"],
        "tools": [
            {"name": "a", "description": "first", "input_schema": {"type": "object"}},
            {"name": "b", "input_schema": {"type": "object"}},
        ],
        "tool_choice": {"type": "tool", "name": "a"},
        "output_config": {"format": {"type": "json_schema", "schema": CITY}},
        "stream": True,
    }


async def test_openai_is_asked_in_its_own_words(openai: SdkProvider, fake: FakeProvider) -> None:
    await ask(openai, full_body())
    record = fake.last
    assert record.path == "/v1/chat/completions"
    assert record.headers["accept-encoding"] == "identity"
    assert record.body == {
        "model": "gpt-6-luna",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ],
        "max_completion_tokens": 77,
        "temperature": 0.5,
        "stop": ["END"],
        "tools": [
            {
                "type": "function",
                "function": {"name": "a", "description": "first", "parameters": {"type": "object"}},
            },
            {"type": "function", "function": {"name": "b", "parameters": {"type": "object"}}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "a"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": CITY, "strict": True},
        },
        "stream": True,
        "stream_options": {"include_usage": True},
    }


ASKED = Message("user", "one")
TOOL_TURNS = [
    ASKED, Message("assistant", "", calls=[Call("c", "a", {})]), Message("tool", "out", call="c"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "thinks"),
    [
        (Body([ASKED]), True),
        (Body([ASKED, Message("assistant", "two"), ASKED]), True),
        (Body([ASKED], temperature=0.5), False),
        (Body([ASKED], tools=[{"name": "a"}], tool_choice="required"), False),
        (Body([ASKED, Message("assistant", "begun")]), False),
        (Body(TOOL_TURNS), False),
        (Body([*TOOL_TURNS, ASKED]), False),
    ],
)
def test_thinking_is_asked_for_where_the_api_allows_it(body: Body, thinks: bool) -> None:
    fields = anthropic_fields("claude-x", body, ModelEntry(thinking=True))
    assert fields.get("thinking") == ({"type": "adaptive", "display": "summarized"} if thinks else None)
    assert "thinking" not in anthropic_fields("claude-x", body, ModelEntry())


def test_a_summary_of_the_thinking_is_asked_of_responses(body: Body) -> None:
    for thinking, fields in ((True, {"summary": "auto"}), (False, None)):
        asked = responses_fields("gpt", body, official=True, background=False, thinking=thinking)
        assert asked.get("reasoning") == fields


def test_only_openai_itself_is_asked_to_leave_its_padding_out(body: Body) -> None:
    official = request_fields("gpt-6-luna", body, official=True)
    compatible = request_fields("gpt-6-luna", body, official=False)
    assert official["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert compatible["stream_options"] == {"include_usage": True}


async def test_anthropic_gets_a_bound_on_the_answer_when_the_request_has_none(
    anthropic: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    await ask(anthropic, body)
    assert fake.last.body["max_tokens"] == 4096
    assert anthropic_fields("claude-x", body, ModelEntry(max_output=1000))["max_tokens"] == 1000
    assert "temperature" not in fake.last.body


@pytest.mark.parametrize("word", ["auto", "none", "required", "any"])
async def test_a_choice_of_tools_is_understood_by_both(provider: SdkProvider, fake: FakeProvider, word: str) -> None:
    tools = [{"name": "a", "input_schema": {"type": "object"}}]
    await ask(provider, Body(messages=[Message("user", "hi")], tools=tools, tool_choice=word))
    required = {"anthropic": "any", "openai": "required"}[provider.name]
    expected = required if word in ("required", "any") else word
    assert fake.last.body["tool_choice"] == ({"type": expected} if provider.name == "anthropic" else expected)


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "retry", "after_ms"),
    [
        (Script(status=429, headers={"retry-after": "7"}), "provider_rate_limited", "after", 7000),
        (Script(status=429, headers={"retry-after-ms": "120"}), "provider_rate_limited", "after", 120),
        (Script(status=429, headers={"retry-after": "99999"}), "provider_rate_limited", "after", 600_000),
        (Script(status=429), "provider_rate_limited", "after", None),
        (Script(status=529), "provider_overloaded", "backoff", None),
        (Script(status=503, headers={"retry-after": "2"}), "provider_overloaded", "backoff", 2000),
        (Script(status=500), "provider_error", "backoff", None),
        (Script(status=504), "provider_timeout", "backoff", None),
        (Script(status=402), "provider_error", "no", None),
        (Script(status=403), "provider_error", "no", None),
        (Script(status=413), "context_length_exceeded", "no", None),
        (Script(status=302, headers={"location": "/elsewhere"}), "provider_error", "no", None),
    ],
)
async def test_every_refusal_is_sorted(
    provider: SdkProvider,
    fake: FakeProvider,
    body: Body,
    script: Script,
    code: str,
    retry: str,
    after_ms: int | None,
) -> None:
    fake.queue.append(script)
    error = await failure(provider, body)
    assert (error.code, error.retry, error.after_ms) == (code, retry, after_ms)
    assert provider.name in error.message


@pytest.mark.parametrize("status", [302, 307, 308])
async def test_a_redirect_takes_the_prompt_nowhere(
    provider: SdkProvider, fake: FakeProvider, body: Body, status: int
) -> None:
    async with FakeProvider() as elsewhere:
        fake.queue.append(Script(status=status, headers={"location": elsewhere.base_url_openai}))
        error = await failure(provider, body)
        assert "a redirect, which is not followed" in error.message and error.fault == "absent"
        assert not elsewhere.records and len(fake.records) == 1


@pytest.mark.parametrize(("status", "fault"), [(500, "server"), (502, "unreachable"), (520, "unreachable")])
async def test_only_a_500_counts_as_what_asking_again_may_mend(
    provider: SdkProvider, fake: FakeProvider, body: Body, status: int, fault: str
) -> None:
    fake.queue.append(Script(status=status))
    assert (await failure(provider, body)).fault == fault


async def test_what_gathered_while_nobody_read_is_told_in_small_pieces(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    """A generation leaves room for one read, and no more."""
    fake.queue.append(Script(texts=["x" * 1000] * 300))
    told = []
    async for events in provider.stream(MODELS[provider.name], body):
        told.append(len(text_of(events)))
        if len(told) == 1:
            await eventually(lambda: fake.last.finished or fake.last.blocked.is_set())
    assert sum(told) == 300_000
    assert max(told) <= TOLD_CHARACTERS


async def test_a_failed_request_is_not_repeated_by_the_sdk(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(Script(status=500))
    await failure(provider, body)
    assert len(fake.records) == 1


@pytest.mark.parametrize(
    ("name", "fields", "code"),
    [
        ("anthropic", {"message": "prompt is too long: 210000 tokens > 200000 maximum"}, "context_length_exceeded"),
        ("anthropic", {"message": "Output blocked by content filtering policy"}, "content_blocked"),
        ("openai", {"message": "secret", "code": "context_length_exceeded"}, "context_length_exceeded"),
        ("openai", {"message": "secret", "code": "content_filter"}, "content_blocked"),
        ("openai", {"message": f"quoting {SECRET_PROMPT}", "code": "invalid_value"}, "provider_error"),
    ],
)
async def test_a_refused_request_says_why_without_quoting_the_provider(
    fake: FakeProvider, body: Body, name: str, fields: dict[str, str], code: str
) -> None:
    provider = make(name)
    fake.queue.append(Script(status=400, error=fields))
    error = await failure(provider, body)
    assert (error.code, error.retry) == (code, "no")
    assert fields["message"] not in error.message
    await provider.close()


async def test_a_wrong_key_names_the_variable_to_check(
    provider: SdkProvider, fake: FakeProvider, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = provider.account.key_variable
    monkeypatch.setenv(variable, "invalid-key")
    error = await failure(provider, body)
    assert (error.code, error.retry) == ("provider_error", "no")
    assert variable in error.message
    assert "401" in error.message


async def test_a_key_that_no_header_can_carry_is_an_error_that_does_not_show_it(
    provider: SdkProvider, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(provider.account.key_variable, "schlüssel\n")
    error = await failure(provider, body)
    assert provider.account.key_variable in error.message
    assert "schl" not in error.message


async def test_a_missing_key_names_the_variable_to_set(
    provider: SdkProvider, body: Body, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.delenv(provider.account.key_variable)
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path))
    error = await failure(provider, body)
    assert (error.code, error.retry) == ("provider_error", "no")
    assert provider.account.key_variable in error.message


async def test_an_unknown_model_is_said_to_be_one(provider: SdkProvider, fake: FakeProvider, body: Body) -> None:
    error = await failure(provider, body, "no-such-model")
    assert "404" in error.message
    assert "model" in error.message


@pytest.mark.parametrize("content_type", ["application/json", "text/html; charset=utf-8"])
async def test_an_answer_that_is_no_stream_is_refused(
    provider: SdkProvider, fake: FakeProvider, body: Body, content_type: str
) -> None:
    fake.queue.append(Script(raw_body=(content_type, b'{"hello": "gateway"}')))
    error = await failure(provider, body)
    assert provider.account.url_variable in error.message


# -- broken streams --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("fault", ["cut", "end", "error", "malformed", "invalid_utf8"])
async def test_a_stream_that_breaks_is_a_failed_answer_with_all_text_before_it(
    provider: SdkProvider, fake: FakeProvider, body: Body, fault: str, after: int
) -> None:
    fake.queue.append(Script(tokens=4, fault=fault, fault_after=after, gap_s=0.02))  # type: ignore[arg-type]
    events: list[Event] = []
    with pytest.raises(ProviderError) as caught:
        async for batch in provider.stream(MODELS[provider.name], body):
            events += batch
    assert text_of(events) == "0000 0001 "[: after * 5]
    overloaded = fault == "error" and provider.name == "anthropic"
    assert caught.value.code == ("provider_overloaded" if overloaded else "provider_error")
    assert not any(isinstance(event, Stop) for event in events)


async def test_a_reset_connection_is_a_failed_answer(provider: SdkProvider, fake: FakeProvider, body: Body) -> None:
    fake.queue.append(Script(fault="reset", fault_after=1))
    error = await failure(provider, body)
    assert (error.code, error.retry) == ("provider_error", "backoff")


@pytest.mark.parametrize(
    "error",
    [
        aiohttp.ClientPayloadError(),
        aiohttp.ClientOSError(),
        aiohttp.ClientConnectionError(),
        ConnectionResetError(),
        RuntimeError("Connection closed."),
    ],
)
def test_aiohttps_own_words_for_a_lost_connection_are_known(error: Exception) -> None:
    sorted_ = make("openai")._sorted(error)
    assert isinstance(sorted_, ProviderError) and sorted_.fault == "broken"


def test_a_damaged_compression_is_a_malformed_answer() -> None:
    sorted_ = make("openai")._sorted(httpx2.DecodingError("secret"))
    assert isinstance(sorted_, ProviderError) and sorted_.fault == "malformed"


async def test_a_connection_closed_instead_of_an_answer_is_a_broken_one(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(Script(fault="drop"))
    error = await failure(provider, body)
    assert (error.code, error.message) == ("provider_error", f"the connection to {provider.name} broke")


async def test_anthropics_stop_reason_without_the_last_event_is_no_end(
    anthropic: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    early = b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n'
    fake.queue.append(Script(extra=early, fault="end", fault_after=3))
    error = await failure(anthropic, body)
    assert "without saying that it was complete" in error.message


async def test_chat_completions_may_leave_out_the_done_marker(
    openai: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(Script(done_marker=False))
    assert (await ask(openai, body))[-2:] == [Usage(12, 3), Stop("stop")]


async def test_chat_completions_that_hang_after_the_finish_reason_are_complete(
    openai: SdkProvider, fake: FakeProvider, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk_module, "USAGE_S", 0.05)
    finish = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    fake.queue.append(Script(tokens=0, extra=finish, fault="stall"))
    assert (await ask(openai, body))[-1] == Stop("stop")


async def test_a_done_marker_without_a_finish_reason_is_no_end(
    openai: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(Script(extra=b"data: [DONE]\n\n", fault="end", fault_after=1))
    assert "without saying that it was complete" in (await failure(openai, body)).message


# -- time ------------------------------------------------------------------------------------------------------


PINGS = Script(tokens=1, fault="pings", fault_after=1)


@pytest.mark.parametrize(
    ("script", "clock", "fault", "words"),
    [
        (Script(headers_s=30.0), "headers_s", "headers_timeout", "did not answer within 0.2 s"),
        (Script(fault="stall"), "first_content_s", "silent", "wrote nothing for 0.2 s"),
        (Script(fault="stall", fault_after=1), "idle_s", "idle", "sent nothing for 0.2 s"),
        (PINGS, "idle_content_s", "idle", "signs of life and nothing else for 0.2 s"),
        (Script(tokens=100_000, gap_s=0.02), "total_s", "idle", "was not finished after 0.2 s"),
    ],
)
async def test_every_clock_has_its_fault_and_says_so(
    fake: FakeProvider, body: Body, script: Script, clock: str, fault: str, words: str
) -> None:
    for name in MODELS:
        provider = make(name, **{clock: 0.2})  # type: ignore[arg-type]
        await provider.warm()
        fake.queue.append(script)
        error = await failure(provider, body)
        assert (error.code, error.retry, error.fault) == ("provider_timeout", "backoff", fault)
        assert words in error.message
        await asyncio.wait_for(fake.last.gone.wait(), 1)
        await provider.close()


async def test_time_in_which_nobody_reads_is_not_the_provider_s(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    impatient = make(provider.name, idle_s=0.3, idle_content_s=0.3, total_s=0.6)
    fake.queue.append(Script(tokens=50, gap_s=0.002))
    stream = impatient.stream(MODELS[provider.name], body)
    seen = await anext(stream)
    await asyncio.sleep(0.9)
    async for events in stream:
        seen = events
    assert isinstance(seen[-1], Stop)
    await impatient.close()


async def test_a_reader_that_is_cancelled_as_a_clock_runs_out_stays_cancelled(
    fake: FakeProvider, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = make("openai", idle_s=0.1)
    fake.queue.append(Script(fault="stall", fault_after=1))
    look = Watchdog._look

    def look_and_cancel(watchdog: Watchdog) -> None:
        look(watchdog)
        if watchdog._expired is not None:
            reader.cancel()

    monkeypatch.setattr(Watchdog, "_look", look_and_cancel)
    reader = asyncio.create_task(ask(provider, body))
    with pytest.raises(asyncio.CancelledError):
        await reader
    await provider.close()


async def test_a_provider_that_does_not_accept_is_a_timeout(
    fake: FakeProvider, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    with deaf_port() as port:
        for name in MODELS:
            provider = make(name, connect_s=0.1)
            monkeypatch.setenv(provider.account.url_variable, f"http://127.0.0.1:{port}")
            error = await failure(provider, body)
            assert error.code == "provider_timeout"
            assert "could not be reached within 0.1 s" in error.message
            await provider.close()


async def test_a_provider_that_is_not_there_says_what_to_check(
    provider: SdkProvider, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(provider.account.url_variable, f"http://127.0.0.1:{free_port()}")
    error = await failure(provider, body)
    assert (error.code, error.retry) == ("provider_error", "backoff")
    assert provider.account.url_variable in error.message


# -- ending it -------------------------------------------------------------------------------------------------

_ENDLESS = Script(tokens=1_000_000, gap_s=0.01)


async def test_closing_the_generator_closes_the_socket_at_once(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(_ENDLESS)
    stream = provider.stream(MODELS[provider.name], body)
    async for events in stream:
        if text_of(events):
            break
    await stream.aclose()
    closed_at = time.monotonic()
    await asyncio.wait_for(fake.last.gone.wait(), 1)
    assert fake.last.tokens_after(closed_at) <= 1


async def test_cancelling_the_reader_closes_the_socket_at_once(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(Script(fault="stall", fault_after=1))
    shown = asyncio.Event()

    async def read() -> None:
        async for events in provider.stream(MODELS[provider.name], body):
            if text_of(events):
                shown.set()

    reader = asyncio.create_task(read())
    await shown.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await asyncio.wait_for(fake.last.gone.wait(), 1)


async def test_cancelling_before_the_headers_closes_the_socket_at_once(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(Script(headers_s=30.0))
    reader = asyncio.create_task(ask(provider, body))
    record = await fake.arrival()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await asyncio.wait_for(record.gone.wait(), 1)


async def test_a_reader_that_does_not_read_stops_the_provider(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(Script(tokens=200_000, size=100))
    stream = provider.stream(MODELS[provider.name], body)
    await anext(stream)
    await asyncio.wait_for(fake.last.blocked.wait(), 5)
    assert fake.last.tokens < 150_000
    await stream.aclose()
    await asyncio.wait_for(fake.last.gone.wait(), 1)


async def test_requests_beyond_the_bound_wait_for_one_to_end(fake: FakeProvider, body: Body) -> None:
    provider = make("anthropic", requests=1)
    fake.queue.extend([Script(fault="stall", fault_after=1), Script()])
    first = provider.stream(MODELS["anthropic"], body)
    await anext(first)
    second = asyncio.create_task(ask(provider, body))
    await asyncio.wait({second}, timeout=0.05)
    assert len(fake.records) == 1
    await first.aclose()
    assert isinstance((await second)[-1], Stop)
    await provider.close()


async def test_a_request_that_gets_no_turn_is_told_that_the_worker_is_full(
    fake: FakeProvider, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk_module, "SLOT_WAIT_S", 0.05)
    provider = make("openai", requests=1)
    fake.queue.append(Script(fault="stall", fault_after=1))
    first = provider.stream(MODELS["openai"], body)
    await anext(first)
    error = await failure(provider, body)
    assert (error.code, error.retry) == ("overloaded", "after")
    assert error.after_ms is not None
    await first.aclose()
    await provider.close()


async def test_no_log_line_holds_the_key_or_the_prompt(
    provider: SdkProvider,
    fake: FakeProvider,
    body: Body,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.queue.extend([Script(), Script(status=400, error={"message": SECRET_PROMPT})])
    await ask(provider, body)
    await failure(provider, body)
    assert caplog.records, "nothing was logged at all: this test proves nothing"
    assert SECRET_KEY not in caplog.text
    assert SECRET_PROMPT not in caplog.text
