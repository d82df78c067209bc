"""One generation, as its application sees it: events in order, the folded text, and how it ended."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, overload

import msgspec

from headrace import events
from headrace.actions import Delivered, Moved
from headrace.attachment import Attachment
from headrace.connection import OnAbandon
from headrace.errors import (
    DigestMismatch,
    GenerationCancelled,
    GenerationClosed,
    GenerationFailed,
    HeadraceError,
    InvalidOutput,
    InvalidRequest,
    ProtocolViolation,
)
from headrace.events import Done, Event, Restarted, Source, Status, Usage
from headrace.fold import Fold, ToolUse
from headrace.protocol.cursor import Cursor
from headrace.protocol.frames import Delta, EntryFrame, Live, Message, RetryOf
from headrace.structured import snapshots, value_of
from headrace.turns import TOOL_CALLS, open_calls, turns_of

T = TypeVar("T")


class Owner(Protocol):
    """What a generation asks of its client."""

    def now(self) -> float: ...
    def consumed(self, attachment: Attachment, offset: int) -> None: ...
    def replay(self, generation: Generation, attachment: Attachment) -> None: ...
    async def leave(self, attachment: Attachment, on_abandon: OnAbandon | None) -> None: ...
    async def cancel(self, stream: str) -> None: ...


class Generation:
    """One answer on its way. Iterate it for events, or await `text()`; both may be used, one after the other.

    Guarantees: events come in the order of the log, each once, across any number of reconnects. Where
    history changed, `Restarted` says so before anything else comes.

    Bound: unread events stay within the flow-control window (256 entries unless asked otherwise), because
    only what was taken is acked: whoever reads slowly is sent less. With `window=None` nothing is acked, and
    the bound is the size of a log, 4 MiB.

    Attributes:
        stream: The stream's id; None until the hub accepted the request.
        cursor: Where the events that were taken lead. Persist it with `text_so_far` to resume after a restart.
        status: `waiting`, then what the hub says (`queued`, `running`, `stalled`, `paused`, `degraded`), and
            in the end `completed`, `truncated`, `cancelled` or `failed`.
        position: Place in the queue, while queued and known.
        source: Who speaks: the last `Source`.
        usage: The last `Usage`.
        ttft: Seconds from the request to the first content. Of a stream attached to later: as its hub
            measured it, once it is done.
        error: Why there is no (complete) answer; what `text()` raises.
        verified: Whether the text has the digest that its `done` names; None until then, and for a viewer
            that joined in the middle without the text before.
        reconnects: How often the connection was lost and the stream resumed.
        schema_type: The type that was given as `schema`, if any: what `value()` makes.
    """

    def __init__(self, owner: Owner, text: str | None, asked_at: float | None) -> None:
        self._owner = owner
        self._attachment: Attachment | None = None
        self._again: Callable[[Mapping[str, Any]], Generation] | None = None  # asks the same, with other options
        self._fold = Fold(text)
        self._asked_at = asked_at
        self._content_at: tuple[float, float] | None = None  # first and last
        self._unread: deque[tuple[Cursor | None, Event]] = deque()
        self._arrived = asyncio.Event()
        self._is_complete = False  # nothing more will be put into the queue
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader: asyncio.Task[Any] | None = None
        self._done: Done | None = None
        self._mismatched: str | None = None  # the text that made us read again
        self.stream: str | None = None
        self.cursor: Cursor | None = None
        self.status = "waiting"
        self.position: int | None = None
        self.source: Source | None = None
        self.usage: Usage | None = None
        self.ttft: float | None = None
        self.error: HeadraceError | None = None
        self.verified: bool | None = None
        self.reconnects = 0
        self.schema_type: Any = None

    def __repr__(self) -> str:
        offset = self.cursor.offset if self.cursor else 0
        return f"<Generation {self.stream} {self.status} offset={offset} unread={len(self._unread)}>"

    # What the application calls

    @property
    def text_so_far(self) -> str:
        """The answer as far as its events were taken."""
        return self._fold.text

    @property
    def fold(self) -> Fold:
        """All content so far: text, reasoning, tool calls, citations."""
        return self._fold

    @property
    def tool_calls(self) -> list[ToolUse]:
        """The calls without a result, in order, their arguments parsed. Once the answer ended with the stop reason
        `tool_calls`, they are this application's to run: ask again, with `turns()` and the results.
        """
        return open_calls(self._fold)

    def turns(self) -> list[Message]:
        """What this answer adds to its conversation: put it behind the messages that were asked, and the next turn
        behind it. What the worker's tools returned is in it; `tool_calls` are, once the answer ended for their sake.

        As far as its events were taken, and of what a viewer saw that did not join in the middle.
        """
        return turns_of(self._fold, with_open_calls=self._done is not None and self._done.stop_reason == TOOL_CALLS)

    @property
    def tokens_per_second(self) -> float | None:
        """Output tokens over the time from first to last content; None when either is not known."""
        if self.usage is None or self._content_at is None or self._asked_at is None:
            return None
        seconds = self._content_at[1] - self._content_at[0]
        return self.usage.output_tokens / seconds if seconds > 0 else None

    async def accepted(self) -> str:
        """Wait until the hub answered; the stream's id. Raises what it answered instead."""
        if self.stream is None:
            await asyncio.shield(self._accepted)
        if self.stream is None:
            raise self.error or GenerationClosed("it was closed before the hub answered")
        return self.stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event. An answer that ended badly ends with its `Done`; only what has no `Done` raises."""
        self._reader = asyncio.current_task()
        event = await self._take()
        if event is not None:
            return event
        if self._done is None and self.error is not None:
            raise self.error
        raise StopAsyncIteration

    async def done(self) -> Done:
        """Wait for the end, however it ended. Raises only where there is none: rejected, gone, closed.

        Events that nobody iterates over are consumed. While another task iterates, this waits for it.
        """
        while not self._ended.done():
            reader, me = self._reader, asyncio.current_task()
            if reader is None or reader is me or reader.done():
                self._reader = me
                await self._take()
            else:
                await asyncio.wait([reader, self._ended], return_when=asyncio.FIRST_COMPLETED)
        if self._done is None:
            raise self.error or GenerationClosed("it was started without watching: attach to its stream")
        return self._done

    async def text(self) -> str:
        """Wait for the end; the whole text.

        Raises:
            GenerationCancelled: Cancelled, or abandoned.
            GenerationFailed: It failed; the exception has the partial text.
            DigestMismatch: The text is not the one that was logged.
            HeadraceError: There is no end: rejected, gone, closed.
        """
        await self.done()
        if self.error is not None:
            raise self.error
        return self._fold.text

    async def snapshots(self) -> AsyncIterator[Any]:
        """The document as far as it arrived, as data: valid at any moment, never wrong, and complete in the end.

        A snapshot holds all that came: strings, lists and objects end where the text ends, and a number at the very
        end may still grow. The next one comes when the text has grown by a twelfth, so that all of them together cost
        some twelve readings of the document. None: what was shown is void, and the answer begins again. An answer
        that is not what was asked for ends the snapshots like any other; `value()` says what is wrong with it.

        Use it in the place of iterating; what it takes is taken.
        """
        async for value in snapshots(self, self._fold):
            yield value

    @overload
    async def value(self) -> Any: ...
    @overload
    async def value(self, type: type[T]) -> T: ...
    async def value(self, type: Any = None) -> Any:
        """Wait for the end; the document that the answer is.

        Args:
            type: What to make of it: a dataclass, a msgspec.Struct, or whatever else msgspec converts to. Without it,
                the type that was asked for as `schema`; else dicts and lists.

        Raises:
            InvalidOutput: The answer is no JSON document, or not one that fits; the exception has the text.
            HeadraceError: As `text()`.
        """
        await self.text()
        assert self._done is not None, "text() waited for it"
        try:
            if not self._fold.whole:
                raise ValueError("this viewer joined in the middle; attach from the start")
            return value_of(self._fold.last_text, self.schema_type if type is None else type)
        except ValueError as error:
            why = f"the answer was cut off ({self._done.stop_reason})" if self._done.status == "truncated" else error
            raise InvalidOutput(self._done, self.stream or "", self._fold.text, str(why)) from None

    async def cancel(self) -> None:
        """End the generation, for everybody who watches it. Durable once this returns; its `Done` follows."""
        await self._owner.cancel(await self.accepted())

    def retry(self, **changes: Any) -> Generation:
        """Ask the same again after a failure. The new generation begins with the text that is there and goes on from
        it, where the model can; its text is the whole answer.

        Args:
            changes: Options of `generate` that are to be others this time, such as `model`.

        Raises:
            InvalidRequest: It did not fail, or asking again would not help (`retry` is `no`); or it was attached to,
                and only who asked has the question: `generate` takes `retry_of`.
        """
        done = self._done
        if done is None or done.retry_token is None or self.stream is None:
            raise InvalidRequest(f"nothing to retry: this generation is {self.status}, or asking again is no use")
        if self._again is None:
            raise InvalidRequest("the question of this stream is not known here: use generate(…, retry_of=…)")
        return self._again({**changes, "retry_of": RetryOf(self.stream, done.retry_token)})

    async def detach(self, on_abandon: OnAbandon | None = None) -> None:
        """Stop watching; the generation goes on as its `on_abandon` says.

        With `on_abandon` given, changes that and returns when the hub has taken note: an app that goes to
        the background says `"continue"`.
        """
        if on_abandon is not None:
            await self.accepted()  # the hub must know the stream before it can change it
        elif self._is_complete:
            return
        if not self._is_complete:  # what is complete can still be read
            self._fail(GenerationClosed("this application stopped watching"))
            self._unread.clear()
        assert self._attachment is not None, "its client gave it one"
        await self._owner.leave(self._attachment, on_abandon)

    async def aclose(self) -> None:
        """Stop watching."""
        await self.detach()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # What its client calls

    def _moved(self, action: Moved) -> None:
        answer = action.answer
        first = self.stream is None or self.cursor is None
        self.stream, self.status = answer.stream, answer.state
        self.reconnects += action.reconnected
        cursor = Cursor(answer.offset, answer.mark)
        if action.restarted:
            self._restarted(cursor, "history")
        elif first:
            self.cursor = cursor
        if not self._accepted.done():
            self._accepted.set_result(None)

    def _deliver(self, action: Delivered) -> None:
        frame = action.frame
        if isinstance(frame, (Delta, EntryFrame)):
            try:
                event = events.of_delta(frame) if isinstance(frame, Delta) else events.of_entry(frame)
            except msgspec.ValidationError as error:
                self._fail(ProtocolViolation(f"the `done` of {self.stream} cannot be read: {error}"))
                return
            self._time(event)
            self._put(action.cursor, event)
            if isinstance(event, Done):
                self._is_complete = True
        elif isinstance(frame, Live):
            self._put(None, events.Live())
        elif (status := events.of_status(frame)) is not None:
            self.status, self.position = status.state, status.position
            if self._unread and isinstance(self._unread[-1][1], Status):
                self._unread.pop()  # statuses are outside the window: one at a time keeps the bound
            self._put(None, status)

    def _fail(self, error: HeadraceError) -> None:
        """No more events will come; those unread can still be taken."""
        if self._is_complete:
            return
        if self._mismatched is not None and not isinstance(error, GenerationClosed):
            mismatch = DigestMismatch(self.stream or "", self._mismatched)
            mismatch.__cause__ = error
            error, self.verified = mismatch, False
        self._is_complete = True
        self.error = error
        if not self._accepted.done():
            self._accepted.set_result(None)
        self._arrived.set()

    def _only_started(self) -> None:
        """It was asked for without watching: nothing will come."""
        self._is_complete = True
        self._arrived.set()

    # Events

    def _put(self, cursor: Cursor | None, event: Event) -> None:
        self._unread.append((cursor, event))
        self._arrived.set()

    def _restarted(self, cursor: Cursor, reason: Literal["history", "digest"]) -> None:
        self._unread.clear()
        self._is_complete = False
        self._put(cursor, Restarted(reason))

    def _time(self, event: Event) -> None:
        if not isinstance(event, events.CONTENT):
            return
        now = self._owner.now()
        if self._content_at is None and self._asked_at is not None:
            self.ttft = now - self._asked_at
        self._content_at = (self._content_at[0] if self._content_at else now, now)

    async def _take(self) -> Event | None:
        """The next event, folded and acked; None at the end."""
        while not self._unread:
            if self._is_complete:
                self._end()
                return None
            self._arrived.clear()
            await self._arrived.wait()
        cursor, event = self._unread.popleft()
        if cursor is not None:
            self.cursor = cursor
            if self._attachment is not None and not isinstance(event, Restarted):
                self._owner.consumed(self._attachment, cursor.offset)
        self._fold.add(event)
        if isinstance(event, Source):
            self.source = event
        elif isinstance(event, Usage):
            self.usage = event
        elif isinstance(event, Done) and not self._accept(event):
            return await self._take()
        return event

    def _accept(self, done: Done) -> bool:
        """Take the end; False when the text is not what was logged, and is read once more (§5)."""
        self.verified = self._fold.verify(done)
        if self.verified is False and self._mismatched is None:
            assert self._attachment is not None, "a done was delivered for an attachment"
            self._mismatched = self._fold.text
            self._restarted(Cursor(0), "digest")
            self._owner.replay(self, self._attachment)
            return False
        self._done, self.status, self.usage = done, done.status, done.usage or self.usage
        if self.ttft is None and done.ttft_ms is not None:
            self.ttft = done.ttft_ms / 1000
        stream, text = self.stream or "", self._fold.text
        if self.verified is False:
            self.error = DigestMismatch(stream, text)
        elif done.status == "cancelled":
            self.error = GenerationCancelled(done, stream, text)
        elif done.status == "failed":
            is_invalid = done.error is not None and done.error.code == "invalid_output"
            self.error = (InvalidOutput if is_invalid else GenerationFailed)(done, stream, text)
        self._end()
        return True

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
