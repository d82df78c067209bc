"""`python -m tests.conformance`: all Autobahn cases, a table of the groups, and every case that does not pass."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

from tests.conformance.autobahn import Outcome, run_cases

GROUPS = {
    "1": "framing", "2": "pings and pongs", "3": "reserved bits", "4": "opcodes", "5": "fragmentation",
    "6": "UTF-8", "7": "closing", "9": "limits", "10": "fragments of a long message",
    "12": "compression", "13": "compression, its parameters",
}  # fmt: skip


def table(outcomes: list[Outcome]) -> str:
    lines = [f"{'group':<34}{'cases':>6}{'passed':>8}{'listed':>8}{'wrong':>7}"]
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        counted = counts.setdefault(outcome.case.split(".")[0], Counter())
        counted["cases"] += 1
        counted["passed"] += outcome.passed
        counted["listed"] += outcome.reason is not None
        counted["wrong"] += not outcome.is_as_expected
    counts["all"] = sum(counts.values(), Counter())
    for group, counted in counts.items():
        name = f"{group:<4}{GROUPS.get(group, '')}"
        lines.append(
            f"{name:<34}{counted['cases']:>6}{counted['passed']:>8}{counted['listed']:>8}{counted['wrong']:>7}"
        )
    for reason in dict.fromkeys(outcome.reason for outcome in outcomes if outcome.reason):
        cases = [outcome.case for outcome in outcomes if outcome.reason == reason]
        lines.append(f"\nlisted: {cases[0]} … {cases[-1]} ({len(cases)} cases)\n  {reason}")
    for outcome in outcomes:
        if not outcome.is_as_expected:
            lines.append(f"\nwrong: {outcome.case} ({outcome.verdict}, {outcome.close_code})\n  {outcome.title}")
    return "\n".join(lines)


def main() -> None:
    outcomes = asyncio.run(run_cases())
    sys.stdout.write(table(outcomes) + "\n")
    sys.exit(any(not outcome.is_as_expected for outcome in outcomes))


if __name__ == "__main__":
    main()
