"""Tools as operators write them, and some as nobody should."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from workers.tools import ToolError, tool

#: What happened to the tools that wait, in the order in which it did.
EVENTS: list[str] = []
_together: set[int] = set()


@tool(repeatable=True)
def weather(city: Annotated[str, Field(description="A city's name")], days: int = 1) -> dict[str, Any]:
    """The weather of a city."""
    return {"city": city, "sky": "blue", "days": days}


@tool
async def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    await asyncio.sleep(0)
    return a + b


@tool
def broken() -> str:
    """Fails, and its error tells a secret."""
    password = "hunt" + "er2"
    raise ValueError(f"the password is {password}")


@tool
def no_city(city: str) -> str:
    """Says what is wrong."""
    raise ToolError(f"there is no weather in {city}")


@tool(timeout_s=0.2)
async def sleepy() -> None:
    """Takes too long."""
    await asyncio.sleep(60)


@tool(timeout_s=0.2)
def sleepy_plain() -> None:
    """Takes too long, and cannot be cancelled."""
    time.sleep(1)


@tool
async def endless() -> None:
    """Waits for ever."""
    EVENTS.append("endless began")
    try:
        await asyncio.Event().wait()
    finally:
        EVENTS.append("endless ended")


@tool
async def blocking(seconds: float) -> str:
    """Blocks the event loop that it runs in."""
    time.sleep(seconds)  # noqa: ASYNC251 - that is its point
    return "awake"


@tool
async def meet(number: int, others: int) -> int:
    """Returns once so many run at the same time."""
    _together.add(number)
    while len(_together) < others:  # noqa: ASYNC110 - nobody tells it
        await asyncio.sleep(0.005)
    return number


@tool
def long() -> str:
    """More than anybody wants to read."""
    return "é" * 20_000


@tool
def strange() -> object:
    """Returns what no text can say."""
    return object()


def _noted(path: str, until: str) -> str:
    with Path(path).open("a") as file:
        file.write("ran\n")
    while not Path(until).exists():
        time.sleep(0.01)
    return "noted"


@tool
def note(path: str, until: str) -> str:
    """Writes a line, and waits for a file."""
    return _noted(path, until)


@tool(repeatable=True)
def note_again(path: str, until: str) -> str:
    """The same; twice does no harm."""
    return _noted(path, until)
