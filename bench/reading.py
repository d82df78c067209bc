"""Ways to read streams of a provider, one a process: `python -m bench.reading ours-openai http://…/v1 200 50 4`.

Each counts pieces of text. Prints one line of JSON: the pieces read while it measured, and its CPU seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from hub.broker import loop

PROMPT = "Write a very long text."
#: Steady by then, in seconds.
WARM_S = 1.5
#: Nobody says anything before it: a reader that is behind its streams would never get to open the last of them.
QUIET_MS = 3000
#: After so many events of one stream the others have their turn.
FAIR = 32
#: More than any measurement waits for.
TOKENS = 1_000_000


class Way(NamedTuple):
    read: Callable[[str, str], AsyncIterator[Any]]
    """(address, model) → what each read brought, decoded."""
    count: Callable[[Any], int]
    """How many pieces of text are in it."""
    close: Callable[[], Awaitable[None]]


def raw(kind: str) -> Way:
    """The floor: aiohttp's bytes, split at blank lines, each event parsed by orjson. Nothing is checked."""
    import aiohttp
    import orjson

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**16
    )
    path = {"anthropic": "/v1/messages", "openai": "/chat/completions", "responses": "/responses"}[kind]

    async def read(url: str, model: str) -> AsyncIterator[list[Any]]:
        async with session.post(url + path, json=request(kind, model), headers=HEADERS) as response:
            response.raise_for_status()
            buffer = b""
            async for chunk in response.content.iter_any():
                *blocks, buffer = (buffer + chunk).split(b"\n\n")
                events = []
                for block in blocks:
                    data = block.partition(b"data: ")[2]
                    if data and data != b"[DONE]":
                        events.append(orjson.loads(data))
                yield events

    return Way(read, lambda events: sum(_has_text(kind, event) for event in events), session.close)


def _has_text(kind: str, event: Any) -> bool:
    if kind == "openai":
        return any(choice["delta"].get("content") for choice in event["choices"])
    if kind == "anthropic":
        return bool(event["type"] == "content_block_delta" and event["delta"].get("text"))
    return bool(event["type"] == "response.output_text.delta" and event["delta"])


def ours(kind: str) -> Way:
    """Headrace's adapter, as a worker uses it: clocks, checks and all."""
    from workers.providers import Text

    provider = _adapter(kind)
    body = Body([Message("user", PROMPT)], model="bench", max_tokens=1024)
    return Way(
        lambda _, model: provider.stream(model, body),
        lambda events: sum(type(event) is Text for event in events),
        provider.close,
    )


def _adapter(kind: str) -> Any:
    if kind == "anthropic":
        from workers.providers.anthropic import AnthropicProvider

        return AnthropicProvider()
    if kind == "openai":
        from workers.providers.openai import OpenAIProvider

        return OpenAIProvider()
    from workers.providers.responses import ResponsesProvider

    return ResponsesProvider()


def sdk(kind: str, *, aiohttp: bool = False) -> Way:
    """What the provider's package gives to everybody: `create(stream=True)`, iterated."""
    if kind == "anthropic":
        import anthropic

        own: Any = {"http_client": anthropic.DefaultAioHttpClient()} if aiohttp else {}
        client: Any = anthropic.AsyncAnthropic(max_retries=0, timeout=None, **own)
        create = client.messages.create
    else:
        import openai

        own = {"http_client": openai.DefaultAioHttpClient()} if aiohttp else {}
        client = openai.AsyncOpenAI(max_retries=0, timeout=None, **own)
        create = client.chat.completions.create if kind == "openai" else client.responses.create

    async def read(url: str, model: str) -> AsyncIterator[Any]:
        count = 0
        async for event in await create(**request(kind, model)):
            count += 1
            if not count % FAIR:  # it reads what is there without ever giving way, seconds on end when it is behind
                await asyncio.sleep(0)
            yield event

    def count(event: Any) -> int:
        if kind == "openai":
            return sum(bool(choice.delta.content) for choice in event.choices)
        if kind == "anthropic":
            return int(event.type == "content_block_delta" and event.delta.type == "text_delta")
        return int(event.type == "response.output_text.delta")

    return Way(read, count, client.close)


HEADERS = {
    "x-api-key": "sk-bench", "authorization": "Bearer sk-bench", "anthropic-version": "2023-06-01",
    "accept-encoding": "identity",
}  # fmt: skip


def request(kind: str, model: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": PROMPT}]
    if kind == "responses":
        options = {"include_obfuscation": False}
        return {"model": model, "input": messages, "stream": True, "store": False, "stream_options": options}
    more = {"max_tokens": 1024} if kind == "anthropic" else {"stream_options": {"include_obfuscation": False}}
    return {"model": model, "messages": messages, "stream": True, **more}


WAYS: dict[str, Callable[[str], Way]] = {
    "raw": raw,
    "ours": ours,
    "sdk": sdk,
    "sdk_aiohttp": lambda kind: sdk(kind, aiohttp=True),
}


class Reading:
    """Many streams at once, read until all is measured."""

    def __init__(self, way: Way, streams: int) -> None:
        self._way = way
        self.pieces = 0
        #: How often the reader was given any.
        self.reads = 0
        self._waiting = streams
        #: Every stream has brought something.
        self.begun = asyncio.Event()

    async def one(self, url: str, model: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)  # streams of many users do not tick in step
        is_first = True
        read, count, _ = self._way
        async for brought in read(url, model):
            pieces = count(brought)
            self.pieces += pieces
            self.reads += 1
            if is_first and pieces:
                is_first = False
                self._waiting -= 1
                if not self._waiting:
                    self.begun.set()


async def measure(way: str, kind: str, url: str, streams: int, rate: float, seconds: float) -> None:
    """Raises whatever a stream raises: one that breaks makes the figures worthless."""
    chosen = WAYS[way](kind)
    reading = Reading(chosen, streams)
    model = f"fake-tokens={TOKENS}-rate={rate:g}-think_ms={QUIET_MS}"
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(reading.one(url, model, number / streams)) for number in range(streams)]
        await reading.begun.wait()
        loop.calm_collector()  # as a worker does, once everything is imported
        await asyncio.sleep(WARM_S)
        pieces, reads, used, began = reading.pieces, reading.reads, time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        figures = {
            "pieces": reading.pieces - pieces,
            "reads": reading.reads - reads,
            "cpu_s": time.process_time() - used,
            "cpu_whole_s": time.process_time(),
            "seconds": time.monotonic() - began,
        }
        print(json.dumps(figures), flush=True)
        for task in tasks:
            task.cancel()
    await chosen.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.reading", description="Read a provider's streams in one way.")
    parser.add_argument("way", choices=sorted(WAYS))
    parser.add_argument("kind", choices=["anthropic", "openai", "responses"])
    parser.add_argument("url")
    parser.add_argument("streams", type=int)
    parser.add_argument("rate", type=float)
    parser.add_argument("seconds", type=float)
    chosen = parser.parse_args()
    variable = "ANTHROPIC" if chosen.kind == "anthropic" else "OPENAI"
    os.environ |= {f"{variable}_BASE_URL": chosen.url, f"{variable}_API_KEY": "sk-bench"}
    loop.run(measure(chosen.way, chosen.kind, chosen.url, chosen.streams, chosen.rate, chosen.seconds))


if __name__ == "__main__":
    main()
