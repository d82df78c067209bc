"""What a client can ask for that needs Redis: generate, attach, detach, cancel, list, refresh (protocol §2–§4).

Every verb is authorised here: by the tenant in the key, and by the scripts against the stream's owner. Whatever a
verb raises as `Rejected` is answered with an `error`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from headrace.protocol import frames
from headrace.protocol.body import Body, Options
from headrace.protocol.cursor import Cursor
from hub.admission import check
from hub.attachment import Attachment
from hub.auth import Identity, TokenExpired, TokenInvalid
from hub.broker import keys
from hub.broker.accept import RequestConflict, RequestGone
from hub.broker.connections import Unreachable
from hub.broker.keys import StreamKey
from hub.broker.log import Absent, StreamView
from hub.broker.mailbox import Wish
from hub.cancellation import cancel
from hub.errors import Rejected, not_found, overloaded
from hub.node import Node
from hub.recovery import resume_at
from hub.retry import check_retry
from hub.tail import Tail

if TYPE_CHECKING:
    from hub.endpoint import Endpoint

log_ = structlog.get_logger(__name__)

#: What dropping a prefetch may take.
_DROP_S = 2.0
_STREAM = re.compile(r"[gs]_[A-Za-z0-9]{16}")


Answer = Callable[[StreamView, int, bool, "int | None"], frames.Accepted | frames.Attached]
"""Makes the answer of an attach: from the stream's facts, the offset to follow from, resumed or not, the window."""


@dataclass(frozen=True, slots=True)
class Following:
    """What a viewer asks for when it attaches, with `attach` or `generate`."""

    key: StreamKey
    after: Any
    window: Any
    pace_ms: int
    answer: Answer
    token: object
    """What `Verbs` knows this attach by."""
    accepted_at: float | None = None
    """When a generation was accepted just now."""

    @property
    def stream(self) -> str:
        return keys.stream_of(self.key)


class Verbs:
    """The verbs of one connection."""

    __slots__ = ("_endpoint", "_latest", "_node", "_turns")

    def __init__(self, endpoint: Endpoint, node: Node) -> None:
        self._endpoint = endpoint
        self._node = node
        #: The newest attach of each stream that is under way: it supersedes those before it.
        self._latest: dict[str, object] = {}
        #: The newest `generate` of each stream that is about to attach: the next one waits for it.
        self._turns: dict[str, asyncio.Future[None]] = {}

    # -- generate ----------------------------------------------------------------------------------------

    async def generate(self, frame: frames.Generate) -> None:
        identity = self._identity
        body = Body.of(frame)
        await self._admit(frame, body)
        await check_retry(self._node.broker, identity, frame)
        if frame.prefetch:
            await self._node.prefetches.count(identity, frame.request, body)
            frame.attach, frame.cache = False, "use"
        on_abandon = frame.on_abandon or ("cancel" if frame.attach else "continue")
        options = Options(on_abandon, frame.abandon_after_ms, frame.on_worker_loss, frame.metadata)
        options.cache, options.prefetch = frame.cache, frame.prefetch
        watched: tuple[Tail, StreamView] | None = None

        async def watch(key: StreamKey) -> None:
            nonlocal watched
            watched = await self._watch(key, None, frame.window)

        try:
            key = await self._node.broker.accept(
                org=identity.org,
                user=identity.user,
                request_key=frame.request,
                body=body,
                options=options,
                now_ms=int(time.time() * 1000),
                before_lane=watch if frame.attach else None,
            )
        except RequestConflict:
            raise Rejected("request_conflict", "this request key belongs to another request") from None
        except RequestGone:
            raise Rejected("gone", "this request was answered and its stream has expired; use a new key") from None
        stream = keys.stream_of(key)

        def answer(view: StreamView, offset: int, resumed: bool, size: int | None) -> frames.Accepted:
            return frames.Accepted(frame.id, stream, 0, view.runs.at(0), view.top, view.state, size)

        if not frame.attach:
            view = await self._look(key, identity)
            self._endpoint.send(answer(view, 0, True, self._endpoint.clamp(frame.window)))
            await self._drop_wrong(frame, body)
            return
        before, turn = self._turns.get(stream), asyncio.get_running_loop().create_future()
        self._turns[stream] = turn
        try:
            if before is not None:
                await asyncio.wait([before])  # the same request again: each is answered, in turn
            token = self._latest[stream] = object()
            following = Following(key, None, frame.window, frame.pace_ms, answer, token, self._node.now())
            await self._follow(following, watched)
        finally:
            turn.set_result(None)
            if self._turns.get(stream) is turn:
                del self._turns[stream]
        await self._drop_wrong(frame, body)

    def _check(self, frame: frames.Generate, body: Body) -> None:
        settings = self._node.settings
        shares, prefetches = settings.cache_scope != "off", settings.prefetches_per_hour > 0
        check(frame, body, settings.prompt_bytes, self._node.choices, shares=shares, prefetches=prefetches)

    async def _drop_wrong(self, frame: frames.Generate, body: Body) -> None:
        """What was prepared ahead and is not what was asked now ends. Answered already: nothing is raised."""
        if frame.prefetch or not self._node.settings.prefetches_per_hour:
            return
        try:
            async with asyncio.timeout(_DROP_S):
                await self._node.prefetches.drop_wrong(self._identity, frame.request, body, self._cancel)
        except (*Unreachable, TimeoutError, Rejected) as error:
            log_.warning("a wrong prefetch goes on", error=type(error).__name__)

    async def _admit(self, frame: frames.Generate, body: Body) -> None:
        """Raises Rejected. A model that is not known is looked up before it is refused: a worker may just have come."""
        node = self._node
        try:
            self._check(frame, body)
        except Rejected as rejected:
            if rejected.code != "unknown_model":
                raise
            await node.fleet.look()
            if node.fleet.is_blind:
                raise overloaded() from None
            self._check(frame, body)

    # -- attach ------------------------------------------------------------------------------------------

    def supersede(self, stream: str) -> None:
        """An attach to this stream that is still under way is not to take effect: frames are taken in order."""
        self._latest.pop(stream, None)

    def attach(self, frame: frames.Attach) -> Callable[[], Awaitable[None]]:
        """The verb, to be run: from now on this attach is the one that counts, whenever it gets its turn."""
        token = object()
        if _STREAM.fullmatch(frame.stream):
            self._latest[frame.stream] = token
        return partial(self._attach, frame, token)

    async def _attach(self, frame: frames.Attach, token: object) -> None:
        key = self._key(frame.stream)
        after = frame.after

        def answer(view: StreamView, offset: int, resumed: bool, size: int | None) -> frames.Attached:
            mark = view.runs.at(offset)
            if isinstance(after, Cursor):
                self._node.counts.resumes += resumed
                self._node.counts.restarts += not resumed
            return frames.Attached(frame.stream, resumed, offset, mark, view.top, view.state, size, frame.id)

        await self._follow(Following(key, after, frame.window, frame.pace_ms, answer, token))

    async def _watch(self, key: StreamKey, after: Any, window: Any) -> tuple[Tail, StreamView]:
        size = self._endpoint.clamp(window)
        start = after.offset if isinstance(after, Cursor) else 0
        return await self._node.relay.watch(
            key,
            user=self._identity.user,
            may_read=self._identity.may("streams:read"),
            start=start,
            ahead=self._node.settings.window if size is None else size,
        )

    async def _follow(self, following: Following, watched: tuple[Tail, StreamView] | None = None) -> None:
        """Attach: answer and first frames are written in one go, nothing comes between.

        `watched` is what the relay said before, if it did.
        """
        stream, relay = following.stream, self._node.relay
        try:
            self._check_room(stream)
            identity = self._identity
            while watched is None or identity is not self._identity or not relay.is_current(*watched):
                identity = self._identity  # after a refresh: ask again under the new token
                watched = await self._watch(following.key, following.after, following.window)
            self._check_room(stream)
            if self._latest.get(stream) is not following.token:
                raise Rejected("invalid_request", "a later attach or detach of this stream took this one's place")
        finally:
            if self._latest.get(stream) is following.token:
                del self._latest[stream]
        tail, view = watched
        self._attach_now(following, tail, _newest(view, tail))

    def _attach_now(self, following: Following, tail: Tail, view: StreamView) -> None:
        endpoint, relay, settings = self._endpoint, self._node.relay, self._node.settings
        stream, after = following.stream, following.after
        if after == "now":  # of what has ended, before its end: whoever comes last hears `done` too
            resumed, offset = True, view.top - (view.state == "done")
        else:
            resumed, offset = resume_at(after, view.top, view.runs)
        former = endpoint.attachments.pop(stream, None)
        if former is not None:
            relay.remove(former)
        if following.accepted_at is not None and view.top <= 1:
            tail.accepted_at = following.accepted_at
        start = Cursor(offset, view.runs.at(offset))
        size = endpoint.clamp(following.window)
        attachment = Attachment(endpoint, tail, stream, start, size, settings.window, following.pace_ms / 1000)
        endpoint.attachments[stream] = attachment
        endpoint.send(following.answer(view, offset, resumed, size))
        relay.add(attachment)

    def _check_room(self, stream: str) -> None:
        attached, limit = self._endpoint.attachments, self._node.settings.attachments
        if len(attached) >= limit and stream not in attached:
            raise Rejected("invalid_request", f"a connection follows at most {limit} streams")

    async def _look(self, key: StreamKey, identity: Identity) -> StreamView:
        """A stream's facts as this user may see them, without following it."""
        try:
            return await self._node.broker.log.attach(
                key, user=identity.user, may_read=identity.may("streams:read"), mailbox="", demand=0
            )
        except Absent:
            raise not_found() from None

    # -- the rest ----------------------------------------------------------------------------------------

    async def detach(self, frame: frames.Detach) -> None:
        """A detach that changes what happens when nobody is left: a fact first, a message after."""
        key = self._key(frame.stream)
        assert frame.on_abandon is not None
        try:
            owner = await self._node.broker.log.set_abandon(
                key, user=self._identity.user, may_cancel=self._identity.may("streams:cancel"), rule=frame.on_abandon
            )
        except Absent:
            raise not_found() from None
        tail = self._node.relay.tails.get(key)
        if owner:
            await self._node.relay.owners.say(
                owner, Wish(key, tail.demand.limit if tail else 0, on_abandon=frame.on_abandon)
            )
        if frame.id is not None:
            self._endpoint.send(frames.Ok(frame.id))

    async def cancel(self, frame: frames.Cancel) -> None:
        """Durable before it is answered; the message to the owner only makes it fast."""
        await self._cancel(self._key(frame.stream))
        self._endpoint.send(frames.Ok(frame.id))

    async def _cancel(self, key: StreamKey) -> None:
        try:
            await cancel(self._node, key, user=self._identity.user, may_cancel=self._identity.may("streams:cancel"))
        except Absent:
            raise not_found() from None

    async def list(self, frame: frames.ListStreams) -> None:
        """The caller's own streams, newest first; those that expired are left out."""
        identity, broker = self._identity, self._node.broker
        name = keys.user_streams(identity.org, identity.user)
        redis: Any = broker.connections.control
        rows = await redis.zrange(name, 0, 199, desc=True, withscores=True)
        streams = [(member.decode(), int(created)) for member, created in rows]
        standings = await broker.log.standings([keys.stream_key(identity.org, stream) for stream, _ in streams])
        infos = [
            frames.StreamInfo(stream, standing.state, standing.top, created)
            for (stream, created), standing in zip(streams, standings, strict=True)
            if standing is not None and frame.state in (None, standing.state)
        ]
        self._endpoint.send(frames.Streams(frame.id, infos))

    async def refresh(self, frame: frames.Refresh) -> None:
        """Take a new token of the same user; every attachment is checked again under it."""
        endpoint = self._endpoint
        try:
            identity = self._node.auth.identify(frame.token)
        except TokenExpired:
            raise Rejected("token_expired", "this token has expired too") from None
        except TokenInvalid:
            raise Rejected("unauthenticated", "not a valid token; the one before stays in force") from None
        if (identity.user, identity.org) != (self._identity.user, self._identity.org):
            raise Rejected("forbidden", "a connection keeps its user and organisation")
        may_stay: dict[Attachment, bool] = {}
        while pending := [each for each in endpoint.attachments.values() if each not in may_stay]:
            for attachment in pending:
                may_stay[attachment] = await self._is_there(attachment.tail.key, identity)
        endpoint.identity = identity  # only now: if Redis did not answer, the token before stays in force
        for attachment, stays in may_stay.items():
            if not stays and endpoint.attachments.get(attachment.stream) is attachment:
                del endpoint.attachments[attachment.stream]
                self._node.relay.remove(attachment)
                endpoint.send(not_found().frame(stream=attachment.stream))
        endpoint.send(frames.Ok(frame.id))

    async def _is_there(self, key: StreamKey, identity: Identity) -> bool:
        try:
            await self._look(key, identity)
        except Rejected:
            return False
        return True

    @property
    def _identity(self) -> Identity:
        identity = self._endpoint.identity
        assert identity is not None, "verbs run after hello"
        return identity

    def _key(self, stream: str) -> StreamKey:
        """The key of a stream in the caller's tenant; a name that no stream can have is a stream that is not there."""
        if not _STREAM.fullmatch(stream):
            raise not_found()
        return keys.stream_key(self._identity.org, stream)


def _newest(view: StreamView, tail: Tail) -> StreamView:
    """The later of what the script saw and what has arrived since: the answer must not lie behind either."""
    if tail.top > view.top and tail.runs.fits(Cursor(view.top, view.runs.at(view.top)), tail.top):
        return StreamView(tail.state, tail.top, tail.runs, tail.owner, view.cancelled)
    return view
