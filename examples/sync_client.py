"""The client from code that is not async: an event loop in a background thread keeps one connection for many questions.

Run a hub first (`scripts/dev`), then: python examples/sync_client.py
"""

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import headrace


class SyncClient:
    """`with SyncClient(url, token) as client:` works like the async client, and blocks."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._client = headrace.connect(url, token)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "SyncClient":
        self._thread.start()
        self._run(self._client.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stream(self, prompt: str, **options: Any) -> Iterator[headrace.Event]:
        """The events of an answer, one after the other. Leaving the loop early stops watching."""

        async def start() -> headrace.Generation:
            return self._client.generate(prompt, **options)

        async def following(generation: headrace.Generation) -> headrace.Event | None:
            return await anext(generation, None)

        generation = self._run(start())
        try:
            while (event := self._run(following(generation))) is not None:
                yield event
        finally:
            self._run(generation.aclose())


if __name__ == "__main__":
    with SyncClient(os.environ.get("HEADRACE_URL", "ws://127.0.0.1:8080"), os.environ.get("HEADRACE_TOKEN")) as client:
        for event in client.stream("Why is the sky blue?"):
            if isinstance(event, headrace.Text):
                print(event.text, end="", flush=True)
        print()
