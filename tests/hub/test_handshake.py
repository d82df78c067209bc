"""The hub's part of the handshake with the owner of a stream, rule by rule.

tests/broker/test_handshake_model.py shows that no order of events breaks the rules together, and that each is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from hub import reconcile
from hub.broker.mailbox import HubPacket, Part, Wish
from hub.reconcile import Reconciler
from hub.tail import BUFFERED_PARTS
from tests.hub.scene import KEY, Scene


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene([5])
    yield scene
    await scene.end()


def told(scene: Scene, owner: str = "w1") -> list[Wish]:
    """What waits to be told to an owner."""
    return list(scene.relay.owners._waiting.get(owner, {}).values())


async def registering(scene: Scene) -> None:
    """Wait until the script has run, while its answer is still on its way."""
    for _ in range(8):
        await asyncio.sleep(0)
    assert not scene.tail.is_open


async def test_parts_that_come_while_interest_is_registered_are_kept_and_merged(scene: Scene) -> None:
    scene.attach(0, None, None)
    await registering(scene)
    scene.log.append(3)
    scene.deliver(3, 5)  # the claim found the interest before the script's answer was back
    await scene.come_to_rest()
    scene.check()
    assert (scene.relay.counts.holes, scene.log.asked) == (0, [2]), "they were there"


async def test_more_parts_than_are_kept_are_read_from_the_log(scene: Scene) -> None:
    scene.attach(0, None, None)
    await registering(scene)
    for _ in range(BUFFERED_PARTS + 5):
        scene.log.append(1)
        scene.deliver(scene.log.top, scene.log.top)
    await scene.settle()
    scene.check()


async def test_an_entry_that_was_relayed_before_the_owner_knew_of_the_hub_is_read_when_it_answers(
    scene: Scene,
) -> None:
    """The answer to an announcement names what was relayed last, and a hub with less has a hole."""
    scene.attach(0, None, None)
    await scene.settle()
    scene.log.append(1)  # relayed to a set without this hub
    [wish] = told(scene)
    assert wish.announce
    scene.answer()
    await scene.come_to_rest()
    scene.check()


async def test_the_owner_that_is_announced_to_is_the_one_that_the_registration_read(scene: Scene) -> None:
    attach = scene.log.attach

    async def claimed_meanwhile(key: Any, **facts: Any) -> Any:
        return replace(await attach(key, **facts), owner="w2")

    scene.log.attach = claimed_meanwhile  # type: ignore[method-assign]
    scene.attach(0, None, None)
    await scene.settle()
    assert [wish.announce for wish in told(scene, "w2")] == [True]
    assert told(scene) == []


async def test_a_stream_that_its_owner_disowns_is_asked_for_again(scene: Scene) -> None:
    scene.attach(0, None, None)
    await scene.settle()
    scene.relay.owners._waiting.clear()
    scene.relay._receive(HubPacket("w1", [], [KEY]))
    assert scene.tail.owner == ""
    while not told(scene):
        await scene.settle()
    assert [wish.announce for wish in told(scene)] == [True]


async def test_another_sender_is_told_the_demand_and_an_open_cancel(scene: Scene) -> None:
    """It took the stream over: what the last owner was told died with it."""
    scene.attach(0, 100, None)
    await scene.settle()
    scene.tail.cancelled = True
    scene.log.attempt("m2")
    scene.relay._receive(HubPacket("w2", [Part(KEY, "m2", 3, scene.log.entries[2:])]))
    await scene.settle()
    scene.log.append(1)
    scene.relay._receive(HubPacket("w2", [Part(KEY, "m2", 4, scene.log.entries[3:])]))
    assert [(wish.demand, wish.cancel) for wish in told(scene, "w2")] == [(100, True)]
    await scene.settle()
    scene.check()


async def test_a_janitor_that_appends_owns_nothing(scene: Scene) -> None:
    scene.attach(0, None, None)
    await scene.settle()
    scene.log.attempt("m2")
    scene.relay._receive(HubPacket("", [Part(KEY, "m2", 3, scene.log.entries[2:])]))
    assert scene.tail.owner == "w1"
    await scene.settle()
    scene.check()


async def test_demand_is_withdrawn_when_the_last_viewer_leaves_and_stays_when_another_does(scene: Scene) -> None:
    scene.attach(0, 100, None)
    scene.attach(1, 50, None)
    await scene.settle()
    assert scene.tail.demand.limit == 100
    scene.viewers[0].endpoint.closed()
    assert scene.tail.demand.limit == 100, "a high-water mark"
    scene.viewers[1].endpoint.closed()
    assert [wish.demand for wish in told(scene)] == [0]


async def test_demand_of_viewers_that_are_all_out_of_window_is_withdrawn_after_a_while(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "SPENT_S", 10.0)
    scene.attach(0, 2, None)
    await scene.settle()
    reconciler = Reconciler(scene.relay)
    for now, demand in ((100.0, 2), (109.0, 2), (111.0, 0)):
        await reconciler._withdraw(now)
        assert [wish.demand for wish in told(scene)] == [demand]
    scene.viewers[0].ack(2)
    assert [wish.demand for wish in told(scene)] == [4], "credit is demand again"


async def test_who_comes_back_while_interest_is_withdrawn_is_registered_again(scene: Scene) -> None:
    """The two commands may reach Redis in either order."""
    registered = 0
    attach = scene.log.attach

    async def count(key: Any, **facts: Any) -> Any:
        nonlocal registered
        registered += 1
        return await attach(key, **facts)

    async def leave(key: Any, mailbox: str) -> None:
        scene.attach(1, None, None)
        await scene.settle()

    scene.log.attach = count  # type: ignore[method-assign]
    scene.log.leave = leave  # type: ignore[attr-defined]
    scene.attach(0, None, None)
    await scene.settle()
    scene.viewers[0].endpoint.closed()
    await scene.relay.leave(scene.tail)
    await scene.settle()
    assert registered == 3, "once for each viewer, and once after the withdrawal"
    del scene.viewers[0]
    await scene.come_to_rest()
    scene.check()
