"""What hubs and workers logged above `info`: each line is explained by what a run does to them, or is a finding.

Pure but for `read`. A traceback is never explained.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

_REDIS = "Redis is killed, paused and cut off from this process"
_HISTORY = "Redis lost writes, or a viewer's stream was taken over while this hub was cut off"
#: Event → why a run under faults logs it.
EXPECTED: dict[str, str] = {
    "redis out of reach": _REDIS,
    "redis out of reach, taking no requests": _REDIS,
    "redis out of reach, appends wait": _REDIS,
    "redis out of reach, leases wait": _REDIS,
    "redis out of reach, leaving a ticket": _REDIS,
    "redis out of reach after a claim; its lease runs out": _REDIS,
    "redis refuses appends, they wait": "a Redis that just started is still loading its file",
    "waiting for redis; is HEADRACE_REDIS_URL right?": _REDIS,
    "a lane entry stays, it will be refused later": _REDIS,
    "a broken log could not be ended yet": _REDIS,
    "janitor waits for Redis": _REDIS,
    "reconcile pass waits for Redis": _REDIS,
    "stream work waits for the reconcile pass": _REDIS,
    "an owner was not told": _REDIS,
    "requests meet no Redis": _REDIS,
    "left without telling redis; leases run out": _REDIS,
    "mailbox was lost": "its renewal came too late: Redis was away, or this process was stopped",
    "mailbox was lost, opening another": "its renewal came too late: Redis was away, or this process was stopped",
    "mailbox broke, opening another when redis answers": _REDIS,
    "generation lost": "this worker was stopped or cut off for longer than a lease: another one has the generation",
    "generation given up": "this worker was cut off for longer than it keeps a generation",
    "redis lost the end of a generation, appending again": "a crash of Redis came between the answer and its entry",
    "lane entry was pending with nobody": "a cut came between the ack and the deletion of an entry that was claimed",
    "an owner is told again": _REDIS,
    "redis has another primary": "a failover",
    "dead letter": "its workers were killed one after the other",
    "provider failed": "the provider stalls, cuts and errs",
    "usage waits for redis": _REDIS,
    "usage of some calls is lost": "Redis was away when this worker left",
    "all providers of a tier failed, the rules answer": "the provider errs",
    "repaired": "the live path lost a packet to a cut; the reconcile pass is there for that",
    "viewer was stuck": "the reconcile pass is there for that",
    "another history": _HISTORY,
}


@dataclass
class Findings:
    """Lines above `info` by event."""

    explained: dict[str, int] = field(default_factory=dict)
    unexplained: dict[str, int] = field(default_factory=dict)
    #: One line of each that is not explained.
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, who: str, line: str) -> None:
        """Look at one line of a log."""
        event, level, fields = parse(line)
        if level in ("debug", "info"):
            return
        if event in EXPECTED and "exception" not in fields:
            self.explained[event] = self.explained.get(event, 0) + 1
            return
        self.unexplained[event] = self.unexplained.get(event, 0) + 1
        self.examples.setdefault(event, f"{who}: {line[:4000]}")

    @property
    def count(self) -> int:
        return sum(self.unexplained.values())


def parse(line: str) -> tuple[str, str, dict[str, Any]]:
    """Event, level, all fields. A line that is no log line (a traceback, an interpreter's complaint) is an error."""
    try:
        fields = msgspec.json.decode(line)
        return str(fields["event"]), str(fields["level"]), fields
    except (msgspec.DecodeError, KeyError, TypeError):
        return "not a log line", "error", {}


def read(logs: Iterable[Path]) -> Findings:
    findings = Findings()
    for log in logs:
        if log.exists():
            for line in log.read_text(errors="replace").splitlines():
                if line.strip():
                    findings.add(log.stem, line)
    return findings
