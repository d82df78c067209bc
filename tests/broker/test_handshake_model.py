"""One hub attaches while one worker claims and appends: every interleaving, by exhaustive search.

The rules of the handshake are in hub/relay.py and workers/table.py. The model shows that with all of them no order
of steps leaves the hub without an entry or unknown to the worker, and that each is needed: without it some order does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from headrace.protocol.cursor import MarkRuns
from hub.recovery import Fresh, Outcome, merge

#: Entries that the worker appends, beside the one that was there.
ENTRIES = 2

RULES = frozenset({
    "the hub keeps packets from before it registers",
    "the owner is read with or after the interest is written",
    "the claim returns the interest that it finds",
    "every announcement is answered with the last relayed offset",
    "the worker enters the generation before it claims it",
    "an unknown generation is answered not mine",
})  # fmt: skip
KEEP, OWNER, INTEREST, ANSWER, ENTER, NOT_MINE = (
    next(rule for rule in sorted(RULES) if word in rule)
    for word in ("keeps", "the owner", "claim returns", "every announcement", "enters", "not mine")
)

FORMER_OWNERS = ["", "dead", "another"]
"""Nobody; a worker that died; a living worker that does not hold the generation any more."""


@dataclass(frozen=True)
class World:
    """Everything that any step can see or change. Mailboxes keep their order; the two parties share nothing else."""

    # Redis
    owner: str
    top: int = 1
    interest: bool = False
    # the hub
    step: str = "start"  # start → (looked) → attaching → open ⇄ repairing
    routed: bool = False
    held: int = 0
    seen: tuple[int, str] = (0, "")  # what the script returned: top, owner
    buffer: tuple[tuple[int, int], ...] = ()
    must_repair: bool = False
    to_worker: tuple[str, ...] = ()  # announcements under way, by whom they are for
    # the worker
    work: str = "idle"  # idle → (looked) → claiming → claimed → running
    entered: bool = False
    found: bool = False  # the interest that it was told
    watched: bool = False
    announced: bool = False  # while claiming
    logged: int = 1
    appending: bool = False
    to_hub: tuple[tuple[str, int, int], ...] = ()  # ("part", first, last) or ("not mine", 0, 0)


def steps(world: World, rules: frozenset[str]) -> Iterator[tuple[str, World]]:
    yield from hub_steps(world, rules)
    yield from worker_steps(world, rules)


# -- the hub -------------------------------------------------------------------------------------------------


def hub_steps(world: World, rules: frozenset[str]) -> Iterator[tuple[str, World]]:
    routed = KEEP in rules or world.routed
    if world.step == "start" and OWNER not in rules:
        yield "hub reads the owner", replace(world, step="looked", seen=(0, world.owner), routed=routed)
    elif world.step in ("start", "looked"):
        owner = world.owner if OWNER in rules else world.seen[1]
        attached = replace(world, step="attaching", interest=True, seen=(world.top, owner), routed=routed)
        yield "hub runs attach", attached
    elif world.step == "attaching":
        yield "hub opens", open_tail(replace(world, routed=True))
    elif world.step == "open" and world.must_repair:
        asked = replace(world, step="repairing", must_repair=False, interest=True, seen=(world.top, world.owner))
        yield "hub asks again", asked
    elif world.step == "repairing":
        yield "hub repairs", open_tail(world)
    if world.to_hub:
        yield "hub gets a packet", take(replace(world, to_hub=world.to_hub[1:]), *world.to_hub[0])


def open_tail(world: World) -> World:
    """Have what the log has, merge what was kept back, announce to the owner that the script returned."""
    top, owner = world.seen
    parts, opened = world.buffer, replace(world, step="open", held=max(world.held, top), buffer=())
    for part in parts:
        opened = merged(opened, *part)
    return replace(opened, to_worker=(*opened.to_worker, owner)) if owner else opened


def take(world: World, kind: str, first: int, last: int) -> World:
    if not world.routed:
        return world
    if kind == "not mine":
        return replace(world, must_repair=True)
    if world.step != "open":
        return replace(world, buffer=(*world.buffer, (first, last)))
    return merged(world, first, last)


def merged(world: World, first: int, last: int) -> World:
    """The real rule."""
    entries = [("started" if offset == 2 else "text", b"") for offset in range(first, last + 1)]
    runs = MarkRuns([(1, "m0")] if world.held < 2 else [(1, "m0"), (2, "m1")])
    outcome = merge(world.held, runs, "m1", first, entries)
    if isinstance(outcome, Fresh):
        return replace(world, held=last)
    return world if outcome is Outcome.KNOWN else replace(world, must_repair=True)


# -- the worker ----------------------------------------------------------------------------------------------


def worker_steps(world: World, rules: frozenset[str]) -> Iterator[tuple[str, World]]:
    if world.work == "idle":
        entered = replace(world, entered=ENTER in rules)
        if INTEREST in rules:
            yield "worker enters", replace(entered, work="claiming")
        else:
            yield "worker reads interest", replace(entered, work="claiming", found=world.interest)
    elif world.work == "claiming":
        found = world.interest if INTEREST in rules else world.found
        yield "claim runs", replace(world, work="claimed", owner="worker", found=found)
    elif world.work == "claimed":
        yield "worker gets its claim", running(world)
    elif world.appending:
        yield "append is answered", relayed(replace(world, appending=False, logged=world.top))
    elif world.top < 1 + ENTRIES:
        yield "append runs", replace(world, appending=True, top=world.top + 1)
    if world.to_worker:
        yield "an announcement arrives", heard(replace(world, to_worker=world.to_worker[1:]), world.to_worker[0], rules)


def running(world: World) -> World:
    started = replace(world, work="running", entered=True, watched=world.found or world.watched)
    return answered(replace(started, announced=False)) if world.announced else started


def relayed(world: World) -> World:
    return replace(world, to_hub=(*world.to_hub, ("part", world.logged, world.logged))) if world.watched else world


def answered(world: World) -> World:
    """ "Relayed up to here": a part without entries."""
    return replace(world, to_hub=(*world.to_hub, ("part", world.logged + 1, world.logged)))


def heard(world: World, recipient: str, rules: frozenset[str]) -> World:
    not_mine = ("not mine", 0, 0)
    if recipient == "dead":
        return world
    if recipient == "another" or not world.entered:
        return replace(world, to_hub=(*world.to_hub, not_mine)) if NOT_MINE in rules else world
    heard = replace(world, watched=True)
    if ANSWER not in rules:
        return heard
    return answered(heard) if heard.work == "running" else replace(heard, announced=True)


# -- the search ----------------------------------------------------------------------------------------------


def explore(rules: frozenset[str], former_owner: str) -> tuple[int, list[tuple[str, ...]]]:
    """How many states there are, and the paths to those in which nothing more happens and something is missing."""
    first = World(owner=former_owner)
    paths: dict[World, tuple[str, ...]] = {first: ()}
    frontier, bad = [first], []
    while frontier:
        world = frontier.pop(0)
        successors = list(steps(world, rules))
        if not successors and not (world.held == world.top == 1 + ENTRIES and world.watched):
            bad.append(paths[world])
        for name, successor in successors:
            if successor not in paths:
                paths[successor] = (*paths[world], name)
                frontier.append(successor)
    return len(paths), bad


@pytest.mark.parametrize("former_owner", FORMER_OWNERS)
def test_with_all_rules_the_hub_gets_every_entry_in_every_order(former_owner: str) -> None:
    states, bad = explore(RULES, former_owner)
    assert bad == []
    assert states > 100, "the search went somewhere"


@pytest.mark.parametrize("missing", [KEEP, OWNER, INTEREST, ANSWER])
def test_without_this_rule_some_order_loses_an_entry(missing: str) -> None:
    assert any(explore(RULES - {missing}, former_owner)[1] for former_owner in FORMER_OWNERS)


def test_an_announcement_may_come_too_early_if_it_is_disowned_but_not_if_it_is_dropped() -> None:
    """Two rules cover each other: entering early answers at once, "not mine" makes the hub ask again."""
    for one in (ENTER, NOT_MINE):
        assert not any(explore(RULES - {one}, former_owner)[1] for former_owner in FORMER_OWNERS)
    assert any(explore(RULES - {ENTER, NOT_MINE}, former_owner)[1] for former_owner in FORMER_OWNERS)


@pytest.mark.parametrize("former_owner", FORMER_OWNERS)
def test_no_order_of_steps_goes_on_for_ever_without_a_way_to_the_end(former_owner: str) -> None:
    """Asking for the owner again may repeat; from every state the good end can still be reached."""
    first = World(owner=former_owner)
    reached: dict[World, list[World]] = {}
    pending = [first]
    while pending:
        world = pending.pop()
        if world not in reached:
            reached[world] = [successor for _, successor in steps(world, RULES)]
            pending += reached[world]
    before: dict[World, list[World]] = {world: [] for world in reached}
    for world, successors in reached.items():
        for successor in successors:
            before[successor].append(world)
    ends = [world for world, successors in reached.items() if not successors]
    assert ends
    good: set[Any] = set()
    while ends:
        world = ends.pop()
        if world not in good:
            good.add(world)
            ends += before[world]
    assert good == set(reached)
