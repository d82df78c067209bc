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


#: Answers of a server that takes no writes any more: it was demoted, the next connection may lead elsewhere.
_DEMOTED = frozenset({"READONLY", "MASTERDOWN"})


class RawConnection(asyncio.Protocol):
    """Send a batch, await all its replies, in order. Not for concurrent use.

    A reply that is an error is returned as an exception object, so that one refused command does not hide the
    others' replies. A batch that times out or is cancelled closes the connection: its replies must never be
    taken for those of a later batch. So does one that a read-only server refused.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection  # redis-py closes the socket when this object goes
        self._transport: asyncio.Transport = connection._writer.transport
        self._transport.set_protocol(self)
        self._parser = hiredis.Reader(replyError=self._refused)
        self._replies: list[Any] = []
        self._expected = 0
        self._answered: asyncio.Future[None] | None = None
        self._is_demoted = False
        self.is_open = True

    @classmethod
    async def open(cls, connection: Any) -> RawConnection:
        """Take over the socket of a redis-py connection that nobody else uses. Raises RedisError, OSError."""
        await connection.connect()
        return cls(connection)

    async def execute(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        """Raises redis' ConnectionError or TimeoutError; whether a command was applied is then unknown."""
        if not self.is_open:
            raise RedisConnectionError("the connection to Redis is closed")
        loop = asyncio.get_running_loop()
        answered = self._answered = loop.create_future()
        self._replies = []
        self._expected = len(commands)
        self._transport.write(b"".join([hiredis.pack_command(command) for command in commands]))
        deadline = loop.call_later(timeout, self._expire, timeout)
        try:
            await answered
        except BaseException:
            self.close()
            raise
        finally:
            deadline.cancel()
        if self._is_demoted:
            self.close()
        return self._replies

    def _refused(self, text: str) -> ReplyError:
        error = ReplyError(text)
        self._is_demoted |= error.code in _DEMOTED
        return error

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        try:
            while (reply := self._parser.gets()) is not False:
                self._replies.append(reply)
        except hiredis.ProtocolError as error:
            self._fail(RedisConnectionError(f"not RESP: {error}"))
            return
        if len(self._replies) >= self._expected and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(RedisConnectionError(str(exc) if exc else "Redis closed the connection"))
        self.close()

    def _expire(self, timeout: float) -> None:
        self._fail(RedisTimeoutError(f"Redis did not answer within {timeout:g} s"))

    def _fail(self, error: Exception) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)

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
