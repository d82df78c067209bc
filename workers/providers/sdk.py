"""What the adapters of the two SDKs share: one client, a bound on requests, bytes in, events out, errors sorted.

The SDK makes the request: credentials, URL, headers and typed HTTP errors are its own. The body is read as
bytes, since the SDKs' own iterators cost several times as much a token. The SDKs never retry: whether a failed
answer may be asked for again is the worker's to decide.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Final

from headrace.protocol.body import Body
from workers.catalog import Clocks, ModelEntry, ProviderEntry, load
from workers.chain import Fault
from workers.providers import Continues, Event, ProviderError, Reasoning, Speaker, Text, ToolInput, Usage
from workers.providers.background import Background
from workers.providers.continuation import continued
from workers.providers.decoder import AnswerDecoder, MalformedStream
from workers.providers.failures import Account, Failure, provider_failure
from workers.providers.sse import EventTooLarge
from workers.providers.watchdog import Expired, Phase, Watchdog

#: Requests at a time to one provider. Below `POOL_CONNECTIONS`, so that a full pool never looks like a dead provider.
REQUESTS = 900
POOL_CONNECTIONS = 1000
#: How long a request waits for one of the others to end.
SLOT_WAIT_S = 5.0

WRITE_S = 10.0
#: How long the usage may follow the model's own stop …
USAGE_S = 2.0
#: … and the end of the body the last event, so that the connection can be used again. Neither is worth failing for.
BODY_END_S = 0.25

#: Of a read, told at a time: however much lay there when a reader came back from a pause, what is told in one go has to
#: fit the room that a generation leaves for it. A character has up to four bytes.
TOLD_CHARACTERS = 12 * 1024

#: Packages whose exceptions, like those of sockets and of refused arguments, say that a request failed. Any other
#: exception is a defect of ours and goes through as it is.
_FOREIGN = frozenset({"anthropic", "openai", "httpx2", "httpcore2", "aiohttp", "pydantic"})

_Read = Callable[[], Awaitable[bytes]]
"""The body's next bytes; none at its end."""

#: Where the SDKs' transport keeps it.
_AIOHTTP_RESPONSE: Final = "_aiohttp_response"

_SHIPPED: Final = load(None).providers
_UNLISTED: Final = ModelEntry()
#: Events that show nothing.
_SILENT: Final = frozenset({Speaker, Usage, Background})
#: Which clock is over: its fault, and what is said of it.
_PHASES: Final[dict[Phase, tuple[Fault, str]]] = {
    "headers": ("headers_timeout", "did not answer within"),
    "first_content": ("silent", "began to answer and then wrote nothing for"),
    "idle": ("idle", "sent nothing for"),
    "idle_content": ("idle", "sent signs of life and nothing else for"),
    "total": ("idle", "was not finished after"),
}


class SdkProvider(ABC):
    """One provider behind its SDK. Shared by all generations of a worker; belongs to one event loop."""

    mode = "live"
    #: The provider that the format and its SDK are named after.
    format: str

    def __init__(
        self,
        name: str | None = None,
        entry: ProviderEntry | None = None,
        *,
        requests: int = REQUESTS,
        models: Mapping[str, ModelEntry] | None = None,
    ) -> None:
        """Without a name and an entry: the shipped catalog's. `models`: what is known of this provider's, by name."""
        shipped = _SHIPPED[self.format]
        self.name = name or self.format
        entry = entry or shipped
        self.account = Account(
            self.name,
            entry.key[0] if entry.key else "the key",
            entry.base_url_variable or f"providers.{self.name}.base_url",
        )
        self._entry = entry
        #: The SDK finds key and address of its own provider by itself, in more places than the catalog names.
        self._is_shipped = (entry.key, entry.base_url, entry.base_url_variable) == (
            shipped.key, None, shipped.base_url_variable,
        )  # fmt: skip
        self._clocks: Clocks = entry.clocks
        self._models = models or {}
        self._requests = requests
        self._slots = asyncio.Semaphore(requests)
        self._client: Any = None
        self._making = asyncio.Lock()

    def _can(self, model: str) -> ModelEntry:
        return self._models.get(model, _UNLISTED)

    @abstractmethod
    def _make_client(self) -> Any:
        """Import the SDK and make its client. Blocking: about a second the first time."""

    @abstractmethod
    def continues(self, model: str) -> Continues:
        """What `model` can do with the beginning of an answer."""

    @abstractmethod
    def _request(self, client: Any, model: str, body: Body) -> AbstractAsyncContextManager[Any]:
        """The streaming request, sent on entering."""

    @abstractmethod
    def _decoder(self) -> AnswerDecoder[Any]: ...

    @abstractmethod
    def _failure(self, error: Exception) -> Failure | None:
        """What the SDK's exception says about an HTTP answer; None if it is about something else."""

    def _credentials(self, official_url: str) -> dict[str, Any]:
        """Arguments of the SDK's client: a key and an address of its own for a provider that the SDK does not know."""
        if self._is_shipped:
            return {}
        variable = next((name for name in self._entry.key if os.environ.get(name)), "")
        how = "auth_token" if self.format == "anthropic" and variable.endswith("AUTH_TOKEN") else "api_key"
        url = os.environ.get(self._entry.base_url_variable or "") or self._entry.base_url or official_url
        return {how: os.environ.get(variable) or "none", "base_url": url}

    def _timeouts(self) -> dict[str, float | None]:
        """In seconds, by httpx2's names. Reading is the watchdog's.

        The SDKs' aiohttp transport takes `pool` for everything up to an open connection (waiting, name look-up,
        TCP, TLS), so it gets the time for connecting. Nobody waits for a free connection: there are more than slots.
        """
        connect = self._clocks.connect_s
        return {"connect": connect, "pool": connect, "write": WRITE_S, "read": None}

    def _http_options(self) -> dict[str, Any]:
        """Of the SDK's HTTP client. A redirect is not followed: it would take the prompt to wherever it points."""
        import httpx2

        from workers.providers.refusal import shorten

        connections = max(POOL_CONNECTIONS, self._requests + 1)
        return {
            "limits": httpx2.Limits(max_connections=connections, max_keepalive_connections=100),
            "follow_redirects": False,
            "event_hooks": {"response": [shorten]},
        }

    async def warm(self) -> None:
        """Import the SDK now, off the event loop, instead of on the first request. Raises ProviderError."""
        async with self._making:
            if self._client is None:
                try:
                    self._client = await asyncio.to_thread(self._make_client)
                except Exception as error:
                    raise self._sorted(error) from None

    def stream(self, model: str, body: Body, kept: str = "") -> AsyncGenerator[list[Event], None]:
        """Ask `model`, for what follows `kept` if there is any (see `Provider.stream`).

        Closing the generator, or cancelling the task that waits for it, closes the socket.
        Raises ProviderError; `overloaded` if all of its requests are in use for `SLOT_WAIT_S`.
        """
        if kept:
            body = continued(body, kept, self.continues(model))
        return self._answer(model, body)

    def _answer(self, model: str, body: Body) -> AsyncGenerator[list[Event], None]:
        return self._read(self._decoder(), lambda: self._request(self._client, model, body))

    async def _turn(self) -> None:
        """Wait until one more request may be made. Raises ProviderError."""
        try:
            async with asyncio.timeout(SLOT_WAIT_S):
                await self._slots.acquire()
        except TimeoutError:
            message = f"this worker already runs {self._requests} requests to {self.name}: try again soon"
            raise ProviderError("overloaded", message, after_ms=int(SLOT_WAIT_S * 1000)) from None

    async def _read(
        self, decoder: AnswerDecoder[Any], begin: Callable[[], AbstractAsyncContextManager[Any]]
    ) -> AsyncGenerator[list[Event], None]:
        """One response's body, to its end. Raises ProviderError.

        All of it is one generator: every token passes through each, and pays for it.
        """
        await self._turn()
        try:
            await self.warm()
            request = begin()
        except BaseException:
            self._slots.release()
            raise
        watchdog = Watchdog(self._clocks)
        try:
            with watchdog:
                async with request as response:
                    watchdog.headers()
                    self._check_content_type(response.headers.get("content-type", ""))
                    async with _opened(response.http_response) as read:
                        while chunk := await read():
                            events = decoder.feed(chunk)
                            watchdog.read(content=_is_content(events), pause=bool(events))
                            if events:
                                if len(chunk) <= TOLD_CHARACTERS:
                                    yield events
                                else:
                                    for part in _parts(events):
                                        yield part
                                watchdog.resume()
                            if decoder.error is not None:
                                raise decoder.error
                            if decoder.stopping:
                                break
                        watchdog.pause()
                        async for events in _after_stop(decoder, read):
                            yield events
        except Exception as error:
            raise self._sorted(error) from None
        finally:
            self._slots.release()
        if not decoder.stopped:
            if not (events := decoder.end()):
                message = f"{self.name} ended its answer without saying that it was complete"
                raise ProviderError("provider_error", message, fault="truncated")
            yield events

    def _check_content_type(self, content_type: str) -> None:
        """A gateway's page or a refusal with status 200 is no stream."""
        kind = content_type.partition(";")[0].strip().lower()
        if kind in ("application/json", "text/html"):
            url = self.account.url_variable
            message = f"{self.name} answered with {kind} instead of a stream of events: check {url} if it is set"
            raise ProviderError("provider_error", message, fault="absent", retry="no")

    def _sorted(self, error: Exception) -> Exception:
        """The `ProviderError` that `error` means. It keeps nothing of the error's text, which may quote a prompt."""
        if isinstance(error, ProviderError):
            return error
        if isinstance(error, Expired):
            fault, what = _PHASES[error.phase]
            return ProviderError("provider_timeout", f"{self.name} {what} {error.after_s:g} s", fault=fault)
        failure = self._failure(error)
        if failure is not None:
            return provider_failure(self.account, failure, time.time())
        if isinstance(error, MalformedStream | EventTooLarge) or type(error).__name__ == "DecodingError":
            message = f"{self.name} sent what is not valid in its own format"
            return ProviderError("provider_error", message, fault="malformed")
        if type(error) is RuntimeError and error.args == ("Connection closed.",):  # aiohttp's, of one that nobody read
            return self._broke()
        return self._broken(_class_names(error)) or self._defect(error)

    def _broken(self, kinds: set[str]) -> ProviderError | None:
        """What went wrong between here and there, by the classes involved.

        The transport's own classes are looked at first: one SDK takes every lost connection for a timeout.
        """
        if "ClientConnectorError" in kinds:
            return self._unreachable()
        if kinds & {"ServerDisconnectedError", "ClientOSError", "ClientPayloadError"}:
            return self._broke()
        if kinds & {"ConnectTimeout", "PoolTimeout"}:
            message = f"{self.name} could not be reached within {self._clocks.connect_s:g} s"
            return ProviderError("provider_timeout", message, fault="connect_timeout")
        if kinds & {"APITimeoutError", "TimeoutException"}:
            return ProviderError(
                "provider_timeout", f"{self.name} took the request too slowly", fault="headers_timeout"
            )
        if "ConnectError" in kinds:
            return self._unreachable()
        if kinds & {"TransportError", "ConnectionError", "ClientError"}:
            return self._broke()
        return None

    def _broke(self) -> ProviderError:
        return ProviderError("provider_error", f"the connection to {self.name} broke", fault="broken")

    def _unreachable(self) -> ProviderError:
        url = self.account.url_variable
        message = f"{self.name} could not be reached: check the network, and {url} if it is set"
        return ProviderError("provider_error", message, fault="unreachable")

    def _defect(self, error: Exception) -> Exception:
        """A request that could not even be sent; or `error` itself, if it is a defect of ours."""
        package = type(error).__module__.partition(".")[0]
        if package not in _FOREIGN and not isinstance(error, OSError | ValueError | TypeError):
            return error
        what = type(error).__name__
        message = f"the request to {self.name} could not be made ({what}): check {self.account.key_variable}"
        return ProviderError("provider_error", message, fault="credential", retry="no")

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()


@asynccontextmanager
async def _opened(response: Any) -> AsyncIterator[_Read]:
    """How to read a response's body as the socket brings it. Raises what aiohttp and httpx2 raise.

    Past the iterators of httpx2 and of the SDK's transport, which cost a token as much as decoding it does: to
    aiohttp's own reader, where both still keep it. A compressed body, which was not asked for, needs httpx2's.
    """
    answer = getattr(getattr(response.stream, "_stream", None), _AIOHTTP_RESPONSE, None)
    if answer is not None and response.headers.get("content-encoding", "identity") == "identity":
        yield answer.content.readany
    else:
        async with aclosing(response.aiter_bytes()) as chunks:
            yield lambda: anext(chunks, b"")


def _is_content(events: list[Event]) -> bool:
    for event in events:  # noqa: SIM110 - once a token, and a generator would cost as much as all of this
        if type(event) not in _SILENT:
            return True
    return False


def _parts(events: list[Event]) -> Iterator[list[Event]]:
    """`events` in lists of at most TOLD_CHARACTERS of text each, or of one event."""
    part: list[Event] = []
    size = 0
    for event in events:
        length = 0
        if isinstance(event, Text | Reasoning):
            length = len(event.text)
        elif isinstance(event, ToolInput):
            length = len(event.delta)
        size += length
        if part and size > TOLD_CHARACTERS:
            yield part
            part, size = [], length
        part.append(event)
    yield part


async def _after_stop(decoder: AnswerDecoder[Any], read: _Read) -> AsyncGenerator[list[Event], None]:
    """What follows the model's own stop. It is waited for briefly, and no failure counts any more."""
    clock = asyncio.get_running_loop().time
    due = clock() + (BODY_END_S if decoder.stopped else USAGE_S)
    while decoder.stopping and decoder.error is None:
        try:
            async with asyncio.timeout_at(due):
                chunk = await read()
        except Exception:  # a cut, a timeout: the answer is complete all the same
            return
        if not chunk:
            return
        if events := decoder.feed(chunk):
            due = min(due, clock() + BODY_END_S) if decoder.stopped else due
            yield events


def _class_names(error: BaseException) -> set[str]:
    """Names of the classes of `error` and its causes. By name: the SDKs and their transport are imported lazily."""
    names: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        names.update(kind.__name__ for kind in type(cause).__mro__)
        cause = cause.__cause__
    return names


def silence(logger: str) -> None:
    """Keep an SDK from logging requests: at DEBUG it writes whole prompts (its `…_LOG=debug` variable asks for it)."""
    logging.getLogger(logger).setLevel(logging.INFO)
