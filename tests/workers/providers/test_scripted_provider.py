from __future__ import annotations

import asyncio
import time

import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from workers.providers import Event, ProviderError, Reasoning, Speaker, Stop, Text, ToolCall, ToolReady, Usage
from workers.providers.scripted import STORY, ScriptedProvider

PROMPT = "say  this\nback to me "


def body(max_tokens: int | None = None) -> Body:
    return Body(messages=[Message("user", PROMPT)], max_tokens=max_tokens)


async def ask(model: str, max_tokens: int | None = None) -> list[Event]:
    stream = ScriptedProvider().stream(model, body(max_tokens))
    return [event async for events in stream for event in events]


def texts_of(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Text)]


async def test_the_same_script_gives_the_same_answer() -> None:
    model = "tokens=30,rate=0,reasoning=3,tools=2"
    assert await ask(model) == await ask(model)


async def test_an_answer_is_as_long_as_the_script_says_and_ends_with_usage_and_stop() -> None:
    events = await ask("tokens=3,rate=0,size=5")
    assert events == [
        Speaker("tokens=3,rate=0,size=5"),
        Text("0000 "),
        Text("0001 "),
        Text("0002 "),
        Usage(input_tokens=5, output_tokens=3),
        Stop("stop"),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 40])
async def test_every_piece_has_the_size_asked_for(size: int) -> None:
    assert {len(text) for text in texts_of(await ask(f"tokens=120,rate=0,size={size}"))} == {size}


async def test_the_story_is_told_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.providers.scripted.STORY_RATE", 0.0)
    events = await ask("story")
    assert "".join(texts_of(events)) == STORY
    assert 250 <= len(STORY.split()) <= 350


async def test_an_echo_is_the_last_message_to_the_letter() -> None:
    assert "".join(texts_of(await ask("echo=1,rate=0"))) == PROMPT


async def test_reasoning_comes_first_and_tools_last() -> None:
    events = await ask("tokens=1,rate=0,reasoning=2,tools=1")
    kinds = [type(event) for event in events]
    assert kinds[1:4] == [Reasoning, Reasoning, Text]
    assert isinstance(events[4], ToolCall)
    assert ToolReady("call_1", {"number": 1}) in events
    assert events[-1] == Stop("tool")


async def test_max_tokens_cuts_the_answer_and_says_so() -> None:
    events = await ask("tokens=10,rate=0", max_tokens=4)
    assert len(texts_of(events)) == 4
    assert events[-1] == Stop("length")
    assert (await ask("tokens=4,rate=0", max_tokens=4))[-1] == Stop("stop")


async def test_a_scripted_failure_comes_after_its_pieces_with_its_code() -> None:
    events: list[Event] = []
    with pytest.raises(ProviderError) as caught:
        async for batch in ScriptedProvider().stream("tokens=9,rate=0,fail_after=2,code=provider_overloaded", body()):
            events += batch
    assert len(texts_of(events)) == 2
    assert (caught.value.code, caught.value.retry) == ("provider_overloaded", "backoff")


async def test_a_scripted_stall_says_nothing_more_and_can_be_cancelled() -> None:
    stream = ScriptedProvider().stream("tokens=9,rate=0,stall_after=2", body())
    events: list[Event] = []
    while len(texts_of(events)) < 2:
        events += await anext(stream)
    rest = asyncio.create_task(anext(stream))
    done, _ = await asyncio.wait({rest}, timeout=0.05)
    assert not done
    rest.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rest


async def test_stamps_are_the_clock_when_each_piece_was_due() -> None:
    started = time.monotonic_ns()
    stamps = [int(text) for text in texts_of(await ask("tokens=20,rate=200,stamp=1"))]
    for number, stamp in enumerate(stamps):
        assert stamp - started >= number * 5_000_000 - 1_000_000


async def test_a_late_reader_delays_no_piece_after_it() -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    seen = 0
    async for events in ScriptedProvider().stream("tokens=40,rate=200", body()):
        if texts_of(events):
            seen += 1
            if seen == 1:
                time.sleep(0.15)  # noqa: ASYNC251 - the loop itself is late
    # 40 pieces at 200 a second take 0.2 s from the first; with the pause added to the schedule it were 0.35.
    assert seen == 40
    assert loop.time() - started < 0.3


async def test_silence_before_the_first_piece_is_as_long_as_asked() -> None:
    started = time.monotonic()
    stream = ScriptedProvider().stream("tokens=1,rate=0,think_ms=60", body())
    async for events in stream:
        if texts_of(events):
            break
    assert time.monotonic() - started >= 0.059


async def test_an_unpaced_answer_leaves_the_loop_its_turns() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    await ask("tokens=10000,rate=0")
    counter.cancel()
    assert turns > 100


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("", "has no value"),
        ("poem", "has no value"),
        ("tokens=many", "tokens is a number"),
        ("tokens=-1", "tokens is from 0"),
        ("rate=nan", "rate is from 0"),
        ("speed=5", "there is no “speed”"),
        ("code=oops", "code is one of"),
        ("tokens=1,,rate=0", "has no value"),
    ],
)
async def test_a_bad_script_says_what_is_wrong_and_is_not_worth_repeating(model: str, told: str) -> None:
    with pytest.raises(ProviderError, match=told) as caught:
        await ask(model)
    assert (caught.value.code, caught.value.retry) == ("provider_error", "no")
