"""A line to the hub that lives in a thread of its own, so that a terminal may wait for a person meanwhile.

The client must hear the hub's pings while a prompt stands open; a prompt that can be edited and interrupted
needs the main thread. So: the client's loop in one thread, the terminal in the other, a queue between.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import headrace
from headrace.endpoint import hub_url
from hub.cli.failure import Failure, one_line

#: A hub that is there says welcome within this time.
CONNECT_S = 10.0
_PROBE_S = 3.0
LET_GO = "the hub could not be told; unwatched, the answer ends by itself in two minutes"


class Answer:
    """One answer on its way. `updates` holds events, states of the connection, an error, and None at the end.

    Bound of `updates`: one answer, 4 MiB (docs/protocol.md §5).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.updates: SimpleQueue[headrace.Event | headrace.State | str | Exception | None] = SimpleQueue()
        self.generation: headrace.Generation | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelling: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """End the answer for everybody. From any thread; a second call lets go of it without waiting."""
        self._loop.call_soon_threadsafe(self._cancel)

    async def pump(self, generation: headrace.Generation) -> None:
        self._task = asyncio.current_task()
        self.generation = generation
        try:
            async with generation:
                async for event in generation:
                    self.updates.put(event)
        except (headrace.HeadraceError, asyncio.CancelledError) as error:
            self.updates.put(error if isinstance(error, Exception) else headrace.GenerationClosed(LET_GO))
        finally:
            if self._cancelling is not None:
                self._cancelling.cancel()
            self.updates.put(None)

    def _cancel(self) -> None:
        if self._cancelling is None:
            self._cancelling = self._loop.create_task(self._ask_to_cancel())
        elif self._task is not None:
            self._task.cancel()

    async def _ask_to_cancel(self) -> None:
        assert self.generation is not None, "an answer is cancelled after it was asked for"
        with suppress(headrace.HeadraceError):  # its events tell how it ended
            await self.generation.cancel()


class Wire:
    """`with Wire(url, token) as wire:`; entering raises Failure when there is no hub, or not for us."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token
        self._answer: Answer | None = None
        self._pumping: asyncio.Task[None] | None = None
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="wire")

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._opened.result()
        except BaseException:
            if not self._opened.done():
                self._hang_up()
            self._thread.join()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hang_up()
        self._thread.join()

    @property
    def state(self) -> headrace.State:
        return self._client.state

    def ask(self, messages: Sequence[headrace.Message], **options: Any) -> Answer:
        """Ask a model; the answer begins to arrive at once."""
        self._answer = answer = Answer(self._loop)

        def begin() -> None:
            try:
                generation = self._client.generate(list(messages), **options)
            except headrace.HeadraceError as error:
                answer.updates.put(error)
                answer.updates.put(None)
                return
            self._pumping = self._loop.create_task(answer.pump(generation))

        self._loop.call_soon_threadsafe(begin)
        return answer

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leaving = asyncio.Event()
        try:
            await probe(self._url)
            async with headrace.connect(self._url, self._token or None, connect_timeout=CONNECT_S) as client:
                self._client: headrace.Client = client
                client.on_state(self._tell)
                self._opened.set_result(None)
                await self._leaving.wait()
                if self._pumping is not None:
                    self._pumping.cancel()
                    await asyncio.gather(self._pumping, return_exceptions=True)
        except Exception as error:
            if not self._opened.done():
                self._opened.set_exception(explain(error))

    def _tell(self, state: headrace.State) -> None:
        if self._answer is not None:
            self._answer.updates.put(state)

    def _hang_up(self) -> None:
        with suppress(RuntimeError, AttributeError):  # it is over already, or never came up
            self._loop.call_soon_threadsafe(self._leaving.set)


def explain(error: Exception) -> Exception:
    """A connection that did not come about, as one line that says what to do."""
    if isinstance(error, headrace.AuthenticationFailed):
        return Failure(
            'the hub does not accept the token: set HEADRACE_TOKEN="$(headrace token --user you)", '
            "made with the hub's HEADRACE_JWT_SECRET"
        )
    return Failure(one_line(error)) if isinstance(error, headrace.HeadraceError) else error


async def probe(url: str) -> None:
    """Raises Failure at once where nobody listens: the client itself would go on trying for a while."""
    try:
        parts = urlsplit(hub_url(url))
    except headrace.HeadraceError as error:
        raise Failure(one_line(error)) from None
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "wss" else 80)
    try:
        async with asyncio.timeout(_PROBE_S):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except (OSError, TimeoutError):
        raise Failure(
            f"there is no hub at {host}:{port}: start one with `headrace dev`, or name another with --url"
        ) from None
