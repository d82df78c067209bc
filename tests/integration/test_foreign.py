"""A provider that nobody here wrote: LLMock, a server from PyPI that speaks several providers' HTTP and breaks it on
demand. It is added by a `headrace.toml`, as an operator would, and watched through a hub's socket.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartHub
from tests.installation import START_S, question, running_worker
from tests.wire import Map, Wire, text_of
from workers.catalog import load
from workers.providers.registry import Providers

TOML = """
[providers.foreign]
format = "openai"
base_url = "http://127.0.0.1:{port}/v1"

[providers.hasty]
format = "openai"
base_url = "http://127.0.0.1:{port}/v1"
clocks = {{ idle_s = 1.5 }}

[providers.other]
format = "anthropic"
base_url = "http://127.0.0.1:{port}/anthropic"
key = ["OTHER_KEY"]

[models."other/claude-haiku-4-5"]
price = {{ input = 1.0, output = 5.0 }}

[tiers.mixed]
models = ["foreign/gpt-4o-mini", "other/claude-haiku-4-5"]

[tiers.brisk]
models = ["hasty/gpt-4o-mini", "other/claude-haiku-4-5"]
"""
FIRST = "The foreign server speaks: " + " ".join(f"word{number}" for number in range(20))
SECOND = "The other one goes on: " + " ".join(f"piece{number}" for number in range(20))


class Foreign:
    """LLMock as a process."""

    def __init__(self, log: Path) -> None:
        from hub.server import listen

        with listen("127.0.0.1", 0) as sock:
            self.port: int = sock.getsockname()[1]
        command = [str(Path(sys.executable).with_name("llmock")), "serve", "--port", str(self.port)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LLMOCK_")}
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [*command, "--stream-chunk-delay-ms", "5", "--log-level", "warning"],
                env=environ, stdout=output, stderr=output,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._ask("/health")
                return
            except OSError:
                assert self._process.poll() is None, f"LLMock ended: {log.read_text()}"
                assert time.monotonic() < deadline, "LLMock did not come up"
                time.sleep(0.05)

    def end(self) -> None:
        with self._process:
            self._process.kill()

    async def play(self, *behaviours: Map) -> None:
        """From now on each provider's answers are these; `behaviours` come first."""
        await self.ask("/_llmock/reset", {})
        replies = [
            {"type": "reply", "text": text, "match": {"provider": provider}, "times": None}
            for provider, text in (("openai", FIRST), ("anthropic", SECOND))
        ]
        await self.ask("/_llmock/scenario", {"behaviors": [*behaviours, *replies]})

    async def ask(self, path: str, body: Any = None) -> Any:
        return await asyncio.to_thread(self._ask, path, body)

    def _ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    server = Foreign(tmp_path_factory.mktemp("llmock") / "log")
    yield server
    server.end()


@pytest.fixture
async def wire(
    start_hub: StartHub, redis_url: str, foreign: Foreign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Wire]:
    """A viewer of a hub without any setting of providers; the worker behind it has the `headrace.toml`."""
    path = tmp_path / "headrace.toml"
    path.write_text(TOML.format(port=foreign.port))
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    providers = Providers.from_env(os.environ, catalog=load(path), scripted=False)
    await providers.warm()
    async with running_worker(redis_url, providers=providers):
        hub = await start_hub(providers="")
        yield await hub.join()
    await providers.close()


async def ask(wire: Wire, model: str) -> list[Map]:
    await wire.send(question(model, model=model))
    return await wire.until("entry", kind="done")


def speakers(frames: list[Map]) -> list[str]:
    return [frame["data"]["provider"] for frame in frames if frame.get("kind") == "source"]


async def test_it_streams_through_with_what_it_says_it_used(wire: Wire, foreign: Foreign) -> None:
    await foreign.play()
    frames = await ask(wire, "foreign/gpt-4o-mini")
    assert text_of(frames) == FIRST
    assert len([frame for frame in frames if frame["type"] == "delta"]) > 3, "it came piece by piece"
    assert (frames[-1]["data"]["status"], frames[-1]["data"]["stop_reason"]) == ("completed", "stop")
    usage = [frame["data"] for frame in frames if frame.get("kind") == "usage"][-1]
    assert usage["output_tokens"] > 20 and not usage.get("estimated")
    (seen,) = (await foreign.ask("/_llmock/requests"))["requests"]
    assert seen["path"] == "/v1/chat/completions"


async def test_its_other_face_speaks_the_other_format_at_the_operator_s_price(wire: Wire, foreign: Foreign) -> None:
    await foreign.play()
    frames = await ask(wire, "other/claude-haiku-4-5")
    assert text_of(frames) == SECOND
    usage = [frame["data"] for frame in frames if frame.get("kind") == "usage"][-1]
    micros = usage["input_tokens"] * 1.0 + usage["output_tokens"] * 5.0
    assert usage["cost_usd"] == pytest.approx(micros / 1e6, rel=0.001)


def fail(status: int, **more: Any) -> Map:
    return {"type": "fail", "status": status, "match": {"provider": "openai"}, "times": None, **more}


def broken(kind: str, **more: Any) -> Map:
    match = {"provider": "openai"}
    return {"type": "stream_fault", "kind": kind, "after_chunks": 3, "match": match, "times": None, **more}


@pytest.mark.parametrize(
    "fault", [fail(429, retry_after=30), fail(500), fail(503), fail(401)], ids=lambda each: each["status"]
)
async def test_where_it_refuses_the_next_answers_and_nobody_sees_it(wire: Wire, foreign: Foreign, fault: Map) -> None:
    await foreign.play(fault)
    frames = await ask(wire, "mixed")
    assert text_of(frames) == SECOND
    assert speakers(frames) == ["other"] and not [frame for frame in frames if frame.get("kind") == "reset"]


@pytest.mark.parametrize(
    ("tier", "fault"),
    [
        ("mixed", broken("disconnect")),
        ("mixed", broken("truncate")),
        ("mixed", broken("malformed")),
        ("brisk", broken("stall", stall_seconds=20)),
    ],
    ids=["disconnect", "truncate", "malformed", "stall"],
)
async def test_where_it_breaks_off_viewers_get_the_next_one_s_whole_answer(
    wire: Wire, foreign: Foreign, tier: str, fault: Map
) -> None:
    await foreign.play(fault)
    frames = await ask(wire, tier)
    assert text_of(frames) == SECOND and speakers(frames)[-1] == "other"
    assert len([frame for frame in frames if frame.get("kind") == "reset"]) == 1


@pytest.mark.parametrize("kind", ["disconnect", "truncate"])
async def test_what_breaks_once_is_asked_once_more_and_goes_on_without_a_seam(
    wire: Wire, foreign: Foreign, kind: str
) -> None:
    await foreign.play(broken(kind, times=1))
    frames = await ask(wire, "mixed")
    assert text_of(frames) == FIRST and set(speakers(frames)) == {"foreign"}
    assert not [frame for frame in frames if frame.get("kind") == "reset"]
    # LLMock judges its clients: nothing that was cut off was taken for an answer, nothing was asked in a storm.
    verdict = await foreign.ask("/_llmock/verdict")
    assert not [finding for finding in verdict["findings"] if finding["severity"] == "error"], verdict
