"""What owners of streams are told, and that it reaches them although Redis is out of reach for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from hub import owners as module
from hub.broker.keys import stream_key
from hub.broker.mailbox import Wish, WorkerPacket
from hub.owners import Owners
from hub.settings import HubSettings
from hub.tail import Held, Tail
from tests.installation import eventually


class Posts:
    """Packets that were sent, and how many tries fail before."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, WorkerPacket]] = []
        self.failures = 0

    async def post(self, redis: Any, owner: str, packet: WorkerPacket, packets: int) -> bool:
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        self.sent.append((owner, packet))
        return True

    @property
    def wishes(self) -> list[Wish]:
        return [wish for _, packet in self.sent for wish in packet.wishes]


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> Posts:
    posts = Posts()
    monkeypatch.setattr(module, "post", posts.post)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    return posts


@pytest.fixture
async def owners(posts: Posts) -> AsyncIterator[Owners]:
    broker: Any = SimpleNamespace(connections=SimpleNamespace(control=None), settings=HubSettings(auth="none"))
    owners = Owners(broker)
    owners.sender = "h1"
    running = asyncio.create_task(owners.run())
    yield owners
    running.cancel()
    await asyncio.wait([running])


def watched(number: int = 0, owner: str = "w1", demand: int = 256) -> Tail:
    tail = Tail(stream_key("acme", f"g_{number:016d}"), Held(), now=0.0)
    tail.owner = owner
    tail.demand.limit = demand
    return tail


async def test_what_gathers_for_an_owner_is_one_packet(owners: Owners, posts: Posts) -> None:
    tails = [watched(number) for number in range(10)]
    for tail in tails:
        owners.announce(tail)
    owners.tell(tails[0], Wish(tails[0].key, 0, cancel=True))
    await eventually(lambda: bool(posts.sent))
    [(owner, packet)] = posts.sent
    assert (owner, packet.sender, len(packet.wishes)) == ("w1", "h1", 10)
    first = packet.wishes[0]
    assert (first.announce, first.cancel, first.demand) == (True, True, 256), "what is said later joins"
    assert all(tail.demand.told == 256 for tail in tails)


async def test_a_packet_stays_within_its_bound(owners: Owners, posts: Posts) -> None:
    for number in range(1200):
        owners.announce(watched(number))
    await eventually(lambda: len(posts.wishes) == 1200)
    assert [len(packet.wishes) for _, packet in posts.sent] == [500, 500, 200]


async def test_an_owner_that_could_not_be_told_is_told_the_newest_of_it_later(owners: Owners, posts: Posts) -> None:
    posts.failures = 2
    tail = watched()
    owners.announce(tail)
    await eventually(lambda: posts.failures == 0)
    owners.sender = "h2"  # the mailbox was lost with Redis
    tail.demand.limit = 512
    owners.tell(tail)
    await eventually(lambda: bool(posts.sent))
    [(_, packet)] = posts.sent
    assert packet.sender == "h2"
    assert [(wish.announce, wish.demand) for wish in packet.wishes] == [(True, 512)]


async def test_who_comes_back_has_not_left(owners: Owners, posts: Posts) -> None:
    tail = watched()
    owners.tell(tail, Wish(tail.key, 0, leave=True))
    owners.announce(tail)
    await eventually(lambda: bool(posts.sent))
    assert [(wish.leave, wish.announce) for wish in posts.wishes] == [(False, True)]


async def test_nobody_is_told_of_a_stream_without_an_owner_or_announced_to_of_one_that_is_done(
    owners: Owners, posts: Posts
) -> None:
    nobody, done = watched(1, owner=""), watched(2)
    done.state = "done"
    owners.tell(nobody)
    owners.announce(done)
    assert nobody.demand.told == 0
    owners.tell(watched(3))
    await eventually(lambda: bool(posts.sent))
    assert len(posts.wishes) == 1
