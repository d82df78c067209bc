"""Two calls for one answer: nothing of the loser is seen, and neither outlives the contest."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from workers.chain import Ask, Candidate
from workers.contest import Contender, Outcome, contest
from workers.providers import Event, ProviderError, Reasoning, Speaker, Stop, Text, Usage

A, B = Ask(Candidate("a", "x"), "begin"), Ask(Candidate("b", "y"), "begin")
DOWN = ProviderError("provider_overloaded", "down")
BLOCKED = ProviderError("content_blocked", "no")


class Calls:
    """Two calls that do as they are told, and what was heard of each."""

    def __init__(self) -> None:
        self.said: dict[str, asyncio.Queue[Sequence[Event] | BaseException | None]] = {
            "a": asyncio.Queue(),
            "b": asyncio.Queue(),
        }
        self.fed: list[tuple[str, Event]] = []
        self.ended: list[str] = []
        self.running: set[str] = set()
        self.both = asyncio.Event()
        self.over = asyncio.Event()

    def say(self, name: str, *events: Event) -> None:
        self.said[name].put_nowait(events)

    def end(self, name: str, error: BaseException | None = None) -> None:
        self.said[name].put_nowait(error)

    async def call(self, contender: Contender) -> ProviderError | None:
        name = contender.ask.candidate.provider
        self.running.add(name)
        if len(self.running) == 2:
            self.both.set()
        contender.on_in = lambda: self.fed.append((name, Speaker("in")))
        try:
            while True:
                said = await self.said[name].get()
                if said is None or isinstance(said, ProviderError):
                    return said
                if isinstance(said, BaseException):
                    raise said
                self.fed += [(name, event) for event in contender.hear(said)]
        finally:
            self.ended.append(name)
            self.over.set()

    async def beside(self) -> Ask | None:
        return B

    def run(self, after_s: float = 0.0) -> asyncio.Task[Outcome]:
        return asyncio.create_task(contest(A, after_s, self.call, self.beside))


@pytest.mark.parametrize("winner", ["a", "b"])
async def test_the_first_content_wins_and_the_other_is_cut_off_at_once(winner: str) -> None:
    calls = Calls()
    contesting = calls.run()
    await calls.both.wait()
    loser = "ab".replace(winner, "")
    calls.say(loser, Usage(5), Speaker("long name"))
    calls.say(winner, Usage(1), Text(""), Reasoning(""))
    calls.say(winner, Usage(2), Speaker("me"))
    calls.say(winner, Text("hello"), Usage(3))
    calls.say(winner, Text("!"))
    await calls.over.wait()
    assert calls.ended == [loser], "while the winner runs on"
    calls.end(winner)
    outcome = await contesting
    spared = B if winner == "a" else A
    assert outcome == Outcome(A if winner == "a" else B, None, spared)
    assert {name for name, _ in calls.fed} == {winner}
    shown = [event for _, event in calls.fed if not isinstance(event, Text | Reasoning) or event.text]
    assert shown == [Speaker("in"), Usage(2), Speaker("me"), Text("hello"), Usage(3), Text("!")]


async def test_one_that_speaks_in_time_is_asked_alone() -> None:
    calls = Calls()
    contesting = calls.run(after_s=60)
    calls.say("a", Text("hello"))
    calls.end("a")
    assert await contesting == Outcome(A, None, None)
    assert calls.running == {"a"}


async def test_an_end_without_content_wins_too() -> None:
    calls = Calls()
    contesting = calls.run()
    await calls.both.wait()
    calls.say("b", Stop("stop"))
    calls.end("b")
    assert await contesting == Outcome(B, None, A)


async def test_one_that_fails_before_the_time_is_over_is_the_chain_s_to_replace() -> None:
    calls = Calls()
    contesting = calls.run(after_s=60)
    calls.end("a", DOWN)
    assert await contesting == Outcome(A, DOWN, None)


async def test_when_one_fails_the_other_goes_on_alone_and_both_failing_is_the_last_one_s_error() -> None:
    calls = Calls()
    contesting = calls.run()
    await calls.both.wait()
    calls.end("a", DOWN)
    calls.say("b", Text("hello"))
    calls.end("b")
    assert await contesting == Outcome(B, None, None), "who failed is not spared"
    calls = Calls()
    contesting = calls.run()
    await calls.both.wait()
    calls.end("b", DOWN)
    await calls.over.wait()
    calls.end("a", ProviderError("provider_timeout", "late"))
    outcome = await contesting
    assert outcome.ask == A and outcome.error is not None and outcome.error.code == "provider_timeout"


async def test_a_refusal_ends_both() -> None:
    calls = Calls()
    contesting = calls.run()
    await calls.both.wait()
    calls.end("a", BLOCKED)
    assert await contesting == Outcome(A, BLOCKED, B)
    assert sorted(calls.ended) == ["a", "b"]


async def test_a_failure_after_content_is_the_winner_s() -> None:
    calls = Calls()
    contesting = calls.run()
    await calls.both.wait()
    calls.say("b", Text("hello"))
    calls.end("b", DOWN)
    assert await contesting == Outcome(B, DOWN, A)


async def test_nobody_beside_it_means_to_wait_on() -> None:
    calls = Calls()
    asked = asyncio.Event()

    async def nobody() -> None:
        asked.set()

    contesting = asyncio.create_task(contest(A, 0.0, calls.call, nobody))
    await asked.wait()
    calls.say("a", Text("hello"))
    calls.end("a")
    assert await contesting == Outcome(A, None, None)


async def test_a_second_that_is_found_too_late_is_not_asked() -> None:
    calls = Calls()

    async def slow() -> Ask:
        calls.end("a", DOWN)
        await calls.over.wait()
        return B

    assert await contest(A, 0.0, calls.call, slow) == Outcome(A, DOWN, B)
    assert calls.running == {"a"}


async def test_a_defect_comes_through_and_ends_both() -> None:
    calls = Calls()
    contesting = calls.run()
    await calls.both.wait()
    calls.end("b", ValueError("a defect"))
    with pytest.raises(ValueError, match="a defect"):
        await contesting
    assert sorted(calls.ended) == ["a", "b"]


async def test_whoever_is_cut_off_cuts_off_both() -> None:
    calls = Calls()
    contesting = calls.run()
    await calls.both.wait()
    contesting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await contesting
    assert sorted(calls.ended) == ["a", "b"]


async def test_content_in_the_same_moment_is_the_first_one_s() -> None:
    calls = Calls()
    contesting = calls.run()
    await calls.both.wait()
    calls.say("b", Text("b"))
    calls.say("a", Text("a"))
    calls.end("b")
    assert await contesting == Outcome(B, None, A)
    assert {name for name, _ in calls.fed} == {"b"}
