"""Workers whose provider can be counted, and equal requests for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from headrace.protocol.body import Body, Options
from headrace.protocol.entries import Entry, decode_data
from headrace.protocol.frames import Message
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey
from tests.installation import at_work
from workers.providers import Event, ProviderError
from workers.providers.registry import Providers
from workers.providers.scripted import ScriptedProvider
from workers.settings import WorkerSettings
from workers.worker import Worker


class Counted(ScriptedProvider):
    """The scripted provider: how often it was asked, how many answers are open, and were at a time."""

    def __init__(self) -> None:
        self.calls = 0
        self.open = 0
        self.most_open = 0
        #: The next calls fail, after so many bursts of events each.
        self.fails_after: list[int] = []
        #: Nobody hears anything before this is set.
        self.may_speak = asyncio.Event()
        self.may_speak.set()
        #: Nobody hears more than ten bursts before this is set.
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def stream(self, model: str, body: Body, kept: str = "") -> AsyncGenerator[list[Event], None]:
        self.calls += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        fails_after = self.fails_after.pop(0) if self.fails_after else None
        try:
            await self.may_speak.wait()
            async with aclosing(super().stream(model, body, kept)) as events:
                bursts = 0
                async for some in events:
                    bursts += 1
                    if bursts > 10:
                        await self.may_go_on.wait()
                    if fails_after == 0:
                        raise ProviderError("provider_error", "it broke", fault="request")
                    yield some
                    fails_after = None if fails_after is None else fails_after - 1
        finally:
            self.open -= 1


@asynccontextmanager
async def counted_worker(
    broker: Broker, url: str, provider: Counted | None = None, **settings: Any
) -> AsyncIterator[tuple[Worker, Counted]]:
    """A worker with no other provider."""
    provider = provider or Counted()
    providers = Providers(frozenset({"fallback"}), made={"scripted": provider})
    configured = WorkerSettings(redis_url=url, **({"drain_timeout_s": 0.0} | settings))
    async with at_work(Worker(configured, broker, providers)) as worker:
        yield worker, provider


async def ask(
    broker: Broker, request: str, *, model: str = "scripted/tokens=20,rate=0", org: str = "acme", user: str = "alice",
    cache: str = "use", prefetch: bool = False, on_abandon: str = "continue", prompt: str = "Why?",
    on_worker_loss: str = "restart", **body: Any,
) -> StreamKey:  # fmt: skip
    return await broker.accept(
        org=org, user=user, request_key=request, body=Body([Message("user", prompt)], model=model, **body),
        options=Options(on_abandon, on_worker_loss=on_worker_loss, cache=cache, prefetch=prefetch),
        now_ms=int(time.time() * 1000),
    )  # fmt: skip


def shown(entries: list[Entry]) -> str:
    """The text that viewers have in the end."""
    text = b""
    for kind, data in entries:
        text = b"" if kind == "reset" else text + data if kind == "text" else text
    return text.decode()


def data_of(entries: list[Entry], kind: str) -> list[dict[str, Any]]:
    return [decode_data(*entry) for entry in entries if entry[0] == kind]


def modes(entries: list[Entry]) -> list[str]:
    return [source["mode"] for source in data_of(entries, "source")]
