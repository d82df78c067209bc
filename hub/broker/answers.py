"""Which stream answers which kind of request: how equal requests come to share one answer.

A name leads to a stream, and that stream's log is the answer: nothing is stored twice, and nothing has to be stored
when an answer ends. Whether a log is of any use is for whoever reads it to say; who finds that it is not takes the
name over. Workers and hubs that do not know of this lose nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from redis.asyncio import Redis

from headrace.protocol.body import Body
from hub.broker import keys
from hub.broker.keys import AnswerKey, StreamKey, org_of
from hub.broker.log import SCRIPTS

#: Part of every digest: what is told by another version of this code is another answer.
VERSION: Final = "1"

Scope = Literal["org", "user", "off"]


def may_share(body: Body) -> bool:
    """Whether equal requests may have one answer: what tools do or did outside is no part of a request, and what
    goes on with a failed answer is nobody else's.
    """
    if body.tools or body.retry_of is not None:
        return False
    return not any(message.calls or message.role == "tool" for message in body.messages)


def answer_key(stream: StreamKey, user: str, body: Body, candidates: Sequence[str], scope: Scope) -> AnswerKey | None:
    """What equal requests have in common; None for one whose answer is nobody else's.

    Equal are those whose canonical form is: every message, the system prompt, the model that was named, sampling,
    schema; and who may answer, `candidates`, so that a tier that is changed begins anew. The session is no part.
    """
    if scope == "off" or not may_share(body):
        return None
    asked = msgspec.structs.replace(body, session=None)
    canonical = msgspec.json.encode([VERSION, asked.digest(), list(candidates)])
    digest = hashlib.sha256(canonical).hexdigest()
    return keys.answer_key(org_of(stream), user if scope == "user" else "", digest)


class Answers:
    """Raises `Unreachable` when Redis does not serve a call."""

    def __init__(self, redis: Redis) -> None:
        self._lead: Any = redis.register_script(SCRIPTS["lead"])

    async def lead(self, key: AnswerKey, stream: StreamKey, *, ttl_ms: int, useless: str = "") -> StreamKey:
        """The stream to follow: `stream` itself, for `ttl_ms` from now, if no other is named but `useless`."""
        reply = await self._lead(keys=[keys.answer(key)], args=[stream, ttl_ms, useless])
        return StreamKey(reply.decode())
