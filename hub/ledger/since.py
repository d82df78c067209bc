"""From when on: how people and programs write it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

_UNITS_S: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
#: What to write, for who wrote something else.
HOW: Final = "24h, 7d, or a date like 2026-11-01"
#: Where nobody says.
DEFAULT: Final = "30d"


def since_ms(text: str, now: float) -> int:
    """`30m`, `24h`, `7d`, `4w` before `now` (Unix seconds), or a date or time in ISO 8601, UTC where it names no
    zone, as Unix ms. Raises ValueError.
    """
    ago = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if ago:
        return int((now - int(ago[1]) * _UNITS_S[ago[2]]) * 1000)
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
