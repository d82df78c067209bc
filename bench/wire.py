"""WebSocket bytes as a client writes them (RFC 6455): as little as a load generator can get away with."""

from __future__ import annotations

import base64
import os

CLOSE, PING, PONG = 8, 9, 10
#: A mask key of zeros is legal and leaves the payload as it is.
_NO_MASK = b"\0\0\0\0"


def message(payload: bytes, opcode: int) -> bytes:
    """One complete message of a client."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, 0x80 | size)) + _NO_MASK + payload
    if size < 65536:
        return bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2) + _NO_MASK + payload
    return bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8) + _NO_MASK + payload


def upgrade(host: str, port: int, subprotocol: str) -> bytes:
    """The request that turns a connection to a hub into a WebSocket."""
    return (
        f"GET /v1/ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    ).encode()
