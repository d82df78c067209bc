"""What hubs say, and that nothing they are owed falls between a claim and its answer."""

from __future__ import annotations

import pytest

from headrace.protocol.body import Options
from headrace.protocol.cursor import MarkRuns
from hub.broker.keys import StreamKey, stream_key
from hub.broker.log import Claim
from hub.broker.mailbox import HubPacket, Part, Wish, WorkerPacket
from workers.generation import Generation, Speaker
from workers.routing import Routing
from workers.run import Run
from workers.table import Table

KEY = stream_key("org", "g_1")
CLAIM = Claim(2, 1, MarkRuns(), False, False, 0, b"", b"", "alice", 0, {})


class Desk:
    """A table, and what it told the appender."""

    def __init__(self) -> None:
        self.marked: list[StreamKey] = []
        self.wakes = 0
        self.table = Table(Routing(), mark=lambda run: self.marked.append(run.key), wake=self._wake)

    def _wake(self) -> None:
        self.wakes += 1

    def enter(self, registered: dict[str, int] | None = None, options: Options | None = None) -> Run:
        generation = Generation(
            CLAIM, options or Options(), Speaker("s", "m", "live"), now=10.0, run_ahead=8, max_run_s=60.0,
            retry_token="",
        )  # fmt: skip
        run = Run(KEY, "mark", generation, 10.0)
        self.table.enter(run, registered or {}, 10.0)
        return run

    def say(self, hub: str, wish: Wish, now: float = 11.0) -> None:
        self.table.receive(WorkerPacket(hub, [wish]), now)

    def sent(self) -> list[tuple[str, HubPacket]]:
        return list(self.table.routing.packets("w1"))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def append(run: Run) -> None:
    """Everything pending is in the log."""
    while run.generation.take(11.0) is not None:
        run.generation.answered(b"OK", 0)


def test_an_announcement_that_overtakes_the_claim_is_answered_once_the_claim_is(desk: Desk) -> None:
    desk.table.begin_claim(KEY)
    desk.say("h1", Wish(KEY, 300, announce=True))
    assert desk.sent() == [] and KEY in desk.table
    run = desk.enter()
    assert desk.sent() == [("h1", HubPacket("w1", [Part(KEY, "mark", 2, [])]))]
    assert desk.table.routing.demand(KEY) == 300 and desk.marked == [KEY]
    assert run.generation.attendance.bound == 308


def test_what_is_said_during_a_claim_counts_more_than_what_was_registered_before(desk: Desk) -> None:
    desk.table.begin_claim(KEY)
    desk.say("h1", Wish(KEY, 40, announce=True))
    desk.say("h1", Wish(KEY, 50))
    desk.say("h2", Wish(KEY, 60))
    desk.say("h3", Wish(KEY, 70, announce=True))
    desk.say("h3", Wish(KEY, 0, leave=True))
    desk.say("h4", Wish(KEY, 0, on_abandon="continue", cancel=True))
    run = desk.enter({"h1": 20, "h5": 10})
    routing = desk.table.routing
    assert sorted(routing.hubs) == ["h1", "h2", "h5"] and routing.demand(KEY) == 60
    assert [hub for hub, _ in desk.sent()] == ["h1"]
    assert run.generation.ended


def test_a_refused_claim_disowns_whoever_announced_meanwhile(desk: Desk) -> None:
    desk.table.begin_claim(KEY)
    desk.say("h1", Wish(KEY, 300, announce=True))
    desk.table.refuse_claim(KEY)
    desk.table.refuse_claim(KEY)
    assert desk.sent() == [("h1", HubPacket("w1", [], [KEY]))] and desk.wakes == 1
    assert KEY not in desk.table


def test_a_stream_that_is_not_here_is_disowned_unless_the_hub_only_leaves(desk: Desk) -> None:
    desk.say("h1", Wish(KEY, 0, leave=True))
    assert desk.sent() == [] and desk.wakes == 0
    desk.say("h1", Wish(KEY, 5))
    assert desk.sent() == [("h1", HubPacket("w1", [], [KEY]))] and desk.wakes == 1


def test_every_announcement_is_answered_with_the_last_relayed_offset(desk: Desk) -> None:
    run = desk.enter({"h1": 10})
    append(run)
    for _ in range(2):
        desk.say("h1", Wish(KEY, 10, announce=True))
        assert desk.sent() == [("h1", HubPacket("w1", [Part(KEY, "mark", 3, [])]))]


def test_a_hub_with_demand_that_is_not_known_is_taken_for_one_that_announces(desk: Desk) -> None:
    desk.enter()
    desk.say("h1", Wish(KEY, 0))
    desk.say("h2", Wish(KEY, 0, cancel=False, on_abandon="continue"))
    assert desk.table.routing.hubs == [] and desk.sent() == []
    desk.say("h1", Wish(KEY, 7))
    assert [hub for hub, _ in desk.sent()] == ["h1"]
    assert desk.table.routing.demand(KEY) == 7


def test_demand_that_is_withdrawn_or_left_or_dies_with_its_hub_starts_the_clock(desk: Desk) -> None:
    run = desk.enter({"h1": 10, "h2": 5, "h3": 4}, Options(abandon_after_ms=1000))
    desk.say("h1", Wish(KEY, 0), now=20.0)
    desk.say("h2", Wish(KEY, 0, leave=True), now=21.0)
    desk.table.tick(run, 30.0)
    assert not run.generation.ended
    desk.table.hub_gone("h3", 31.0)
    desk.table.hub_gone("h9", 31.0)
    desk.table.tick(run, 31.9)
    assert not run.generation.ended and desk.table.routing.hubs == ["h1"]
    desk.table.tick(run, 32.0)
    assert run.generation.ended


def test_interest_that_outlived_its_generation_here_harms_nothing(desk: Desk) -> None:
    run = desk.enter({"h1": 10})
    desk.table.routing.watch(stream_key("org", "gone"), "h1", 5, 10.0)
    desk.table.hub_gone("h1", 11.0)
    desk.table.remove(run)
    desk.table.remove(run)
    assert KEY not in desk.table


def test_a_cancel_and_a_new_rule_are_obeyed_at_once(desk: Desk) -> None:
    run = desk.enter()
    desk.say("h1", Wish(KEY, 0, on_abandon="continue"))
    assert run.generation.attendance.bound == float("inf")
    desk.marked.clear()
    desk.say("h1", Wish(KEY, 0, cancel=True))
    assert run.generation.ended and desk.marked == [KEY]


def test_reconciling_answers_hubs_whose_announcement_never_came(desk: Desk) -> None:
    run = desk.enter({"h1": 10})
    wakes = desk.wakes
    desk.table.reconcile(run, {"h1": 10, "h2": 20}, asked_at=12.0, now=12.5)
    assert desk.sent() == [("h2", HubPacket("w1", [Part(KEY, "mark", 2, [])]))] and desk.wakes == wakes + 1
    desk.table.reconcile(run, {"h2": 20}, asked_at=13.0, now=13.5)
    assert desk.table.routing.hubs == ["h2"] and desk.wakes == wakes + 1
