"""The worker's mailbox: one incarnation after the other, and what hubs say in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.mailbox import MailboxReader, WorkerPacket, new_mailbox
from workers.table import Table

log_ = structlog.get_logger(__name__)

_PAUSE_S = 0.1
_PAUSE_MOST_S = 1.0
#: A mailbox that cannot be removed in this time expires by itself.
_CLOSE_S = 1.0


class Inbox:
    """`read` and `renew` run until cancelled. A mailbox that broke or expired is never used again."""

    def __init__(
        self, broker: Broker, table: Table, *, on_name: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        """`on_name` hears each new name, before anything is read under it."""
        self._broker = broker
        self._table = table
        self._on_name = on_name
        self._clock = clock
        self._reader: MailboxReader | None = None

    async def read(self) -> None:
        """Open a mailbox and read it; when it is lost, the next one. Redis out of reach is waited for."""
        pause = _PAUSE_S
        is_reached = True
        while True:
            reader = MailboxReader(self._broker.connections, new_mailbox("w"), self._broker.settings.mailbox_ttl_s)
            try:
                await reader.open()
                self._reader = reader
                self._on_name(reader.name)
                pause, is_reached = _PAUSE_S, True
                await self._read_one(reader)
            except Unreachable as error:
                if is_reached:
                    log_.warning("mailbox broke, opening another when redis answers", error=type(error).__name__)
                is_reached = False
                await asyncio.sleep(pause)
                pause = min(_PAUSE_MOST_S, pause * 2)
            finally:
                self._reader = None
                await _close(reader)

    async def renew(self) -> None:
        """Keep the mailbox, four times in its lifetime; one that is gone is given up."""
        while True:
            await asyncio.sleep(self._broker.settings.mailbox_ttl_s / 4)
            reader = self._reader
            try:
                if reader is not None and not await reader.renew():
                    log_.warning("mailbox was lost, opening another", mailbox=reader.name)
                    await reader.close()  # ends the read under way
            except Unreachable:
                pass  # the read under way sees it too, and says so

    async def _read_one(self, reader: MailboxReader) -> None:
        """Raises `Unreachable` when this incarnation is over."""
        while True:
            try:
                packets = await reader.read()
            except msgspec.DecodeError as error:
                log_.error("unreadable packet in the mailbox", error=str(error))
                continue
            now = self._clock()
            for packet in packets:
                if isinstance(packet, WorkerPacket):
                    self._table.receive(packet, now)


async def _close(reader: MailboxReader) -> None:
    try:
        async with asyncio.timeout(_CLOSE_S):
            await reader.close()
    except Unreachable:
        pass
