"""The operator's own generators as a provider: what they may say, and whatever else they do."""

from __future__ import annotations

import asyncio
import datetime
import re
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from tests.installation import eventually
from workers import providers
from workers.aside import Aside
from workers.catalog import WrongCatalog, parse
from workers.generators import Citation, Reasoning, Request, ToolCall, ToolResult, Usage
from workers.providers import OUTPUT_BYTES, Event, ProviderError
from workers.providers.generator import AHEAD, OPEN_CALLS, PIECE, GeneratorProvider
from workers.providers.registry import Providers, UnknownModel

BODY = Body([Message("user", "Why?"), Message("assistant", "Because."), Message("user", "And why that?")])
SECRET = "the prompt of a person"

Answer = Callable[[Any], AsyncIterator[Any]]


@pytest.fixture
async def provide() -> AsyncIterator[Callable[..., GeneratorProvider]]:
    made: list[GeneratorProvider] = []

    def provide(function: Answer, **options: Any) -> GeneratorProvider:
        side = Aside("generator", blocked_s=options.pop("blocked_s", 5.0))
        made.append(GeneratorProvider({"mine": function}, aside=side, **options))
        return made[-1]

    yield provide
    for each in made:
        await each.close()


Provide = Callable[..., GeneratorProvider]


async def told(provider: GeneratorProvider, body: Body = BODY) -> list[Event]:
    async with aclosing(provider.stream("mine", body)) as stream:
        return [event async for events in stream for event in events]


async def failure(provider: GeneratorProvider, body: Body = BODY) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await told(provider, body)
    return caught.value


async def test_text_is_yielded_as_text_and_returning_ends_the_answer(provide: Provide) -> None:
    async def answer(request: Request) -> AsyncIterator[str]:
        yield "Be"
        yield ""
        await asyncio.sleep(0)
        yield "cause"

    assert await told(provide(answer)) == [providers.Text("Be"), providers.Text("cause"), providers.Stop("stop")]


async def test_the_request_is_a_copy_in_one_form(provide: Provide) -> None:
    seen: list[Request] = []

    async def answer(request: Request) -> AsyncIterator[str]:
        seen.append(request)
        request.messages[0].content = "changed"
        request.tools[0]["name"] = "changed"
        yield "x"

    body = Body(
        list(BODY.messages), system="Be brief.", max_tokens=5, temperature=0.5, stop=["\n"], tool_choice="auto",
        tools=[{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
        schema={"type": "object"},
    )  # fmt: skip
    await told(provide(answer), body)
    [request] = seen
    assert (request.model, request.prompt, request.system) == ("mine", "And why that?", "Be brief.")
    assert (request.max_tokens, request.temperature, request.stop) == (5, 0.5, ("\n",))
    assert (request.tool_choice, request.schema) == ("auto", {"type": "object"})
    assert request.tools == ({"name": "changed", "input_schema": {"type": "object"}},)
    assert body.messages[0].content == "Why?" and body.tools[0]["function"]["name"] == "look"  # type: ignore[index]


async def test_all_that_may_be_said_becomes_events(provide: Provide) -> None:
    async def answer(request: Request) -> AsyncIterator[Any]:
        yield Reasoning("Hm.")
        yield ToolCall("c1", "look", {"at": ("the", "sky"), "on": datetime.date(2026, 1, 2)})
        yield ToolResult("c1", "blue")
        yield ToolCall("c2", "look")
        yield ToolResult("c2", "no sky", error=True)
        yield Citation({"url": "https://example.com"})
        yield Usage(10, 20, 3, 2, 1)

    arguments = {"at": ["the", "sky"], "on": "2026-01-02"}
    assert await told(provide(answer)) == [
        providers.Reasoning("Hm."),
        providers.ToolCall("c1", "look"),
        providers.ToolInput("c1", '{"at":["the","sky"],"on":"2026-01-02"}'),
        providers.ToolReady("c1", arguments),
        providers.ToolResult("c1", "blue"),
        providers.ToolCall("c2", "look"),
        providers.ToolInput("c2", "{}"),
        providers.ToolReady("c2", {}),
        providers.ToolResult("c2", "no sky", error=True),
        providers.Citation({"url": "https://example.com"}),
        providers.Usage(10, 20, 3, 2, 1),
        providers.Stop("stop"),
    ]


@pytest.mark.parametrize(("name", "reason"), [("look", "tool"), ("own", "stop")])
async def test_an_open_call_of_a_tool_of_the_request_is_left_to_the_client(
    provide: Provide, name: str, reason: str
) -> None:
    async def answer(request: Request) -> AsyncIterator[Any]:
        yield ToolCall("c1", name)

    body = Body(list(BODY.messages), tools=[{"name": "look", "input_schema": {"type": "object"}}])
    assert (await told(provide(answer), body))[-1] == providers.Stop(reason)


async def test_a_function_may_return_any_async_iterator(provide: Provide) -> None:
    class Counts:
        def __init__(self) -> None:
            self.count = 0

        def __aiter__(self) -> Counts:
            return self

        async def __anext__(self) -> str:
            self.count += 1
            if self.count > 2:
                raise StopAsyncIteration
            return str(self.count)

    texts = [event.text for event in await told(provide(lambda _: Counts())) if isinstance(event, providers.Text)]
    assert texts == ["1", "2"]


async def test_an_exception_is_named_and_its_text_stays_here(provide: Provide, logs: pytest.LogCaptureFixture) -> None:
    async def answer(request: Request) -> AsyncIterator[str]:
        yield "Be"
        raise ValueError(SECRET.upper())

    error = await failure(provide(answer))
    assert (error.code, error.fault) == ("provider_error", "code")
    assert error.message == "the generator “mine” failed (ValueError)"
    assert SECRET.upper() not in logs.text
    assert "test_generator_provider.py" in logs.text and "ValueError" in logs.text


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
async def test_what_would_end_a_process_fails_one_answer(provide: Provide, kind: type[BaseException]) -> None:
    async def answer(request: Request) -> AsyncIterator[str]:
        yield "Be"
        raise kind

    provider = provide(answer)
    for _ in range(2):
        assert (await failure(provider)).message == f"the generator “mine” failed ({kind.__name__})"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "yielded int: it may yield str, and what workers.generators has"),
        (None, "yielded None: it may yield str, and what workers.generators has"),
        (b"bytes", "yielded bytes: it may yield str, and what workers.generators has"),
        (providers.Text("of the worker's own"), "yielded Text: it may yield str, and what workers.generators has"),
        (Reasoning(5), "yielded Reasoning: it may yield str, and what workers.generators has"),  # type: ignore[arg-type]
        (ToolCall("c1", 5), "yielded ToolCall with fields of a wrong kind"),  # type: ignore[arg-type]
        (ToolCall("c1", "look", object()), "yielded ToolCall with fields of a wrong kind"),
        (ToolCall("c1", "look", "x" * 40_000), "yielded ToolCall of more than 32 KiB"),
        (ToolResult("c1", None), "yielded ToolResult with fields of a wrong kind"),  # type: ignore[arg-type]
        (Citation([1]), "yielded Citation with fields of a wrong kind"),  # type: ignore[arg-type]
        (Citation({"text": "\ud800"}), "yielded Citation with fields of a wrong kind"),
        (Citation({"text": "x" * 40_000}), "yielded Citation of more than 32 KiB"),
        (Usage("ten"), "yielded Usage with fields of a wrong kind"),  # type: ignore[arg-type]
    ],
)
async def test_rubbish_ends_the_answer_and_is_named(provide: Provide, value: Any, said: str) -> None:
    async def answer(request: Request) -> AsyncIterator[Any]:
        yield "Be"
        yield value

    error = await failure(provide(answer))
    assert (error.code, error.retry, error.message) == ("provider_error", "no", f"the generator “mine” {said}")


async def test_calls_without_end_are_bounded(provide: Provide) -> None:
    async def answer(request: Request) -> AsyncIterator[Any]:
        number = 0
        while True:
            number += 1
            yield ToolCall(f"c{number}", "look")

    error = await failure(provide(answer))
    assert error.message == f"the generator “mine” called {OPEN_CALLS} tools and said of none what came of it"


async def _coroutine(request: Request) -> str:
    return "x"


@pytest.mark.parametrize(
    ("made", "kind"),
    [(lambda _: 5, "int"), (_coroutine, "coroutine"), (lambda _: [], "list"), (lambda _: None, "None")],
)
async def test_a_function_that_returns_no_generator_is_named(provide: Provide, made: Any, kind: str) -> None:
    error = await failure(provide(made))
    assert error.message == f"the generator “mine” returned {kind}: it is to be an async generator"


async def test_half_characters_are_joined_or_replaced(provide: Provide) -> None:
    async def answer(request: Request) -> AsyncIterator[Any]:
        yield "\ud83d"
        yield Reasoning("\ude00 \ud83d")
        yield "\ude00 \ud83d!"
        yield "\ud83d"

    events = await told(provide(answer))
    assert "".join(event.text for event in events if isinstance(event, providers.Text)) == "😀 \ufffd!\ufffd"
    assert "".join(event.text for event in events if isinstance(event, providers.Reasoning)) == "\ufffd \ufffd"


async def test_a_huge_text_comes_in_pieces_and_is_read_no_further_than_it_is_wanted(provide: Provide) -> None:
    async def answer(request: Request) -> AsyncIterator[str]:
        yield "x" * 50_000_000

    async with aclosing(provide(answer).stream("mine", BODY)) as stream:
        [*events] = await anext(stream)
        assert len(events) <= AHEAD
        assert all(isinstance(event, providers.Text) and len(event.text) == PIECE for event in events)


async def test_a_long_tool_result_is_cut_at_a_whole_character(provide: Provide) -> None:
    async def answer(request: Request) -> AsyncIterator[Any]:
        yield ToolResult("c1", "€" * OUTPUT_BYTES)

    result, _ = await told(provide(answer))
    assert isinstance(result, providers.ToolResult) and result.truncated
    assert result.output == "€" * (OUTPUT_BYTES // 3)


@pytest.mark.parametrize(("spoken", "fault"), [(0, "silent"), (1, "idle")])
async def test_a_generator_that_yields_nothing_has_failed(provide: Provide, spoken: int, fault: str) -> None:
    ended = threading.Event()

    async def answer(request: Request) -> AsyncIterator[Any]:
        try:
            for _ in range(spoken):
                yield "Be"
            while True:
                await asyncio.sleep(0.02)
                yield Usage(1, 1)  # a sign of life is no content
        finally:
            ended.set()

    error = await failure(provide(answer, silence_s=1.0))
    assert (error.code, error.fault) == ("provider_timeout", fault)
    assert error.message == "the generator “mine” yielded nothing for 1 s"
    assert ended.is_set()


async def test_time_in_which_nobody_reads_is_no_silence(provide: Provide) -> None:
    async def answer(request: Request) -> AsyncIterator[str]:
        for _ in range(3 * AHEAD):
            yield "x"

    provider = provide(answer, silence_s=0.8)
    count = 0
    async with aclosing(provider.stream("mine", BODY)) as stream:
        async for events in stream:
            if not count:
                await asyncio.sleep(1.3)  # the reader is busy
            count += len(events)
    assert count == 3 * AHEAD + 1


async def test_a_generator_that_blocks_fails_and_another_is_cut_off_to_be_asked_again(provide: Provide) -> None:
    may_go_on, waits = threading.Event(), threading.Event()

    async def answer(request: Request) -> AsyncIterator[str]:
        if request.system == "block":
            may_go_on.wait(600)
            return
        yield "x"
        waits.set()
        await asyncio.sleep(3600)

    provider = provide(answer, blocked_s=1.0)
    innocent = asyncio.create_task(failure(provider))
    await eventually(waits.is_set)
    error = await failure(provider, Body(list(BODY.messages), system="block"))
    assert (error.code, error.fault) == ("provider_timeout", "code")
    assert error.message == "the generator “mine” blocked its thread: in a generator, waiting is awaited"
    other = await innocent
    assert (other.code, other.fault) == ("provider_error", "broken")
    assert other.message == "the generator “mine” was cut off: another blocked its thread"
    may_go_on.set()


async def test_closing_the_stream_runs_the_generators_finally(provide: Provide) -> None:
    ended = threading.Event()

    async def answer(request: Request) -> AsyncIterator[str]:
        try:
            yield "x"
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            ended.set()

    stream = provide(answer).stream("mine", BODY)
    await anext(stream)
    await stream.aclose()
    assert ended.is_set()


async def test_a_generator_that_waits_for_room_is_closed_though_somebody_else_holds_it(provide: Provide) -> None:
    ended, held = threading.Event(), []

    async def answer() -> AsyncIterator[str]:
        try:
            while True:
                yield "x"
        finally:
            ended.set()

    def hold(request: Request) -> AsyncIterator[str]:
        held.append(answer())
        return held[0]

    stream = provide(hold).stream("mine", BODY)
    await anext(stream)
    await stream.aclose()
    assert ended.is_set()


async def test_a_generator_that_swallows_its_cancel_is_left_within_a_second(provide: Provide) -> None:
    may_end = threading.Event()

    async def answer(request: Request) -> AsyncIterator[str]:
        yield "x"
        while not may_end.is_set():
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                continue

    provider = provide(answer)
    stream = provider.stream("mine", BODY)
    await anext(stream)
    since = time.monotonic()
    await stream.aclose()
    assert time.monotonic() - since < 3
    may_end.set()


async def test_a_generator_that_is_not_registered_is_another_providers_to_answer() -> None:
    provider = GeneratorProvider({"mine": _coroutine})
    with pytest.raises(ProviderError) as caught:
        await anext(provider.stream("other", BODY))
    assert (caught.value.fault, caught.value.retry) == ("absent", "no")
    assert caught.value.message == "there is no generator “other” on this worker: mine"
    assert provider.continues("mine") == "no"
    await provider.close()


def test_registered_generators_are_models_and_others_are_not() -> None:
    registered = Providers(frozenset(), made={"generator": GeneratorProvider({"mine": _coroutine, "b": _coroutine})})
    assert [name for name in registered.models() if "/" in name] == ["generator/mine", "generator/b"]
    [candidate] = registered.route(Body([], model="generator/mine")).candidates
    assert candidate.name == "generator/mine"
    with pytest.raises(UnknownModel, match="there is no generator “x” on this worker; it has: mine, b"):
        registered.route(Body([], model="generator/x"))
    with pytest.raises(UnknownModel, match="it has: none, see HEADRACE_GENERATORS"):
        Providers(frozenset()).route(Body([], model="generator/x"))


def test_a_tier_may_name_generators_that_are_registered() -> None:
    catalog = parse(
        {
            "providers": {"x": {"format": "openai"}},
            "models": {"generator/mine": {"context": 1000}},
            "tiers": {"best": {"models": ["generator/mine", "x/model"]}},
        }
    )
    registered = Providers(
        frozenset({"x"}), catalog=catalog, made={"generator": GeneratorProvider({"mine": _coroutine})}
    )
    assert [each.name for each in registered.route(Body([], model="best")).candidates] == ["generator/mine", "x/model"]
    assert [name for name in registered.models() if "/" in name] == ["generator/mine", "x/model"]
    without = Providers(frozenset({"x"}), catalog=catalog)
    assert [each.name for each in without.route(Body([], model="best")).candidates] == ["x/model"]
    with pytest.raises(
        WrongCatalog, match=r"tiers.best.models: “generator/mine” is none of HEADRACE_GENERATORS: other"
    ):
        Providers(frozenset(), catalog=catalog, made={"generator": GeneratorProvider({"other": _coroutine})})
    with pytest.raises(WrongCatalog, match="not a built-in one"):
        parse({"providers": {"generator": {"format": "openai"}}})


async def test_the_generator_of_the_how_to_runs(provide: Provide) -> None:
    page = (Path(__file__).parents[3] / "docs" / "generators.md").read_text()
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(textwrap.dedent(found[1]), names)
    assert await told(provide(names["echo"])) == [
        providers.Reasoning("There is nothing to think about."),
        *[providers.Text(word) for word in ("And ", "why ", "that? ")],
        providers.Stop("stop"),
    ]
