"""Who is suspected, and that suspects wait for each other no longer than they must."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from hub.broker.keys import StreamKey
from workers import quarantine
from workers.quarantine import Quarantine, suspicion

A, B = StreamKey("acme:a"), StreamKey("acme:b")


@pytest.mark.parametrize(
    ("losses", "barren", "owner", "suspected"),
    [
        (0, 0, "", "none"),
        (0, 0, "w1", "none"),
        (1, 1, "w1", "until it speaks"),
        (2, 1, "", "until it speaks"),
        (1, 0, "w1", "none"),
        (2, 0, "", "none"),
        (2, 0, "w1", "to its end"),
        (3, 0, "w1", "to its end"),
        (4, 0, "", "to its end"),
        (5, 2, "w1", "to its end"),
    ],
)
def test_who_is_suspected(losses: int, barren: int, owner: str, suspected: str) -> None:
    assert suspicion({"losses": str(losses), "barren": str(barren), "owner": owner}) == suspected


async def test_a_suspect_waits_until_the_one_before_it_has_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_LOOK_S", 0.001)
    spoken: set[StreamKey] = set()
    place = Quarantine(spoken.__contains__)
    async with AsyncExitStack() as running:
        await running.enter_async_context(place.turn(A, "until it speaks"))
        second = asyncio.create_task(running.enter_async_context(place.turn(B, "until it speaks")))
        await asyncio.sleep(0.02)
        assert not second.done()
        spoken.add(A)
        await asyncio.wait_for(second, 5)


async def test_one_that_was_lost_again_and_again_is_watched_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_LOOK_S", 0.001)
    place = Quarantine(lambda _: True)
    first = place.turn(A, "to its end")
    await first.__aenter__()
    second = place.turn(B, "to its end")
    waiting = asyncio.ensure_future(second.__aenter__())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    async with place.turn(B, "none") as has_place:  # whoever is not suspected never waits
        assert has_place
    await first.__aexit__(None, None, None)
    assert await asyncio.wait_for(waiting, 5)
    await second.__aexit__(None, None, None)


async def test_nobody_waits_long_nor_is_watched_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "WAIT_S", 0.02)
    place = Quarantine(lambda _: False)
    async with place.turn(A, "to its end"), place.turn(B, "until it speaks") as has_place:
        assert not has_place, "another worker may have it"
    for suspected in ("to its end", "until it speaks"):
        monkeypatch.setattr(quarantine, "WATCH_S", 0.1)
        monkeypatch.setattr(quarantine, "WAIT_S", 5)
        async with place.turn(A, suspected), place.turn(B, suspected) as has_place:
            assert has_place


async def test_whoever_gives_up_waiting_or_fails_leaves_the_place_free() -> None:
    place = Quarantine(lambda _: False)
    async with place.turn(A, "to its end"):
        waiting = asyncio.create_task(place.turn(B, "to its end").__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    with pytest.raises(RuntimeError):
        async with place.turn(A, "to its end"):
            raise RuntimeError
    async with asyncio.timeout(5), place.turn(B, "until it speaks"):
        pass
