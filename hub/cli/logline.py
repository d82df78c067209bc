"""One line of a child's log, made pleasant: time, who, what, and the rest dim."""

from __future__ import annotations

import json

from rich.text import Text

_LEVELS = {"warning": "yellow", "error": "bold red", "critical": "bold red"}
_SHOWN = ("event", "level", "timestamp", "exception")


def render(name: str, colour: str, line: str, clock: str) -> Text:
    """`line` as its process wrote it, JSON or not; `clock` is the time to show if the line has none."""
    fields = _fields(line)
    text = Text(overflow="fold")
    text.append(f"{_time(fields.get('timestamp')) or clock}  ", "dim")
    text.append(f"{name:<9}", colour)
    text.append(" │ ", "dim")
    text.append(str(fields["event"]), _LEVELS.get(str(fields.get("level")), ""))
    rest = " ".join(f"{key}={value}" for key, value in fields.items() if key not in _SHOWN)
    if rest:
        text.append(f"  {rest}", "dim")
    if fields.get("exception"):
        text.append(f"\n{fields['exception']}", "red")
    return text


def words(line: str) -> str:
    """What a line says, without time, level and the rest."""
    return str(_fields(line)["event"])


def _fields(line: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    return fields if isinstance(fields, dict) and "event" in fields else {"event": line}


def _time(stamp: object) -> str | None:
    """The local time of day of an ISO stamp in UTC."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(str(stamp)).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return None
