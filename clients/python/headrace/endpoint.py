"""The socket to a hub: its address, how it is opened, and when something was last heard on it."""

from __future__ import annotations

import asyncio
import ssl as ssl_module
from typing import Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from headrace.errors import ConnectionFailed
from headrace.protocol.codec import Codec

#: Name and version, as the hub's log shows them.
AGENT: Final = "headrace-py/0.1"
PATH: Final = "/v1/ws"
#: The hub sends at most 64 KiB a message; a larger one than this is not from a hub.
MESSAGE_BYTES: Final = 1024 * 1024
OPEN_S: Final = 10.0
CLOSE_S: Final = 2.0

Proxy = str | Literal[True] | None


class Socket(ClientConnection):
    """A WebSocket that knows when a byte last came in, pings and pongs included. `heard_at` is the loop's time."""

    heard_at = 0.0

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.loop.time()
        super().data_received(data)


class _Dial(websocket_connect):
    """Follows no redirect: a token is for the address that was given, and no other."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def hub_url(url: str) -> str:
    """The WebSocket address of a hub, from what a person writes. Raises ConnectionFailed, saying what is wrong."""
    parts = urlsplit(url)
    schemes = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
    if parts.scheme not in schemes:
        raise ConnectionFailed(f"the hub's address must begin with ws:// or wss://, not {url[:40]!r}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if not parts.hostname or port == 0:
        raise ConnectionFailed("the hub's address needs a host and a port, as in ws://127.0.0.1:8080")
    if parts.username is not None or parts.password is not None:
        raise ConnectionFailed("the hub's address must not hold a password: give the token as `token`")
    path = PATH if parts.path in ("", "/") else parts.path
    return urlunsplit((schemes[parts.scheme], parts.netloc, path, parts.query, ""))


async def dial(url: str, codec: Codec, proxy: Proxy, ssl: ssl_module.SSLContext | None) -> Socket:
    """Open a socket that speaks this encoding.

    Raises:
        OSError, InvalidHandshake, TimeoutError: Nobody there, or not for us.
        ConnectionFailed: The server speaks another protocol.
    """
    options: dict[str, Any] = {} if ssl is None else {"ssl": ssl}
    socket = await _Dial(
        url,
        subprotocols=[Subprotocol(codec.subprotocol)],
        compression=None,  # not negotiated: memory, and side channels (docs/protocol.md §2)
        max_size=MESSAGE_BYTES,
        ping_interval=None,  # the hub pings; what is heard of it is watched instead
        open_timeout=OPEN_S,
        close_timeout=CLOSE_S,
        user_agent_header=AGENT,
        proxy=proxy,
        create_connection=Socket,
        **options,
    )
    assert isinstance(socket, Socket), "made by `create_connection`"
    socket.heard_at = socket.loop.time()
    # Without a subprotocol a hub speaks JSON; what else does not echo ours is no hub.
    if socket.subprotocol != codec.subprotocol and not (socket.subprotocol is None and codec.is_text):
        await socket.close()
        raise ConnectionFailed(f"the server does not speak {codec.subprotocol}: is this a Headrace hub?")
    return socket


def http_status(error: Exception) -> int | None:
    """The status of a refused upgrade; None for every other failure."""
    return error.response.status_code if isinstance(error, InvalidStatus) else None


def describe(error: Exception) -> str:
    """Why no connection came about, in a few words and without anything secret."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    status = http_status(error)
    if status is not None:
        return f"the server answered HTTP {status} instead of opening a WebSocket"
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return "no answer in time"
    if isinstance(error, (OSError, InvalidHandshake, ConnectionFailed)):
        return str(error) or type(error).__name__
    return type(error).__name__
