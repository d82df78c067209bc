"""From the frames of a viewer to OpenAI's events and to a whole completion."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from headrace.protocol.codes import DONE_ERROR_CODES, ERROR_CODES
from headrace.protocol.frames import Attached, Delta, EntryFrame, ErrorFrame
from hub.completions.chunks import Chunks
from hub.completions.completion import Completion
from hub.completions.problem import STATUS, Problem
from hub.completions.reading import Reading

STREAM = "g_0123456789abcdef"
SOURCE = {"provider": "openai", "model": "gpt-6-luna", "mode": "live"}
USED = {"input_tokens": 3, "output_tokens": 4, "cached_tokens": 1, "cost_usd": 0.5}


def entry(kind: str, **data: Any) -> EntryFrame:
    return EntryFrame(STREAM, 1, kind, data)


def text(piece: str, kind: str = "text", call: str | None = None) -> Delta:
    return Delta(STREAM, 1, kind=kind, call=call, text=piece)


def done(stop_reason: str = "stop", status: str = "completed", **more: Any) -> EntryFrame:
    return entry("done", status=status, stop_reason=stop_reason, text_bytes=0, text_sha256="", **more)


def chunks_of(tools: Iterable[str] = (), include_usage: bool = False) -> Chunks:
    return Chunks(Reading(frozenset(tools)), STREAM, "standard", 1790000000, include_usage)


def events(written: bytes) -> list[Any]:
    """Every event's data, the final one as it is. Nothing but `data:` lines: others end OpenAI's clients."""
    *lines, rest = written.decode().split("\n\n")
    assert rest == "" and all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def told(*frames: msgspec.Struct, tools: Iterable[str] = (), include_usage: bool = False) -> list[Any]:
    chunks = chunks_of(tools, include_usage)
    for frame in frames:
        chunks.feed(frame)
    return events(chunks.take())


def completed(*frames: msgspec.Struct, tools: Iterable[str] = ()) -> Any:
    completion = Completion(Reading(frozenset(tools)))
    for frame in frames:
        completion.feed(frame)
    return completion.object(STREAM, "standard", 1790000000)


def test_an_answer_is_chunks_then_a_finish_reason_then_done() -> None:
    *chunks, last = told(entry("source", **SOURCE), text("Hel"), text("lo"), done(usage=USED))
    assert last == "data: [DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    for chunk in chunks:
        assert (chunk["id"], chunk["object"]) == (STREAM, "chat.completion.chunk")
        assert (chunk["model"], chunk["created"]) == ("openai/gpt-6-luna", 1790000000)


def test_usage_is_a_chunk_without_choices() -> None:
    *_, usage, _ = told(text("x"), done(usage=USED), include_usage=True)
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 1},
        "cost_usd": 0.5,
    }


def test_an_answer_without_a_word_has_a_role_all_the_same() -> None:
    chunk, _ = told(done())
    assert chunk["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_a_change_of_speaker_and_a_notice_are_told_once_beside_the_content() -> None:
    other = SOURCE | {"provider": "anthropic", "reason": "failover"}
    first, second, third, *_ = told(
        entry("source", **SOURCE),
        text("a"),
        entry("notice", code="failover", provider="anthropic"),
        entry("source", **other),
        text("b"),
        text("c"),
        done(),
    )
    assert first["headrace"] == {"source": SOURCE}
    assert second["headrace"] == {
        "source": other,
        "notices": [{"code": "failover", "provider": "anthropic"}],
    }
    assert second["model"] == "anthropic/gpt-6-luna" and "headrace" not in third


def test_a_reset_before_anything_was_written_is_not_seen() -> None:
    for reset in (entry("reset", reason="failover"), Attached(STREAM, False, 0, "m", 5, "running", 256)):
        first, *_ = told(text("wrong", "reasoning"), text("wrong"), reset, text("right"), done())
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": "right"}


def test_a_reset_of_what_was_written_ends_the_stream_without_done() -> None:
    chunks = chunks_of()
    chunks.feed(text("wrong"))
    chunks.take()
    for frame in (entry("reset", reason="failover"), text("right"), done()):
        chunks.feed(frame)
    [event] = events(chunks.take())
    assert event["error"]["code"] == "answer_restarted"
    assert chunks.end is not None and chunks.end.problem is not None


def test_a_keep_alive_is_an_empty_delta_of_whoever_was_asked() -> None:
    chunks = chunks_of()
    [event] = events(chunks.keep_alive())
    assert (event["model"], event["choices"][0]["delta"]) == ("standard", {})
    chunks.feed(text("x"))
    assert events(chunks.take())[0]["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("stop_reason", "status", "finish"),
    [
        ("stop", "completed", "stop"),
        ("something_new", "completed", "stop"),
        ("tool_calls", "completed", "tool_calls"),
        ("refusal", "completed", "content_filter"),
        ("filter", "failed", "content_filter"),
        ("length", "truncated", "length"),
        ("context", "truncated", "length"),
        ("too_long", "truncated", "length"),
        ("something_new", "truncated", "length"),
    ],
)
def test_a_stop_reason_has_a_finish_reason(stop_reason: str, status: str, finish: str) -> None:
    frames = (text("x"), done(stop_reason, status))
    assert told(*frames)[-2]["choices"][0]["finish_reason"] == finish
    assert completed(*frames)["choices"][0]["finish_reason"] == finish


def test_a_cancelled_or_failed_answer_never_passes_for_a_whole_one() -> None:
    failure = {"code": "provider_overloaded", "message": "busy", "retry": "backoff", "after_ms": 1500}
    for end, status, code in (
        (done("cancelled", "cancelled"), 409, "cancelled"),
        (done("error", "failed", error=failure), 503, "provider_overloaded"),
        (ErrorFrame("gone", "this stream vanished", "no"), 410, "gone"),
    ):
        assert told(text("x"), end)[-1]["error"]["code"] == code
        completion = Completion(Reading(frozenset()))
        for frame in (text("x"), end):
            completion.feed(frame)
        assert completion.end is not None and completion.end.problem is not None
        assert completion.end.problem.status == status


# -- tool calls --------------------------------------------------------------------------------------------

CALL = (
    entry("tool_call", call="t1", name="look"),
    text('{"a":', "tool_input", "t1"),
    text(" 1}", "tool_input", "t1"),
    entry("tool_ready", call="t1", input={"a": 1}),
)


def tool_deltas(events: list[Any]) -> list[Any]:
    deltas = [event["choices"][0]["delta"] for event in events if event != "data: [DONE]"]
    return [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]


def test_a_call_of_the_clients_own_tool_is_told_as_it_is_made() -> None:
    assert tool_deltas(told(*CALL, done("tool_calls"), tools=["look"])) == [
        {"index": 0, "id": "t1", "type": "function", "function": {"name": "look", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 0, "function": {"arguments": " 1}"}},
    ]
    message = completed(*CALL, done("tool_calls"), tools=["look"])["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    ]


def test_arguments_that_came_whole_are_told_whole() -> None:
    deltas = tool_deltas(
        told(
            entry("tool_call", call="t1", name="look"),
            entry("tool_ready", call="t1", input={"a": 1}),
            entry("tool_call", call="t2", name="look"),
            entry("tool_ready", call="t2", input={}),
            done("tool_calls"),
            tools=["look"],
        )
    )
    assert [(delta["index"], delta["function"]["arguments"]) for delta in deltas] == [
        (0, ""), (0, '{"a":1}'), (1, ""), (1, "{}"),
    ]  # fmt: skip


def test_a_tool_that_the_worker_ran_is_no_business_of_the_client() -> None:
    frames = (*CALL, entry("tool_result", call="t1", output="42"), text("It is 42."), done())
    assert tool_deltas(told(*frames)) == []
    assert "tool_calls" not in completed(*frames)["choices"][0]["message"]
    then = (*frames[:-1], entry("tool_call", call="t2", name="ask"), done("tool_calls"))
    assert [delta["id"] for delta in tool_deltas(told(*then))] == ["t2"]


def test_a_call_that_waited_for_a_result_in_vain_is_told_at_the_end() -> None:
    [delta] = tool_deltas(told(*CALL, done("tool_calls")))
    assert delta["function"] == {"name": "look", "arguments": '{"a": 1}'}
    assert tool_deltas(told(*CALL, done())) == []


def test_calls_before_a_reset_are_void() -> None:
    frames = (*CALL, entry("reset", reason="failover"), entry("tool_call", call="t9", name="look"), done("tool_calls"))
    [delta] = tool_deltas(told(*frames, tools=["look"]))
    assert (delta["index"], delta["id"]) == (0, "t9")
    assert [call["id"] for call in completed(*frames, tools=["look"])["choices"][0]["message"]["tool_calls"]] == ["t9"]


# -- a whole completion ------------------------------------------------------------------------------------


def test_a_completion_is_the_fold_of_the_log() -> None:
    answer = completed(
        text("wrong"),
        entry("reset", reason="worker_lost"),
        entry("source", **SOURCE),
        text("Thinking.", "reasoning"),
        text("Hel"),
        text("lo"),
        entry("unheard_of", a=1),
        done(usage=USED),
    )
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Hello",
        "refusal": None,
        "reasoning_content": "Thinking.",
    }
    assert (answer["id"], answer["model"]) == (STREAM, "openai/gpt-6-luna")
    assert answer["usage"]["total_tokens"] == 7


# -- problems ----------------------------------------------------------------------------------------------


def test_every_code_of_the_protocol_has_a_status() -> None:
    assert set(STATUS) == set(ERROR_CODES) | set(DONE_ERROR_CODES)
    assert all(400 <= status < 600 for status in STATUS.values())


@pytest.mark.parametrize(("retry", "is_final"), [("no", True), ("reauth", True), ("after", False), ("backoff", False)])
def test_clients_are_kept_from_repeating_what_cannot_succeed(retry: str, is_final: bool) -> None:
    problem = Problem.told("provider_overloaded", "busy", retry, 1500)
    headers = dict(problem.headers())
    assert (headers.get(b"x-should-retry") == b"false") is is_final
    assert (headers.get(b"retry-after"), headers.get(b"retry-after-ms")) == (
        (None, None) if is_final else (b"2", b"1500")
    )
