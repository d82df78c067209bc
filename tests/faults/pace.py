"""The installation's clocks, about six times as fast, all in proportion: a lost lease costs a second, not eight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

from hub import endpoint, reconcile
from hub.broker import connections, janitor, lanes, log, mailbox
from workers import appender, inbox, intake, lease

LEASE_S = 0.8
GRACE_S = 0.4
#: Longer than a lease and its grace, and than a command waits.
LATE_S = 1.6

SETTINGS: dict[str, Any] = {
    "lease_s": LEASE_S,
    "lease_grace_s": GRACE_S,
    "janitor_interval_s": 0.1,
    "mailbox_ttl_s": 3.0,
    "retention_s": 60.0,
}

_CONSTANTS: list[tuple[ModuleType, str, float]] = [
    (connections, "COMMAND_TIMEOUT_S", 0.8),
    (mailbox, "COMMAND_TIMEOUT_S", 0.8),
    (appender, "COMMAND_TIMEOUT_S", 0.8),
    (connections, "BLOCK_MS", 160),
    (mailbox, "BLOCK_MS", 160),
    (intake, "BLOCK_MS", 160),
    (intake, "STRANDED_EVERY_S", 0.5),
    (lanes, "STRANDED_MS", 1_600),
    (janitor, "QUEUE_SLACK_MS", 800),
    (janitor, "RETRY_MS", 160),
    (log, "LOST_MS", 160),
    (lease, "RENEW_S", 0.16),
    (lease, "RECONCILE_S", 1.6),
    (lease, "TICK_S", 0.04),
    (lease, "GIVE_UP_S", 4.8),
    (lease, "LINGER_S", 1.6),
    (appender, "RENEW_AFTER_S", 0.16),
    (inbox, "_CLOSE_S", 0.5),
    (reconcile, "PASS_S", 0.1),
    (reconcile, "SILENT_S", 0.16),
    (reconcile, "IDLE_S", 0.8),
    (reconcile, "LINGER_S", 0.25),
    (reconcile, "SPENT_S", 1.6),
    (reconcile, "SUSPECT_S", 0.1),
    (endpoint, "VERB_TIMEOUT_S", 1.6),
]


@contextmanager
def quick() -> Iterator[None]:
    """While this lasts, everything of hubs and workers in this process goes at that pace. AttributeError if one
    of the constants is not there any more: then this list is out of date.
    """
    with ExitStack() as stack:
        for module, name, value in _CONSTANTS:
            stack.enter_context(patch.object(module, name, value))
        yield
