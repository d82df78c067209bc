"""Generators as operators write them, good ones and bad ones: `tests.integration.own_code:story` and so on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from workers.generators import Citation, Reasoning, Request, ToolCall, ToolResult, Usage

#: What happened, by the name of the generator; for tests that run them in their own process.
begun: Counter[str] = Counter()
made: Counter[str] = Counter()
ended: Counter[str] = Counter()
may_go_on = threading.Event()

WORDS = [f"{number:04d} " for number in range(40)]


async def story(request: Request) -> AsyncIterator[str]:
    """Forty numbered words, at the pace of a model."""
    for word in WORDS:
        yield word
        await asyncio.sleep(0.05)


async def agent(request: Request) -> AsyncIterator[Any]:
    """Something of every kind."""
    yield Reasoning("The weather is asked for.")
    yield ToolCall("c1", "weather", {"city": "Lyon"})
    yield ToolResult("c1", "sunny")
    yield Citation({"url": "https://example.com/weather"})
    yield f"{request.prompt} It is "
    yield "sunny."
    yield Usage(12, 5)


async def failing(request: Request) -> AsyncIterator[str]:
    yield "So far "
    raise ValueError(f"about {request.prompt}")


async def rubbish(request: Request) -> AsyncIterator[Any]:
    yield "So far "
    yield 5


async def huge(request: Request) -> AsyncIterator[str]:
    yield "x" * 50_000_000


async def endless(request: Request) -> AsyncIterator[str]:
    begun["endless"] += 1
    try:
        while True:
            yield "and "
            await asyncio.sleep(0.02)
    finally:
        await asyncio.sleep(0)
        ended["endless"] += 1


async def flood(request: Request) -> AsyncIterator[Citation]:
    try:
        while True:
            made["flood"] += 1
            yield Citation({"number": made["flood"]})
    finally:
        ended["flood"] += 1


async def blocking(request: Request) -> AsyncIterator[str]:
    yield "So far "
    may_go_on.wait(600)
    time.sleep(0.01)  # noqa: ASYNC251
    yield "so good"


async def stuck(request: Request) -> AsyncIterator[str]:
    """Leaves a thread behind that does not end."""
    yield "So far "
    await asyncio.to_thread(time.sleep, 3600)


async def deaf(request: Request) -> AsyncIterator[str]:
    """Swallows every cancel."""
    begun["deaf"] += 1
    yield "So far "
    while not may_go_on.is_set():
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            continue
