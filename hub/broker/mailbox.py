"""The live path between processes: one Redis stream per hub and per worker, read by one blocking XREAD.

A mailbox may lose packets (trimmed, expired, flushed) and never promises otherwise: what a packet would have
brought is in the log or in a stream's meta. Bounds: `mailbox_packets` packets of at most 64 KiB each.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from headrace.protocol.entries import Entry
from hub.broker import keys
from hub.broker.connections import BLOCK_MS, COMMAND_TIMEOUT_S, Connections
from hub.broker.keys import StreamKey
from hub.broker.resp import Command, RawConnection, ReplyError

log_ = structlog.get_logger(__name__)

#: A packet is closed once it holds this much.
PACKET_BYTES = 64 * 1024
#: Packets fetched by one read.
_READ_PACKETS = 64


class Part(msgspec.Struct, array_like=True, gc=False):
    """News of one stream for a hub: entries from `first` on, or none: "relayed up to first - 1"."""

    key: StreamKey
    mark: str
    first: int
    entries: list[Entry]


class HubPacket(msgspec.Struct, array_like=True, tag="h", gc=False):
    """What a hub gets. `sender` is the mailbox to talk back to, empty for one who holds no lease."""

    sender: str
    parts: list[Part]
    not_mine: list[StreamKey] = []


class Wish(msgspec.Struct, array_like=True, gc=False):
    """What a hub tells an owner about one stream: its demand (0: nobody here can take more), and whether
    it announces itself (then the owner answers), leaves, or passes on a cancel."""

    key: StreamKey
    demand: int
    announce: bool = False
    leave: bool = False
    cancel: bool = False
    on_abandon: str = ""


class WorkerPacket(msgspec.Struct, array_like=True, tag="w", gc=False):
    """What a worker gets. `sender` is the hub's mailbox."""

    sender: str
    wishes: list[Wish]


Packet = HubPacket | WorkerPacket
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Packet).decode


def new_mailbox(kind: str) -> str:
    """A name that no mailbox ever had: `h…` for hubs, `w…` for workers."""
    return f"{kind}{secrets.token_urlsafe(9)}"


def relay_packets(sender: str, parts: Iterable[Part]) -> Iterator[HubPacket]:
    """Pack parts for one hub, each packet within PACKET_BYTES (a single larger part makes a packet of its own)."""
    batch: list[Part] = []
    size = 0
    for part in parts:
        weight = 64 + sum(len(data) + 16 for _, data in part.entries)
        if batch and size + weight > PACKET_BYTES:
            yield HubPacket(sender, batch)
            batch, size = [], 0
        batch.append(part)
        size += weight
    if batch:
        yield HubPacket(sender, batch)


def post_command(mailbox: str, packet: Packet, packets: int) -> Command:
    """XADD that never makes a mailbox: nil means that its owner is gone."""
    return ("XADD", keys.mailbox(mailbox), "NOMKSTREAM", "MAXLEN", "~", packets, "*", "p", _encode(packet))


async def post(redis: Any, mailbox: str, packet: Packet, packets: int) -> bool:
    """Send one packet; False if the mailbox is gone."""
    reply = await redis.execute_command(*post_command(mailbox, packet, packets))
    return reply is not None


async def still_there(redis: Redis, mailboxes: list[str]) -> set[str]:
    """Those of `mailboxes` whose owner lives."""
    pipeline = redis.pipeline(transaction=False)
    for mailbox in mailboxes:
        pipeline.exists(keys.mailbox(mailbox))
    return {mailbox for mailbox, there in zip(mailboxes, await pipeline.execute(), strict=True) if there}


class MailboxReader:
    """Reads one mailbox incarnation. When it breaks, open a new one: a name is never used twice.

    `renew` must be called well within `ttl_s`.
    """

    def __init__(self, connections: Connections, name: str, ttl_s: float) -> None:
        self.name = name
        self._key = keys.mailbox(name)
        self._ttl_ms = int(ttl_s * 1000)
        self._redis = connections.control
        self._connections = connections
        self._raw: RawConnection | None = None
        self._last: bytes | str = "0-0"

    async def open(self) -> None:
        """Make the mailbox, so that others may post to it. Raises `Unreachable`."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.xadd(self._key, {"o": ""})
        pipeline.pexpire(self._key, self._ttl_ms)
        await pipeline.execute()
        self._raw = await self._connections.raw()

    async def renew(self) -> bool:
        """Keep the mailbox; False if it is gone already."""
        return bool(await self._redis.pexpire(self._key, self._ttl_ms))

    async def read(self) -> list[Packet]:
        """Packets since the last read, waiting up to BLOCK_MS. Raises `Unreachable`; then this incarnation is over."""
        assert self._raw is not None, "open() first"
        command: Command = (
            "XREAD",
            "COUNT",
            _READ_PACKETS,
            "BLOCK",
            BLOCK_MS,
            "STREAMS",
            self._key,
            self._last,
        )
        [reply] = await self._raw.execute([command], BLOCK_MS / 1000 + COMMAND_TIMEOUT_S)
        if isinstance(reply, ReplyError):
            raise RedisConnectionError(f"mailbox read refused: {reply}")
        if not reply:
            return []
        rows = _rows(reply)
        self._last = rows[-1][0]
        packets = []
        for _, fields in rows:
            if fields[0] == b"p":
                try:
                    packets.append(_decode(fields[1]))
                except msgspec.MsgspecError:
                    # Another version's packet: what it brings is in the log.
                    log_.warning("packet not understood", bytes=len(fields[1]))
        return packets

    async def close(self) -> None:
        """Remove the mailbox, so that others notice at once."""
        if self._raw is not None:
            self._raw.close()
        await self._redis.delete(self._key)


def _rows(reply: Any) -> list[Any]:
    """The rows of an XREAD over one key: a map under RESP3, a list of pairs under RESP2."""
    rows: list[Any] = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    return rows
