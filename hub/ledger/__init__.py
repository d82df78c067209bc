"""The ledger: one row for each provider call, kept in a database, asked by the hub and by `headrace usage`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

import msgspec

from hub.broker.usage import UsageRow

By = Literal["user", "org", "model", "day"]
BYS: tuple[By, ...] = get_args(By)
#: Groups of one answer; the most expensive come first, the rest is left out and said so.
GROUPS = 1000
#: The ledger of whoever sets none: one file of the user that hubs run as. `headrace usage` looks there too.
DEFAULT = "sqlite:~/.local/state/headrace/usage.db"
#: The setting that keeps none.
OFF = "off"


class WrongLedger(ValueError):
    """A ledger that cannot be used. The text says what would be right; it never holds a password."""


class LedgerDown(Exception):
    """The database does not answer, or not as it should. Try again later; nothing is lost meanwhile."""


class LedgerAbsent(LedgerDown):
    """There is none yet: nobody has written to it."""


class Query(msgspec.Struct, frozen=True):
    """Which rows. `org` and `user` None: of everybody. Times are Unix ms, the end is exclusive."""

    by: By
    since_ms: int
    until_ms: int
    org: str | None = None
    user: str | None = None


class Total(msgspec.Struct, frozen=True):
    """The sum over one user, organisation, model or day (UTC)."""

    name: str
    calls: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_nanos: int
    """Of the calls whose price is known."""
    unpriced: int
    """Calls whose price is not known."""
    estimated: int
    """Calls whose tokens were estimated."""


class Ledger(Protocol):
    """All of it raises LedgerDown."""

    async def open(self) -> None:
        """Connect, and make the table where there is none."""
        ...

    async def write(self, rows: Sequence[UsageRow]) -> None:
        """All of the rows or none. A row that is there already stays, unless it was an estimate and this is not."""
        ...

    async def totals(self, query: Query) -> list[Total]:
        """At most GROUPS, the most expensive first."""
        ...

    async def close(self) -> None: ...


def check(url: str) -> None:
    """Raises WrongLedger for what can never be one; loads no driver."""
    if url == OFF or url.startswith(("postgresql://", "postgres://")):
        return
    if not url.startswith("sqlite:"):
        raise WrongLedger("a ledger is sqlite:FILE, postgresql://…, or off")
    if not _file(url):
        raise WrongLedger("the ledger's URL names no file: write sqlite:usage.db or sqlite:///var/lib/usage.db")


def connect(url: str, *, reads_only: bool = False) -> Ledger:
    """The ledger at `sqlite:FILE` or `postgresql://…`; it connects when it is opened. Raises WrongLedger.

    With `reads_only` nothing is made: a ledger that is not there raises LedgerAbsent when it is asked.
    """
    check(url)
    if url.startswith("sqlite:"):
        from hub.ledger.sqlite import SqliteLedger

        return SqliteLedger(Path(_file(url)), reads_only=reads_only)
    if url == OFF:
        raise WrongLedger("the ledger is off: nothing is kept")
    try:
        from hub.ledger.postgres import PostgresLedger
    except ImportError:
        raise WrongLedger("PostgreSQL needs a driver: pip install 'headrace-hub[postgres]'") from None
    return PostgresLedger(url, reads_only=reads_only)


def _file(url: str) -> str:
    """`sqlite:relative`, `sqlite:/absolute`, `sqlite:~/home`, and `sqlite:///absolute` as others write it."""
    path = url.removeprefix("sqlite:")
    return path[2:] if path.startswith("///") else path
