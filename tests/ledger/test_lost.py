"""What lost attempts asked, read out of their log: every call once, under the id that its own worker uses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.protocol import entries as kinds
from headrace.protocol.body import Body
from headrace.protocol.cursor import MarkRuns
from headrace.protocol.entries import Entry, encode_data
from headrace.protocol.frames import Message
from hub.broker.broker import Broker
from hub.broker.keys import stream_key
from hub.broker.lost import Asked, LostCalls, asked_of, lost_rows
from hub.broker.usage import UsageQueue, UsageRow
from tests.broker.test_janitor import Scene

ASKED = Asked("g_1", "acme", "ada", 400, "anthropic", "claude")
SOURCE: Entry = ("source", encode_data(kinds.Source("anthropic", "claude", "live")))


def started(attempt: int) -> Entry:
    return "started", encode_data(kinds.Started(attempt))


def text(size: int) -> Entry:
    return "text", b"x" * size


def rows(*entries: Entry, runs: str = "1:own 2:first", own: str = "mine", asked: Asked = ASKED) -> list[UsageRow]:
    return lost_rows([("queued", b"\x80"), *entries], MarkRuns.parse(runs), own, asked, 77)


def test_an_attempt_that_showed_nothing_asked_and_its_prompt_counts() -> None:
    [row] = rows(started(1))
    assert row == UsageRow(
        "g_1/first/1", "g_1", "acme", "ada", 1, "anthropic", "claude", "lost", 77, input_tokens=100, estimated=True
    )


def test_what_was_told_is_counted_and_the_log_s_figures_are_believed_where_they_are_larger() -> None:
    usage = ("usage", encode_data(kinds.Usage(input_tokens=95, output_tokens=3, cached_tokens=50)))
    [row] = rows(started(1), SOURCE, usage, text(40), ("reasoning", b"y" * 40))
    assert (row.input_tokens, row.output_tokens, row.cached_tokens, row.estimated) == (95, 20, 50, True)
    [row] = rows(started(1), SOURCE, text(4), ("usage", encode_data(kinds.Usage(95, 30))))
    assert row.output_tokens == 30


def test_every_attempt_before_mine_is_counted_and_one_that_asked_nobody_is_not() -> None:
    found = rows(
        started(1), SOURCE, text(8), started(2), SOURCE, text(4), ("notice", b"\x80"), started(4), text(400),
        runs="1:own 2:first 5:second 8:third 9:mine",
    )  # fmt: skip
    assert [(row.id, row.attempt, row.output_tokens) for row in found] == [
        ("g_1/first/1", 1, 2),
        ("g_1/second/1", 2, 1),
    ]


def test_a_failover_and_a_tool_s_result_begin_another_call() -> None:
    failover = ("notice", encode_data(kinds.Notice("failover", provider="openai")))
    other = ("source", encode_data(kinds.Source("openai", "gpt", "live")))
    result = ("tool_result", encode_data(kinds.ToolResult("c1", "sunny")))
    tool = -(-(4 + len(result[1])) // 4) - 1
    found = rows(started(1), SOURCE, text(8), failover, other, text(4), result, text(40))
    assert [(row.id[-1], row.provider, row.output_tokens) for row in found] == [
        ("1", "anthropic", 2), ("2", "openai", 1 + tool), ("3", "openai", 10),
    ]  # fmt: skip
    assert found[0].input_tokens < found[1].input_tokens < found[2].input_tokens  # each is told what was said before


def test_a_source_that_names_its_call_decides_the_number() -> None:
    """Calls that failed before they showed anything have numbers too, and leave no entry."""
    third, fourth = ("source", _source(call=3)), ("source", _source(call=4))
    found = rows(started(1), third, text(4), fourth, text(8))
    assert [(row.id, row.output_tokens) for row in found] == [("g_1/first/3", 1), ("g_1/first/4", 2)]


def _source(**more: Any) -> bytes:
    return msgspec.msgpack.encode({"provider": "openai", "model": "gpt", "mode": "live", **more})


def test_one_model_has_one_name_on_the_bill() -> None:
    dated = ("source", encode_data(kinds.Source("anthropic", "claude-20260101", "live")))
    assert rows(started(1), dated)[0].model == "claude"


def test_the_fallback_used_nothing() -> None:
    fallback = ("source", encode_data(kinds.Source("fallback", "rules", "fallback")))
    [row] = rows(started(1), fallback, text(100))
    assert (row.input_tokens, row.output_tokens) == (0, 0)


def test_who_told_another_s_answer_asked_nobody_until_it_did() -> None:
    cached: Entry = ("source", encode_data(kinds.Source("anthropic", "claude", "cached")))
    shared: Entry = ("notice", encode_data(kinds.Notice("shared")))
    assert rows(started(1), cached, text(40)) == []
    assert rows(started(1), shared) == [], "it waited for an equal request's answer"
    [row] = rows(started(1), shared, cached, text(40), SOURCE, text(8))
    assert (row.id, row.output_tokens) == ("g_1/first/1", 2), "only what it was told itself"


@pytest.mark.parametrize("kind", ["started", "source", "usage", "notice", "tool_input"])
@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x81\xa5usage\xc0"])
def test_an_entry_that_cannot_be_read_costs_its_own_figures_and_no_more(kind: str, data: bytes) -> None:
    found = rows(started(1), SOURCE, text(8), (kind, data))
    assert found[0].output_tokens >= 2


def test_nonsense_figures_stay_within_what_a_database_takes() -> None:
    usage = ("usage", b"\x82\xacinput_tokens\xcf" + b"\xff" * 8 + b"\xadoutput_tokens\xa1x")
    [row] = rows(started(1), usage)
    assert row.input_tokens == 10**12 and row.output_tokens == 0


def test_entries_may_come_one_by_one() -> None:
    calls = LostCalls(MarkRuns.parse("1:own 2:first"), "mine")
    for entry in (("queued", b"\x80"), started(1), SOURCE, text(8)):
        calls.add(*entry)
    assert [row.output_tokens for row in calls.rows(ASKED, 1)] == [2]


def test_who_was_asked_is_what_the_request_says_as_far_as_it_does() -> None:
    def asked(model: str) -> tuple[str, str]:
        found = asked_of(stream_key("acme", "g_1"), "ada", Body([Message("user", "why")], model=model))
        assert (found.stream, found.org, found.prompt_bytes) == ("g_1", "acme", 3)
        return found.provider, found.model

    assert asked("openrouter/meta/llama") == ("openrouter", "meta/llama")
    assert asked("fast") == ("unknown", "fast")
    assert asked_of(stream_key("acme", "g_1"), "ada", None).provider == "unknown"


async def test_an_answer_that_the_janitor_ends_is_counted(broker: Broker) -> None:
    scene = Scene(broker)
    await scene.accept()
    await scene.claim("m1")
    source = ("source", encode_data(kinds.Source("anthropic", "claude", "live")))
    await broker.log.append(scene.key, "m1", 2, [started(1), source, text(40)], shown="c")
    await scene.set(cancel=1)
    await scene.lose()
    await scene.sweep()
    await scene.sweep()
    assert (await scene.done())["status"] == "cancelled"
    queue = UsageQueue(broker.connections.control)
    await queue.ensure()
    [(_, row)] = await queue.take("test", 10)
    assert (row.org, row.user, row.outcome, row.provider, row.output_tokens) == (
        "acme", "alice", "lost", "anthropic", 10,
    )  # fmt: skip
    assert row.id.endswith("/m1/1") and row.estimated and row.cost_nanos is None


def test_a_failed_answer_that_was_gone_on_with_is_read_by_the_model_and_not_written() -> None:
    """Its text stands at the head of the log; the call goes on with it from its start."""
    quoted: Entry = ("source", encode_data(kinds.Source("openai", "gpt", "cached", "retry")))
    [silent] = rows(started(1), quoted, text(40))
    [row] = rows(started(1), quoted, text(40), SOURCE, text(8))
    [plain] = rows(started(1), SOURCE, text(8))
    assert row == msgspec.structs.replace(plain, input_tokens=plain.input_tokens + 10)
    assert (silent.output_tokens, silent.input_tokens) == (0, row.input_tokens)
    assert silent.provider != "openai", "it was another answer's"


def test_calls_that_read_one_answer_are_one_call_the_first() -> None:
    told = [started(1), SOURCE, text(8), started(2), SOURCE, text(4), started(3), ("source", _source(call=2)), text(40)]
    runs = MarkRuns.parse("1:own 2:first 5:second 8:third 11:mine")
    calls = LostCalls(runs, "mine", ["first/1", "second/1"])
    for entry in [("queued", b"\x80"), *told]:
        calls.add(*entry)
    for _ in range(2):
        found = {row.id: (row.output_tokens, row.input_tokens) for row in calls.rows(ASKED, 77)}
        assert found == {"g_1/first/1": (3, 100), "g_1/third/2": (10, 100)}


def test_an_answer_s_first_call_has_the_row_even_if_its_attempt_left_no_entry() -> None:
    calls = LostCalls(MarkRuns.parse("1:own 2:second"), "mine", ["first/2", "second/1"])
    for entry in [("queued", b"\x80"), started(2), SOURCE, text(4)]:
        calls.add(*entry)
    assert [row.id for row in calls.rows(ASKED, 77)] == ["g_1/first/2"]
