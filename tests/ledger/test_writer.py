"""From the queue to the ledger: nothing is lost while either end is down, nothing counts twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hub.broker import usage
from hub.broker.broker import Broker
from hub.broker.usage import UsageQueue
from hub.ledger import Ledger, Query, connect
from hub.ledger import writer as writer_module
from hub.ledger.writer import LedgerWriter
from tests.installation import eventually
from tests.ledger.test_ledger import EVERYTHING, row


@pytest.fixture
def queue(broker: Broker) -> UsageQueue:
    return UsageQueue(broker.connections.control)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    ledger = connect(f"sqlite:{tmp_path}/usage.db")
    yield ledger
    await ledger.close()


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "LOOK_S", 0.01)
    monkeypatch.setattr(writer_module, "PAUSE_S", 0.05)


async def calls(ledger: Ledger) -> int:
    return sum(total.calls for total in await ledger.totals(EVERYTHING))


async def run(writer: LedgerWriter, until: object) -> None:
    running = asyncio.create_task(writer.run())
    try:
        await eventually(until, "the writer's work")  # type: ignore[arg-type]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def is_empty(queue: UsageQueue) -> bool:
    return await queue.waiting() == 0


async def test_rows_that_waited_before_the_first_writer_came_are_written(queue: UsageQueue, ledger: Ledger) -> None:
    await queue.add([row(number) for number in range(1200)])
    await run(LedgerWriter(queue, ledger), lambda: is_empty(queue))
    assert await calls(ledger) == 1200


async def test_a_ledger_that_is_down_gets_everything_once_it_is_back(
    queue: UsageQueue, tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "down").write_text("in the way of the folder")
    ledger = connect(f"sqlite:{tmp_path}/down/usage.db")
    await queue.add([row(1)])
    running = asyncio.create_task(LedgerWriter(queue, ledger).run())
    try:
        await eventually(lambda: "usage waits for the ledger" in logs.text)
        await queue.add([row(2)])
        (tmp_path / "down").unlink()
        await eventually(lambda: is_empty(queue))
        assert await calls(ledger) == 2
        assert logs.text.count("usage waits for the ledger") == 1
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await ledger.close()


async def test_rows_of_a_killed_writer_are_the_next_ones(
    queue: UsageQueue, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.add([row(1), row(2)])
    await queue.ensure()
    assert len(await queue.take("killed", 500)) == 2
    assert await queue.take("next", 500) == []  # they may be on their way
    monkeypatch.setattr(usage, "STRANDED_MS", 0)
    await run(LedgerWriter(queue, ledger), lambda: is_empty(queue))
    assert await calls(ledger) == 2


async def test_a_killed_writer_that_had_written_makes_nothing_count_twice(
    queue: UsageQueue, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.add([row(1)])
    await queue.ensure()
    [(_, taken)] = await queue.take("killed", 500)
    await ledger.write([taken])
    monkeypatch.setattr(usage, "STRANDED_MS", 0)
    await run(LedgerWriter(queue, ledger), lambda: is_empty(queue))
    assert await calls(ledger) == 1


async def test_a_writer_that_cannot_open_its_ledger_leaves_the_rows_to_others(
    queue: UsageQueue, ledger: Ledger, tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "down").write_text("in the way of the folder")
    unlucky = connect(f"sqlite:{tmp_path}/down/usage.db")
    running = asyncio.create_task(LedgerWriter(queue, unlucky).run())
    try:
        await eventually(lambda: "usage waits for the ledger" in logs.text)  # before there is anything to write
        await queue.add([row(1)])
        await run(LedgerWriter(queue, ledger), lambda: is_empty(queue))
        assert await calls(ledger) == 1
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await unlucky.close()


async def test_a_flushed_redis_and_a_row_of_another_version_stop_no_writer(
    queue: UsageQueue, ledger: Ledger, broker: Broker
) -> None:
    running = asyncio.create_task(LedgerWriter(queue, ledger).run())
    try:
        await queue.add([row(1)])
        await eventually(lambda: is_empty(queue))
        await broker.connections.control.flushdb()
        await broker.connections.control.xadd("hr:usage", {"r": b"\xc1"})
        await queue.add([row(2)])
        await eventually(lambda: is_empty(queue))
        mine = await ledger.totals(Query("model", 0, 10**15))
        assert mine[0].calls == 2
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
