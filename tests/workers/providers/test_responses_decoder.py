"""Bytes of the Responses API → events: what is its own. What all formats share is in test_decoders."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.fakes.responses import ResponsesFormat
from tests.fakes.script import Script
from workers.providers import Citation, Event, ProviderError, Reasoning, Speaker, Stop, Text, ToolCall, ToolReady, Usage
from workers.providers.background import Background
from workers.providers.decoder import MalformedStream
from workers.providers.responses_decoder import ResponsesDecoder

WHOLE = Script(
    texts=["Grüße ", "👋🏽 ", "a\ud83d", "\ude00b", " end"],
    reasoning=["hm\ud83e", "\udd14"],
    tools=[("search", ['{"q": "\ud83d', '\ude00"', "}"]), ("none", [])],
)


def events_of(script: Script, **body: Any) -> list[bytes]:
    """The bytes of each event, as the fake writes them."""
    form = ResponsesFormat(script, {"model": "m", **body}, "resp_1")
    return [*form.opening(), *(form.token(text) for text in script.pieces()), *form.closing()]


def event(name: str, number: int = 0, **fields: Any) -> bytes:
    return f"data: {json.dumps({'type': name, 'sequence_number': number, **fields})}\n\n".encode()


def decode(*chunks: bytes, decoder: ResponsesDecoder | None = None) -> list[Event]:
    decoder = decoder or ResponsesDecoder()
    told = [event for chunk in chunks for event in decoder.feed(chunk)]
    if decoder.error is not None:
        raise decoder.error
    return told


def merged(events: list[Event]) -> list[Event]:
    """Neighbouring pieces of text as one: where reads cut them is not the answer's."""
    found: list[Event] = []
    for each in events:
        if isinstance(each, Text) and found and isinstance(found[-1], Text):
            found[-1] = Text(found[-1].text + each.text)
        else:
            found.append(each)
    return found


@settings(max_examples=150)
@given(st.lists(st.integers(0, 10_000), max_size=4), st.integers(0, 2))
def test_an_answer_cut_anywhere_and_read_on_is_the_whole_answer(cuts: list[int], repeated: int) -> None:
    """Each connection ends at any byte; the next begins after the last whole event, or some before it."""
    events = events_of(WHOLE, background=True)
    decoder = ResponsesDecoder(background=True)
    told: list[Event] = []
    at = 0
    for cut in cuts:
        rest = b"".join(events[at:])
        told += decoder.feed(rest[: cut % (len(rest) + 1)])
        if not decoder.can_go_on:
            assume(decoder.is_over)  # not cut before the answer had a name
            break
        decoder.cut()
        at = max(0, decoder.event + 1 - repeated)
    told += decoder.feed(b"".join(events[at:]))
    expected = decode(*events_of(WHOLE, background=True), decoder=ResponsesDecoder(background=True))
    assert merged(told) == merged(expected)
    assert decoder.stopped and decoder.is_over


def test_an_answer_in_the_background_says_its_name_before_anything_else() -> None:
    events = decode(*events_of(Script(texts=["x"]), background=True), decoder=ResponsesDecoder(background=True))
    assert events[:2] == [Background("resp_1", 0), Speaker("m")]
    assert not any(isinstance(each, Background) for each in events[1:])
    assert not any(isinstance(each, Background) for each in decode(*events_of(Script(texts=["x"]))))


def test_what_is_read_on_in_the_middle_says_no_name_and_nothing_that_was_read() -> None:
    decoder = ResponsesDecoder(background=True, response="resp_1", event=0)
    events = decode(*events_of(Script(texts=["x"]), background=True), decoder=decoder)
    assert events == [Speaker("m"), Text("x"), Usage(12, 1), Stop("stop")]


def test_a_broken_event_is_made_good_by_reading_it_again() -> None:
    events = events_of(Script(texts=["a", "b"]), background=True)
    decoder = ResponsesDecoder(background=True)
    decoder.feed(b"".join(events[:-4]) + b"data: {broken\n\n")
    assert isinstance(decoder.error, MalformedStream) and decoder.can_go_on
    decoder.cut()
    assert Stop("stop") in decoder.feed(b"".join(events))


@pytest.mark.parametrize(
    ("stop", "meant"),
    [
        (None, "stop"),
        ("max_output_tokens", "length"),
        ("max_messages", "length"),
        ("something_new", "length"),
        ("content_filter", "filter"),
        ("steered", "stop"),
        ("refusal", "refusal"),
    ],
)
def test_an_end_is_told_in_the_one_vocabulary(stop: str | None, meant: str) -> None:
    events = decode(*events_of(Script(texts=["I will", " not"], stop=stop)))
    assert merged(events)[1:] == [Text("I will not"), Usage(12, 2), Stop(meant)]


def test_a_failed_answer_and_both_forms_of_an_error_are_failures_of_the_provider() -> None:
    failed = events_of(Script(texts=["x"], stop="failed", error={"code": "rate_limit_exceeded", "message": "secret"}))
    flat = event("error", 1, code="rate_limit_exceeded", message="secret")
    nested = event("error", 1, error={"type": "tokens", "code": "rate_limit_exceeded", "message": "secret"})
    for stream in (b"".join(failed), flat, nested):
        decoder = ResponsesDecoder(background=True, response="resp_1", event=-1)
        with pytest.raises(ProviderError) as caught:
            decode(stream, decoder=decoder)
        assert (caught.value.code, caught.value.fault) == ("provider_rate_limited", "rate_limited")
        assert "secret" not in str(caught.value)
        assert not decoder.can_go_on
        assert decoder.is_over == (stream is not flat and stream is not nested)
    with pytest.raises(ProviderError):
        decode(event("response.failed", 1, response={"id": "r"}))


def test_what_was_cached_written_and_thought_is_counted() -> None:
    usage = {
        "input_tokens": 50,
        "input_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 5},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 7},
    }
    counted = [each for each in decode(*events_of(Script(usage=usage))) if isinstance(each, Usage)]
    assert counted == [Usage(50, 9, 40, 5, 7)]
    bare = event("response.completed", 1, response={"usage": {"input_tokens": 3}})
    assert decode(bare) == [Usage(3), Stop("stop")]
    assert decode(event("response.completed", 1, response={})) == [Stop("stop")]


def test_parts_of_the_thinking_and_messages_of_one_answer_are_paragraphs() -> None:
    thought = [
        event("response.reasoning_summary_part.added", 1, summary_index=0),
        event("response.reasoning_summary_text.delta", 2, delta="one"),
        event("response.reasoning_summary_part.added", 3, summary_index=1),
        event("response.reasoning_text.delta", 4, delta="two"),
    ]
    assert decode(*thought) == [Reasoning("one"), Reasoning("\n\n"), Reasoning("two")]
    message = event("response.output_item.added", 5, item={"type": "message"})
    delta = event("response.output_text.delta", 6, delta="word")
    assert decode(message, delta, message, delta) == [Text("word"), Text("\n\n"), Text("word")]


def test_a_tool_call_is_complete_however_little_of_it_is_streamed() -> None:
    whole = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"q":1}'}
    done = event("response.output_item.done", 1, output_index=0, item=whole)
    assert decode(done)[0::2] == [ToolCall("c1", "look"), ToolReady("c1", {"q": 1})]
    added = event("response.output_item.added", 1, output_index=2, item={"type": "function_call", "name": "look"})
    end = event("response.completed", 2, response={})
    assert decode(added, end) == [ToolCall("call_2", "look"), ToolReady("call_2", {}), Stop("tool")]
    other = event("response.output_item.done", 1, item={"type": "web_search_call"})
    assert decode(other, event("response.function_call_arguments.delta", 2, output_index=9, delta="x")) == []


def test_a_citation_is_passed_on() -> None:
    cited = {"type": "url_citation", "url": "https://example.org", "title": "x"}
    assert Citation(cited) in decode(*events_of(Script(citation=cited)))
    assert decode(event("response.output_text.annotation.added", 1)) == []


def test_what_the_format_may_learn_later_and_empty_pieces_are_passed_over() -> None:
    more = [
        event("response.news", 1, delta={"of": "any shape"}, response=4),
        event("response.audio.delta", 2, delta="UklGRg"),
        event("response.output_text.delta", 3, delta=""),
        b"data: [DONE]\n\n",
    ]
    assert decode(*more) == []


@pytest.mark.parametrize("name", ["created", "completed", "output_item.added", "output_item.done"])
def test_an_event_without_its_body_is_malformed(name: str) -> None:
    with pytest.raises(MalformedStream):
        decode(event(f"response.{name}", 1))


def test_servers_that_do_not_number_their_events_are_understood_and_not_read_on() -> None:
    created = b'data: {"type":"response.created","response":{"id":"r","model":"m"}}\n\n'
    delta = b'data: {"type":"response.output_text.delta","delta":"x"}\n\n'
    decoder = ResponsesDecoder(background=True)
    assert decode(created, delta, delta, decoder=decoder) == [Speaker("m"), Text("x"), Text("x")]
    assert not decoder.can_go_on
