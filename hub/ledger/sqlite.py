"""The ledger in one file, for one machine: SQLite in a thread of its own."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from hub.broker.usage import UsageRow
from hub.ledger import LedgerAbsent, LedgerDown, Query, Total, table
from hub.ledger.total import total

#: Another process writes at the same time: wait so long for it, in seconds.
_BUSY_S = 5.0
#: A question that takes longer, in seconds, is given up. Looked at every so many steps of SQLite's.
_DEADLINE_S = 10.0
_STEPS = 100_000
_T = TypeVar("_T")


class SqliteLedger:
    """Several processes of one machine may share the file (write-ahead log)."""

    def __init__(self, path: Path, *, reads_only: bool = False) -> None:
        self._path = path
        self._reads_only = reads_only
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        await self._do(lambda connection: None)

    async def write(self, rows: Sequence[UsageRow]) -> None:
        statement = table.insert(["?"] * len(table.COLUMNS))

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany(statement, [table.values(row) for row in rows])

        await self._do(write)

    async def totals(self, query: Query) -> list[Total]:
        statement, arguments = table.totals(query, ["?"] * 4)
        rows = await self._do(lambda connection: connection.execute(statement, arguments).fetchall())
        return [total(query.by, row) for row in rows]

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, connection.close)
        self._thread.shutdown(wait=False)

    async def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        def run() -> _T:
            if self._connection is None:
                self._connection = self._connect()
            deadline = time.monotonic() + _DEADLINE_S
            self._connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            return work(self._connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except (sqlite3.Error, OSError, RuntimeError) as error:  # RuntimeError: a user without a home
            raise LedgerDown(f"{self._path}: {getattr(error, 'strerror', None) or error}") from None

    def _connect(self) -> sqlite3.Connection:
        path = self._path.expanduser()
        if self._reads_only:
            if not path.exists():
                raise LedgerAbsent(f"{self._path}: nothing was written there yet")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
        try:
            if not self._reads_only:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                with connection:
                    for statement in table.CREATE:
                        connection.execute(statement)
        except sqlite3.Error:
            connection.close()
            raise
        return connection
