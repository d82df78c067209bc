"""The operator's own async generators as models (docs/generators.md): their code runs aside, and may misbehave.

Whatever it does, viewers get an orderly end that names the generator and nothing of what its exceptions say, and
other answers go on. Bound: `AHEAD` events of at most `PIECE` characters wait for each answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Final, TypeVar

import msgspec
import structlog

from headrace.protocol.body import Body
from headrace.protocol.entries import ENTRY_BYTES
from headrace.protocol.frames import Message
from headrace.protocol.tools import ToolSpec, WrongTools, read_tool
from workers import generators as said
from workers import providers
from workers.aside import Aside, Blocked, Quit, where
from workers.catalog import GENERATOR, Clocks
from workers.chain import Fault
from workers.providers import OUTPUT_BYTES, Continues, Event, ProviderError
from workers.providers.surrogates import SurrogateJoiner
from workers.providers.watchdog import Expired, Watchdog

log_ = structlog.get_logger(__name__)

#: Events made ahead of what is read.
AHEAD: Final = 32
#: Characters of text in one event; longer texts are cut. A text too long for a log ends there, and not in memory.
PIECE: Final = 8192
#: Tool calls that one answer may leave open.
OPEN_CALLS: Final = 128

Generator = Callable[[said.Request], Any]
_Value = TypeVar("_Value", said.ToolCall, said.ToolResult, said.Citation, said.Usage)
_messages = msgspec.msgpack.Decoder(tuple[Message, ...]).decode


class GeneratorProvider:
    """One per worker. `silence_s`: a generator that yields no content for so long has failed."""

    name = GENERATOR
    mode = "live"

    def __init__(self, generators: Mapping[str, Generator], *, silence_s: float = 120.0, aside: Aside | None = None):
        self._generators = dict(generators)
        # How long the whole may take is HEADRACE_MAX_RUN_S, as for any answer.
        self._clocks = Clocks(
            first_content_s=silence_s, idle_s=silence_s, idle_content_s=silence_s, total_s=float("inf")
        )  # fmt: skip
        self._aside = aside or Aside(GENERATOR)

    @property
    def models(self) -> list[str]:
        return list(self._generators)

    def continues(self, model: str) -> Continues:
        return "no"

    async def stream(self, model: str, body: Body, kept: str = "") -> AsyncGenerator[list[Event], None]:
        """Call the generator `model` and yield what it says. Closing this closes it. Raises ProviderError."""
        function = self._generators.get(model)
        if function is None:
            message = f"there is no generator “{model}” on this worker: {', '.join(self._generators) or 'none'}"
            raise ProviderError("provider_error", message, fault="absent", retry="no")
        request = _request(model, body)
        watchdog = Watchdog(self._clocks)
        try:
            with watchdog:
                watchdog.headers()
                bursts = self._aside.iterate(lambda: _events(function, request), AHEAD, name=f"{GENERATOR}/{model}")
                async with aclosing(bursts):
                    async for events in bursts:
                        if not all(isinstance(event, providers.Usage) for event in events):
                            watchdog.read(content=True)
                        watchdog.pause()
                        yield events
                        watchdog.resume()
        except Exception as error:
            raise _failure(model, error) from None

    async def close(self) -> None:
        await self._aside.close()


class _Rubbish(Exception):
    """It yielded what it may not. The text is shown to viewers: types and bounds, never values."""


def _failure(model: str, error: Exception) -> ProviderError:
    """What viewers are told: of an exception its class alone, since its text may quote anything."""
    called = f"the generator “{model}”"
    match error:
        case ProviderError():
            return error
        case Expired():
            fault: Fault = "silent" if error.phase == "first_content" else "idle"
            return ProviderError("provider_timeout", f"{called} yielded nothing for {error.after_s:g} s", fault=fault)
        case Blocked(is_own=False):
            return ProviderError("provider_error", f"{called} was cut off: another blocked its thread", fault="broken")
        case Blocked():
            message = f"{called} blocked its thread: in a generator, waiting is awaited"
            return ProviderError("provider_timeout", message, fault="code")
        case _Rubbish():
            log_.error("a generator yielded what it may not", generator=model, what=str(error))
            return ProviderError("provider_error", f"{called} {error}", fault="code", retry="no")
    kind = error.what if isinstance(error, Quit) else type(error).__name__
    log_.error("a generator failed", generator=model, error=kind, where=where(error))
    return ProviderError("provider_error", f"{called} failed ({kind})", fault="code")


def _request(model: str, body: Body) -> said.Request:
    """A copy: what a generator does to it is its own affair."""
    tools, tool_choice, schema = msgspec.msgpack.decode(
        msgspec.msgpack.encode(([_described(tool) for tool in body.tools or ()], body.tool_choice, body.schema))
    )
    return said.Request(
        model=model,
        messages=_messages(msgspec.msgpack.encode(body.messages)),
        system=body.system,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        stop=tuple(body.stop or ()),
        tools=tuple(tools),
        tool_choice=tool_choice,
        schema=schema,
    )


def _described(tool: dict[str, Any]) -> dict[str, Any]:
    """In one form, whichever the request has."""
    try:
        read = read_tool(tool)
    except WrongTools:
        return tool
    return read.written() if isinstance(read, ToolSpec) else tool


# -- in the generator's thread


async def _events(function: Generator, request: said.Request) -> AsyncGenerator[Event, None]:
    """Call it, check what it yields, and end with a `Stop`. It is closed whatever happens."""
    made = function(request)
    if not isinstance(made, AsyncIterable):
        if hasattr(made, "close"):  # a coroutine that nobody awaits
            made.close()
        raise _Rubbish(f"returned {_kind(made)}: it is to be an async generator")
    iterator = aiter(made)
    reader = _Reader(request)
    try:
        async for value in iterator:
            for event in reader.read(value):
                yield event
        for event in reader.end():
            yield event
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


class _Reader:
    """One generator's values, as events. `read` raises _Rubbish."""

    def __init__(self, request: said.Request) -> None:
        self._joiner = SurrogateJoiner()
        self._clients = {tool.get("name") for tool in request.tools}
        self._open: dict[str, str] = {}

    def read(self, value: object) -> Iterator[Event]:
        if isinstance(value, str):
            yield from map(providers.Text, self._pieces("text", value))
        elif isinstance(value, said.Reasoning) and isinstance(value.text, str):
            yield from map(providers.Reasoning, self._pieces("reasoning", value.text))
        elif isinstance(value, said.ToolCall):
            yield from self._call(_checked(value, ENTRY_BYTES))
        elif isinstance(value, said.ToolResult):
            result = _checked(value)
            self._open.pop(result.call, None)
            output = result.output.encode()
            kept = output[:OUTPUT_BYTES].decode(errors="ignore")
            yield providers.ToolResult(result.call, kept, result.error, len(output) > OUTPUT_BYTES)
        elif isinstance(value, said.Citation):
            yield providers.Citation(_checked(value, ENTRY_BYTES).data)
        elif isinstance(value, said.Usage):
            yield providers.Usage(**msgspec.structs.asdict(_checked(value)))
        else:
            raise _Rubbish(f"yielded {_kind(value)}: it may yield str, and what workers.generators has")

    def end(self) -> Iterator[Event]:
        if text := self._joiner.flush("text"):
            yield providers.Text(text)
        if text := self._joiner.flush("reasoning"):
            yield providers.Reasoning(text)
        is_clients = any(name in self._clients for name in self._open.values())
        yield providers.Stop("tool" if is_clients else "stop")

    def _call(self, call: said.ToolCall) -> Iterator[Event]:
        if len(self._open) >= OPEN_CALLS:
            raise _Rubbish(f"called {OPEN_CALLS} tools and said of none what came of it")
        self._open[call.call] = call.name
        arguments = {} if call.input is None else call.input
        yield providers.ToolCall(call.call, call.name)
        yield providers.ToolInput(call.call, msgspec.json.encode(arguments).decode())
        yield providers.ToolReady(call.call, arguments)

    def _pieces(self, channel: str, text: str) -> Iterator[str]:
        """`text` in pieces of PIECE, each valid UTF-8."""
        for start in range(0, len(text), PIECE):
            piece = text[start : start + PIECE]
            if self._joiner.held or not _is_valid(piece):
                piece = self._joiner.join(channel, piece)
            if piece:
                yield piece


def _checked(value: _Value, most_bytes: int | None = None) -> _Value:
    """A copy of `value` as JSON has it. Raises _Rubbish for what JSON has not, and for more than `most_bytes` of it."""
    try:
        encoded = msgspec.json.encode(value)
        copy = msgspec.json.decode(encoded, type=type(value))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError):
        raise _Rubbish(f"yielded {_kind(value)} with fields of a wrong kind") from None
    if most_bytes is not None and len(encoded) > most_bytes:
        raise _Rubbish(f"yielded {_kind(value)} of more than {most_bytes // 1024} KiB")
    return copy


def _is_valid(text: str) -> bool:
    """Whether UTF-8 has it: Python's texts may hold half characters."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
