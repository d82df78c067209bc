"""A row of sums, as either database returns it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hub.ledger import By, Total


def total(by: By, row: Sequence[Any]) -> Total:
    name = str(row[0])
    if by == "day":
        name = datetime.fromtimestamp(int(row[0]) * 86_400, UTC).date().isoformat()
    return Total(name, *(int(value) for value in row[1:]))
