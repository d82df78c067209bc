"""`POST /v1/chat/completions`: a request in OpenAI's format, asked and watched as a socket's request is.

The response is one viewer among others of its stream: the same accept, queue, log and relay, acked as the client
takes it. A client that goes away leaves as a socket does, and an answer that nobody watches is cancelled.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from typing import Final

import structlog
from starlette.types import Receive, Scope, Send

from hub.auth import Identity, TokenExpired, TokenInvalid, bearer
from hub.broker.connections import Unreachable
from hub.completions.chunks import Chunks
from hub.completions.completion import Completion
from hub.completions.problem import Headers, Problem, internal
from hub.completions.reading import Reading
from hub.completions.reply import Reply
from hub.completions.request import Question, read_request
from hub.completions.viewer import ClientGone, Viewer
from hub.endpoint import VERB_TIMEOUT_S
from hub.errors import Rejected, overloaded
from hub.gate import Gate
from hub.node import Node
from hub.server import HARD_SIZE_FACTOR
from hub.verbs import Verbs

log_ = structlog.get_logger(__name__)

PATH: Final = "/v1/chat/completions"
#: An event is sent after this long without one; also when nothing was answered yet, which settles the status at 200.
KEEP_ALIVE_S = 15.0
#: What a client may take to read the end of an answer.
LAST_WORDS_S = 10.0
_EVENTS: Final[Headers] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


class ChatCompletions:
    """The ASGI application at `PATH`. Needs the protocol class of hub/request.py, which lets its bodies in."""

    def __init__(self, node: Node, gate: Gate) -> None:
        self._node = node
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Whatever goes wrong is answered in OpenAI's format, while there is somebody to hear it."""
        reply = Reply(send)
        guest = scope.get("headrace.guest")
        try:
            problem = await self._try(scope, receive, reply)
            if problem is not None:
                self._node.counts.rejected += 1
                async with asyncio.timeout(LAST_WORDS_S):
                    await reply.fail(problem)
        except TimeoutError:
            if guest is not None:
                guest.turn_away()
                await _gone(receive)
        if guest is not None and guest.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(LAST_WORDS_S, guest.turn_away)

    async def _try(self, scope: Scope, receive: Receive, reply: Reply) -> Problem | None:
        """Answer; what could not be answered."""
        try:
            await self._serve(scope, receive, reply)
        except ClientGone:
            pass
        except Problem as problem:
            return problem
        except Rejected as rejected:
            return Problem.rejected(rejected)
        except (*Unreachable, TimeoutError) as unreachable:
            log_.warning("a completion met no Redis", error=type(unreachable).__name__)
            return Problem.rejected(overloaded())
        except Exception:
            log_.exception("a completion failed")
            return internal()
        return None

    async def _serve(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        headers = dict(scope["headers"])
        limit = self._node.settings.message_bytes
        try:
            viewer = self._enter(scope, headers, reply)
        except Problem:
            await _read(receive, 0, HARD_SIZE_FACTOR * limit)
            raise
        watching: asyncio.Task[None] | None = None
        try:
            body = await _read(receive, limit, HARD_SIZE_FACTOR * limit)
            if body is None:
                raise Problem("too_large", f"a request holds at most {limit} bytes")
            question = read_request(body, _key(headers), secrets.token_urlsafe(24))
            del body
            watching = asyncio.create_task(_watch(receive, viewer))
            async with asyncio.timeout(VERB_TIMEOUT_S):
                await Verbs(viewer.endpoint, self._node).generate(question.frame)
            stream = viewer.stream.encode()
            reply.headers += [(b"x-headrace-stream", stream), (b"x-request-id", stream)]
            patience_s = self._node.broker.settings.queue_timeout_s + self._node.broker.settings.max_run_s
            async with asyncio.timeout(patience_s) as viewer.patience:  # who has not read it by then never will
                await (_tell if question.streams else _complete)(viewer, question, reply)
        finally:
            viewer.leave()
            if watching is not None:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching

    def _enter(self, scope: Scope, headers: dict[bytes, bytes], reply: Reply) -> Viewer:
        """From the gate's guests to the hub's connections. Raises Problem."""
        identity = identify(self._node, headers)
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            # Also what keeps foreign web pages out: a browser sends this type only after it asked, and is refused.
            raise Problem("invalid_request", "the body must be application/json", status=415)
        viewer = Viewer(self._node, identity)
        viewer.join()
        guest = scope.get("headrace.guest")
        if guest is not None:
            self._gate.leave(guest)
            reply.headers.append((b"connection", b"close"))  # it would be nobody's guest afterwards
        return viewer


async def _tell(viewer: Viewer, question: Question, reply: Reply) -> None:
    """The answer as events. Nothing is sent before the first content: until then a failure has a status."""
    clock = asyncio.get_running_loop().time
    reading = Reading(question.tools)
    chunks = Chunks(reading, viewer.stream, question.frame.model, int(time.time()), question.include_usage)
    written_at = clock()
    while chunks.end is None:
        for frame in await viewer.take(written_at + KEEP_ALIVE_S):
            chunks.feed(frame)
        if chunks.end is not None and chunks.end.problem is not None and not reply.has_begun:
            raise chunks.end.problem
        events = chunks.take()
        if not events and clock() - written_at >= KEEP_ALIVE_S:
            events = chunks.keep_alive()
        if events:
            await reply.write(events, _EVENTS)
            written_at = clock()
        viewer.ack()
    await reply.end()


async def _complete(viewer: Viewer, question: Question, reply: Reply) -> None:
    """The whole answer at once: what the log folds to."""
    completion = Completion(Reading(question.tools), question.frame.schema is not None)
    while completion.end is None:
        for frame in await viewer.take():
            completion.feed(frame)
        viewer.ack()
    if completion.end.problem is not None:
        raise completion.end.problem
    await reply.json(200, completion.object(viewer.stream, question.frame.model, int(time.time())))


def identify(node: Node, headers: dict[bytes, bytes]) -> Identity:
    """Who asks, by the key that OpenAI's clients send. Raises Problem."""
    try:
        return node.auth.identify(bearer(headers.get(b"authorization", b"").decode("latin-1")))
    except TokenExpired:
        raise Problem("token_expired", "this token has expired; use a new one as the API key") from None
    except TokenInvalid:
        raise Problem("unauthenticated", "no valid token; a Headrace token is the API key") from None


def _key(headers: dict[bytes, bytes]) -> str | None:
    key = headers.get(b"idempotency-key")
    return key.decode("latin-1") if key else None


async def _read(receive: Receive, keep: int, most: int) -> bytes | None:
    """A request's body; None if it is larger than `keep`. Up to `most` it is read all the same and dropped: whoever
    still sends would not hear the answer. Raises ClientGone.
    """
    body = bytearray()
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size <= keep:
            body += piece
        if size > most or not message.get("more_body"):
            return bytes(body) if size <= keep else None


async def _watch(receive: Receive, viewer: Viewer) -> None:
    await _gone(receive)
    viewer.leave()


async def _gone(receive: Receive) -> None:
    """Until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
