"""For whom a tool runs."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asked, as the hub knows from the token, and in which stream the answer is written."""

    user: str
    org: str
    stream: str


running: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """For whom the tool runs that calls this. Raises LookupError outside of one."""
    return running.get()
