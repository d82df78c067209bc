"""`headrace usage`: what was used and what it cost, out of the ledger."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hub.cli.failure import Failure, one_line
from hub.ledger import GROUPS, By, LedgerDown, Query, Total, WrongLedger, connect

_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def since_ms(text: str, now: float) -> int:
    """`30m`, `24h`, `7d`, `4w` before `now` (Unix seconds), or a date or time in ISO 8601, UTC where it names no
    zone. Raises ValueError.
    """
    ago = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if ago:
        return int((now - int(ago[1]) * _UNITS_S[ago[2]]) * 1000)
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def show(by: By, since: str, org: str | None, user: str | None, as_json: bool) -> None:
    """Print it. Raises Failure."""
    now = time.time()
    try:
        start = since_ms(since, now)
    except ValueError:
        raise Failure(f"“{since}” is no time: write 24h, 7d, or a date like 2026-11-01") from None
    query = Query(by, start, int(now * 1000) + 1, org, user)
    totals = asyncio.run(_ask(os.environ.get("HEADRACE_LEDGER") or DEFAULT_LEDGER, query))
    if as_json:
        print(msgspec.json.encode(totals).decode())
        return
    Console(highlight=False).print(table(by, totals) if totals else f"Nothing was used since {since}.")


async def _ask(url: str, query: Query) -> list[Total]:
    try:
        ledger = connect(url)
    except WrongLedger as error:
        raise Failure(f"HEADRACE_LEDGER: {one_line(error)}") from None
    try:
        await ledger.open()
        return await ledger.totals(query)
    except LedgerDown as error:
        raise Failure(f"the ledger cannot be read: {one_line(error)}") from None
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
            f"{total.cost_micros / 1e6:,.4f}",
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


DEFAULT_LEDGER = "sqlite:headrace-usage.db"
