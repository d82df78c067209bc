"""The frames of one stream as the hub sends them, for recordings: below the client library, not through it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from headrace.backoff import jitter
from headrace.endpoint import Socket, dial, hub_url
from headrace.errors import HeadraceError
from headrace.protocol.codec import JSON
from headrace.protocol.codes import close_action
from headrace.protocol.cursor import Cursor
from headrace.protocol.frames import Attach, Attached, Delta, EntryFrame, ErrorFrame, Hello, HubFrame, Welcome
from hub.cli.failure import Failure
from hub.cli.wire import explain, probe

#: No word from the hub for its heartbeat and this long: the connection is dead.
_SILENCE_S = 10.0
_WELCOME_S = 10.0
#: Failures in a row before this gives up.
_ATTEMPTS = 8

Frame = Attached | Delta | EntryFrame


async def watch(url: str, token: str, stream: str, say: Callable[[str], None]) -> AsyncIterator[Frame]:
    """Every frame from the first entry to `done`, over as many connections as it takes.

    An `Attached` comes when the stream begins, and again whenever another history begins. Raises Failure when
    there is no hub, no such stream, or nothing works any more.
    """
    await probe(url)
    cursor: Cursor | None = None
    failures = 0
    while True:
        try:
            socket = await dial(hub_url(url), JSON, None, None)
        except HeadraceError as error:
            raise explain(error) from None
        except (OSError, InvalidHandshake, TimeoutError) as error:
            lost: Exception = error
        else:
            try:
                async for frame in _follow(socket, token, stream, cursor):
                    failures = 0
                    if isinstance(frame, Attached):
                        if cursor is not None and frame.resumed:
                            continue
                        cursor = Cursor(frame.offset, frame.mark)
                    else:
                        assert cursor is not None, "entries come after an answer"
                        cursor = Cursor(frame.offset, cursor.mark if frame.mark is None else frame.mark)
                    yield frame
                    if isinstance(frame, EntryFrame) and frame.kind == "done":
                        return
            except (ConnectionClosed, TimeoutError, OSError) as error:
                lost = error
                _check_close(error)
            finally:
                await socket.close()
        failures += 1
        if failures == _ATTEMPTS:
            raise Failure(f"the hub at {url} cannot be reached any more ({lost}): what came until then is kept")
        say("connection lost, reconnecting …")
        await asyncio.sleep(jitter(failures, random.random()))


async def _follow(socket: Socket, token: str, stream: str, cursor: Cursor | None) -> AsyncIterator[Frame]:
    """The frames of one connection. Ends only by an exception of the socket."""
    attach = Attach(id=1, stream=stream, after=cursor, window=None)  # no window: what was written counts as acked
    await socket.send(JSON.encode_batch([Hello(token=token or None, client="headrace-record/0.1")]), text=True)
    await socket.send(JSON.encode_batch([attach]), text=True)
    patience = _WELCOME_S
    while True:
        for frame in await _receive(socket, patience):
            if isinstance(frame, Welcome):
                patience = frame.heartbeat_ms / 1000 + _SILENCE_S
            elif isinstance(frame, ErrorFrame) and frame.retry in ("no", "reauth"):
                raise Failure(_refusal(frame, stream))
            elif isinstance(frame, (Attached, Delta, EntryFrame)) and frame.stream == stream:
                yield frame


async def _receive(socket: Socket, patience: float) -> list[HubFrame]:
    """The next message. Raises TimeoutError when nothing, not even a ping, came for `patience` seconds."""
    loop = asyncio.get_running_loop()
    receiving = asyncio.ensure_future(socket.recv(decode=False))
    try:
        while not receiving.done():
            left = socket.heard_at + patience - loop.time()
            if left <= 0:
                raise TimeoutError("nothing was heard from the hub")
            await asyncio.wait([receiving], timeout=left)
        return JSON.decode_hub(receiving.result())
    finally:
        receiving.cancel()


def _refusal(frame: ErrorFrame, stream: str) -> str:
    if frame.code in ("not_found", "gone"):
        return f"there is no stream {stream} for you here: it expired, or its id or your token is another's"
    return f"{frame.code}: {frame.message}"


def _check_close(error: Exception) -> None:
    """Raises Failure for a close that says not to come back."""
    code = error.rcvd.code if isinstance(error, ConnectionClosed) and error.rcvd is not None else None
    if close_action(code) in ("stop", "reauth"):
        from headrace.errors import AuthenticationFailed

        raise explain(AuthenticationFailed("refused")) from None
