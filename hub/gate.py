"""Who has come in and not yet said who they are: how many may there be, of the hub and of one address. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Protocol

Network = IPv4Network | IPv6Network


class Guest(Protocol):
    """A connection that has not authenticated."""

    def turn_away(self) -> None:
        """Somebody else needs the place: close. Called after the guest was counted out."""


class Gate:
    """Bounds connections between their first byte and their `hello`.

    Whoever is honest passes within a round trip, so when there are too many it is the one that has waited longest
    that has to go, and never a newcomer: a flood only ever pushes itself out. All methods are O(1).
    """

    def __init__(self, guests: int, guests_per_address: int, trusted: tuple[Network, ...] = ()) -> None:
        #: Proxies whose word about an address is taken.
        self.trusted = trusted
        self._limit = guests
        self._limit_per_address = guests_per_address
        #: Both in the order in which the guests came. Bounded by the limits.
        self._guests: dict[Guest, str | None] = {}
        self._by_address: dict[str, dict[Guest, None]] = {}

    def __len__(self) -> int:
        return len(self._guests)

    def enter(self, guest: Guest, address: str | None) -> None:
        """Count `guest` in. `address` as `address_of` gives it; None is counted for the hub alone."""
        self._guests[guest] = address
        if address is not None:
            neighbours = self._by_address.setdefault(address, {})
            neighbours[guest] = None
            if len(neighbours) > self._limit_per_address:
                self._turn_away(next(iter(neighbours)))
        if len(self._guests) > self._limit:
            self._turn_away(next(iter(self._guests)))

    def leave(self, guest: Guest) -> None:
        """The guest said who it is, or is gone. Leaving twice is nothing."""
        address = self._guests.pop(guest, None)
        if address is not None:
            neighbours = self._by_address[address]
            del neighbours[guest]
            if not neighbours:
                del self._by_address[address]

    def _turn_away(self, guest: Guest) -> None:
        self.leave(guest)
        guest.turn_away()


def networks(text: str) -> tuple[Network, ...]:
    """Comma-separated addresses and networks. Raises ValueError, which names the wrong one."""
    return tuple(ip_network(item.strip(), strict=False) for item in text.split(",") if item.strip())


def address_of(peer: str | None, forwarded_for: Iterable[str], trusted: tuple[Network, ...]) -> str | None:
    """The address that a connection counts for: an IPv4 address, or the /64 that an IPv6 one can choose from.

    `forwarded_for` are the X-Forwarded-For headers in order. They are read from the right, and only for as long as
    the one who wrote an item is a trusted proxy: what a client writes itself counts for nothing. None: a trusted
    proxy that does not say for whom it speaks, or no address at all (a unix socket).
    """
    claimed = [item.strip() for header in forwarded_for for item in header.split(",")]
    while peer is not None:
        try:
            address = ip_address(peer)
        except ValueError:
            return None
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if not any(address in network for network in trusted):
            return str(ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
        peer = claimed.pop() if claimed else None
    return None
