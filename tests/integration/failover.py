"""A worker over real SDKs and fake providers, and what became of each request."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from headrace.protocol.body import Body, Options
from headrace.protocol.entries import Entry, decode_data
from headrace.protocol.frames import Message
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey
from tests.fakes import FakeProvider, Script
from tests.fakes.messages import question
from tests.installation import at_work
from tests.workers.listener import ending
from workers.catalog import parse
from workers.providers.registry import Providers
from workers.settings import WorkerSettings
from workers.tools.toolbox import Toolbox
from workers.worker import Worker

#: A model that each fake accepts, by format.
MODELS = {"anthropic": "claude-haiku-5-5", "openai": "gpt-6-luna", "responses": "gpt-6-luna"}
#: Short enough for a test, long enough for a busy machine.
CLOCKS = {"connect_s": 1.5, "headers_s": 1.5, "first_content_s": 1.5, "idle_s": 1.5, "idle_content_s": 1.8}


class Unbroken(Providers):
    """Providers whose failures nobody holds against them: each case is on its own."""

    def credential(self, name: str) -> str | None:
        return None


def entry(format_: str, port: int, *, is_hasty: bool = False) -> dict[str, Any]:
    """A provider at `port` of this machine, as `headrace.toml` has it. It needs no key."""
    path = "" if format_ == "anthropic" else "/v1"
    clocks = CLOCKS if is_hasty else {}
    return {"format": format_, "base_url": f"http://127.0.0.1:{port}{path}", "clocks": clocks}


class Scene:
    """The fakes and the worker's Redis."""

    def __init__(self, broker: Broker, primary: FakeProvider, backup: FakeProvider) -> None:
        self.broker = broker
        self.primary = primary
        self.backup = backup
        self._number = 0

    async def ask(
        self,
        model: str,
        primary: Sequence[Script] = (Script(),),
        backup: Sequence[Script] = (Script(),),
        before: Sequence[Message] = (),
        **fields: Any,
    ) -> Told:
        """Ask, with these answers of the two fakes to this question (the last stays), and wait for the end.

        `before` are turns that come before the question.
        """
        self._number += 1
        prompt = f"question {self._number}"
        self.primary.by_turn[prompt] = deque(primary)
        self.backup.by_turn[prompt] = deque(backup)
        began = time.monotonic()
        body = Body([*before, Message("user", prompt)], model=model, **fields)
        key = await self.broker.accept(
            org="org", user="alice", request_key=prompt, body=body,
            options=Options(on_abandon="continue"), now_ms=int(time.time() * 1000),
        )  # fmt: skip
        entries, done = await ending(self.broker, key)
        asked = [sum(_asks(record.body, prompt) for record in fake.records) for fake in (self.primary, self.backup)]
        return Told(key, entries, done, asked[0], asked[1], time.monotonic() - began)


def _asks(body: dict[str, Any], prompt: str) -> bool:
    return question(body.get("messages") or body.get("input", ())) == prompt


class Told(msgspec.Struct, frozen=True):
    """One answer, and how often each fake was asked for it."""

    key: StreamKey
    entries: list[Entry]
    done: dict[str, Any]
    primary: int
    backup: int
    took_s: float

    @property
    def text(self) -> str:
        """What viewers have in the end: a `reset` empties it."""
        text = b""
        for kind, data in self.entries:
            text = b"" if kind == "reset" else text + data if kind == "text" else text
        return text.decode()

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [decode_data(*item) for item in self.entries if item[0] == kind]

    @property
    def kinds(self) -> list[str]:
        """In order, without usage."""
        return [kind for kind, _ in self.entries if kind != "usage"]

    @property
    def error(self) -> str:
        return str(self.done.get("error", {}).get("code", ""))


@asynccontextmanager
async def scene(
    broker: Broker, redis_url: str, *, kind: type[Providers] = Unbroken, tools: str = "", **tables: Any
) -> AsyncIterator[Scene]:
    """Both fakes and a worker. Providers `anthropic`, `openai` and `responses` are the primary's faces, `hasty_…` the
    same with little patience; `backup` is the other fake. `tables` are laid over them as a `headrace.toml` would be.
    `tools` are modules, as in HEADRACE_TOOLS.
    """
    async with FakeProvider() as primary, FakeProvider() as backup:
        providers = {
            "anthropic": entry("anthropic", primary.port),
            "openai": entry("openai", primary.port),
            "responses": entry("responses", primary.port),
            "hasty_anthropic": entry("anthropic", primary.port, is_hasty=True),
            "hasty_openai": entry("openai", primary.port, is_hasty=True),
            "hasty_responses": entry("responses", primary.port, is_hasty=True),
            "backup": entry("openai", backup.port),
            **tables.pop("providers", {}),
        }
        catalog = parse({"providers": providers, **tables})
        made = kind(frozenset({*providers, "fallback"}), catalog=catalog, environ={})
        await made.warm()
        settings = WorkerSettings(redis_url=redis_url, drain_timeout_s=0.0, tools=tools)
        try:
            async with at_work(Worker(settings, broker, made, Toolbox.load(tools))):
                yield Scene(broker, primary, backup)
        finally:
            await made.close()
