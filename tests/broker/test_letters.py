"""What was given up is noted, bounded, and told once."""

from __future__ import annotations

import pytest

from hub.broker import keys, letters
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey
from hub.broker.letters import Letters

A, B, C = (keys.stream_key("acme", f"g_{letter * 16}") for letter in "abc")


@pytest.fixture
def box(broker: Broker) -> Letters:
    return Letters(broker.connections.control)


async def bury(box: Letters, key: StreamKey, attempts: int = 3) -> None:
    await box.bury(key, "worker_lost", user="alice", model="standard", attempts=attempts)


async def test_a_letter_says_what_was_given_up_why_and_when(broker: Broker, box: Letters) -> None:
    seconds, _ = await broker.connections.control.time()
    await bury(box, A)
    [letter] = await box.all()
    assert (letter.key, letter.why, letter.user, letter.model, letter.attempts) == (
        A, "worker_lost", "alice", "standard", 3,
    )  # fmt: skip
    assert 0 <= letter.at_ms - seconds * 1000 < 10_000


async def test_the_newest_letter_of_each_stream_newest_first(box: Letters) -> None:
    await bury(box, A)
    await bury(box, B)
    await bury(box, A, attempts=4)
    assert [(letter.key, letter.attempts) for letter in await box.all()] == [(A, 4), (B, 3)]


async def test_all_letters_of_a_stream_are_removed_together(box: Letters) -> None:
    for key in (A, B, A):
        await bury(box, key)
    await box.remove(A)
    await box.remove(C)
    assert [letter.key for letter in await box.all()] == [B]


async def test_the_oldest_letters_go_when_there_are_too_many(
    broker: Broker, box: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters, "KEPT", 2)
    for key in (A, B, C):
        await bury(box, key)
    assert [letter.key for letter in await box.all()] == [C, B]
    assert await broker.connections.control.xlen(keys.dead_letters()) == 2
