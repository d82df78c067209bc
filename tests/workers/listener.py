"""What a worker sees of a hub: a mailbox that registers interest, announces itself and folds what is relayed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from headrace.protocol.body import Body, Options
from headrace.protocol.entries import Entry, TextDigest, decode_data
from headrace.protocol.frames import Message
from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.keys import StreamKey
from hub.broker.mailbox import HubPacket, MailboxReader, Wish, WorkerPacket, new_mailbox, post

DEADLINE_S = 20.0


async def ask(broker: Broker, model: str, request: str = "r1", **options: Any) -> StreamKey:
    """An accepted request of alice."""
    return await broker.accept(
        org="org",
        user="alice",
        request_key=request,
        body=Body([Message("user", "Why is the sky blue?")], model=model),
        options=Options(**options),
        now_ms=int(time.time() * 1000),
    )


async def log_of(broker: Broker, key: StreamKey) -> list[Entry]:
    return await broker.log.read(key, 1, 100_000)


async def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait for `condition`, which may return an awaitable, to be true; returns what it gave."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
        except Unreachable:
            value = None  # the test took Redis away; it comes back
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen in time"
        await asyncio.sleep(0.01)


async def ending(broker: Broker, key: StreamKey) -> tuple[list[Entry], dict[str, Any]]:
    """The whole log once it is closed, and its `done`, whose digest is checked."""

    async def closed() -> list[Entry]:
        entries = await log_of(broker, key)
        return entries if entries and entries[-1][0] == "done" else []

    entries: list[Entry] = await eventually(closed, "the end of the answer")
    assert [kind for kind, _ in entries].count("done") == 1
    digest = TextDigest()
    for entry in entries:
        digest.add(*entry)
    done = decode_data(*entries[-1])
    assert (done["text_bytes"], done["text_sha256"]) == (digest.size, digest.hexdigest())
    return entries, done


def kinds(entries: list[Entry]) -> list[str]:
    """The kinds in order, repeats of one kind in a row once."""
    found: list[str] = []
    for kind, _ in entries:
        if not found or found[-1] != kind:
            found.append(kind)
    return found


def text(entries: list[Entry]) -> str:
    return b"".join(data for kind, data in entries if kind == "text").decode()


class Listener:
    """Everything that was relayed here, by stream and offset."""

    def __init__(self, broker: Broker, reader: MailboxReader) -> None:
        self._broker = broker
        self._reader = reader
        self.entries: dict[StreamKey, dict[int, Entry]] = {}
        self.packets: list[HubPacket] = []

    @property
    def name(self) -> str:
        return self._reader.name

    async def read(self) -> None:
        while True:
            for packet in await self._reader.read():
                assert isinstance(packet, HubPacket)
                self.packets.append(packet)
                for part in packet.parts:
                    stream = self.entries.setdefault(part.key, {})
                    for offset, entry in enumerate(part.entries, part.first):
                        assert stream.setdefault(offset, entry) == entry, "one offset, two entries"

    async def attach(self, key: StreamKey, demand: int) -> str:
        """Register, and announce to the owner if there is one; returns the owner."""
        view = await self._broker.log.attach(key, user="alice", may_read=False, mailbox=self.name, demand=demand)
        if view.owner:
            await self.tell(view.owner, Wish(key, demand, announce=True))
        return view.owner

    async def tell(self, owner: str, wish: Wish) -> bool:
        return await post(self._broker.connections.control, owner, WorkerPacket(self.name, [wish]), 512)

    def has_done(self, key: StreamKey) -> bool:
        return any(kind == "done" for kind, _ in self.entries.get(key, {}).values())


@asynccontextmanager
async def listening(broker: Broker) -> AsyncIterator[Listener]:
    reader = MailboxReader(broker.connections, new_mailbox("h"), 30)
    await reader.open()
    listener = Listener(broker, reader)
    reading = asyncio.create_task(listener.read())
    try:
        yield listener
        assert not reading.done()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await reader.close()
