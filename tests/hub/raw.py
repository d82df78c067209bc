"""A viewer made of bytes: says what no WebSocket library lets one say, reads little or nothing, and vanishes."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import json
import os
import socket
import struct
from contextlib import suppress
from typing import Any, Self

from tests.wire import DEADLINE_S, JSON, Map

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_SO_ATTACH_FILTER = 26  # Linux; Python's `socket` does not name it


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True, size: int | None = None
) -> bytes:
    """One WebSocket frame of a client. `size`: what its header claims, whatever the payload has."""
    size = len(payload) if size is None else size
    head = bytes([fin << 7 | rsv << 4 | opcode])
    mask = 0x80 if masked else 0
    if size < 126:
        head += bytes([mask | size])
    elif size < 65536:
        head += bytes([mask | 126]) + struct.pack("!H", size)
    else:
        head += bytes([mask | 127]) + struct.pack("!Q", size)
    return head + (bytes(4) if masked else b"") + payload  # a mask of zeroes is a mask


def upgrade(path: str = "/v1/ws", subprotocol: str = JSON, headers: tuple[str, ...] = ()) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    lines = (
        f"GET {path} HTTP/1.1", "Host: hub", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Protocol: {subprotocol}", *headers,
    )  # fmt: skip
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Raw:
    """A TCP connection to a hub. Reads only what it is asked for."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, port: int, *, receive_buffer: int | None = None) -> Self:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw = cls(sock)
        async with asyncio.timeout(DEADLINE_S):
            await raw._loop.sock_connect(sock, ("127.0.0.1", port))
        return raw

    @classmethod
    async def open(cls, port: int, *, receive_buffer: int | None = None, headers: tuple[str, ...] = ()) -> Self:
        """A WebSocket that has said nothing yet."""
        raw = await cls.connect(port, receive_buffer=receive_buffer)
        await raw.send(upgrade(headers=headers))
        status, _ = await raw.head()
        assert status == 101, status
        return raw

    @classmethod
    async def join(cls, port: int, token: str, *, receive_buffer: int | None = None) -> Self:
        raw = await cls.open(port, receive_buffer=receive_buffer)
        await raw.say({"type": "hello", "token": token})
        assert (await raw.hear())["type"] == "welcome"
        return raw

    async def send(self, data: bytes, within: float = DEADLINE_S) -> None:
        """Raises ConnectionError, and TimeoutError when the hub takes no more."""
        async with asyncio.timeout(within):
            await self._loop.sock_sendall(self.sock, data)

    async def say(self, value: Any) -> None:
        await self.send(frame(TEXT, json.dumps(value).encode()))

    async def flood(self, data: bytes, seconds: float = DEADLINE_S) -> None:
        """Send until the hub has none of it any more."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await self._loop.sock_sendall(self.sock, data)
        except (ConnectionError, TimeoutError):
            return

    async def head(self) -> tuple[int, str]:
        """Status and text of an HTTP answer's head."""
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        return int(head.split()[1]), head.decode()

    async def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame."""
        opcode, size = await self._exactly(2)
        length = size & 127
        if length == 126:
            length = int.from_bytes(await self._exactly(2))
        elif length == 127:
            length = int.from_bytes(await self._exactly(8))
        return opcode & 15, await self._exactly(length)

    async def hear(self) -> Map:
        """The next message; pings are answered."""
        while True:
            opcode, payload = await self.frame()
            if opcode == PING:
                await self.send(frame(PONG, payload))
            elif opcode in (TEXT, BINARY):
                message: Map = json.loads(payload)
                return message

    async def close_code(self) -> int | None:
        """Pass over what comes until the hub closes; its code, or None if it ended without one."""
        try:
            while True:
                opcode, payload = await self.frame()
                if opcode == CLOSE:
                    return int.from_bytes(payload[:2])
        except (EOFError, ConnectionError):
            return None

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        try:
            while True:
                await self._more()
        except (EOFError, ConnectionError):
            return self._buffer

    def vanish(self) -> None:
        """From now on nothing that arrives gets as far as TCP: no answer, no FIN, no reset. The cable is cut.

        Some sandboxes let only root do this; there the peer's kernel goes on, and its program alone is silent.
        """
        drop_all = (ctypes.c_char * 8).from_buffer_copy(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
        program = struct.pack("HL", 1, ctypes.addressof(drop_all))
        with suppress(PermissionError):
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def close(self) -> None:
        self.sock.close()

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    async def _more(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            data = await self._loop.sock_recv(self.sock, 65536)
        if not data:
            raise EOFError
        self._buffer += data
