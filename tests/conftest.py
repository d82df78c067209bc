"""What tests share: one private Redis, emptied before each test that uses it, and real hubs and workers over it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis
import structlog

from hub.broker.broker import Broker
from hub.broker.embedded import EmbeddedRedis
from hub.broker.settings import BrokerSettings
from tests.installation import RunningHub, running_hub, running_worker
from workers.worker import Worker

StartHub = Callable[..., Awaitable[RunningHub]]
StartWorker = Callable[..., Awaitable[Worker]]


@pytest.fixture(scope="session", autouse=True)
def no_surroundings() -> Iterator[None]:
    """No proxy and no setting of whoever runs the tests: everything is spoken to directly, with defaults."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            chosen = name in ("HEADRACE_REDIS_BIN",)
            if name.lower().endswith("_proxy") or (name.startswith("HEADRACE_") and not chosen):
                patch.delenv(name)
        patch.setenv("HEADRACE_LEDGER", "off")  # a test that keeps one says where
        yield


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """An empty Redis."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()
    return redis_server.url


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    """What a test starts, it ends: set up before everything else, looked at after everything else."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)  # tasks that were cancelled last have their turn
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not [task for task in left if not task.done()]


@pytest.fixture
async def broker(no_task_left: None, redis_url: str) -> AsyncIterator[Broker]:
    broker = Broker.connect(redis_url, BrokerSettings())
    yield broker
    await broker.close()


@pytest.fixture
async def start_hub(no_task_left: None, redis_url: str) -> AsyncIterator[StartHub]:
    """Starts a hub, with settings as keywords; all of them end with the test."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> RunningHub:
            url = settings.pop("redis_url", redis_url)
            return await stack.enter_async_context(running_hub(url, **settings))

        yield start


@pytest.fixture
async def hub(start_hub: StartHub) -> RunningHub:
    return await start_hub()


@pytest.fixture
async def start_worker(no_task_left: None, redis_url: str) -> AsyncIterator[StartWorker]:
    """Starts a worker, with settings as keywords; all of them end with the test."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Worker:
            return await stack.enter_async_context(running_worker(redis_url, **settings))

        yield start


@pytest.fixture
async def worker(start_worker: StartWorker) -> Worker:
    return await start_worker()


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Everything that is logged while the test runs, ours and the libraries'."""
    former = structlog.get_config()
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, structlog.processors.KeyValueRenderer()],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    caplog.set_level(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "websockets", "asyncio"):  # as hubs are configured
        caplog.set_level(logging.WARNING, logger=name)
    yield caplog
    structlog.configure(**former)
