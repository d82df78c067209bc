"""What a command raises when it cannot do its work for a reason that a person can do something about."""

from __future__ import annotations


class Failure(Exception):
    """One line: what happened and what to do. Ends the command with status 1 and no traceback."""


def one_line(text: object) -> str:
    """Any message as one line: the items of a list become clauses."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    joined = ""
    for line in lines:
        item = line.removeprefix("- ")
        joined += ("; " if item is not line and not joined.endswith(":") else " ") + item if joined else item
    return joined
