"""A Redis of a test's own, and what can be done to it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from hub.broker import keys
from hub.broker.embedded import EmbeddedRedis
from hub.broker.keys import StreamKey
from tests.installation import eventually

Admin = Any
"""A client for the orders that no process of Headrace gives."""


@asynccontextmanager
async def own_redis(**options: Any) -> AsyncIterator[tuple[EmbeddedRedis, Admin]]:
    """A Redis of this test's own."""
    server = EmbeddedRedis(**options)
    await asyncio.to_thread(server.start)
    admin = redis.asyncio.Redis.from_url(server.url, retry=Retry(NoBackoff(), 0))  # what it hears, the test hears
    try:
        yield server, admin
    finally:
        await admin.aclose()
        await asyncio.to_thread(server.stop)


async def dump(admin: Admin) -> dict[bytes, bytes]:
    """All that Redis holds."""
    return {name: await admin.dump(name) for name in await admin.keys("*")}


async def put_back(admin: Admin, stored: dict[bytes, bytes]) -> None:
    """Redis has an older state again, from one moment to the next, as after a failover."""
    pipeline = admin.pipeline(transaction=True)
    pipeline.flushall()
    for name, data in stored.items():
        pipeline.restore(name, 600_000, data)
    await pipeline.execute()


async def logged(admin: Admin, key: StreamKey) -> list[tuple[str, bytes]]:
    return [(fields[b"k"].decode(), fields[b"d"]) for _, fields in await admin.xrange(keys.log(key))]


# -- orders after which it takes no writes, and those that end it


async def fill_up(admin: Admin) -> None:
    await admin.config_set("maxmemory", 1)


async def have_room(admin: Admin) -> None:
    await admin.config_set("maxmemory", 0)


async def demote(admin: Admin) -> None:
    await admin.replicaof("127.0.0.1", "1")


async def demote_and_fall_silent(admin: Admin) -> None:
    await admin.config_set("replica-serve-stale-data", "no")
    await admin.replicaof("127.0.0.1", "1")


async def promote(admin: Admin) -> None:
    await admin.replicaof("NO", "ONE")


async def want_replicas(admin: Admin) -> None:
    await admin.config_set("min-replicas-to-write", 1)


async def want_none(admin: Admin) -> None:
    await admin.config_set("min-replicas-to-write", 0)


async def fail_to_save(admin: Admin) -> None:
    """Its directory is no more: as with a full disk, nothing can be saved, and then writes are refused."""
    shutil.rmtree((await admin.config_get("dir"))["dir"])
    await admin.config_set("save", "3600 1")
    await admin.bgsave()

    async def has_failed() -> bool:
        return bool((await admin.info("persistence"))["rdb_last_bgsave_status"] == "err")

    await eventually(has_failed, "the failure to save")


async def save_nothing(admin: Admin) -> None:
    await admin.config_set("save", "")
