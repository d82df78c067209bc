"""Answers that are prepared before their question is asked: who may have how many, and which turned out wrong.

A prefetch is a generation like any other, of the lowest lane, whose answer is shared (docs/caching.md). What is kept
of it here says only how many a user has had, and to which conversation those belong that may still run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from headrace.protocol.body import Body
from hub.auth import Identity
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey
from hub.broker.log import SCRIPTS
from hub.errors import Rejected

#: Of one user, waiting or running.
AT_ONCE: Final = 2
_HOUR_MS: Final = 3_600_000
#: When to try again behind others that run, if nobody knows when they end.
_BUSY_MS: Final = 2000


def conversation(body: Body) -> str:
    """What a question is asked in: the system prompt and every turn before the last."""
    asked = msgspec.json.encode([body.system, body.messages[:-1]], order="sorted")
    return hashlib.sha256(asked).hexdigest()[:16]


class Prefetches:
    """Raises `Unreachable` when Redis does not serve a call."""

    def __init__(self, broker: Broker) -> None:
        redis = broker.connections.control
        self._redis: Any = redis
        self._count: Any = redis.register_script(SCRIPTS["prefetch"])
        self._log = broker.log
        self._per_hour = broker.settings.prefetches_per_hour
        self._life_ms = int((broker.settings.queue_timeout_s + broker.settings.max_run_s) * 1000)

    async def count(self, identity: Identity, request_key: str, body: Body) -> None:
        """Count one more. A repeat of the same request counts once. Raises Rejected."""
        outcome, wait_ms = await self._counted(identity, request_key, body)
        if outcome == b"BUSY" and await self._settle(identity):
            outcome, wait_ms = await self._counted(identity, request_key, body)
        if outcome == b"SPENT":
            message = f"{self._per_hour} answers were prepared ahead within an hour, which is the limit"
            raise Rejected("budget_exceeded", message, after_ms=max(1, wait_ms))
        if outcome == b"BUSY":
            message = f"{AT_ONCE} answers are being prepared ahead already, which is the limit"
            raise Rejected("rate_limited", message, after_ms=_BUSY_MS)

    async def drop_wrong(
        self, identity: Identity, request_key: str, body: Body, cancel: Callable[[StreamKey], Awaitable[None]]
    ) -> None:
        """This was asked: cancel what was being prepared for the same place in the same conversation, unless equal."""
        running = await self._running(identity)
        here, digest = conversation(body), body.digest()
        for other, (stream, its_conversation, its_digest) in running.items():
            if other == request_key or its_conversation != here or its_digest in ("", digest):
                continue
            with suppress(Rejected):  # gone already
                await cancel(stream)
            await self._redis.hdel(self._current(identity), other)

    async def _counted(self, identity: Identity, request_key: str, body: Body) -> tuple[bytes, int]:
        arguments = [request_key, conversation(body), self._per_hour, AT_ONCE, _HOUR_MS, self._life_ms]
        names = [keys.prefetched(identity.org, identity.user), self._current(identity)]
        outcome, wait_ms = await self._count(keys=names, args=arguments)
        return outcome, int(wait_ms)

    async def _settle(self, identity: Identity) -> bool:
        """Forget those that have ended; whether there were any."""
        running = await self._running(identity)
        standings = await self._log.standings([stream for stream, _, _ in running.values()])
        ended = [
            other
            for other, standing in zip(running, standings, strict=True)
            if standing is None or standing.state == "done"
        ]
        if ended:
            await self._redis.hdel(self._current(identity), *ended)
        return bool(ended)

    async def _running(self, identity: Identity) -> dict[str, tuple[StreamKey, str, str]]:
        """Request key → stream, digest of the conversation, digest of the body; of those that may still run.

        One that was counted and not reserved (it is about to be, or its hub died) has no stream and no digest.
        """
        current = await self._redis.hgetall(self._current(identity))
        if not current:
            return {}
        names = [keys.request(identity.org, identity.user, other.decode()) for other in current]
        found: dict[str, tuple[StreamKey, str, str]] = {}
        for (other, its_conversation), stored in zip(current.items(), await self._redis.mget(names), strict=True):
            stream, digest, _ = (stored or b"  ").decode().split(" ")
            found[other.decode()] = (keys.stream_key(identity.org, stream), its_conversation.decode(), digest)
        return found

    def _current(self, identity: Identity) -> str:
        return keys.prefetching(identity.org, identity.user)
