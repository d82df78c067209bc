"""Workers are replaced one after the other, as a deploy does it, and nobody who watches an answer sees it."""

from __future__ import annotations

import asyncio
import time

import pytest

from hub.broker import keys
from hub.broker.broker import Broker
from tests.conftest import StartHub
from tests.installation import question
from tests.integration.viewer import Viewer, pieces
from tests.wire import Wire
from tests.workers.listener import ask, eventually
from tests.workers.process import WorkerProcess
from tests.workers.test_worker import ENDLESS, speaking

pytestmark = pytest.mark.timeout(120)  # a process takes a second to start, and ten on a busy machine

WIRES, EACH = 5, 40
#: An answer takes two seconds and a half; a worker that is told to leave finishes those that it has.
MODEL = "scripted/tokens=50,rate=20"


async def show(wire: Wire, first: int) -> Viewer:
    """A viewer who asks for one answer after the other, and watches all of them."""
    viewer = Viewer(wire)
    for number in range(first, first + EACH):
        await wire.send(question(f"r{number}", model=MODEL, window=None))
        viewer.show(await viewer.reply(f"r{number}"))
        await asyncio.sleep(0.08)  # 40 answers begin over three seconds and more
    await viewer.watch()
    return viewer


async def test_two_workers_are_replaced_under_two_hundred_answers_and_nobody_notices(
    start_hub: StartHub, redis_url: str
) -> None:
    hub = await start_hub()
    wires = [await hub.join(f"user-{number}") for number in range(WIRES)]
    starting = WorkerProcess(redis_url), WorkerProcess(redis_url)
    async with starting[0] as one, starting[1] as two:
        showing = [asyncio.create_task(show(wire, EACH * number)) for number, wire in enumerate(wires)]
        async with WorkerProcess(redis_url):
            one.terminate()
            assert await one.ended() == 0
            async with WorkerProcess(redis_url):
                two.terminate()
                assert await two.ended() == 0
                for worker in (one, two):
                    assert "draining" in worker.log and "handed back" not in worker.log
                viewers = await asyncio.gather(*showing)
                screens = [screen for viewer in viewers for screen in viewer.screens.values()]
    assert len(screens) == WIRES * EACH
    for screen in screens:
        assert screen.done is not None and screen.done["status"] == "completed"
        assert (screen.text, screen.told, screen.kinds.count("started")) == (pieces(50), [], 1)


async def test_a_second_signal_hands_the_answers_over_without_a_lease_to_wait_for(
    broker: Broker, redis_url: str
) -> None:
    async with WorkerProcess(redis_url) as first:
        key = await ask(broker, ENDLESS, on_abandon="continue", on_worker_loss="continue")
        await speaking(broker, key, 3)
        first.terminate()
        await first.logged("draining")
        told_at = time.monotonic()
        first.terminate()
        assert await first.ended() == 0
        assert time.monotonic() - told_at < 2.5, "it leaves at once"
    [standing] = await broker.log.standings([key])
    assert standing is not None and (standing.owner, standing.state) == ("", "running")
    assert await broker.lanes.depths([keys.TAKEOVER_LANE]) == {keys.TAKEOVER_LANE: 1}
    async with WorkerProcess(redis_url):
        top = standing.top
        ready_at = time.monotonic()

        async def goes_on() -> bool:
            [now] = await broker.log.standings([key])
            return now is not None and now.top > top

        await eventually(goes_on, "the takeover")
        assert time.monotonic() - ready_at < 3.0
    [facts] = await broker.log.facts([key], ["losses", "attempt"])
    assert facts is not None and (facts["losses"], facts["attempt"]) == ("0", "2")
