"""Names for Redis calls that stay the same from run to run: whose, of which kind, and the how manyeth of it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from hub.broker.log import SCRIPTS
from tests.faults.redis_proxy import Call

SCRIPT_NAMES = {hashlib.sha1(text.encode()).hexdigest(): name for name, text in SCRIPTS.items()}

Side = Literal["hub", "worker"]
Mode = Literal["before", "after", "late"]
MODES: tuple[Mode, ...] = ("before", "after", "late")

_KEYS = [
    (re.compile(r"hr:mail:h"), "hub mailbox"),
    (re.compile(r"hr:mail:w"), "worker mailbox"),
    (re.compile(r"hr:live:"), "live index"),
    (re.compile(r"hr:janitor"), "janitor"),
    (re.compile(r"hr:\{lanes\}:(\w+)"), "lane"),
    (re.compile(r"hr:\{.*\}:(meta|log|interest|request|streams)"), ""),
]


def kind_of(call: Call) -> str:
    """`append`, `XADD hub mailbox`, `XACK lane standard`, …"""
    for pattern, name in _KEYS:
        found = pattern.match(call.key)
        if found:
            rest = [found[1]] if pattern.groups else []
            return " ".join([call.name, *filter(None, [name]), *rest]) if call.name.isupper() else call.name
    return f"{call.name} {call.key}" if call.name in ("CLIENT", "SCRIPT") else call.name


@dataclass(frozen=True, order=True)
class Address:
    """One call of the scenario."""

    side: Side
    kind: str
    ordinal: int

    def __str__(self) -> str:
        return f"{self.side} {self.kind} #{self.ordinal}"


#: Called again and again whatever happens: the first few of each are all there is to know.
PERIODIC = re.compile(
    r"XREAD |XREADGROUP|XAUTOCLAIM|EXISTS|SCRIPT|renew|PEXPIRE|HMGET|XLEN|XPENDING|PING|CLIENT|HELLO|SELECT"
    r"|(SET|GET) janitor|TIME|ZRANGEBYSCORE|ZSCORE|HGET|SCAN|DBSIZE|INFO|XRANGE lane|XINFO|XGROUP"
)
PERIODIC_ORDINALS = 3


def addresses(counts: dict[tuple[Side, str], int]) -> list[Address]:
    """Every call to cut, given how many of each kind one clean run makes."""
    return [
        Address(side, kind, ordinal)
        for (side, kind), count in sorted(counts.items())
        for ordinal in range(1, (min(count, PERIODIC_ORDINALS) if PERIODIC.match(kind) else count) + 1)
    ]
