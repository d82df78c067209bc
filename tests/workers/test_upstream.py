"""What becomes of a provider's answer in the background when the call that reads it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import redis.exceptions

from headrace.protocol.body import Body, Options
from headrace.protocol.cursor import MarkRuns
from headrace.protocol.frames import Message
from hub.broker.keys import StreamKey, stream_key
from hub.broker.log import Claim
from workers.chain import Candidate
from workers.generation import MAX_RUN, Generation, Speaker
from workers.providers import Event, ProviderError, Stop, Text
from workers.providers.background import Background
from workers.providers.fallback import FallbackProvider
from workers.run import Run
from workers.upstream import Underway, Upstream, drop, underway_of
from workers.usage import Attempt

KEY = stream_key("acme", "g_1")
BODY = Body([Message("user", "hi")])
LOST = Underway("openai", "gpt", "resp_0", 0, 1, ("first/2",))


class Writer(FallbackProvider):
    """A provider that writes in the background, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def hold(self, response: str) -> None:
        self.told.append(("hold", response))

    def drop(self, response: str) -> None:
        self.told.append(("drop", response))

    def read_again(self, model: str, response: str, event: int) -> AsyncGenerator[list[Event], None]:
        self.told.append((f"read {model} {event}", response))
        return self.stream(model, BODY)


class Scene:
    def __init__(self, underway: Underway | None = None, *, provider: Any = None, is_ours: bool = True) -> None:
        claim = Claim(2, 3, MarkRuns(), False, False, 0, b"", b"", "alice", 0, {})
        self.generation = Generation(
            claim, Options(), Speaker("", "", "live"), now=0.0, run_ahead=64, max_run_s=60.0, retry_token=""
        )
        self.kept: list[Underway | None] = []
        self.error: Exception | None = None
        self.is_ours = is_ours
        self.provider = provider or Writer()
        attempt = Attempt(KEY, "mark", 3, "alice")
        self.upstream = Upstream(
            Run(KEY, "mark", self.generation, 0.0), self.provider, Candidate("openai", "gpt"), (attempt, 1),
            self.remember, underway=underway,
        )  # fmt: skip

    async def remember(self, key: StreamKey, mark: str, data: bytes) -> bool:
        assert (key, mark) == (KEY, "mark")
        if self.error is not None:
            raise self.error
        self.kept.append(underway_of(data))
        return self.is_ours

    async def named(self, given: str = "") -> None:
        """The provider begins to answer."""
        await (await self.upstream.stream(BODY, given)).aclose()
        assert await self.upstream.hear([Background("resp_1", 0), Text("x")]) == [Text("x")]


OWN = Underway("openai", "gpt", "resp_1", 0, 3, ("mark/1",))


async def test_an_answer_is_kept_before_it_is_held_and_read_to_its_end_it_is_left_alone() -> None:
    scene = Scene()
    await scene.named()
    assert (scene.kept, scene.provider.told) == ([OWN], [("hold", "resp_1")])
    await scene.upstream.hear([Text("y"), Stop("stop")])
    await scene.upstream.end(None)
    assert (scene.kept, scene.provider.told, scene.upstream.is_left) == ([OWN], [("hold", "resp_1")], False)
    assert scene.upstream.billed[1] == 1 and await scene.upstream.hear([]) == []


async def test_it_is_left_to_the_next_worker_and_only_to_one_that_can_be() -> None:
    for over, is_left in (("", True), ("fenced", True), ("lost", True), ("gone", False), ("terminal", False)):
        scene = Scene()
        await scene.named()
        if over:
            scene.generation.lose(over)
        await scene.upstream.end(asyncio.CancelledError())
        assert scene.upstream.is_left == is_left
        assert scene.provider.told[1:] == ([] if is_left else [("drop", "resp_1")])
        assert scene.kept == [OWN], "a cut is not held up"


async def test_an_answer_that_ended_here_is_dropped() -> None:
    scene = Scene()
    await scene.named()
    scene.generation.end(MAX_RUN)
    await scene.upstream.end(asyncio.CancelledError())
    assert (scene.provider.told[1:], scene.upstream.is_left) == ([("drop", "resp_1")], False)


async def test_a_call_that_failed_leaves_nothing_to_read_on() -> None:
    scene = Scene()
    await scene.named()
    await scene.upstream.end(ProviderError("provider_error", "broke"))
    assert (scene.kept, scene.provider.told[1:]) == ([OWN, None], [("drop", "resp_1")])


async def test_the_rest_of_an_answer_and_one_that_cannot_be_kept_end_with_their_reader() -> None:
    rest, fenced, away = Scene(), Scene(is_ours=False), Scene()
    away.error = redis.exceptions.ConnectionError()
    for scene, given in ((rest, "The sky"), (fenced, ""), (away, "")):
        await scene.named(given)
        await scene.upstream.end(asyncio.CancelledError())
        assert (scene.provider.told, scene.upstream.is_left) == ([], False)
    assert rest.kept == []


async def test_what_is_read_again_is_the_first_call_s_and_joined_by_this_one() -> None:
    scene = Scene(LOST)
    await (await scene.upstream.stream(BODY, "")).aclose()
    assert scene.kept == [Underway("openai", "gpt", "resp_0", 0, 1, ("first/2", "mark/1"))]
    assert scene.provider.told == [("hold", "resp_0"), ("read gpt 0", "resp_0")]
    attempt, number = scene.upstream.billed
    assert (attempt.mark, attempt.number, attempt.user, number) == ("first", 1, "alice", 2)
    await scene.upstream.end(ProviderError("provider_error", "gone"))
    assert (scene.kept[-1], scene.provider.told[-1]) == (None, ("drop", "resp_0"))


@pytest.mark.parametrize("is_away", [False, True])
async def test_what_is_read_again_is_held_also_if_it_is_another_worker_s_by_now(is_away: bool) -> None:
    """Its name is kept since the first call: whoever has it now, or comes next, reads it."""
    scene = Scene(LOST, is_ours=False)
    scene.error = redis.exceptions.ConnectionError() if is_away else None
    await (await scene.upstream.stream(BODY, "")).aclose()
    await scene.upstream.end(asyncio.CancelledError())
    assert scene.provider.told == [("hold", "resp_0"), ("read gpt 0", "resp_0")]
    assert scene.upstream.is_left


async def test_other_providers_are_asked_as_ever() -> None:
    scene = Scene(provider=FallbackProvider())
    stream = await scene.upstream.stream(BODY, "")
    assert [events async for events in stream]
    await scene.upstream.end(asyncio.CancelledError())
    assert (scene.kept, scene.upstream.is_left) == ([], False)
    drop(scene.provider, LOST)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x01\x02"])
def test_what_another_version_kept_is_nothing(data: bytes) -> None:
    assert underway_of(data) is None
