"""Real SDKs against a fake provider over real HTTP on loopback."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import msgspec
import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from tests.fakes import FakeProvider
from workers.catalog import Clocks, load
from workers.providers.anthropic import AnthropicProvider
from workers.providers.openai import OpenAIProvider
from workers.providers.responses import ResponsesProvider
from workers.providers.sdk import REQUESTS, SdkProvider

#: A model that each fake accepts, by provider.
MODELS = {"anthropic": "claude-haiku-5-5", "openai": "gpt-6-luna"}
#: Marks what must never appear in a message.
SECRET_KEY = "key-that-must-not-leak"
SECRET_PROMPT = "prompt-that-must-not-leak"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, no provider settings of the machine; a key for each."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("ANTHROPIC_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET_KEY)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET_KEY)


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as fake:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.base_url_anthropic)
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url_openai)
        yield fake


@pytest.fixture(params=["anthropic", "openai", "responses"])
async def provider(request: pytest.FixtureRequest, fake: FakeProvider) -> AsyncIterator[SdkProvider]:
    """Each provider in turn, in each of its formats, pointed at `fake`."""
    made = make(request.param)
    yield made
    await made.close()


@pytest.fixture
async def anthropic(fake: FakeProvider) -> AsyncIterator[SdkProvider]:
    made = make("anthropic")
    yield made
    await made.close()


@pytest.fixture
async def openai(fake: FakeProvider) -> AsyncIterator[SdkProvider]:
    made = make("openai")
    yield made
    await made.close()


def make(name: str, *, requests: int = REQUESTS, **clocks: float) -> SdkProvider:
    """As shipped, but for the clocks, named as in the catalog."""
    format_, name = name, "openai" if name == "responses" else name
    entry = msgspec.structs.replace(load(None).providers[name], format=format_, clocks=Clocks(**clocks))
    kinds = {"anthropic": AnthropicProvider, "openai": OpenAIProvider, "responses": ResponsesProvider}
    return kinds[format_](name, entry, requests=requests)


@pytest.fixture
def body() -> Body:
    return Body(messages=[Message(role="user", content=SECRET_PROMPT)])
