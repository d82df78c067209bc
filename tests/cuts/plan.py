"""What to cut and to cancel, given what a clean run did."""

from __future__ import annotations

from collections.abc import Iterator

from tests.cuts.calls import MODES, Address, addresses
from tests.cuts.scenario import Cancel, Cut, Outcome, Owner
from tests.cuts.trial import Await

#: Tasks that end by themselves: each of their awaits is cancelled. Whose they are says what goes with them.
FINITE: dict[str, Owner] = {
    "Endpoint._answer": "socket",
    "Relay.guarded": "hub",
    "Worker._serve_one": "worker",
    "read_answer": "worker",
}
#: Tasks that go round and round: the first so many awaits of each.
ENDLESS: dict[str, Owner] = {
    "Relay._read_mailboxes": "hub",
    "Owners.run": "hub",
    "Reconciler.run": "hub",
    "Appender.run": "worker",
    "Inbox.read": "worker",
    "LeaseKeeper.keep": "worker",
    "Worker._take": "worker",
    "Intake.take_stranded": "worker",
}
ROUNDS = 24

#: One call of every kind that changes something or waits for news, and a few in the middle of the answer.
EVERY_KIND = [
    Address("hub", "reserve", 1),
    Address("hub", "ZADD live index", 1),
    Address("hub", "create", 1),
    Address("hub", "attach", 1),
    Address("hub", "attach", 2),
    Address("hub", "XADD lane standard", 1),
    Address("hub", "SET request", 1),
    Address("hub", "leave", 1),
    Address("hub", "cancel", 1),
    Address("hub", "XADD worker mailbox", 1),
    Address("hub", "XREAD hub mailbox", 2),
    Address("hub", "XRANGE log", 1),
    Address("worker", "XREADGROUP lane takeover", 2),
    Address("worker", "claim", 1),
    Address("worker", "XACK lane standard", 1),
    Address("worker", "append", 1),
    Address("worker", "append", 2),
    Address("worker", "append", 9),
    Address("worker", "XADD hub mailbox", 2),
    Address("worker", "XADD hub mailbox", 9),
    Address("worker", "renew", 1),
    Address("worker", "XREAD worker mailbox", 1),
]


def cuts(clean: Outcome) -> list[Cut]:
    return [Cut(address, mode) for address in addresses(clean.counts) for mode in MODES]


def cancels(clean: Outcome) -> list[Cancel]:
    return list(_cancels(clean))


def _cancels(clean: Outcome) -> Iterator[Cancel]:
    for (name, ordinal), count in sorted(clean.awaits.items()):
        owner = FINITE.get(name) or ENDLESS.get(name)
        if owner is None:
            continue
        last = count if name in FINITE else min(count, ROUNDS)
        for suspension in range(1, last + 1):
            yield Cancel(Await(name, ordinal, suspension), owner)


def unknown(clean: Outcome) -> list[str]:
    """Tasks of this plan that a clean run did not start: they were renamed."""
    return sorted((FINITE.keys() | ENDLESS.keys()) - {name for name, _ in clean.awaits})
