"""`headrace usage`: what was used and what it cost, out of the ledger."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hub.cli.failure import Failure, one_line
from hub.ledger import DEFAULT, GROUPS, OFF, By, LedgerAbsent, LedgerDown, Query, Total, WrongLedger, connect
from hub.ledger.since import HOW, since_ms


def show(by: By, since: str, org: str | None, user: str | None, *, as_json: bool) -> int:
    """Print it. Raises Failure."""
    url = _url()
    now = time.time()
    try:
        start = since_ms(since, now)
    except ValueError:
        raise Failure(f"--since “{one_line(since)}”: write {HOW}") from None
    totals = asyncio.run(_ask(url, Query(by, start, int(now * 1000) + 1, org, user)))
    if as_json:
        print(msgspec.json.encode(totals).decode())
    elif totals:
        Console(highlight=False).print(table(by, totals))
    else:
        print(f"nothing was used since {datetime.fromtimestamp(start / 1000, UTC):%Y-%m-%d %H:%M} UTC, as far as asked")
    return 0


def _url() -> str:
    """The ledger that hubs with this environment use. Raises Failure."""
    url = os.environ.get("HEADRACE_LEDGER") or DEFAULT
    if url == OFF:
        raise Failure("HEADRACE_LEDGER is off: no usage is kept; set it to sqlite:FILE or postgresql://… for the hubs")
    return url


async def _ask(url: str, query: Query) -> list[Total]:
    try:
        ledger = connect(url, reads_only=True)
    except WrongLedger as error:
        raise Failure(f"HEADRACE_LEDGER: {one_line(error)}") from None
    try:
        return await ledger.totals(query)
    except LedgerAbsent as error:
        raise Failure(
            f"{one_line(error)}; a hub makes the ledger at its start. If yours keeps another, set HEADRACE_LEDGER to it"
        ) from None
    except LedgerDown as error:
        raise Failure(f"the ledger cannot be read: {one_line(error)}; is HEADRACE_LEDGER right?") from None
    finally:
        await ledger.close()


def table(by: By, totals: Sequence[Total]) -> Table:
    """Money with four digits: a single answer often costs less than a cent."""
    made = Table(box=SIMPLE_HEAD, header_style="bold", border_style="dim", pad_edge=False)
    made.add_column(by)
    for name in ("calls", "input", "cached", "output", "cost USD"):
        made.add_column(name, justify="right")
    made.add_column("", style="dim")
    for total in totals:
        made.add_row(
            Text(total.name),
            *(f"{value:,}" for value in (total.calls, total.input_tokens, total.cached_tokens, total.output_tokens)),
            "unknown" if total.unpriced == total.calls else f"{total.cost_nanos / 1e9:,.4f}",
            ", ".join(_remarks(total)),
        )
    if len(totals) == GROUPS:
        made.caption = f"the first {GROUPS}; ask for less with --since, --org or --user"
    return made


def _remarks(total: Total) -> list[str]:
    remarks = []
    if total.unpriced:
        remarks.append(f"{total.unpriced} without a known price")
    if total.estimated:
        remarks.append(f"{total.estimated} estimated")
    return remarks
