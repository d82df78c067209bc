"""One factory for every Redis client: pools by purpose, explicit retries, blocking reads on their own connections.

redis-py's defaults do not fit: depending on how a client is made, a timed-out command is sent up to ten times
again or never; its check for replies left over from a cancelled command is off while maintenance notifications
are on; its read timeout also cuts blocking reads.

With the address of sentinels every connection goes to the server that they call the primary, and is used only if
that server says so itself. When they name another one, all connections to the former are cut at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from hub.broker.address import parse_address
from hub.broker.resp import RawConnection
from hub.broker.sentinel import Place, Sentinels

log_ = structlog.get_logger(__name__)

#: A command that is not answered in this time failed.
COMMAND_TIMEOUT_S = 5.0
#: Blocking reads return at least this often, so that shutdown is prompt.
BLOCK_MS = 1000
#: The sentinels are asked this often whether the primary is still the same, in seconds, give or take a quarter.
LOOK_S = 1.0

Unreachable = (RedisError, OSError)
"""What a command may raise when Redis does not serve it."""


_LATELY = "Redis was out of reach a moment ago"


class Attempts:
    """Bounds how often a process tries to connect in vain: 4 failures at once, then about 5 a second.

    Up to 8 who come in between wait for the next try, and one of them makes it; more are refused at once. A
    thousand processes that lost the same Redis at the same moment do not come back in step: the time until the next
    try is drawn at random.
    """

    AT_ONCE = 4
    PAUSE_S = 0.2
    WAITING = 8

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._left = self.AT_ONCE
        self._next_at = 0.0
        self._waiting = 0

    async def turn(self) -> None:
        """Before a try, for 0.3 s at most. Raises redis' ConnectionError when it is another's turn."""
        if self._left > 0:
            return
        wait_s = self._next_at - self._clock()
        if wait_s > 0:
            if self._waiting >= self.WAITING:
                raise RedisConnectionError(_LATELY)
            self._waiting += 1
            try:
                await self._sleep(wait_s)
            finally:
                self._waiting -= 1
            if self._left > 0:
                return
            if self._clock() < self._next_at:
                raise RedisConnectionError(_LATELY)
        self._pause()  # one at a time: the others wait for what this one finds

    def failed(self) -> None:
        self._left -= 1
        self._pause()

    def succeeded(self) -> None:
        self._left = self.AT_ONCE

    def _pause(self) -> None:
        self._next_at = self._clock() + self.PAUSE_S * random.uniform(0.75, 1.5)


class Connections:
    """The Redis clients of one process.

    `control` runs idempotent commands and scripts, twice more when the connection breaks; up to 32 at once,
    the next waits 5 s for a connection and then fails. Raises WrongAddress.
    """

    def __init__(self, url: str) -> None:
        self.address = parse_address(url)
        self.attempts = Attempts()
        self._sentinels = Sentinels(self.address) if self.address.sentinels else None
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._primary: Place | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_closed = False
        self.control = self._client(32, Retry(ExponentialWithJitterBackoff(cap=0.2, base=0.02), 2), COMMAND_TIMEOUT_S)
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
        self._is_closed = True
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._sentinels is not None:
            await self._sentinels.close()
        for client in [self.control, *self._blocking]:
            await client.aclose()
            await client.connection_pool.disconnect()

    async def find_primary(self) -> Place:
        """Ask the sentinels; cut what is connected to a former primary. Raises redis' ConnectionError."""
        assert self._sentinels is not None
        place = await self._sentinels.primary()
        if place != self._primary:
            if self._primary is not None:
                log_.warning("redis has another primary", host=place[0], port=place[1])
            self._primary = place
            for connection in list(self._open):
                if (connection.host, connection.port) != place:
                    connection._close()  # whoever waits for a reply on it gets redis' ConnectionError
        return place

    def is_primary(self, place: Place) -> bool:
        """Whether the sentinels named this one last."""
        return place == self._primary

    def connected(self, connection: Any) -> None:
        """A connection is ready for use."""
        self.attempts.succeeded()
        if self._sentinels is None:
            return
        self._open.add(connection)
        if self._watching is None and not self._is_closed:
            self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Until cancelled: a former primary that answers on, cut off from the others, would not be noticed else."""
        while True:
            await asyncio.sleep(LOOK_S * random.uniform(0.75, 1.25))
            with contextlib.suppress(RedisConnectionError):  # sentinels out of reach are no reason to cut anything
                await self.find_primary()

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
        address = self.address
        if not address.url.startswith("unix:"):
            options["socket_connect_timeout"] = COMMAND_TIMEOUT_S
            options["health_check_interval"] = 15
        if address.sentinels:
            kind: Any = SSLConnection if address.is_tls else Connection
            pool = BlockingConnectionPool(connection_class=kind, **address.options, **options)
        else:
            pool = BlockingConnectionPool.from_url(address.url, **options)
        bases = (_Led if address.sentinels else _Guarded, pool.connection_class)
        pool.connection_class = type("Connection", bases, {"factory": self})
        return _Client(connection_pool=pool)


class _Client(Redis):
    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _Pipeline(Pipeline):
    """redis-py's keeps its connection for ever when it fails, or is cancelled, while it looks for missing scripts."""

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        try:
            return await super().execute(raise_on_error)
        finally:
            await self.reset()  # type: ignore[no-untyped-call]


class _Guarded:
    """What every connection has of ours: bounded tries, and no use of a server that takes no writes.

    And it can be cancelled: Python 3.11's wait_for, with which redis-py sends, swallows a cancellation that comes
    while the send ends.
    """

    factory: ClassVar[Connections]

    async def send_packed_command(self: Any, command: Any, check_health: bool = True) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:
            await super().send_packed_command(command, check_health)  # type: ignore[misc]
        except RuntimeError as error:  # uvloop's word for a socket that was reset while nobody used it
            await self.disconnect(nowait=True)
            raise RedisConnectionError("the connection was closed") from error
        if task and task.cancelling() > before:
            await self.disconnect(nowait=True)  # its reply must not be taken for another's
            raise asyncio.CancelledError

    async def read_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except (ReadOnlyError, MasterDownError):
            self.factory.attempts.failed()
            await self.disconnect(nowait=True)  # it was demoted: the address may lead elsewhere by now
            raise RedisConnectionError("this Redis takes no writes, it is no primary") from None

    async def _connect(self: Any) -> None:
        attempts = self.factory.attempts
        await attempts.turn()
        try:
            await self.find_server()
            await super()._connect()  # type: ignore[misc]
        except Exception:
            attempts.failed()
            raise

    async def on_connect_check_health(self: Any, check_health: bool = True) -> None:
        try:
            await super().on_connect_check_health(check_health)  # type: ignore[misc]
            await self.check_role()
        except (RedisError, OSError):
            self.factory.attempts.failed()
            raise
        self.factory.connected(self)

    async def find_server(self) -> None:
        """The address that was given names it."""

    async def check_role(self) -> None:
        """A server that was named by its address may be what it is."""


class _Led(_Guarded):
    """Connects to whom the sentinels name."""

    host: str
    port: int

    async def find_server(self) -> None:
        self.host, self.port = await self.factory.find_primary()

    async def check_role(self: Any) -> None:
        """Raises redis' ConnectionError. Sentinels name a server before it knows itself that it was promoted."""
        await self.send_command("ROLE", check_health=False)
        role = await self.read_response()
        if role[0] not in (b"master", "master") or not self.factory.is_primary((self.host, self.port)):
            raise RedisConnectionError("the server that the sentinels name is no primary yet, or no longer")
