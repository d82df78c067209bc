"""Who is asked next: every fault before and after the first content has one outcome."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.chain import MAX_CALLS, QUICK_RETRY_S, WAIT_BUDGET_S, Ask, Candidate, Chain, Fault, Shown

A = Candidate("anthropic", "sonnet", 1000)
B = Candidate("openai", "terra", 400)
C = Candidate("local", "big", 5000)
FAULTS: tuple[Any, ...] = get_args(Fault)
SPLICE: Any = ("splice", "restart")


def begun(*candidates: Candidate, policy: Any = SPLICE, **options: Any) -> Chain:
    chain = Chain(candidates, policy, **options)
    assert chain.begin() == Ask(candidates[0], "begin")
    return chain


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"broken", "server", "context", "blocked", "request"}))
def test_before_content_the_next_is_asked_at_once(fault: Any) -> None:
    assert begun(A, B).failed(fault, "nothing") == Ask(B, "begin")


@pytest.mark.parametrize("fault", ["broken", "server"])
def test_a_passing_fault_is_tried_once_more_and_only_once(fault: Any) -> None:
    chain = begun(A, B)
    assert chain.failed(fault, "nothing") == Ask(A, "begin", QUICK_RETRY_S)
    assert chain.failed(fault, "nothing") == Ask(B, "begin")
    assert chain.failed(fault, "nothing") == Ask(B, "begin", QUICK_RETRY_S)
    assert chain.failed(fault, "nothing") is None


@pytest.mark.parametrize("fault", ["blocked", "request"])
@pytest.mark.parametrize("shown", get_args(Shown))
def test_a_refusal_does_not_fail_over(fault: Any, shown: Any) -> None:
    assert begun(A, B).failed(fault, shown) is None


def test_a_conversation_that_is_too_long_goes_to_a_larger_model_only() -> None:
    assert begun(A, B, C).failed("context", "nothing") == Ask(C, "begin")
    assert begun(A, B).failed("context", "nothing") is None


def test_a_rate_limit_is_waited_for_only_when_there_is_nobody_else_and_within_the_budget() -> None:
    assert begun(A, B).failed("rate_limited", "nothing", after_s=0.5) == Ask(B, "begin")
    alone = begun(A)
    assert alone.failed("rate_limited", "nothing", after_s=1.5) == Ask(A, "begin", 1.5)
    assert alone.failed("rate_limited", "nothing", after_s=1.5) is None
    assert begun(A).failed("rate_limited", "nothing", after_s=WAIT_BUDGET_S + 0.1) is None
    assert begun(A).failed("rate_limited", "nothing") is None


def test_a_policy_of_going_on_alone_ends_what_cannot_go_on() -> None:
    assert begun(A, B, policy=["continue"]).failed("idle", "mixed") is None
    assert [candidate.name for candidate in (A, B)] == ["anthropic/sonnet", "openai/terra"]


def test_what_a_breaker_keeps_out_is_passed_over() -> None:
    chain = Chain([A, B, C], SPLICE, lambda candidate: 5.0 if candidate in (A, B) else 0.0)
    assert chain.begin() == Ask(C, "begin")
    assert Chain([A], SPLICE, lambda _: 1.0).begin() is None


@pytest.mark.parametrize("fault", ["broken", "server", "truncated", "malformed"])
def test_after_content_the_same_model_is_the_likeliest_to_repeat_itself(fault: Any) -> None:
    chain = begun(A, B)
    assert chain.failed(fault, "text") == Ask(A, "splice", QUICK_RETRY_S)
    assert chain.failed(fault, "text") == Ask(B, "splice")
    assert begun(A, B, policy=["error"]).failed(fault, "text") is None


def test_other_content_than_text_starts_over_and_a_tool_that_ran_ends_the_answer() -> None:
    assert begun(A, B).failed("idle", "mixed") == Ask(B, "restart")
    assert begun(A, B, policy=["splice", "continue", "error"]).failed("idle", "mixed") is None
    assert begun(A, B).failed("idle", "tool") is None


@pytest.mark.parametrize(
    ("policy", "way"),
    [(["splice", "restart"], "restart"), (["splice", "continue", "error"], "continue"), (["splice", "error"], None)],
)
def test_a_splice_that_differs_falls_to_the_next_way(policy: Any, way: Any) -> None:
    chain = begun(A, B, policy=policy)
    chain.failed("idle", "text")
    assert chain.diverged() == way


@given(
    st.lists(st.tuples(st.sampled_from(FAULTS), st.sampled_from(get_args(Shown))), max_size=40),
    st.permutations([A, B, C]),
    st.sampled_from(list(itertools.permutations(["splice", "continue", "restart"], 2))),
)
def test_calls_are_bounded_and_content_is_never_begun_over_silently(faults: Any, candidates: Any, policy: Any) -> None:
    chain = Chain(candidates, [*policy, "error"])
    step = chain.begin()
    calls = 1
    for fault, shown in faults:
        step = chain.failed(fault, shown, after_s=0.1)
        if step is None:
            break
        calls += 1
        assert step.candidate == chain.current
        assert (step.how == "begin") == (shown == "nothing")
        assert shown != "tool"
        assert shown == "text" or step.how in ("begin", "restart")
    assert calls == chain.calls <= MAX_CALLS


def test_beside_the_silent_one_the_next_is_asked_and_the_end_of_either_counts() -> None:
    chain = begun(A, B)
    assert chain.alongside() == Ask(B, "begin") and chain.current == A
    assert chain.alongside() is None, "there is nobody else"
    chain.settle(B)
    assert chain.current == B
    assert chain.failed("overloaded", "nothing") is None


def test_who_was_cut_off_without_a_fault_may_be_asked_again_but_calls_stay_bounded() -> None:
    chain = begun(A, B)
    for _ in range(MAX_CALLS - 2):
        chain.alongside()
        chain.spare(B)
    chain.settle(A)
    assert chain.failed("overloaded", "nothing") == Ask(B, "begin")
    chain.spare(A)
    assert chain.calls == MAX_CALLS and chain.alongside() is None
    assert chain.failed("overloaded", "nothing") is None


def test_what_is_still_written_is_read_on_before_anybody_is_asked() -> None:
    chain = Chain([A, B], SPLICE)
    assert chain.read_on(A) == Ask(A, "read_on")
    assert chain.begin() == Ask(A, "begin"), "reading on is no asking"
    chain = Chain([A, B], SPLICE)
    chain.read_on(A)
    assert chain.failed("broken", "text") == Ask(A, "splice", QUICK_RETRY_S)
