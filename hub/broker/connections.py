"""One factory for every Redis client: pools by purpose, explicit retries, blocking reads on their own connections.

redis-py's defaults do not fit: depending on how a client is made, a timed-out command is sent up to ten times
again or never; its check for replies left over from a cancelled command is off while maintenance notifications
are on; its read timeout also cuts blocking reads.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from hub.broker.resp import RawConnection

#: A command that is not answered in this time failed.
COMMAND_TIMEOUT_S = 5.0
#: Blocking reads return at least this often, so that shutdown is prompt.
BLOCK_MS = 1000

Unreachable = (RedisError, OSError)
"""What a command may raise when Redis does not serve it."""


class Connections:
    """The Redis clients of one process.

    `control` runs idempotent commands and scripts, twice more when the connection breaks; up to 32 at once,
    the next waits 5 s for a connection and then fails.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.control = self._client(32, Retry(ExponentialBackoff(cap=0.2, base=0.02), 2), COMMAND_TIMEOUT_S)
        self._blocking: list[Redis] = []

    def blocking(self) -> Redis:
        """A client for one blocking reader: its own connection, no retry, so that an outage is seen."""
        client = self._client(1, Retry(NoBackoff(), 0), BLOCK_MS / 1000 + COMMAND_TIMEOUT_S)
        self._blocking.append(client)
        return client

    async def raw(self) -> RawConnection:
        """A pipelined connection for the hot path. Raises `Unreachable`."""
        pool: Any = self.control.connection_pool
        connection = pool.make_connection()
        return await RawConnection.open(connection)

    async def close(self) -> None:
        for client in [self.control, *self._blocking]:
            await client.aclose()
            await client.connection_pool.disconnect()

    def _client(self, connections: int, retry: Retry, timeout: float) -> Redis:
        options: dict[str, Any] = {
            "max_connections": connections,
            "timeout": COMMAND_TIMEOUT_S,
            "socket_timeout": timeout,
            "protocol": 3,
            "legacy_responses": False,
            "retry": retry,
            "retry_on_error": [RedisConnectionError, RedisTimeoutError],
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if not self.url.startswith("unix:"):
            options["socket_connect_timeout"] = COMMAND_TIMEOUT_S
            options["health_check_interval"] = 15
        pool = BlockingConnectionPool.from_url(self.url, **options)
        pool.connection_class = type("Connection", (_Cancellable, pool.connection_class), {})
        return Redis(connection_pool=pool)


class _Cancellable:
    """Python 3.11's wait_for, with which redis-py sends, swallows a cancellation that comes while the send ends."""

    async def send_packed_command(self: Any, command: Any, check_health: bool = True) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        await super().send_packed_command(command, check_health)  # type: ignore[misc]
        if task and task.cancelling() > before:
            await self.disconnect(nowait=True)  # its reply must not be taken for another's
            raise asyncio.CancelledError
