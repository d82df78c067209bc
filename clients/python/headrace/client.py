"""What an application holds: a client, from which generations come.

The rules are in `connection`, the socket in `link`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import ssl as ssl_module
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

import msgspec

from headrace.actions import Action, Answered, Delivered, Moved, Refused
from headrace.attachment import WINDOW, Attachment
from headrace.connection import Connection, OnAbandon, Verb
from headrace.endpoint import AGENT, Proxy, dial, hub_url
from headrace.errors import (
    ConnectionFailed,
    GenerationClosed,
    HeadraceError,
    InvalidRequest,
    ProtocolViolation,
    rejected,
)
from headrace.generation import Generation
from headrace.link import Link, State, Token
from headrace.protocol.codec import JSON, MSGPACK
from headrace.protocol.cursor import Cursor
from headrace.protocol.frames import (
    Attach,
    Cancel,
    EntryFrame,
    ErrorFrame,
    Generate,
    ListStreams,
    Message,
    RetryOf,
    StreamInfo,
    Streams,
    StreamState,
)
from headrace.run import Run
from headrace.structured import schema_of
from headrace.tools import AnyTool, Tool, declaration

Messages = str | Sequence[Message | Mapping[str, Any]]
#: Generations in a run.
ROUNDS = 8


class Options(TypedDict, total=False):
    """How to generate; docs/protocol.md §3 says what each means."""

    request: str
    system: str
    model: str
    provider: str
    fallbacks: list[str]
    max_tokens: int
    temperature: float
    stop: list[str]
    tools: Sequence[AnyTool]
    tool_choice: str | dict[str, Any]
    schema: dict[str, Any] | type
    session: str
    retry_of: RetryOf | Mapping[str, str]
    metadata: dict[str, Any]
    attach: bool
    window: int | None
    pace_ms: int
    on_abandon: OnAbandon
    abandon_after_ms: int
    on_worker_loss: Literal["restart", "continue", "fail"]
    cache: Literal["off", "use"]
    prefetch: bool
    notify: bool


def connect(
    url: str | Sequence[str],
    token: Token = None,
    *,
    encoding: Literal["json", "msgpack"] = "json",
    device: str | None = None,
    connect_timeout: float = 10.0,
    answer_timeout: float = 30.0,
    proxy: Proxy = None,
    ssl: ssl_module.SSLContext | None = None,
) -> Client:
    """A client of the hub at `url`, or of any of several, to be entered with `async with`.

    Args:
        url: `ws://host:port` or `wss://…`; `http` and `https` are taken for them. The path is `/v1/ws` unless
            another is given. Of several hubs one is taken by chance, and the next one whenever a connection ends
            or none comes about.
        token: A token, or a function (plain or async, not blocking) that returns a fresh one. It is called for
            every connection and whenever the hub says that the token expired.
        encoding: `msgpack` is smaller on the wire; everything else is the same.
        device: Names this device: a newer connection with the same name replaces an older one.
        connect_timeout: Seconds for the first connection. Later ones are tried for as long as the client is open.
        answer_timeout: Seconds that `cancel()` and `streams()` wait for the hub.
        proxy: None connects directly, also where the environment names a proxy (a hub is often on this very
            machine); True takes the environment's; else a proxy's URL.
        ssl: For `wss` with a certificate authority of your own.
    """
    return Client(
        url,
        token,
        encoding=encoding,
        device=device,
        connect_timeout=connect_timeout,
        answer_timeout=answer_timeout,
        proxy=proxy,
        ssl=ssl,
    )


class Client:
    """Any number of generations over one socket that is renewed whenever it breaks. Made by `connect`.

    Guarantees: both its tasks end with its `async with`. While a hub is out of reach, nothing fails: it waits,
    and goes on where it was. Put a deadline on that with `asyncio.timeout`.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        token: Token = None,
        *,
        encoding: Literal["json", "msgpack"] = "json",
        device: str | None = None,
        connect_timeout: float = 10.0,
        answer_timeout: float = 30.0,
        proxy: Proxy = None,
        ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        self._urls = [hub_url(each) for each in ([url] if isinstance(url, str) else url)]
        if not self._urls:
            raise ConnectionFailed("the address of at least one hub is needed, as in ws://127.0.0.1:8080")
        self._connect_timeout = connect_timeout
        self._answer_timeout = answer_timeout
        self._generations: dict[int, Generation] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._core = Connection(AGENT, device, random.random)
        codec = {"json": JSON, "msgpack": MSGPACK}[encoding]
        first = int(random.random() * len(self._urls))  # many clients with one list spread over it
        hubs = itertools.cycle(self._urls[first:] + self._urls[:first])
        self._link = Link(
            self._core, codec, lambda: dial(next(hubs), codec, proxy, ssl), token, self._act, self._ended, random.random
        )

    def __repr__(self) -> str:
        return f"<Client {self.state} generations={len(self._generations)}>"

    @property
    def state(self) -> State:
        """`connecting`, `online`, `reconnecting` or `closed`."""
        return self._link.state

    def on_state(self, listener: Callable[[State], object]) -> Callable[[], None]:
        """Have `listener(state)` called at every change; returns what ends that. It must not block."""
        return self._link.on_state(listener)

    async def __aenter__(self) -> Self:
        await self._link.open(" or ".join(self._urls), self._connect_timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection and end both tasks. What is still watched ends with GenerationClosed."""
        await self._link.close()

    # What the application asks for

    def generate(self, prompt: Messages, **options: Unpack[Options]) -> Generation:
        """Ask a model. The request is on its way when this returns.

        Args:
            prompt: The user's words, or the messages of the conversation.
            options: `model`, `system`, `max_tokens`, `window`, … With `attach=False` it is started and not watched.
                `tools` takes functions, which are described and not run (`run` runs them), names of tools that the
                workers have, and tools as docs/protocol.md §3 writes them. `schema` takes a JSON Schema, or a
                dataclass, TypedDict or msgspec.Struct that the answer is to be; see `Generation.value`.

        Raises:
            InvalidRequest: An option has a value that no hub accepts.
            TypeError: A function that cannot be described as a tool, a type that cannot be described as a schema.
        """
        self._check_open()
        fields: dict[str, Any] = {"request": uuid.uuid4().hex, "window": WINDOW, **options}
        _check_window(fields["window"])
        kind = fields.get("schema")
        if isinstance(kind, type):
            fields["schema"] = schema_of(kind)
        if fields.get("tools") is not None:
            fields["tools"] = [declaration(tool) for tool in fields["tools"]]
        try:
            fields["messages"] = _turns(prompt)
            if fields.get("retry_of") is not None:
                fields["retry_of"] = msgspec.convert(fields["retry_of"], RetryOf, from_attributes=True)
            frame = Generate(id=0, **fields)
        except (msgspec.ValidationError, TypeError) as error:
            raise InvalidRequest(f"this request cannot be sent: {error}") from None
        generation = Generation(self, "", self.now())
        generation.schema_type = kind if isinstance(kind, type) else None
        again: dict[str, Any] = {name: value for name, value in options.items() if name != "request"}
        generation._again = lambda changes: self.generate(frame.messages, **{**again, **changes})
        return self._add(generation, self._core.generate(frame, fields["window"], self.now()))

    def run(self, prompt: Messages, *, rounds: int = ROUNDS, **options: Unpack[Options]) -> Run:
        """Ask a model that may call this application's functions: whenever an answer ends with calls, they are run
        and the model is asked again with their results.

        Args:
            prompt: The user's words, or the messages of the conversation.
            rounds: How often the model may be asked in all.
            options: As for `generate`. `tools` takes functions, `Tool`s, and names of tools that the workers have. A
                `tool_choice` is for the first round: the model would be forced to call for ever.

        Raises:
            InvalidRequest: An option has a value that no hub accepts, or a tool has no function.
            TypeError: A function that cannot be described as a tool.
        """
        if rounds < 1 or not options.get("attach", True):
            raise InvalidRequest("a run is watched, and has at least one of its `rounds`")
        tools = [tool if isinstance(tool, str | Mapping | Tool) else Tool(tool) for tool in options.get("tools") or ()]
        if any(isinstance(tool, Mapping) and tool.get("type") != "worker" for tool in tools):
            raise InvalidRequest("a run calls functions: give a tool of its own form as Tool(function, input_schema=…)")
        if tools:
            options["tools"] = tools
        try:
            messages = _turns(prompt)
        except (msgspec.ValidationError, TypeError) as error:
            raise InvalidRequest(f"this request cannot be sent: {error}") from None

        def ask(messages: list[Message], request: str) -> Generation:
            options["request"] = request
            generation = self.generate(messages, **options)
            options.pop("tool_choice", None)
            options.pop("retry_of", None)
            return generation

        own = [tool for tool in tools if isinstance(tool, Tool)]
        return Run(ask, messages, own, options.get("request", uuid.uuid4().hex), rounds)

    def attach(
        self,
        stream: str,
        after: Cursor | Literal["now"] | None = None,
        *,
        text: str | None = None,
        window: int | None = WINDOW,
        pace_ms: int = 0,
    ) -> Generation:
        """Watch a stream: from its start, after a cursor, or from `"now"` on.

        Args:
            stream: A stream's id.
            after: `Generation.cursor`, as it was kept.
            text: `Generation.text_so_far`, kept with the cursor. With it the text will be whole, and checked.
            window: How many entries may be unread; None turns acks off.
            pace_ms: At most one piece of text in this time.
        """
        self._check_open()
        _check_window(window)
        try:
            Attach(0, stream, after, window, pace_ms)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"this stream cannot be attached to: {error}") from None
        generation = Generation(self, text if after is not None else "", None)
        generation.stream = stream
        if isinstance(after, Cursor):
            generation.cursor = after
        return self._add(generation, self._core.attach(stream, after, window, pace_ms, self.now()))

    async def cancel(self, stream: str) -> None:
        """End a generation, for everybody. Durable once this returns; fine on one that ended already."""
        await self._ask(Cancel, stream=stream)

    async def streams(self, state: StreamState | None = None) -> list[StreamInfo]:
        """The user's own streams, newest first: what to ask after the app was killed."""
        answer = await self._ask(ListStreams, state=state)
        assert isinstance(answer, Streams), "a list is answered by streams"
        return answer.streams

    # What generations call

    def now(self) -> float:
        """Seconds on the loop's clock."""
        return self._link.now()

    def consumed(self, attachment: Attachment, offset: int) -> None:
        """Entries up to `offset` were taken."""
        self._core.consumed(attachment, offset, self.now())
        self._link.settle()

    def replay(self, generation: Generation, attachment: Attachment) -> None:
        """Read a finished stream again from its start."""
        if self._link.failure is not None:
            generation._fail(self._link.failure)
            return
        self._generations[attachment.key] = generation
        self._core.replay(attachment, self.now())
        self._link.settle()

    async def leave(self, attachment: Attachment, on_abandon: OnAbandon | None) -> None:
        """Stop watching; waits for the hub only where `on_abandon` is given."""
        self._generations.pop(attachment.key, None)
        if self._link.failure is not None:
            return
        id = self._core.detach(attachment, on_abandon)
        if id is not None:
            await self._answer(id)
        else:
            self._link.settle()

    # What the link calls

    def _act(self, action: Action) -> None:
        if isinstance(action, Delivered):
            self._deliver(action)
        elif isinstance(action, Moved):
            self._moved(action)
        elif isinstance(action, Refused):
            refused = self._generations.pop(action.key, None)
            if refused is not None:
                refused._fail(_refusal(action))
        elif isinstance(action, Answered):
            future = self._answers.get(action.id)
            if future is not None and not future.done():
                future.set_result(action.frame)

    def _moved(self, action: Moved) -> None:
        generation = self._generations.get(action.key)
        if generation is None:
            return  # left meanwhile
        generation._moved(action)
        if generation._attachment is not None and generation._attachment.only_starts:
            del self._generations[action.key]
            generation._only_started()

    def _deliver(self, action: Delivered) -> None:
        if action.key is None:
            for each in self._generations.values():
                each._deliver(action)
            return
        generation = self._generations.get(action.key)
        if generation is None:
            return  # left meanwhile
        generation._deliver(action)
        if isinstance(action.frame, EntryFrame) and action.frame.kind == "done":
            del self._generations[action.key]

    def _ended(self, error: HeadraceError) -> None:
        for generation in self._generations.values():
            generation._fail(error)
        self._generations.clear()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(error)

    # Requests with an answer

    async def _ask(self, verb: type[Verb], **fields: Any) -> Any:
        self._check_open()
        id = self._core.request(verb, **fields)
        try:
            return await self._answer(id)
        finally:
            if verb is ListStreams:  # a cancel goes on being asked for, whether somebody waits or not
                self._core.withdraw(id)

    async def _answer(self, id: int) -> Any:
        future = self._answers[id] = asyncio.get_running_loop().create_future()
        self._link.settle()
        try:
            async with asyncio.timeout(self._answer_timeout):
                frame = await future
        except TimeoutError:
            raise ConnectionFailed(
                f"the hub did not answer within {self._answer_timeout:g} s (this client is {self.state}); "
                "it is safe to ask again"
            ) from None
        finally:
            del self._answers[id]
        if isinstance(frame, ErrorFrame):
            raise rejected(frame.code, frame.message, frame.retry, frame.after_ms)
        return frame

    def _add(self, generation: Generation, attachment: Attachment) -> Generation:
        generation._attachment = attachment
        self._generations[attachment.key] = generation
        self._link.settle()
        return generation

    def _check_open(self) -> None:
        if self._link.failure is not None:
            raise self._link.failure
        if self.state == "connecting":
            raise ConnectionFailed("this client is not connected yet: use it inside `async with`")


def _turns(prompt: Messages) -> list[Message]:
    if isinstance(prompt, str):
        return [Message("user", prompt)]
    return [msgspec.convert(message, Message, from_attributes=True) for message in prompt]


def _check_window(window: object) -> None:
    if window is not None and (type(window) is not int or window < 1):
        raise InvalidRequest("`window` must be a whole number from 1, or None for no acks")


def _refusal(action: Refused) -> HeadraceError:
    if action.code == "superseded":
        return GenerationClosed(action.message)
    if action.code == "protocol_violation":
        return ProtocolViolation(action.message)
    return rejected(action.code, action.message, action.retry, action.after_ms)
