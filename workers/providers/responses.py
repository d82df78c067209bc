"""OpenAI's Responses API: a second way to the same provider. Requests through the SDK, events out of the bytes.

With `background` in its catalog entry the provider writes on without a reader: a connection that breaks is taken up
where it broke, and a worker that takes a generation over reads on what the lost one began (see `background`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final

import structlog

from headrace.protocol.body import Body
from workers.chain import Fault
from workers.providers import Event, ProviderError
from workers.providers.openai import OpenAIProvider
from workers.providers.responses_decoder import ResponsesDecoder
from workers.providers.responses_request import request_fields

log_ = structlog.get_logger(__name__)

#: Faults of a connection, not of the answer that it carried.
_CUT: Final = frozenset[Fault]({"broken", "truncated", "malformed"})
#: How often a connection is made anew without any progress, and the seconds before each time.
_PAUSES_S: Final = (0.05, 0.5, 2.0)
#: One request to cancel may take this long; it is made once more after each of these pauses, in seconds.
_CANCEL_S: Final = 5.0
_CANCEL_PAUSES_S: Final = (0.0, 0.5, 2.0)
#: How long closing waits for what is being cancelled.
_CLOSE_S: Final = 3.0

_PLAIN = {"accept-encoding": "identity"}
_Request = AbstractAsyncContextManager[Any]


class ResponsesProvider(OpenAIProvider):
    """Key and address as for chat completions: it is the same provider."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: What outlives its reader. Bound: one a running request.
        self._held: set[str] = set()
        self._cancelling: set[asyncio.Task[None]] = set()

    @property
    def _is_official(self) -> bool:
        return self._is_shipped and not os.environ.get("OPENAI_BASE_URL")

    # -- asking

    def _answer(self, model: str, body: Body) -> AsyncGenerator[list[Event], None]:
        def begin() -> _Request:
            fields = request_fields(
                model,
                body,
                official=self._is_official,
                background=self._entry.background,
                thinking=self._can(model).thinking,
            )
            request: _Request = self._client.responses.with_streaming_response.create(
                **fields, stream=True, extra_headers=_PLAIN
            )
            return request

        decoder = self._decoder()
        return self._followed(decoder, begin) if self._entry.background else self._read(decoder, begin)

    def _decoder(self) -> ResponsesDecoder:
        return ResponsesDecoder(self.account, background=self._entry.background)

    def read_again(self, model: str, response: str, event: int) -> AsyncGenerator[list[Event], None]:
        decoder = ResponsesDecoder(self.account, background=True, response=response, event=event)
        return self._followed(decoder, lambda: self._again(response, event))

    def _again(self, response: str, event: int) -> _Request:
        padded = {"include_obfuscation": False} if self._is_official else {}
        request: _Request = self._client.responses.with_streaming_response.retrieve(
            response, stream=True, starting_after=event, extra_headers=_PLAIN, **padded
        )
        return request

    async def _followed(
        self, decoder: ResponsesDecoder, begin: Callable[[], _Request]
    ) -> AsyncGenerator[list[Event], None]:
        """The answer to its end, over as many connections as it takes. Left before that, it is cancelled if nobody
        holds it.
        """
        try:
            async with aclosing(self._read_through(decoder, begin)) as answer:
                async for events in answer:
                    yield events
        finally:
            if decoder.response and not decoder.is_over and decoder.response not in self._held:
                self.drop(decoder.response)
            self._held.discard(decoder.response)

    async def _read_through(
        self, decoder: ResponsesDecoder, begin: Callable[[], _Request]
    ) -> AsyncGenerator[list[Event], None]:
        broke: ProviderError | None = None
        tries, at = 0, decoder.event
        while True:
            try:
                async with aclosing(self._read(decoder, begin)) as answer:
                    async for events in answer:
                        yield events
                return
            except ProviderError as error:
                if not decoder.can_go_on:
                    raise
                if decoder.event > at:
                    tries, at, broke = 0, decoder.event, None
                if broke is None and error.fault not in _CUT:
                    raise
                broke = broke or error
                if tries == len(_PAUSES_S) or error.retry == "no":
                    raise broke from None
            log_.info("a connection broke, the answer is read on", provider=self.name, fault=broke.fault)
            await asyncio.sleep(_PAUSES_S[tries])
            tries += 1
            decoder.cut()
            response, event = decoder.response, decoder.event
            begin = lambda: self._again(response, event)  # noqa: E731, B023 - made anew for each connection

    # -- holding

    def hold(self, response: str) -> None:
        self._held.add(response)

    def drop(self, response: str) -> None:
        self._held.discard(response)
        task = asyncio.get_running_loop().create_task(self._cancel(response))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def _cancel(self, response: str) -> None:
        for pause in _CANCEL_PAUSES_S:
            await asyncio.sleep(pause)
            try:
                await self.warm()
                async with asyncio.timeout(_CANCEL_S):
                    await self._client.responses.cancel(response)
                return
            except Exception as error:
                failure = self._failure(error)
                if failure is not None and 400 <= failure.status < 500 and failure.status not in (408, 429):
                    return  # it is over, or not ours: nothing is left to cancel
                last = type(error).__name__
        log_.warning(
            "an answer that nobody wants could not be cancelled, it is paid for", provider=self.name, error=last
        )

    async def close(self) -> None:
        if self._cancelling:
            await asyncio.wait(self._cancelling, timeout=_CLOSE_S)
        for task in self._cancelling:
            task.cancel()
        await asyncio.gather(*self._cancelling, return_exceptions=True)
        await super().close()
