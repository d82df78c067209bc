"""Whatever ends an answer, its provider's socket is closed within a second: what comes later is paid for nothing.

The providers are fakes over real HTTP that see when their client left and what they wrote after.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey
from hub.broker.mailbox import Wish
from tests.fakes import FakeProvider, Record, Script
from tests.workers.listener import ask, ending, eventually, listening, log_of, text
from workers.providers.registry import Providers
from workers.settings import WorkerSettings
from workers.worker import Worker

CLOSED_WITHIN_S = 1.0
MODELS = {"anthropic": "anthropic/claude-sonnet-5-5", "openai": "openai/gpt-6-luna"}


@dataclass(frozen=True)
class Scene:
    """One worker, and one endless answer of a fake provider in it."""

    broker: Broker
    worker: Worker
    key: StreamKey

    @property
    def redis(self) -> Any:
        return self.broker.connections.control


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as fake:
        for name, url in (("ANTHROPIC", fake.base_url_anthropic), ("OPENAI", fake.base_url_openai)):
            monkeypatch.setenv(f"{name}_API_KEY", "key")
            monkeypatch.setenv(f"{name}_BASE_URL", url)
        fake.default = Script(tokens=100_000, gap_s=0.01)
        yield fake


async def cancel(scene: Scene) -> None:
    """As a hub does it: a fact first, a message after."""
    outcome = await scene.broker.log.cancel(scene.key, user="alice", may_cancel=False, done=b"", ttl_ms=1000)
    async with listening(scene.broker) as hub:
        await hub.tell(outcome.owner, Wish(scene.key, 0, cancel=True))


async def abandon(scene: Scene) -> None:
    """The time that nobody waited for is over at the next look."""
    attendance = scene.worker.table.runs[scene.key].generation.attendance
    attendance.override("cancel")
    attendance.unattended_since = 0.0


async def overtake(scene: Scene) -> None:
    await scene.redis.hset(keys.meta(scene.key), mapping={"mark": "another", "owner": "wAnother"})


async def vanish(scene: Scene) -> None:
    await scene.redis.delete(keys.meta(scene.key), keys.log(scene.key))


async def leave(scene: Scene) -> None:
    scene.worker.stop()
    scene.worker.stop()


Way = Callable[[Scene], Awaitable[None]]


@pytest.mark.parametrize("provider", MODELS)
@pytest.mark.parametrize("way", [cancel, abandon, overtake, vanish, leave])
async def test_the_provider_s_socket_is_closed_within_a_second(
    broker: Broker, redis_url: str, fake: FakeProvider, way: Way, provider: str
) -> None:
    providers = Providers(frozenset(MODELS))
    await providers.warm()
    worker = Worker(WorkerSettings(redis_url=redis_url, drain_timeout_s=60.0), broker, providers)
    running = asyncio.create_task(worker.run())
    try:
        key = await ask(broker, MODELS[provider], on_abandon="continue")

        async def speaks() -> bool:
            return len(text(await log_of(broker, key))) > 50

        await eventually(speaks, "the answer")
        record = fake.last
        began = time.monotonic()
        await way(Scene(broker, worker, key))
        await closed(record)
        assert record.gone_at is not None and record.gone_at - began <= CLOSED_WITHIN_S
        assert record.tokens_after(record.gone_at) == 0
        paid_for_nothing = record.tokens_after(began)
        assert paid_for_nothing <= CLOSED_WITHIN_S / 0.01
        if way in (cancel, abandon):
            _, done = await ending(broker, key)
            assert done["status"] == "cancelled"
    finally:
        worker.stop()
        worker.stop()
        await running
        await providers.close()


async def closed(record: Record) -> None:
    async with asyncio.timeout(10):
        await record.gone.wait()
