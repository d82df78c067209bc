"""What becomes of an answer whose worker was lost: every log, every rule, every model."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocol.entries import (
    CONTENT_KINDS,
    Entry,
    TextDigest,
    ToolCall,
    ToolInput,
    ToolReady,
    ToolResult,
    encode_data,
)
from workers.providers import Continues
from workers.takeover import GiveUp, GoOn, Kept, ReadOn, StartOver, Takeover, decide, read_on

TEXT: Entry = ("text", b"The sky")
MORE: Entry = ("text", b" is blue")
REASONING: Entry = ("reasoning", b"hm")
RESET: Entry = ("reset", b"\x80")
TOOL: Entry = ("tool_call", b"\x80")
RAN: Entry = ("tool_result", b"\x80")
OPENING: list[Entry] = [("queued", b"\x80"), ("started", b"\x80"), ("source", b"\x80")]


def gather(*entries: Entry) -> Kept:
    kept = Kept()
    for entry in [*OPENING, *entries]:
        kept.add(*entry)
    return kept


def decided(rule: str, *entries: Entry, continues: Continues = "turn", structured: bool = False) -> Takeover:
    return decide(rule, gather(*entries), continues, structured=structured)


@pytest.mark.parametrize("rule", ["restart", "continue", "fail"])
def test_what_nobody_saw_starts_over_whatever_the_rule(rule: str) -> None:
    assert decided(rule) == StartOver()
    assert decided(rule, TEXT, MORE, RESET) == StartOver()


@pytest.mark.parametrize("rule", ["restart", "continue", "fail"])
def test_a_tool_that_ran_is_not_run_again_whatever_the_rule(rule: str) -> None:
    assert decided(rule, TEXT, TOOL, RAN, MORE) == GiveUp()
    assert decided(rule, TOOL, RAN, RESET) == GiveUp()


def test_what_was_shown_follows_the_rule() -> None:
    assert decided("restart", TEXT, MORE) == StartOver()
    assert decided("fail", TEXT, MORE) == GiveUp()
    assert decided("continue", TEXT, MORE) == GoOn("The sky is blue")


def test_only_what_is_shown_now_is_gone_on_with() -> None:
    assert decided("continue", TEXT, TOOL, RESET, MORE) == GoOn(" is blue")
    assert decided("continue", REASONING, TEXT, ("notice", b"\x80"), ("usage", b"\x80")) == GoOn("The sky")


@pytest.mark.parametrize(
    "entries",
    [[TEXT, REASONING], [REASONING], [TEXT, TOOL], [TOOL, TEXT], [TEXT, ("citation", b"\x80")], [("text", b" \n")]],
)
def test_inside_of_anything_but_prose_it_starts_over(entries: list[Entry]) -> None:
    assert decided("continue", *entries) == StartOver()


def test_what_was_shown_before_an_attempt_is_part_of_what_is_kept_until_a_reset() -> None:
    said: Entry = ("text", b" is blue")
    assert Kept.of("The sky", [said]).text == "The sky is blue"
    assert Kept.of("", [said]).text == " is blue"
    assert Kept.of("The sky", [("reset", b""), said]).text == " is blue"


def test_an_answer_by_a_schema_starts_over() -> None:
    assert decided("continue", TEXT, structured=True) == StartOver()


def test_a_model_that_cannot_go_on_starts_over() -> None:
    assert decided("continue", TEXT, continues="no") == StartOver()
    assert decided("continue", TEXT, continues="prefix") == GoOn("The sky")


# -- tools

TOOLS = {"pay": False, "look": True}


def call(name: str, call: str = "t1") -> list[Entry]:
    return [
        ("tool_call", encode_data(ToolCall(call, name))),
        ("tool_input", encode_data(ToolInput(call, "{}"))),
        ("tool_ready", encode_data(ToolReady(call, {}))),
    ]


def result(call: str = "t1") -> Entry:
    return ("tool_result", encode_data(ToolResult(call, "done")))


def ran(*entries: Entry) -> bool:
    kept = Kept(TOOLS)
    for entry in entries:
        kept.add(*entry)
    return kept.ran_tool


def test_a_tool_may_have_run_as_soon_as_its_call_is_complete() -> None:
    opened, piece, ready = call("pay")
    assert not ran(opened, piece) and ran(opened, piece, ready) and ran(opened, piece, ready, result())


def test_a_repeatable_tool_may_run_again() -> None:
    assert not ran(*call("look")) and not ran(*call("look"), result())
    assert ran(*call("look"), *call("pay", "t2"), result())


def test_a_client_s_tool_is_not_run_by_workers() -> None:
    assert not ran(*call("locate"))


def test_a_call_that_was_void_before_it_could_run_never_ran() -> None:
    assert not ran(*call("pay"), RESET) and not ran(*call("pay"), RESET, *call("look"))
    assert ran(*call("pay"), result(), RESET) and ran(*call("pay"), RESET, *call("pay"))


def test_what_cannot_be_read_counts_as_run_only_if_it_is_a_result() -> None:
    assert not ran(("tool_call", b"\xc1"), ("tool_ready", b"\x80"), ("tool_ready", b""))
    assert ran(*call("look"), ("tool_result", b"\xc1")) and ran(*call("look"), result("t9"))


KINDS = ["text", "reasoning", "reset", "tool_call", "tool_input", "tool_ready", "citation", "usage", "notice", "source"]
LOGS = st.lists(st.tuples(st.sampled_from(KINDS), st.text(max_size=6).map(str.encode)), max_size=12)
RULES = st.sampled_from(["restart", "continue", "fail"])
MODELS: st.SearchStrategy[Continues] = st.sampled_from(["no", "prefix", "turn"])


@settings(deadline=None)
@given(LOGS, RULES, MODELS, st.booleans())
def test_whatever_the_log_says_only_whole_prose_is_gone_on_with(
    log: list[Entry], rule: str, continues: Continues, structured: bool
) -> None:
    outcome = decided(rule, *log, continues=continues, structured=structured)
    resets = [index for index, (kind, _) in enumerate(log) if kind == "reset"]
    shown = [entry for entry in log[resets[-1] + 1 if resets else 0 :] if entry[0] in CONTENT_KINDS]
    prose = b"".join(data for kind, data in shown if kind == "text")
    kept = gather(*log)
    assert kept.count == len(log) + len(OPENING) and kept.shows == bool(shown)
    assert (kept.digest.size, kept.digest.hexdigest()) == (len(prose), hashlib.sha256(prose).hexdigest())
    if isinstance(outcome, GoOn):
        assert rule == "continue" and continues != "no" and not structured
        assert {kind for kind, _ in shown} <= {"text", "reasoning"} and shown[-1][0] == "text"
        assert outcome.text.encode() == prose and outcome.text.strip()
    elif isinstance(outcome, GiveUp):
        assert rule == "fail" and shown
    else:
        assert rule != "fail" or not shown


@settings(deadline=None)
@given(LOGS, st.integers(0, 12))
def test_the_digest_goes_on_as_if_one_worker_had_written_all(log: list[Entry], cut: int) -> None:
    kept, whole = Kept(), TextDigest()
    for entry in log[:cut]:
        kept.add(*entry)
    for entry in log[cut:]:
        kept.digest.add(*entry)
    for entry in log:
        whole.add(*entry)
    assert (kept.digest.size, kept.digest.hexdigest()) == (whole.size, whole.hexdigest())


# -- what a provider still writes


def test_what_is_still_written_is_read_on_whatever_the_rule_would_do_otherwise() -> None:
    shown = gather(REASONING, TEXT, MORE)
    for otherwise in (StartOver(), GoOn("The sky is blue")):
        assert read_on(shown, otherwise) == ReadOn(otherwise, True, "The sky is blue", "hm")
    assert read_on(gather(), StartOver()) == ReadOn(StartOver(), True)
    assert read_on(gather(REASONING, TEXT, RESET, MORE), StartOver()) == ReadOn(StartOver(), True, " is blue")


def test_other_things_than_words_are_told_anew() -> None:
    assert read_on(gather(TEXT, TOOL), StartOver()) == ReadOn(StartOver(), False)


def test_what_is_to_end_ends_and_an_answer_to_results_is_not_the_whole() -> None:
    assert read_on(gather(TEXT), GiveUp()) == GiveUp()
    assert read_on(gather(TEXT, TOOL, RAN), StartOver()) == StartOver()
