"""A provider whose answer is known beforehand: for demos, tests and measurements, with no network and no key.

The model's name is the script: `story`, or parameters such as `tokens=200,rate=20,size=5`:

| parameter | default | meaning |
|---|---|---|
| tokens | 200 | pieces of text |
| rate | 20 | pieces a second; 0 is as fast as they are read |
| size | 5 | characters a piece; ignored with `stamp` and `echo` |
| stamp | 0 | 1: each piece is the monotonic clock in nanoseconds and a space, taken when the piece was due and made |
| echo | 0 | 1: the answer is the last user message, word by word |
| json | 0 | 1: the answer is a JSON document: the last user message if that is one, else one made up by the `schema` |
| reasoning | 0 | pieces of reasoning before the text |
| tools | 0 | tool calls after the text; the answer then stops with `tool` |
| tool | – | names, with `+` between them: calls these tools instead of any text, and tells what they returned … |
| rounds | 1 | … after so many times |
| think_ms | 0 | silence before the first piece |
| stall_after | – | silence for ever after so many pieces of text |
| fail_after | – | failure after so many pieces of text … |
| code | provider_error | … with this code of `done.error` … |
| fault | request | … and this fault: what failover makes of it, see workers/chain.py |

`max_tokens` of the request cuts the text and stops with `length`. Asked for what follows the beginning of its own
answer, it goes on from there, all figures counting from the answer's start; a beginning that it would not have
written is refused; with `stamp` it goes on after as many pieces. Arguments of a `tool` are the last user message if
that is a JSON object; otherwise what the tool's schema requires is made up, texts being that message.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import chain, islice
from typing import Any, get_args

import msgspec

from headrace.protocol.body import Body
from headrace.protocol.codes import DONE_ERROR_CODES
from headrace.protocol.document import parse as parse_document
from headrace.protocol.tools import ToolSpec, read_tool
from workers.chain import Fault
from workers.providers import (
    Continues,
    Event,
    ProviderError,
    Reasoning,
    Speaker,
    Stop,
    Text,
    ToolCall,
    ToolInput,
    ToolReady,
    Usage,
)
from workers.providers.example import NoExample, example
from workers.providers.fallback import pieces

#: Pieces in one list when nothing paces them; then the loop gets its turn.
BURST = 64
STORY_RATE = 40.0

STORY = """\
The river rises in a field that nobody owns, under three stones that somebody once set there and everybody since \
has left alone. On a dry day you can step over it. Sheep do, without looking down.

By the first village it has found its voice. A boy builds a dam of sticks each spring, and each spring the water \
waits behind it, politely, until it has grown tall enough to go around. The boy is forty now. He still builds the \
dam, and he says it is for his daughter, who watches from the bank and gives advice.

Further down there is a mill. Its wheel has not turned a stone for a hundred years, but the channel that fed it is \
kept clean, because the people of the mill like the sound. They will tell you that a mill never needed the whole \
river. It needed a little of it, steadily, at the right height; what it could not use went over the weir and was \
not lost, only elsewhere. When the winter floods come they open the gate and let the water past, and when the gate \
is closed again the channel fills from exactly where it stood.

In the town the river learns manners. It goes between walls, under nine bridges, past windows with lamps in them. \
Two friends on different bridges once dropped a leaf each, at the stroke of noon, and ran to see whose would come \
first. Both leaves arrived. They are still arguing about the rest.

And then the hills let go, the sky gets wide, and there is salt on the wind. The river does not hurry here. It has \
carried everything it was given: the stones' cold, the boy's sticks, the sound of the wheel, two leaves. It sets \
them down, one after the other, in the order in which they came, and begins again in a field that nobody owns.
"""


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed model name. Figures are checked when it is made from a name."""

    tokens: int = 200
    rate: float = 20.0
    size: int = 5
    stamp: bool = False
    echo: bool = False
    json: bool = False
    story: bool = False
    reasoning: int = 0
    tools: int = 0
    tool: str = ""
    rounds: int = 1
    think_ms: int = 0
    stall_after: int | None = None
    fail_after: int | None = None
    code: str = "provider_error"
    fault: Fault = "request"


#: What a parameter may be, both ends included.
_RANGES: dict[str, tuple[float, float]] = {
    "tokens": (0, 1_000_000),
    "rate": (0, 100_000),
    "size": (1, 2048),
    "stamp": (0, 1),
    "echo": (0, 1),
    "json": (0, 1),
    "reasoning": (0, 100_000),
    "tools": (0, 100),
    "rounds": (1, 1000),
    "think_ms": (0, 600_000),
    "stall_after": (0, 1_000_000),
    "fail_after": (0, 1_000_000),
}


def parse(model: str) -> Script:
    """The script that a model's name is. Raises ProviderError that says what is wrong with it."""
    if model == "story":
        return Script(story=True, rate=STORY_RATE)
    values: dict[str, int | float | bool | str] = {}
    for item in model.split(","):
        key, equals, value = item.strip().partition("=")
        if not equals:
            raise _bad(f"“{item}” is not `story` and has no value")
        if key == "code":
            if value not in DONE_ERROR_CODES:
                raise _bad(f"code is one of {', '.join(DONE_ERROR_CODES)}")
            values[key] = value
        elif key == "fault":
            if value not in get_args(Fault):
                raise _bad(f"fault is one of {', '.join(get_args(Fault))}")
            values[key] = value
        elif key == "tool":
            values[key] = value
        elif key in _RANGES:
            values[key] = _figure(key, value)
        else:
            raise _bad(f"there is no “{key}”; there are {', '.join([*_RANGES, 'tool', 'code', 'fault'])}")
    return msgspec.convert(values, Script, strict=False)


def _figure(key: str, value: str) -> float | int | bool:
    low, high = _RANGES[key]
    try:
        figure = float(value) if key == "rate" else int(value)
    except ValueError:
        raise _bad(f"{key} is a number") from None
    if not low <= figure <= high:
        raise _bad(f"{key} is from {low:g} to {high:g}")
    return bool(figure) if key in ("stamp", "echo", "json") else figure


def _bad(what: str) -> ProviderError:
    message = f"scripted model: {what}. Write scripted/story or, say, scripted/tokens=200,rate=20"
    return ProviderError("provider_error", message, fault="request", retry="no")


def texts(script: Script, prompt: str) -> Iterator[str]:
    """The pieces of the answer, made one by one. The same script and prompt give the same, but for `stamp`."""
    if script.story:
        return iter(pieces(STORY))
    if script.echo:
        return iter(pieces(prompt))
    if script.stamp:
        return (f"{time.monotonic_ns()} " for _ in range(script.tokens))
    return (_numbered(index, script.size) for index in range(script.tokens))


def told(script: Script, prompt: str, kept: str) -> tuple[int, int]:
    """How far `kept` goes into the answer: whole pieces, and characters of the next.

    Raises ProviderError if the answer does not begin so.
    """
    if script.stamp:
        return len(kept.split()), 0
    whole, rest = 0, kept
    for text in texts(script, prompt) if kept else ():
        if not rest.startswith(text):
            if not text.startswith(rest):
                break
            return whole, len(rest)
        whole, rest = whole + 1, rest[len(text) :]
    if rest:
        message = "scripted model: its answer does not begin with the text to go on from"
        raise ProviderError("provider_error", message, fault="request", retry="no", refused=True)
    return whole, 0


def _numbered(index: int, size: int) -> str:
    """A piece of exactly `size` characters that tells which one it is: `0007 ` is the eighth."""
    return f"{index % 10 ** (size - 1):0{size - 1}d} " if size > 1 else str(index % 10)


class ScriptedProvider:
    name = "scripted"
    mode = "live"

    def continues(self, model: str) -> Continues:
        return "prefix"

    async def stream(self, model: str, body: Body, kept: str = "") -> AsyncGenerator[list[Event], None]:
        """Follow the script in `model`. Paced by an absolute schedule: a late piece delays none after it."""
        script = parse(model)
        prompt = body.messages[-1].content
        if script.tool:
            calls = list(_calls(script, body))
            script, prompt = msgspec.structs.replace(script, tokens=0, echo=not calls), _results(body)
        else:
            calls = []
        if script.json and not calls:
            script, prompt = msgspec.structs.replace(script, echo=True), _document(body)
        start = told(script, prompt, kept)
        yield [Speaker(model)]
        if script.think_ms:
            await asyncio.sleep(script.think_ms / 1000)
        run = _Run(script, body, start, calls)
        async for events in _paced(run.events(prompt), script.rate):
            yield events
        if run.failed is not None:
            raise run.failed
        if run.stalled:
            await asyncio.get_running_loop().create_future()
        asked = sum(len(message.content.split()) for message in body.messages)
        yield [Usage(input_tokens=asked, output_tokens=run.made), Stop(run.reason)]

    async def close(self) -> None:
        """Nothing is held."""


class _Run:
    """What happens in one answer; how it ended is known when its events are used up."""

    def __init__(self, script: Script, body: Body, start: tuple[int, int], calls: Sequence[Event]) -> None:
        self._script = script
        self._calls = calls
        self._max_tokens = body.max_tokens
        self._start = start
        self.made = 0
        self.reason = "stop"
        self.failed: ProviderError | None = None
        self.stalled = False

    def events(self, prompt: str) -> Iterator[Event]:
        script = self._script
        first, inside = self._start
        if not (first or inside):
            for index in range(script.reasoning):
                self.made += 1
                yield Reasoning(_numbered(index, script.size))
        stall, fail, limit = script.stall_after, script.fail_after, self._max_tokens
        for count, text in enumerate(chain(islice(texts(script, prompt), first, None), (None,)), first):
            if count == fail:
                message = f"scripted failure after {count} pieces"
                self.failed = ProviderError(script.code, message, fault=script.fault)
                return
            if count == stall:
                self.stalled = True
                return
            if text is None:
                break
            if count == limit:
                self.reason = "length"
                return
            self.made += 1
            yield Text(text[inside:])
            inside = 0
        if self._calls:
            yield from self._calls
            self.reason = "tool"
        for number in range(1, script.tools + 1):
            yield from _tool_call(number)
            self.reason = "tool"


def _tool_call(number: int) -> Iterator[Event]:
    call = f"call_{number}"
    yield ToolCall(call, "lookup")
    for delta in ('{"number":', f" {number}", "}"):
        yield ToolInput(call, delta)
    yield ToolReady(call, {"number": number})


def _document(body: Body) -> str:
    """Written as models write: over many lines, with spaces."""
    try:
        value = parse_document(body.messages[-1].content)
    except ValueError:
        value = _example(body.schema or {})
    return json.dumps(value, ensure_ascii=False, indent=2)


def _example(schema: dict[str, Any]) -> Any:
    try:
        return example(schema)
    except NoExample as error:
        raise _bad(str(error)) from None


def _calls(script: Script, body: Body) -> Iterator[Event]:
    """Of this round; nothing once the last one's results are there."""
    turns = body.messages
    asked = max((at for at, turn in enumerate(turns) if turn.role == "user"), default=-1)
    round_ = 1 + sum(turn.calls is not None for turn in turns[asked + 1 :])
    if round_ > script.rounds:
        return
    for number, name in enumerate(script.tool.split("+"), 1):
        call = f"call_{round_}_{number}"
        given = _arguments(name, body, turns[asked].content)
        yield ToolCall(call, name)
        for delta in pieces(msgspec.json.encode(given).decode()):
            yield ToolInput(call, delta)
        yield ToolReady(call, given)


def _arguments(name: str, body: Body, prompt: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(prompt, type=dict[str, Any])
    except (ValueError, RecursionError):
        pass
    specs = [read_tool(tool) for tool in body.tools or ()]
    spec = next((spec for spec in specs if spec.name == name), None)
    schema = spec.schema if isinstance(spec, ToolSpec) else {}
    described = schema.get("properties", {})
    made: dict[str, Any] = {"integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}
    return {each: made.get(described.get(each, {}).get("type"), prompt) for each in schema.get("required", ())}


def _results(body: Body) -> str:
    """What the tools of the last round returned, as an answer."""
    results: list[str] = []
    for turn in reversed(body.messages):
        if turn.role != "tool":
            break
        results.insert(0, turn.content)
    return f"The result is: {', '.join(results)}" if results else ""


async def _paced(events: Iterator[Event], rate: float) -> AsyncGenerator[list[Event], None]:
    if rate == 0:
        while burst := list(islice(events, BURST)):
            yield burst
            await asyncio.sleep(0)
        return
    clock = asyncio.get_running_loop().time
    start = clock()
    gap = 1.0 / rate
    for number, event in enumerate(events, 1):
        yield [event]
        # An event is made only when it is due, so that a stamp says when it was made.
        wait = start + number * gap - clock()
        await asyncio.sleep(wait if wait > 0 else 0)
