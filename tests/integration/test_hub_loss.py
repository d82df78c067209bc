"""SIGKILL: a hub that dies costs its viewers one reconnect, and nothing of what they follow (protocol §9)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from tests.installation import HubProcess, eventually, token
from tests.rolling.crowd import Crowd, percentile
from tests.rolling.roll import Asker, start_hubs
from workers.worker import Worker

VIEWERS = 200
STREAMS = 10


@pytest.fixture
async def hubs(redis_url: str) -> AsyncIterator[list[HubProcess]]:
    hubs = await start_hubs(redis_url, 2, drain_s=0.5)
    yield hubs
    for hub in hubs:
        hub.kill()


async def test_a_killed_hub_costs_its_viewers_one_reconnect_and_the_others_nothing(
    hubs: list[HubProcess], worker: Worker
) -> None:
    asker = await Asker.join(hubs[1])
    await asker.ask(STREAMS, rate=15)
    crowd = Crowd([hub.port for hub in hubs], token())
    try:
        for number in range(VIEWERS):
            crowd.join(asker.streams[number // 2 % STREAMS])
        await crowd.all_live()
        orphans = crowd.on(hubs[0].port)
        assert len(orphans) == VIEWERS // 2
        hubs[0].signal(signal.SIGKILL)
        await asyncio.gather(*[viewer.line.closed for viewer in orphans if viewer.line])
        await eventually(lambda: len(crowd.absences) == len(orphans), "the return of everybody")
        await asker.end(hubs[1])
        async with asyncio.timeout(20):
            await crowd.all_done()
    finally:
        await crowd.leave()
    figures = crowd.figures()
    assert [figures[name] for name in ("lost", "doubled", "mismatches", "restarts")] == [0, 0, 0, 0]
    assert (figures["errors"], figures["statuses"]) == ({}, {"cancelled": VIEWERS})
    for viewer in crowd.viewers:
        assert viewer.connections == (2 if viewer in orphans else 1)
    assert percentile(crowd.absences, 0.5) <= 2
    assert percentile(crowd.absences, 0.99) <= 6
