"""How a request becomes a stream (four slots, so ordered steps; each may be repeated, none is undone):

1. reserve the request key → stream and digest of the body, or take what is stored
2. add the stream to the index of live ones
3. create the stream with its first entry
4. put it in its lane
5. mark the key accepted

A hub may die between any two steps: the repeat of the request goes through all of them with the stored stream,
and the janitor finishes what nobody repeats, from step 3 on (before it there is no stream, and no answer was given).
A key that is not marked and whose stream is absent is run again only while no stream of it can have expired: one that
ran, expired and was never marked is answered `gone`, never run a second time.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from redis.asyncio import Redis

from headrace.protocol.body import Body, Options
from headrace.protocol.entries import Queued, encode_data
from hub.broker import keys
from hub.broker.keys import StreamKey
from hub.broker.lanes import Lanes
from hub.broker.live import LiveIndex
from hub.broker.log import StreamLog
from hub.broker.settings import BrokerSettings

STREAMS_LISTED = 200
_ALPHABET = string.ascii_letters + string.digits


class RequestConflict(Exception):
    """The request key is taken by another body."""


class RequestGone(Exception):
    """The request was answered, or may have been, and its stream has expired since."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A validated request of a known user."""

    org: str
    user: str
    request_key: str
    body: Body
    options: Options
    lane: str
    now_ms: int


def new_stream_id(prefix: str) -> str:
    """16 characters of 62: 95 random bits. Short, because every frame carries it."""
    return prefix + "_" + "".join(secrets.choice(_ALPHABET) for _ in range(16))


def new_mark() -> str:
    """64 random bits, as text."""
    return secrets.token_urlsafe(8)


async def accept(
    redis: Redis,
    log: StreamLog,
    lanes: Lanes,
    live: LiveIndex,
    settings: BrokerSettings,
    asked: Asked,
    before_lane: Callable[[StreamKey], Awaitable[None]] | None = None,
) -> StreamKey:
    """The stream of this request, created and queued. Raises RequestConflict, RequestGone, `Unreachable`.

    `before_lane` is awaited for a stream that no worker can have seen yet: interest registered there is found by
    the claim, and nothing has to be read from the log.

    After `Unreachable` the request may or may not run; repeating it is safe and the only way to know.
    """
    request = keys.request(asked.org, asked.user, asked.request_key)
    digest = asked.body.digest()
    proposed = new_stream_id("g")
    stored = await log.run(
        "reserve",
        [request, keys.user_streams(asked.org, asked.user)],
        [proposed, digest, int(settings.request_key_s * 1000), STREAMS_LISTED],
    )
    stream, stored_digest, accepted = stored.decode().split(" ")
    if stored_digest != digest:
        raise RequestConflict
    key = keys.stream_key(asked.org, stream)
    if stream != proposed:
        [standing] = await log.standings([key])
        if standing is None and (accepted == "1" or await _may_have_expired(redis, request, settings)):
            raise RequestGone
        if accepted == "1":
            return key
    await live.add(key, asked.now_ms + 1000)
    state = await log.create(
        key,
        mark=new_mark(),
        queued=encode_data(Queued(asked.body.model)),
        user=asked.user,
        request=msgspec.msgpack.encode(asked.body),
        options=msgspec.msgpack.encode(asked.options),
        lane=asked.lane,
        ttl_ms=int((settings.queue_timeout_s + settings.max_run_s) * 1000),
    )
    if before_lane is not None:
        await before_lane(key)
    if state == "queued":
        await lanes.add(asked.lane, key)
    await redis.set(request, f"{stream} {digest} 1", xx=True, keepttl=True)
    return key


async def _may_have_expired(redis: Redis, request: str, settings: BrokerSettings) -> bool:
    """Whether a stream made under this key, at the earliest when the key was, can be over its time by now."""
    left_ms = await redis.pttl(request)
    age_s = settings.request_key_s - left_ms / 1000
    return left_ms < 0 or age_s >= min(settings.retention_s, settings.queue_timeout_s + settings.max_run_s)
