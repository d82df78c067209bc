"""Ending a generation for everybody: durable before it returns; the message to the owner only makes it fast."""

from __future__ import annotations

from headrace.protocol.entries import Done, TextDigest, encode_data
from hub.broker.keys import StreamKey
from hub.broker.mailbox import HubPacket, Part, Wish, post
from hub.node import Node

_CANCELLED = encode_data(Done("cancelled", "cancelled", 0, TextDigest().hexdigest()))


async def cancel(node: Node, key: StreamKey, *, user: str, may_cancel: bool) -> None:
    """Idempotent; fine on one that is finished. Raises Absent, `Unreachable`."""
    broker, relay = node.broker, node.relay
    outcome = await broker.log.cancel(
        key, user=user, may_cancel=may_cancel, done=_CANCELLED, ttl_ms=int(broker.settings.retention_s * 1000)
    )
    tail = relay.tails.get(key)
    if outcome.owner:
        if tail is not None:
            tail.cancelled = True
        await relay.owners.say(outcome.owner, Wish(key, tail.demand.limit if tail else 0, cancel=True))
    for watcher in outcome.watchers:
        packet = HubPacket("", [Part(key, outcome.mark, outcome.offset, [("done", _CANCELLED)])])
        await post(broker.connections.control, watcher, packet, broker.settings.mailbox_packets)
