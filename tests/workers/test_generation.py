"""One run's life without any I/O: what is logged, in which batches, and how it ends (protocol §5, §6)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.protocol.body import Options
from headrace.protocol.cursor import MarkRuns
from headrace.protocol.entries import (
    CONTENT_KINDS,
    ENTRY_BYTES,
    LOG_BYTES,
    TEXT_BYTES,
    Entry,
    Notice,
    Source,
    TextDigest,
    decode_data,
)
from hub.broker.log import Claim
from workers.generation import (
    CANCELLED,
    PENDING_BYTES,
    Ending,
    Generation,
    Speaker,
    worker_lost,
)
from workers.journal import BATCH_BYTES
from workers.providers import (
    Citation,
    Event,
    ProviderError,
    Reasoning,
    Stop,
    Text,
    ToolCall,
    ToolInput,
    ToolReady,
    ToolResult,
    Usage,
)
from workers.providers import Speaker as Speaks
from workers.takeover import Kept

FIRST = Claim(2, 1, MarkRuns(), False, False, 0, b"", b"", "alice", 0, {})
SECOND = replace(FIRST, next_offset=8, attempt=2, shown=True, losses=1, log_bytes=100)
HELLO: list[Event] = [Text("Hello")]


def begin(claim: Claim = FIRST, options: Options | None = None, demand: int = 1000, **values: Any) -> Generation:
    """A run that starts at second 100 and is watched."""
    chosen: dict[str, Any] = {"now": 100.0, "run_ahead": 512, "max_run_s": 1800.0, "retry_token": "again"} | values
    generation = Generation(claim, options or Options(), Speaker("scripted", "story", "live"), **chosen)
    generation.attend(demand, True, 100.0)
    return generation


def logged(generation: Generation, now: float = 101.0) -> list[Entry]:
    """Append everything there is, with a log that takes it."""
    entries: list[Entry] = []
    while (batch := generation.take(now)) is not None:
        entries += batch.entries
        generation.answered(b"OK", 0)
    assert not generation.has_batch
    return entries


def kinds(entries: list[Entry]) -> list[str]:
    return [kind for kind, _ in entries]


def done(entries: list[Entry]) -> dict[str, Any]:
    assert kinds(entries).count("done") == 1 and entries[-1][0] == "done"
    return decode_data(*entries[-1])


def check_digest(entries: list[Entry]) -> None:
    digest = TextDigest()
    for entry in entries:
        digest.add(*entry)
    end = done(entries)
    assert (end["text_bytes"], end["text_sha256"]) == (digest.size, digest.hexdigest())


# -- a whole answer


def test_an_answer_from_its_start_to_done() -> None:
    generation = begin()
    opening = generation.take(100.0)
    assert opening is not None and opening.first == 2 and opening.shown == "" and not opening.ends
    assert [decode_data(*entry) for entry in opening.entries] == [{"attempt": 1}]
    assert generation.answered(b"OK", 0) and generation.logged == 2
    assert not generation.has_batch and generation.take(100.0) is None

    generation.feed([Text("The "), Text("sky")], 100.5)
    first = generation.take(100.5)
    assert first is not None and first.first == 3 and first.shown == "c"
    assert kinds(first.entries) == ["source", "text"]
    assert decode_data(*first.entries[0]) == {"provider": "scripted", "model": "story", "mode": "live"}
    generation.answered(b"OK", 0)

    generation.feed([Usage(7, 2, 1), Stop("stop")], 101.0)
    last = generation.take(101.0)
    assert last is not None and last.ends and last.shown == ""
    generation.answered(b"OK", 0)
    assert generation.over == "done" and not generation.has_batch and generation.take(102.0) is None
    end = done(last.entries)
    assert (end["status"], end["stop_reason"], end["ttft_ms"]) == ("completed", "stop", 500)
    assert end["usage"] == {"input_tokens": 7, "output_tokens": 2, "cached_tokens": 1}
    assert "error" not in end and "retry_token" not in end
    check_digest([*opening.entries, *first.entries, *last.entries])


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("stop", "completed"), ("tool", "completed"), ("refusal", "completed"), ("length", "truncated"),
        ("context", "truncated"), ("filter", "failed"), ("something new", "completed"),
    ],
)  # fmt: skip
def test_how_a_provider_ends_is_how_the_answer_ends(reason: str, status: str) -> None:
    generation = begin()
    generation.feed([Text("x"), Stop(reason), Text("after the end")], 100.0)
    entries = logged(generation)
    end = done(entries)
    stop_reason = "tool_calls" if reason == "tool" else reason
    assert (end["status"], end["stop_reason"], end["text_bytes"]) == (status, stop_reason, 1)
    if reason == "filter":
        assert end["error"]["code"] == "content_blocked" and end["error"]["retry"] == "no"
        assert "retry_token" not in end


def test_a_provider_that_fails_leaves_its_text_and_a_way_to_go_on() -> None:
    generation = begin()
    generation.feed(HELLO, 100.0)
    generation.fail(ProviderError("provider_overloaded", "busy \ud800" + "x" * 1000, after_ms=2000))
    entries = logged(generation)
    end = done(entries)
    assert (end["status"], end["stop_reason"], end["text_bytes"]) == ("failed", "error", 5)
    assert (end["error"]["code"], end["error"]["retry"], end["error"]["after_ms"]) == (
        "provider_overloaded", "backoff", 2000,
    )  # fmt: skip
    assert len(end["error"]["message"]) == 500 and end["retry_token"] == "again"
    check_digest(entries)


def test_the_first_end_wins_and_later_words_are_ignored() -> None:
    generation = begin()
    generation.cancel()
    generation.feed(HELLO, 100.0)
    generation.fail(ProviderError("internal", "late"))
    generation.tick(1e9)
    assert generation.ended and not generation.may_read
    end = done(logged(generation))
    assert (end["status"], end["stop_reason"], end["text_bytes"]) == ("cancelled", "cancelled", 0)
    assert "ttft_ms" not in end


def test_what_was_said_before_a_cancel_is_kept() -> None:
    generation = begin()
    generation.feed(HELLO, 100.0)
    generation.cancel()
    assert done(logged(generation))["text_bytes"] == 5


def test_nothing_said_at_all_is_a_whole_answer_too() -> None:
    generation = begin()
    generation.feed([Text(""), Reasoning(""), Stop("stop")], 100.0)
    entries = logged(generation)
    assert kinds(entries) == ["started", "done"]
    assert "ttft_ms" not in done(entries)


# -- kinds of entries


def test_every_kind_of_event_has_its_entry() -> None:
    generation = begin()
    logged(generation)
    generation.feed(
        [
            Speaks("sonnet-5"), Reasoning("hm"), Text("a"), ToolCall("t1", "search"), ToolInput("t1", '{"q":'),
            ToolInput("t1", " 1}"), ToolReady("t1", {"q": 1}), Citation({"url": "u"}),
        ],
        100.0,
    )  # fmt: skip
    entries = logged(generation)
    assert [(kind, decode_data(kind, data)) for kind, data in entries] == [
        ("source", {"provider": "scripted", "model": "sonnet-5", "mode": "live"}),
        ("reasoning", {"text": "hm"}),
        ("text", {"text": "a"}),
        ("tool_call", {"call": "t1", "name": "search"}),
        ("tool_input", {"call": "t1", "delta": '{"q": 1}'}),
        ("tool_ready", {"call": "t1", "input": {"q": 1}}),
        ("citation", {"url": "u"}),
    ]


def test_a_source_precedes_the_first_content_and_every_change_of_speaker() -> None:
    generation = begin()
    generation.feed([Reasoning("a"), Speaks("story"), Text("b"), Speaks("other"), Text("c")], 100.0)
    entries = logged(generation)
    assert kinds(entries) == ["started", "source", "reasoning", "text", "source", "text"]
    assert decode_data(*entries[4])["model"] == "other"


@pytest.mark.parametrize("whole", [None, "x" * ENTRY_BYTES, 2**64, {"lone": "\ud800"}])
def test_tool_input_that_is_no_json_or_too_large_or_cannot_be_carried_stays_in_its_pieces(whole: Any) -> None:
    generation = begin()
    generation.feed([ToolReady("t1", whole)], 100.0)
    assert logged(generation)[-1] == ("tool_ready", b"\x81\xa4call\xa2t1")


def test_what_a_later_version_may_say_is_not_logged() -> None:
    class Unknown(Event):
        pass

    generation = begin()
    generation.feed([Unknown(), Text("x")], 100.0)
    assert kinds(logged(generation)) == ["started", "source", "text"]


def test_names_are_bounded_and_valid() -> None:
    generation = begin()
    generation.feed([ToolCall("\ud800" * 9999, "n" * 9999)], 100.0)
    data = decode_data(*logged(generation)[-1])
    assert len(data["call"]) == len(data["name"]) == 256


def test_a_citation_that_is_too_large_is_left_out() -> None:
    generation = begin()
    generation.feed([Citation({"text": "x" * ENTRY_BYTES})], 100.0)
    assert kinds(logged(generation)) == ["started"]


def test_running_usage_is_told_once_a_second_and_the_last_one_before_done() -> None:
    generation = begin()
    logged(generation)
    generation.feed([Usage(10, 1)], 100.0)
    assert kinds(logged(generation)) == ["usage"]
    generation.feed([Usage(10, 2)], 100.9)
    assert logged(generation) == []
    generation.feed([Usage(10, 3)], 101.0)
    generation.feed([Usage(10, 3)], 103.0)
    assert kinds(logged(generation)) == ["usage"]
    generation.feed([Usage(10, 4)], 101.5)
    generation.feed([Stop("stop")], 101.6)
    entries = logged(generation)
    assert kinds(entries) == ["usage", "done"]
    assert decode_data(*entries[0])["output_tokens"] == done(entries)["usage"]["output_tokens"] == 4


# -- takeover


def test_a_takeover_resets_what_was_shown_in_one_append_without_new_content() -> None:
    generation = begin(SECOND)
    generation.feed(HELLO, 100.0)
    opening = generation.take(100.0)
    assert opening is not None and (opening.first, opening.shown) == (8, "r")
    assert [(kind, decode_data(kind, data)) for kind, data in opening.entries] == [
        ("started", {"attempt": 2}), ("notice", {"code": "worker_lost"}), ("reset", {"reason": "worker_lost"}),
    ]  # fmt: skip
    generation.answered(b"OK", 0)
    content = generation.take(100.0)
    assert content is not None and (content.first, content.shown) == (11, "c")
    generation.answered(b"OK", 0)
    generation.feed([Stop("stop")], 100.0)
    assert done(logged(generation))["text_bytes"] == 5


def test_a_takeover_of_which_nothing_was_shown_just_starts() -> None:
    generation = begin(replace(SECOND, shown=False))
    assert kinds(logged(generation)) == ["started"]


def shown_before() -> TextDigest:
    digest = TextDigest()
    digest.add("text", b"The sky is")
    return digest


def test_a_takeover_that_goes_on_resets_nothing_and_vouches_for_the_whole_text() -> None:
    generation = begin(SECOND, goes_on=True, digest=shown_before())
    generation.feed([Text(" blue"), Stop("stop")], 100.0)
    entries = logged(generation)
    assert kinds(entries) == ["started", "notice", "source", "text", "done"]
    whole = shown_before()
    whole.add("text", b" blue")
    end = done(entries)
    assert (end["text_bytes"], end["text_sha256"]) == (whole.size, whole.hexdigest())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_second_call_that_voids_the_first_does_so_with_its_first_content(frozen: bool) -> None:
    generation = begin()
    generation.feed([Text("Hel"), Usage(10, 3)], 100.0)
    entries = logged(generation) if frozen else []
    generation.notice(Notice("failover", "other"))
    generation.begin_call(Speaker("other", "big", "live", "failover", 2), voids="failover")
    entries += logged(generation)
    assert "reset" not in kinds(entries), "viewers keep what they have until there is something else"
    generation.feed([Text("Other"), Usage(10, 5), Stop("stop")], 101.0)
    batch = generation.take(101.0)
    assert batch is not None and batch.shown == "c"
    entries += logged(generation)
    assert kinds(entries)[-5:] == ["reset", "source", "text", "usage", "done"]
    check_digest(entries)
    end = done(entries)
    assert (end["text_bytes"], end["usage"]) == (5, {"input_tokens": 20, "output_tokens": 8})
    assert [decode_data(*entry) for entry in entries if entry[0] == "source"][-1] == {
        "provider": "other", "model": "big", "mode": "live", "reason": "failover", "call": 2,
    }  # fmt: skip


def test_what_is_told_beside_a_call_comes_with_its_first_content_and_all_of_it_can_be_read_back() -> None:
    generation = begin()
    assert not generation.has_spoken and generation.status is None
    generation.begin_call(Speaker("other", "big", "live"), [Notice("parameter_dropped", parameter="temperature")])
    assert kinds(list(generation.entries())) == ["started"]
    generation.feed(HELLO, 100.0)
    assert generation.has_spoken
    entries = logged(generation)
    assert kinds(entries) == ["started", "source", "notice", "text"]
    generation.feed([Text("!")], 101.0)
    assert list(generation.entries()) == [*entries, ("text", b"!")]
    generation.end(CANCELLED)
    assert generation.status == "cancelled"


def test_after_the_end_there_is_nothing_more_to_tell_and_nothing_to_void() -> None:
    generation = begin()
    generation.feed([*HELLO, Stop("stop")], 100.0)
    generation.notice(Notice("failover", "other"))
    generation.reset("failover")
    assert {"notice", "reset"}.isdisjoint(kinds(logged(generation)))


def test_an_empty_answer_voids_what_it_takes_the_place_of() -> None:
    generation = begin()
    generation.feed(HELLO, 100.0)
    assert not generation.is_void
    generation.begin_call(Speaker("other", "big", "live"), voids="failover")
    assert generation.is_void
    generation.feed([Stop("stop")], 101.0)
    entries = logged(generation)
    assert not generation.is_void
    assert kinds(entries).count("reset") == 1 and done(entries)["text_bytes"] == 0


def test_a_reset_is_told_so_that_it_voids_what_was_shown_before_this_attempt_too() -> None:
    generation = begin(SECOND, goes_on=True, digest=shown_before())
    generation.feed(HELLO, 100.0)
    generation.reset("failover")
    generation.feed([Text("Anew")], 101.0)
    told = Kept.of("before", generation.entries())
    assert told.text == "Anew"


@pytest.mark.parametrize("frozen", [True, False])
def test_a_provider_that_refuses_to_go_on_costs_a_reset(frozen: bool) -> None:
    generation = begin(SECOND, goes_on=True, digest=shown_before())
    entries = logged(generation) if frozen else []
    assert generation.start_over()
    generation.feed(HELLO, 100.0)
    opening = generation.take(100.0)
    assert opening is not None and opening.shown == "r"
    assert kinds(entries + opening.entries) == ["started", "notice", "reset"]
    generation.feed([Stop("stop")], 100.0)
    entries += logged(generation)
    check_digest(entries)
    assert done(entries)["text_bytes"] == 5


def test_a_reset_can_be_read_back_too_so_that_what_was_gone_on_with_is_void_as_well() -> None:
    claim = replace(FIRST, next_offset=6, attempt=2, shown=True)
    generation = begin(claim, goes_on=True, digest=TextDigest())
    generation.feed([Text(" is")], 101.0)
    generation.reset("failover")
    generation.feed([Text("Grass")], 101.0)
    assert Kept.of("The sky", generation.entries()).text == "Grass"


STEP: list[Event] = [
    Text("Look: "), ToolCall("t1", "look"), ToolInput("t1", "{}"), ToolReady("t1", {}), ToolResult("t1", "blue"),
]  # fmt: skip


@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_that_starts_over_tells_those_before_it_again(frozen: bool) -> None:
    generation = begin()
    generation.feed(STEP, 101.0)
    entries = logged(generation)
    first = entries[-5:]
    generation.begin_step()
    assert list(generation.entries()) == []
    generation.begin_call(Speaker("scripted", "story", "live", call=2))
    generation.feed([Text("It is b")], 102.0)
    assert [kind for kind, _ in generation.entries()] == ["source", "text"]
    entries += logged(generation) if frozen else []
    generation.begin_call(Speaker("other", "big", "live", "failover", 3), voids="failover")
    generation.feed([Text("Blue.")], 103.0)
    assert [kind for kind, _ in generation.entries()] == ["source", "text"], "of this step alone"
    generation.feed([Stop("stop")], 103.0)
    entries += logged(generation)
    reset = kinds(entries).index("reset")
    assert kinds(entries[reset:]) == ["reset", *kinds(first), "source", "text", "done"]
    assert entries[reset + 1 : reset + 6] == first
    check_digest(entries)
    assert done(entries)["text_bytes"] == len("Look: Blue.")


def test_every_step_before_is_told_again_and_so_is_what_was_gone_on_with() -> None:
    digest = TextDigest()
    digest.add("text", b"Kept. ")
    generation = begin(SECOND, goes_on=True, digest=digest)
    generation.feed(STEP, 101.0)
    generation.begin_step("Kept. ")
    generation.feed(STEP, 102.0)
    logged(generation)
    generation.begin_step()
    generation.feed([Text("now")], 103.0)
    logged(generation)
    generation.reset("failover")
    generation.feed([Text("then"), Stop("stop")], 104.0)
    entries = logged(generation)
    texts = [data for kind, data in entries if kind == "text"]
    assert b"".join(texts) == b"Kept. Look: Look: then" and kinds(entries).count("tool_result") == 2
    assert done(entries)["text_bytes"] == len("Kept. Look: Look: then")


def test_what_was_void_before_a_step_stays_void() -> None:
    generation = begin(SECOND)
    generation.feed(STEP, 101.0)
    generation.begin_step("Kept. ")
    generation.reset("failover")
    generation.feed([Stop("stop")], 102.0)
    entries = logged(generation)
    again = entries[len(entries) - kinds(entries)[::-1].index("reset") :]
    assert b"".join(data for kind, data in again if kind == "text") == b"Look: "


def test_a_result_is_an_entry_and_the_answer_may_wait_for_the_client() -> None:
    generation = begin()
    generation.feed([*STEP, ToolResult("t2", "no", True, True), Stop("tool")], 101.0)
    entries = logged(generation)
    results = [decode_data(*entry) for entry in entries if entry[0] == "tool_result"]
    assert results == [
        {"call": "t1", "output": "blue"},
        {"call": "t2", "output": "no", "error": True, "truncated": True},
    ]
    assert (done(entries)["status"], done(entries)["stop_reason"]) == ("completed", "tool_calls")


QUOTED = Source("scripted", "story", "cached", "retry")


def test_a_quoted_text_is_the_head_of_the_answer_in_batches_that_fit() -> None:
    generation = begin()
    text = "wörd " * 20_000
    generation.quote(QUOTED, text)
    assert not generation.has_spoken
    first = generation.take(100.0)
    assert first is not None and kinds(first.entries) == ["started"]
    generation.answered(b"OK", 0)
    batch = generation.take(100.0)
    assert batch is not None and batch.shown == "c" and kinds(batch.entries)[:2] == ["source", "text"]
    assert sum(len(data) for _, data in batch.entries) <= BATCH_BYTES
    generation.feed([Text("rest"), Stop("stop")], 101.0)
    entries = logged(generation)
    told = b"".join(data for kind, data in entries if kind == "text")
    assert told.decode() == text + "rest"
    assert [decode_data(*entry)["mode"] for entry in entries if entry[0] == "source"] == ["cached", "live"]
    check_digest(entries)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_provider_that_refuses_to_go_on_with_a_quoted_text_voids_it_after_it_was_told(frozen: bool) -> None:
    generation = begin()
    generation.quote(QUOTED, "kept")
    entries = logged(generation) if frozen else []
    assert generation.start_over("retry")
    generation.feed([*HELLO, Stop("stop")], 100.0)
    entries += logged(generation)
    assert kinds(entries) == ["started", "source", "text", "reset", "source", "text", "done"]
    assert decode_data(*entries[3]) == {"reason": "retry"}
    check_digest(entries)
    assert done(entries)["text_bytes"] == 5


def test_who_spoke_already_or_ended_does_not_start_over() -> None:
    generation = begin(SECOND, goes_on=True, digest=shown_before())
    generation.feed(HELLO, 100.0)
    assert not generation.start_over()
    ended = begin(SECOND, goes_on=True, digest=shown_before())
    ended.cancel()
    assert not ended.start_over()
    assert "reset" not in kinds(logged(generation) + logged(ended))


def test_what_redis_lost_around_a_late_reset_is_appended_again_as_it_was() -> None:
    generation = begin(SECOND, goes_on=True, digest=shown_before())
    sent = logged(generation)
    generation.start_over()
    generation.feed([Text("a"), Stop("stop")], 100.0)
    opening = generation.take(100.0)
    assert opening is not None and (opening.first, opening.shown) == (10, "r")
    sent += opening.entries
    assert not generation.answered(b"GAP", 7)
    again = generation.take(100.0)
    assert again is not None and (again.first, again.entries, again.shown) == (8, sent, "r")
    generation.answered(b"OK", 0)
    rest = logged(generation)
    assert kinds(rest) == ["source", "text", "done"]
    check_digest(sent + rest)


def test_an_end_decided_at_the_claim_keeps_the_shown_text_and_vouches_for_it() -> None:
    digest = TextDigest()
    digest.add("text", b"kept")
    generation = begin(SECOND, ending=worker_lost(), digest=digest)
    assert generation.ended
    entries = logged(generation)
    end = done(entries)
    assert len(entries) == 1 and end["text_bytes"] == 4 and end["text_sha256"] == digest.hexdigest()
    assert end["status"] == "failed" and end["error"]["code"] == "worker_lost" and end["retry_token"] == "again"


# -- the log answers


def test_a_batch_is_frozen_when_it_is_first_taken() -> None:
    generation = begin()
    logged(generation)
    generation.feed([Text("The")], 100.0)
    batch = generation.take(100.0)
    generation.refused()
    generation.feed([Text(" sky")], 100.0)
    assert generation.take(101.0) is batch and generation.held and not generation.may_read
    assert generation.answered(b"DUP", 0)
    assert not generation.held and generation.may_read
    assert logged(generation) == [("text", b" sky")]


def test_the_cancel_flag_in_a_reply_ends_the_run() -> None:
    generation = begin()
    generation.take(100.0)
    generation.answered(b"OK", 1)
    assert done(logged(generation))["status"] == "cancelled"


@pytest.mark.parametrize("status", [b"FENCED", b"GONE", b"TERMINAL"])
def test_a_log_that_is_not_ours_ends_everything(status: bytes) -> None:
    generation = begin()
    generation.take(100.0)
    assert not generation.answered(status, 0)
    assert generation.over == status.decode().lower() and generation.ended and not generation.may_read
    assert not generation.has_batch and generation.take(100.0) is None
    generation.lose("lost")
    assert generation.over == status.decode().lower()


def test_what_redis_lost_is_appended_again_as_it_was() -> None:
    generation = begin(SECOND)
    sent = []
    for text in ("a", "b", "c"):
        generation.feed([Text(text)], 100.0)
        sent += logged(generation)
    generation.feed([Text("d"), Stop("stop")], 100.0)
    batch = generation.take(100.0)
    assert batch is not None and batch.first == 15
    assert not generation.answered(b"GAP", 7) and generation.held and generation.logged == 7
    again = generation.take(100.0)
    assert again is not None and (again.first, again.shown, again.ends) == (8, "c", True)
    assert again.entries == sent + batch.entries
    assert generation.answered(b"OK", 0) and generation.over == "done"


def test_repair_goes_in_batches_of_bounded_size() -> None:
    generation = begin()
    for _ in range(80):
        generation.feed([Text("x" * TEXT_BYTES)], 100.0)
        logged(generation)
    generation.feed([Text("y")], 100.0)
    generation.take(100.0)
    generation.answered(b"GAP", 1)
    sizes = []
    while (batch := generation.take(100.0)) is not None:
        sizes.append(sum(len(data) for _, data in batch.entries))
        generation.answered(b"OK", 0)
    assert len(sizes) > 2 and max(sizes) <= BATCH_BYTES
    assert sum(sizes) > 80 * TEXT_BYTES


def test_more_lost_than_is_kept_cannot_be_repaired() -> None:
    generation = begin(SECOND)
    generation.take(100.0)
    generation.answered(b"GAP", 6)
    assert generation.over == "gap" and generation.take(100.0) is None


def test_a_done_that_redis_lost_is_appended_again() -> None:
    generation = begin()
    generation.feed([Text("x"), Stop("stop")], 100.0)
    entries = logged(generation)
    generation.done_lost()
    assert generation.over == "" and generation.is_closing
    batch = generation.take(100.0)
    assert batch is not None and batch.entries == entries[-1:] and batch.ends
    generation.answered(b"GAP", 1)
    assert logged(generation) == entries and generation.over == "done"
    generation.lose("gone")
    generation.done_lost()
    assert generation.over == ""


def test_only_what_is_done_can_lose_its_done() -> None:
    generation = begin()
    generation.lose("lost")
    generation.done_lost()
    assert generation.over == "lost" and not generation.is_closing


def test_an_answer_that_comes_after_the_run_was_given_up_changes_nothing() -> None:
    generation = begin()
    generation.feed([Stop("stop")], 100.0)
    batch = generation.take(100.0)
    assert batch is not None and batch.ends
    generation.lose("lost")
    assert generation.answered(b"OK", 0) and generation.over == "lost"


# -- flow control and time


def test_reading_stops_at_the_run_ahead_and_goes_on_with_demand() -> None:
    generation = begin(run_ahead=4, demand=2)
    logged(generation)
    while generation.may_read:
        generation.feed([Text("x")], 100.0)
        logged(generation)
    assert generation.logged == 6
    generation.attend(3, True, 100.0)
    assert generation.may_read


def test_reading_stops_when_the_log_does_not_keep_up() -> None:
    generation = begin(demand=10**6)
    generation.take(100.0)
    while generation.may_read:
        generation.feed([Text("x" * 1000)], 100.0)
    assert generation.take(100.0) is not None
    generation.answered(b"OK", 0)
    assert not generation.may_read
    pending = sum(len(data) for _, data in logged(generation))
    assert PENDING_BYTES - BATCH_BYTES - 4096 < pending < PENDING_BYTES
    assert generation.may_read


def test_a_lease_in_doubt_pauses_the_reading() -> None:
    generation = begin()
    generation.paused = True
    assert not generation.may_read and not generation.ended
    generation.paused = False
    assert generation.may_read


def test_an_abandoned_run_ends_cancelled() -> None:
    generation = begin(options=Options(abandon_after_ms=2000))
    generation.feed(HELLO, 100.0)
    generation.attend(0, False, 101.0)
    generation.tick(102.9)
    assert not generation.ended
    generation.tick(103.0)
    end = done(logged(generation))
    assert (end["status"], end["stop_reason"], end["text_bytes"]) == ("cancelled", "abandoned", 5)


def test_time_spent_in_the_queue_counts_as_unattended() -> None:
    generation = Generation(
        FIRST, Options(), Speaker("s", "m", "live"), now=100.0, run_ahead=1, max_run_s=10.0, retry_token="",
        waited_s=120.0,
    )  # fmt: skip
    generation.attend(0, False, 100.0)
    generation.tick(100.0)
    assert done(logged(generation))["stop_reason"] == "abandoned"


def test_a_run_without_end_is_cut_off() -> None:
    generation = begin(max_run_s=60.0)
    generation.tick(159.9)
    assert not generation.ended
    generation.tick(160.0)
    end = done(logged(generation))
    assert (end["status"], end["stop_reason"]) == ("truncated", "max_run")


def test_an_answer_that_is_too_long_is_cut_and_says_so() -> None:
    generation = begin(replace(FIRST, log_bytes=LOG_BYTES - 100_000))
    entries = logged(generation)
    for _ in range(3):
        generation.feed([Text("x" * 1000), Text("y" * 49_000), Usage(1, 2)], 100.0)
        entries += logged(generation)
    end = done(entries)
    assert (end["status"], end["stop_reason"]) == ("truncated", "too_long")
    assert 90_000 < sum(len(data) for _, data in entries) <= 100_000
    check_digest(entries)


def test_one_burst_above_the_limit_is_too_long_even_if_the_provider_stopped() -> None:
    generation = begin()
    generation.feed([Text("x" * (LOG_BYTES + 1)), Usage(1, 2), Stop("stop")], 100.0)
    entries = logged(generation)
    assert done(entries)["stop_reason"] == "too_long" and done(entries)["usage"]["output_tokens"] == 2
    assert sum(len(data) for _, data in entries) <= LOG_BYTES
    check_digest(entries)


def test_a_cancel_at_the_claim_of_something_new_is_one_entry() -> None:
    assert kinds(logged(begin(replace(FIRST, cancelled=True), ending=CANCELLED))) == ["done"]


def test_an_ending_names_the_rule_of_its_code() -> None:
    error = Ending.failed("internal", "m").error
    assert error is not None and error.retry == "backoff"


# -- any order of events


class FakeLog:
    """append.lua, and what may happen to its caller: a reply that is lost, a server that forgets the end."""

    def __init__(self, before: list[Entry]) -> None:
        self.entries: list[Entry] = list(before)
        self.shown = int(any(kind in CONTENT_KINDS for kind in kinds(before)))
        self.before = len(before)
        self.shown_before = self.shown
        self.cancelled = 0
        #: What it answers to everything from now on: another worker's mark is in it, or it is not there.
        self.refusal = b""

    @property
    def top(self) -> int:
        return len(self.entries)

    def append(self, first: int, entries: list[Entry], shown: str) -> tuple[bytes, int]:
        if self.refusal:
            return self.refusal, 0
        last = first + len(entries) - 1
        if last <= self.top:
            return b"DUP", self.cancelled
        if self.entries and self.entries[-1][0] == "done":
            return b"TERMINAL", 0
        if first > self.top + 1:
            return b"GAP", self.top
        self.entries += entries[self.top + 1 - first :]
        self.shown = {"c": 1, "r": 0}.get(shown, self.shown)
        return b"OK", self.cancelled

    def forget(self, top: int) -> None:
        """A failover: the end is gone, and what meta said about it."""
        del self.entries[top:]
        self.shown = self.shown_before
        for kind, _ in self.entries[self.before :]:
            self.shown = 0 if kind == "reset" else 1 if kind in CONTENT_KINDS else self.shown


QUEUED: Entry = ("queued", b"\x80")
LEFT_BEHIND: list[Entry] = [QUEUED, ("started", b"\x80"), *[("text", b"The sky "), ("text", b"is")] * 2, QUEUED]
SAID = st.lists(
    st.builds(Text, st.text(max_size=40) | st.just("long " * 900))
    | st.builds(Reasoning, st.text(st.characters(codec=None), max_size=5))
    | st.builds(ToolInput, st.sampled_from("ab"), st.text(max_size=5))
    | st.builds(Speaks, st.sampled_from("xy"))
    | st.builds(Usage, st.just(1), st.integers(0, 9)),
    max_size=5,
)

#: What ends a life, or none were long.
SELDOM = st.sampled_from([False, False, False, False, False, True])


class AnyLife(RuleBasedStateMachine):
    """Whatever is said, lost, repeated, cancelled, overtaken: one dense log of frozen entries, one `done`, a true
    digest; and not a word once the run is another's."""

    @initialize(kind=st.sampled_from(["first", "over again", "goes on"]))
    def claim(self, kind: str) -> None:
        self.now = 100.0
        self.log = FakeLog([QUEUED] if kind == "first" else LEFT_BEHIND)
        self.origin = self.log.top + 1
        digest = TextDigest()
        for entry in self.log.entries:
            digest.add(*entry)
        claim = FIRST if kind == "first" else SECOND
        assert claim.next_offset == self.origin
        goes_on = kind == "goes on"
        self.generation = begin(
            claim, Options(abandon_after_ms=20_000), run_ahead=30, demand=30, max_run_s=100.0,
            goes_on=goes_on, digest=digest if goes_on else None,
        )  # fmt: skip
        self.kind = kind
        self.demand = 30
        self.started_over = False
        self.seen: dict[int, Entry] = {}

    @rule(events=SAID)
    def feed(self, events: list[Event]) -> None:
        self.now += 0.3
        self.generation.feed(events, self.now)

    @rule(events=SAID, more=SAID)
    def talk(self, events: list[Event], more: list[Event]) -> None:
        """An undisturbed while, so that lives are long enough for what follows."""
        for some in ([], events, more):
            self.feed(some)
            if self.generation.has_batch:
                self.append("answered")

    @rule(how=st.sampled_from(["stop", "length", "filter", "fail", "cancel"]), sure=SELDOM)
    def end(self, how: str, sure: bool) -> None:
        if not sure:
            return
        if how == "fail":
            self.generation.fail(ProviderError("provider_error", "failed"))
        elif how == "cancel":
            self.generation.cancel()
        else:
            self.generation.feed([Stop(how)], self.now)

    @precondition(lambda self: self.kind == "goes on" and not self.started_over)
    @rule(sure=SELDOM)
    def refuse_to_go_on(self, sure: bool) -> None:
        if sure:
            self.started_over = self.generation.start_over()

    @rule(demand=st.integers(0, 60), passed=st.floats(0, 6))
    def attend(self, demand: int, passed: float) -> None:
        self.now += passed
        self.demand = max(self.demand, demand)
        self.generation.attend(demand, demand > 0, self.now)
        self.generation.tick(self.now)

    @rule(doubt=st.booleans())
    def doubt(self, doubt: bool) -> None:
        self.generation.paused = doubt
        assert not (doubt and self.generation.may_read)

    @rule(sure=SELDOM)
    def cancel_elsewhere(self, sure: bool) -> None:
        self.log.cancelled |= sure

    @precondition(lambda self: self.generation.has_batch)
    @rule(fate=st.sampled_from(["answered", "answered", "reply lost", "refused"]))
    def append(self, fate: str) -> None:
        batch = self.generation.take(self.now)
        assert batch is not None and batch.entries and self.generation.take(self.now) is batch
        for offset, entry in enumerate(batch.entries, batch.first):
            assert self.seen.setdefault(offset, entry) == entry, "an entry changed after it was sent"
        if fate == "refused":
            self.generation.refused()
            return
        former = list(self.log.entries)
        reply = self.log.append(batch.first, batch.entries, batch.shown)
        assert self.log.entries[: len(former)] == former
        if fate == "reply lost":
            self.generation.refused()
            assert not self.generation.may_read
        elif self.generation.answered(*reply):
            assert self.generation.logged <= self.log.top
            assert self.generation.ended or not self.log.cancelled, "nobody heard of the cancel"

    @precondition(lambda self: self.log.top >= self.origin and not self.log.refusal)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """A failover: the end of the log is gone, nothing before this attempt is."""
        self.log.forget(data.draw(st.integers(self.origin - 1, self.log.top)))
        if self.generation.over == "done":
            self.generation.done_lost()

    @precondition(lambda self: not self.log.refusal)
    @rule(refusal=st.sampled_from([b"FENCED", b"GONE"]), sure=SELDOM)
    def overtake(self, refusal: bytes, sure: bool) -> None:
        if sure:
            self.log.refusal = refusal

    @invariant()
    def the_log_is_what_was_sent(self) -> None:
        if not hasattr(self, "log"):
            return
        generation, log = self.generation, self.log
        for offset in range(self.origin, log.top + 1):
            assert log.entries[offset - 1] == self.seen[offset]
        assert "done" not in kinds(log.entries[:-1])
        assert generation.over in ("", "done", log.refusal.decode().lower())
        if generation.over:
            assert not generation.has_batch and generation.take(self.now) is None and not generation.may_read
        if generation.may_read:
            assert not generation.ended and not generation.held and not generation.paused
            assert max(self.seen, default=0) < self.demand + 30

    def teardown(self) -> None:
        if not hasattr(self, "log"):
            return
        self.generation.cancel()
        while self.generation.has_batch:
            self.append("answered")
        entries = self.log.entries[self.origin - 1 :]
        if self.log.refusal:
            assert self.generation.over in ("done", self.log.refusal.decode().lower())
            return
        assert self.generation.over == "done" and self.log.top == max(self.seen)
        assert kinds(self.log.entries).count("done") == 1
        check_digest(self.log.entries)
        assert kinds(entries)[0] == "started" and kinds(entries).count("started") == 1
        assert all(len(data) <= TEXT_BYTES for kind, data in entries if kind in ("text", "reasoning"))
        voids = self.kind == "over again" or self.started_over
        assert kinds(entries).count("reset") == int(voids)
        assert ("notice" in kinds(entries)) == (self.kind != "first")
        shows = any(kind in CONTENT_KINDS for kind in kinds(entries))
        assert self.log.shown == int(shows or (self.kind == "goes on" and not voids))
        assert ("source" in kinds(entries)) == shows
        if shows:
            first = next(index for index, kind in enumerate(kinds(entries)) if kind in CONTENT_KINDS)
            assert "source" in kinds(entries)[:first]
            assert "reset" not in kinds(entries)[first:]


AnyLife.TestCase.settings = settings(max_examples=120, stateful_step_count=35, deadline=None)
test_any_life_is_one_log = AnyLife.TestCase
