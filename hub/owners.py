"""What a hub tells the owners of streams: its demand, that it watches or leaves, a cancel (protocol §6)."""

from __future__ import annotations

import asyncio

import structlog

from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.keys import StreamKey
from hub.broker.mailbox import Wish, WorkerPacket, post
from hub.tail import Tail

log_ = structlog.get_logger(__name__)

#: Wishes of one packet, some 60 bytes each: it stays below the bound of a mailbox's packets.
PACKET_WISHES = 500
#: An owner that could not be told is told again after this.
RETRY_S = 0.5


class Owners:
    """Gathers wishes and sends them, one packet for each owner. `run` must be running.

    Bound: one wish a watched stream; what is said later joins what still waits.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        #: The mailbox that owners answer to; the relay opens it.
        self.sender = ""
        self._waiting: dict[str, dict[StreamKey, Wish]] = {}
        self._has_wishes = asyncio.Event()

    async def run(self) -> None:
        """Send what has gathered, and go on when there is more, until cancelled."""
        while True:
            await self._has_wishes.wait()
            self._has_wishes.clear()
            gathered, self._waiting = self._waiting, {}
            was_lost = False
            for owner, wishes in gathered.items():
                try:
                    await self._send(owner, list(wishes.values()))
                except Unreachable as error:
                    log_.warning("an owner is told again", error=type(error).__name__)
                    was_lost = True
                    self._put_back(owner, wishes)
            if was_lost:
                await asyncio.sleep(RETRY_S)

    def tell(self, tail: Tail, wish: Wish | None = None) -> None:
        """Tell the owner of a stream, with the next packet, its demand and whatever else `wish` says."""
        if not tail.owner:
            return
        wish = wish or Wish(tail.key, 0)
        wish.demand = tail.demand.limit
        waiting = self._waiting.setdefault(tail.owner, {})
        waiting[tail.key] = _join(waiting.get(tail.key), wish)
        tail.demand.told = tail.demand.limit
        self._has_wishes.set()

    def announce(self, tail: Tail) -> None:
        """Tell the owner that this hub watches; it answers with the offset it relayed last."""
        if tail.state != "done":
            self.tell(tail, Wish(tail.key, 0, announce=True, cancel=tail.cancelled))

    async def say(self, owner: str, wish: Wish) -> None:
        """Tell an owner one thing at once, whether or not its stream is watched here. Raises `Unreachable`."""
        await self._send(owner, [wish])

    async def _send(self, owner: str, wishes: list[Wish]) -> None:
        redis, settings = self._broker.connections.control, self._broker.settings
        for start in range(0, len(wishes), PACKET_WISHES):
            packet = WorkerPacket(self.sender, wishes[start : start + PACKET_WISHES])
            await post(redis, owner, packet, settings.mailbox_packets)

    def _put_back(self, owner: str, wishes: dict[StreamKey, Wish]) -> None:
        waiting = self._waiting.setdefault(owner, {})
        for key, wish in wishes.items():
            later = waiting.get(key)
            waiting[key] = wish if later is None else _join(wish, later)
        self._has_wishes.set()


def _join(said: Wish | None, wish: Wish) -> Wish:
    """The later wish, with what the earlier one said beside its demand. Who comes back has not left."""
    if said is not None:
        wish.announce |= said.announce
        wish.cancel |= said.cancel
        wish.on_abandon = wish.on_abandon or said.on_abandon
    return wish
