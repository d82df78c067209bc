"""The ledger in PostgreSQL, for many machines. Needs the extra `postgres`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import psycopg

from hub.broker.usage import UsageRow
from hub.ledger import LedgerAbsent, LedgerDown, Query, Total, table
from hub.ledger.total import total

#: A database that takes longer than this, in seconds, counts as down.
_DEADLINE_S = 10.0
_T = TypeVar("_T")


class PostgresLedger:
    """One connection, made when it is first needed and again after it broke."""

    def __init__(self, url: str, *, reads_only: bool = False) -> None:
        self._url = url
        self._reads_only = reads_only
        self._connection: psycopg.AsyncConnection | None = None
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        async def nothing(_: psycopg.AsyncConnection) -> None:
            pass

        await self._do(nothing)

    async def write(self, rows: Sequence[UsageRow]) -> None:
        statement = table.insert(["%s"] * len(table.COLUMNS)).encode()

        async def write(connection: psycopg.AsyncConnection) -> None:
            async with connection.transaction(), connection.cursor() as cursor:
                await cursor.executemany(statement, [table.values(row) for row in rows])

        await self._do(write)

    async def totals(self, query: Query) -> list[Total]:
        statement, arguments = table.totals(query, ["%s"] * 4)

        async def ask(connection: psycopg.AsyncConnection) -> list[Total]:
            cursor = await connection.execute(statement.encode(), arguments)
            return [total(query.by, row) for row in await cursor.fetchall()]

        return await self._do(ask)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _do(self, work: Callable[[psycopg.AsyncConnection], Awaitable[_T]]) -> _T:
        """One piece of work at a time. What broke its connection leaves none behind."""
        async with self._turn:
            try:
                async with asyncio.timeout(_DEADLINE_S):
                    if self._connection is None or self._connection.closed:
                        self._connection = await self._connect()
                    return await work(self._connection)
            except psycopg.errors.UndefinedTable:
                raise LedgerAbsent("PostgreSQL: nothing was written there yet") from None
            except (psycopg.Error, OSError, TimeoutError) as error:
                await self.close()
                # A driver's message may quote values or the URL; its class does not.
                raise LedgerDown(f"PostgreSQL: {type(error).__name__}") from None

    async def _connect(self) -> psycopg.AsyncConnection:
        connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        try:
            if not self._reads_only:  # who may only read need not be allowed to make tables
                for statement in table.CREATE:
                    await connection.execute(statement.encode())
        except BaseException:
            await connection.close()
            raise
        return connection
