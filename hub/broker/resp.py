"""The hot path's connection to Redis: RESP, pipelined, one batch outstanding.

A client library costs twice the CPU a token here, for pooling, timeouts and retries that these three callers
(append, relay, mailbox read) do not want. Connecting, TLS, credentials and the choice of protocol are redis-py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

Command = tuple[Any, ...]
"""Words of one command: bytes, str or int."""
#: Bytes read from the socket at once.
_READ_BYTES = 1 << 18


class RawConnection:
    """Send a batch, await all its replies, in order. Not for concurrent use.

    A reply that is an error is returned as an exception object, so that one refused command does not hide the
    others' replies. A batch that times out or is cancelled closes the connection: its replies must never be
    taken for those of a later batch.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection  # redis-py closes the socket when this object goes
        self._reader: asyncio.StreamReader = connection._reader
        self._writer: asyncio.StreamWriter = connection._writer
        self._parser = hiredis.Reader(replyError=ReplyError)
        self.is_open = True

    @classmethod
    async def open(cls, connection: Any) -> RawConnection:
        """Take over the socket of a redis-py connection that nobody else uses. Raises RedisError, OSError."""
        await connection.connect()
        return cls(connection)

    async def execute(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        """Raises redis' ConnectionError or TimeoutError; whether a command was applied is then unknown."""
        self._writer.write(b"".join([hiredis.pack_command(command) for command in commands]))
        replies: list[Any] = []
        try:
            async with asyncio.timeout(timeout):
                while True:
                    while (reply := self._parser.gets()) is not False:
                        replies.append(reply)
                    if len(replies) == len(commands):
                        return replies
                    data = await self._reader.read(_READ_BYTES)
                    if not data:
                        raise RedisConnectionError("Redis closed the connection")
                    self._parser.feed(data)
        except TimeoutError:
            self.close()
            raise RedisTimeoutError(f"Redis did not answer within {timeout:g} s") from None
        except OSError as error:
            self.close()
            raise RedisConnectionError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket at once. Safe to repeat."""
        if self.is_open:
            self.is_open = False
            self._connection._close()  # so that redis-py knows: it warns of what it thinks is left open


class ReplyError(Exception):
    """Redis answered a command with an error; `code` is its first word (NOSCRIPT, OOM, READONLY, …)."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]
