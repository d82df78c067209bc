"""Bytes of both formats → events, without a network."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.completions import CompletionsFormat
from tests.fakes.messages import MessagesFormat
from tests.fakes.responses import ResponsesFormat
from tests.fakes.script import Script
from workers.providers import (
    Event,
    ProviderError,
    Reasoning,
    Speaker,
    Stop,
    Text,
    ToolCall,
    ToolInput,
    ToolReady,
    Usage,
)
from workers.providers.anthropic import AnthropicDecoder
from workers.providers.decoder import TOOL_INPUT_CHARS, AnswerDecoder, MalformedStream
from workers.providers.openai import OpenAIDecoder
from workers.providers.responses_decoder import ResponsesDecoder

PROVIDERS = ["anthropic", "openai", "responses"]
_DECODERS: dict[str, Any] = {"anthropic": AnthropicDecoder, "openai": OpenAIDecoder, "responses": ResponsesDecoder}
_FORMATS: dict[str, Any] = {"anthropic": MessagesFormat, "openai": CompletionsFormat, "responses": ResponsesFormat}


def decoder_of(provider: str) -> AnswerDecoder[Any]:
    return _DECODERS[provider]()  # type: ignore[no-any-return]


def stream_of(provider: str, script: Script) -> bytes:
    """The whole event stream as the fake would write it."""
    form = _FORMATS[provider](script, {"model": "m", "stream_options": {"include_usage": True}})
    parts = [*form.opening(), script.extra, *(form.token(text) for text in script.pieces()), *form.closing()]
    return b"".join(parts)


def decode(provider: str, *chunks: bytes) -> list[Event]:
    decoder = decoder_of(provider)
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    if decoder.error is not None:
        raise decoder.error
    return events


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


_WHOLE = Script(
    texts=["Grüße ", "👋🏽 ", "a\ud83d", "\ude00b", " end"],
    reasoning=["hm\ud83e", "\udd14"],
    tools=[("search", ['{"q": "\ud83d', '\ude00"', "}"]), ("none", [])],
)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_kind_of_event_comes_in_order_with_split_characters_joined(provider: str) -> None:
    events = decode(provider, stream_of(provider, _WHOLE))
    assert text_of(events) == "Grüße 👋🏽 a😀b end"
    assert "".join(event.text for event in events if isinstance(event, Reasoning)) == "hm🤔"
    calls = [event for event in events if isinstance(event, ToolCall)]
    assert [call.name for call in calls] == ["search", "none"]
    first, second = (call.call for call in calls)
    assert "".join(event.delta for event in events if isinstance(event, ToolInput)) == '{"q": "😀"}'
    ready = [event for event in events if isinstance(event, ToolReady)]
    assert ready == [ToolReady(first, {"q": "😀"}), ToolReady(second, {})]
    assert events[0] == Speaker("m")
    assert events[-2:] == [Usage(input_tokens=12, output_tokens=5), Stop("tool")]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_a_stream_split_at_every_byte_gives_the_same_events(provider: str, newline: bytes) -> None:
    stream = stream_of(provider, _WHOLE).replace(b"\n", newline)
    assert decode(provider, *(bytes([byte]) for byte in stream)) == decode(provider, stream)


@settings(max_examples=30)
@given(
    provider=st.sampled_from(PROVIDERS),
    texts=st.lists(st.text(st.characters(codec=None), min_size=1, max_size=6), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 4000), max_size=12),
)
def test_any_text_in_any_chunks_is_the_same_valid_text(provider: str, texts: list[str], cuts: list[int]) -> None:
    stream = stream_of(provider, Script(texts=texts))
    at = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    events = decode(provider, *(stream[a:b] for a, b in zip(at, at[1:], strict=False)))
    joined = "".join(texts).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert text_of(events) == joined
    assert isinstance(events[-1], Stop)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a\ud83d", "b"], "a\ufffdb"),
        (["a\ud83d"], "a\ufffd"),
        (["\ude00a"], "\ufffda"),
        (["\ud83d", "\ud83d", "\ude00"], "\ufffd😀"),
    ],
)
def test_half_a_pair_without_a_partner_becomes_the_replacement_character(
    provider: str, texts: list[str], expected: str
) -> None:
    assert text_of(decode(provider, stream_of(provider, Script(texts=texts)))) == expected


@pytest.mark.parametrize(
    ("provider", "extra"),
    [
        ("anthropic", b'event: news\ndata: {"type":"news","delta":"of any shape \\ud83d"}\n\n: comment\n\n'),
        ("anthropic", b'data: {"type":"content_block_delta","index":0,"delta":{"type":"new_delta","x":1}}\n\n'),
        ("anthropic", b'data: {"type":"content_block_start","index":9,"content_block":{"type":"new"}}\n\n'),
        (
            "anthropic",
            b'data: {"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"{"}}\n\n',
        ),
        ("openai", b'data: {"object":"news","usage":"of any shape"}\n\nid: 1\nretry: 5\n\n: comment\n\n'),
        ("openai", b'data: {"choices":[{"index":1,"delta":{"content":"another answer"}}]}\n\n'),
        ("openai", b'data: {"choices":[{"index":0,"delta":{"audio":{"x":1}},"logprobs":{"content":[]}}]}\n\n'),
    ],
)
def test_what_the_format_may_learn_later_is_passed_over(provider: str, extra: bytes) -> None:
    with_extra = stream_of(provider, Script(extra=extra))
    assert decode(provider, with_extra) == decode(provider, stream_of(provider, Script()))


@pytest.mark.parametrize(
    ("provider", "data"),
    [
        ("anthropic", b'{"type":"content_block_delta","ind'),
        ("anthropic", b'{"type":"content_block_delta","index":"zero","delta":{}}'),
        ("anthropic", b'{"type":"content_block_delta","index":0}'),
        ("anthropic", b'{"type":"message_start"}'),
        ("anthropic", b"[1]"),
        ("anthropic", b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"\xff"}}'),
        ("anthropic", b'{"type":"x","deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("openai", b'{"choices":[{"del'),
        ("openai", b'{"choices":"none"}'),
        ("openai", b'"text"'),
        ("openai", b'{"choices":[{"delta":{"content":"\xff"}}]}'),
        ("openai", b'{"choices":[{"delta":{"content":"\\ud83d"}'),
    ],
)
def test_a_broken_event_is_an_error_and_what_came_before_it_stands(provider: str, data: bytes) -> None:
    decoder = decoder_of(provider)
    whole = stream_of(provider, Script(texts=["kept"]))
    before = whole[: whole.index(b"kept")]
    before += whole[len(before) : whole.index(b"\n\n", len(before)) + 2]
    events = decoder.feed(before + b"data: " + data + b"\n\n" + before)
    assert text_of(events) == "kept"
    assert isinstance(decoder.error, MalformedStream)
    assert decoder.feed(before) == []
    assert decoder.end() == []


def test_a_later_usage_replaces_an_earlier_one_and_the_input_includes_what_was_cached() -> None:
    usage = {"input_tokens": 5, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 100}
    events = decode("anthropic", stream_of("anthropic", Script(usage=usage)))
    counted = [event for event in events if isinstance(event, Usage)]
    assert counted == [Usage(125, 1, 100, 20), Usage(125, 3, 100, 20)]


def test_absent_usage_figures_keep_what_was_known() -> None:
    decoder = AnthropicDecoder()
    start = {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 7, "output_tokens": 1}}}
    delta = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": 9, "input_tokens": None},
    }
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in (start, delta))
    assert decoder.feed(stream)[-1] == Usage(input_tokens=7, output_tokens=9)


def test_cached_written_and_reasoning_tokens_of_chat_completions_are_read() -> None:
    usage = {
        "prompt_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    assert decode("openai", stream_of("openai", Script(usage=usage)))[-2] == Usage(50, 3, 40, 5, reasoning_tokens=2)


def test_thinking_tokens_of_messages_are_read() -> None:
    decoder = AnthropicDecoder()
    usage = {"output_tokens": 9, "output_tokens_details": {"thinking_tokens": 6}}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
    events = decoder.feed(b"data: " + json.dumps(delta).encode() + b"\n\n")
    assert events == [Usage(output_tokens=9, reasoning_tokens=6)]


def test_half_a_character_at_the_end_of_thinking_is_no_text() -> None:
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "so \ud83d"}}
    stop = {"type": "content_block_stop", "index": 0}
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in (start, delta, stop))
    assert AnthropicDecoder().feed(stream) == [Reasoning("so "), Reasoning("\ufffd")]


def test_calls_at_the_same_time_that_share_an_id_are_told_apart() -> None:
    parts = [(0, "one", ""), (1, "two", ""), (0, None, '{"a": 1}'), (1, None, '{"b": 2}')]
    chunks: list[dict[str, object]] = []
    for index, name, text in parts:
        call = {"index": index, "id": "same", "function": {"name": name, "arguments": text}}
        chunks.append({"choices": [{"delta": {"tool_calls": [call]}}]})
    chunks.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    events = decode("openai", b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks))
    called = [event for event in events if isinstance(event, ToolCall)]
    assert called == [ToolCall("same", "one"), ToolCall("same_2", "two")]
    ready = [event for event in events if isinstance(event, ToolReady)]
    assert ready == [ToolReady("same", {"a": 1}), ToolReady("same_2", {"b": 2})]


@pytest.mark.parametrize(
    ("provider", "said", "meant"),
    [
        ("anthropic", "end_turn", "stop"),
        ("anthropic", "stop_sequence", "stop"),
        ("anthropic", "max_tokens", "length"),
        ("anthropic", "pause_turn", "length"),
        ("anthropic", "tool_use", "tool"),
        ("anthropic", "refusal", "refusal"),
        ("anthropic", "model_context_window_exceeded", "context"),
        ("anthropic", "something_new", "stop"),
        ("openai", "stop", "stop"),
        ("openai", "length", "length"),
        ("openai", "tool_calls", "tool"),
        ("openai", "function_call", "tool"),
        ("openai", "content_filter", "filter"),
        ("openai", "something_new", "stop"),
    ],
)
def test_stop_reasons_are_told_in_one_vocabulary(provider: str, said: str, meant: str) -> None:
    assert decode(provider, stream_of(provider, Script(stop=said)))[-1] == Stop(meant)


def test_a_refusal_of_chat_completions_is_shown_and_named() -> None:
    chunk = {"choices": [{"index": 0, "delta": {"refusal": "I cannot."}, "finish_reason": None}]}
    extra = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    events = decode("openai", stream_of("openai", Script(texts=[], extra=extra)))
    assert text_of(events) == "I cannot."
    assert events[-1] == Stop("refusal")


def test_tool_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    parts = [("a", "one", "{"), (None, None, "}"), ("b", "two", "{}")]
    calls = [{"id": call, "function": {"name": name, "arguments": text}} for call, name, text in parts]
    chunks = [{"choices": [{"delta": {"tool_calls": [call]}}]} for call in calls]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    events = decode("openai", b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks))
    assert [event for event in events if isinstance(event, ToolCall)] == [ToolCall("a", "one"), ToolCall("b", "two")]
    assert [event for event in events if isinstance(event, ToolReady)] == [ToolReady("a", {}), ToolReady("b", {})]


@pytest.mark.parametrize(
    "arguments",
    ['{"a":', '{"a": NaN}', '{"a": 123456789012345678901234567890}', "[" * 5000 + "]" * 5000, '{"a": "\\ud83d"}'],
)
def test_arguments_that_no_entry_can_carry_are_ready_without_input(arguments: str) -> None:
    for provider in PROVIDERS:
        events = decode(provider, stream_of(provider, Script(tools=[("t", [arguments])])))
        assert [event.input for event in events if isinstance(event, ToolReady)] == [None]


def test_arguments_above_the_bound_are_ready_without_input() -> None:
    pieces = ['{"a": "', *["x" * 65536] * (TOOL_INPUT_CHARS // 65536), '"}']
    events = decode("openai", stream_of("openai", Script(tools=[("t", pieces)])))
    assert [event.input for event in events if isinstance(event, ToolReady)] == [None]


@pytest.mark.parametrize(
    ("provider", "error", "code", "retry"),
    [
        ("anthropic", {"type": "overloaded_error", "message": "secret"}, "provider_overloaded", "backoff"),
        ("anthropic", {"type": "rate_limit_error", "message": "secret"}, "provider_rate_limited", "after"),
        ("anthropic", {"type": "api_error", "message": "secret"}, "provider_error", "backoff"),
        ("anthropic", {"type": "timeout_error", "message": "secret"}, "provider_timeout", "backoff"),
        ("anthropic", {"type": "billing_error", "message": "secret"}, "provider_error", "no"),
        ("anthropic", {}, "provider_error", "backoff"),
        ("openai", {"type": "server_error", "message": "secret"}, "provider_error", "backoff"),
        (
            "openai",
            {"type": "tokens", "code": "rate_limit_exceeded", "message": "secret"},
            "provider_rate_limited",
            "after",
        ),
        ("openai", {"code": 503, "message": "secret"}, "provider_overloaded", "backoff"),
        ("openai", {"code": "context_length_exceeded", "message": "secret"}, "context_length_exceeded", "no"),
        ("openai", "secret", "provider_error", "backoff"),
    ],
)
def test_an_error_inside_the_stream_is_sorted_like_one_before_it(
    provider: str, error: dict[str, Any] | str, code: str, retry: str
) -> None:
    event = {"type": "error", "error": error}
    with pytest.raises(ProviderError) as caught:
        decode(provider, b"event: error\ndata: " + json.dumps(event).encode() + b"\n\n")
    assert (caught.value.code, caught.value.retry) == (code, retry)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("reason", "code"), [("error", "provider_error"), ("insufficient_system_resource", "provider_overloaded")]
)
def test_a_finish_reason_that_reports_a_failure_is_one(reason: str, code: str) -> None:
    with pytest.raises(ProviderError) as caught:
        decode("openai", stream_of("openai", Script(stop=reason)))
    assert caught.value.code == code


def test_nothing_after_the_stop_counts() -> None:
    for provider in PROVIDERS:
        stream = stream_of(provider, Script())
        assert decode(provider, stream + b"data: {broken\n\n" + stream) == decode(provider, stream)
