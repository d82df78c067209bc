"""The outcome of a run: one structure, as JSON and as a table."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from tests.chaos.logs import Findings
from tests.chaos.timings import Spread, Timings, percentile
from tests.chaos.verdict import Verdict

#: What must be reached: figure → seconds.
TARGETS = {"takeover p99": 10.0, "hub killed, viewers elsewhere p50": 2.0, "hub killed, viewers elsewhere p99": 6.0}


class Figures(msgspec.Struct):
    seed: int
    minutes: float
    redis: str
    faults: dict[str, int]
    load: dict[str, int]
    seen: dict[str, int]
    times: dict[str, float | None]
    violations: dict[str, int]
    unexplained: dict[str, int]
    explained: dict[str, int]
    complaints: list[str]
    leaks: list[str]
    cpu_percent: float
    is_clean: bool = False


def gather(
    plan: Any, counts: Counter[str], load: dict[str, int], verdict: Verdict, timings: Timings, findings: Findings,
    complaints: list[str], leaks: list[str], cpu_percent: float,
) -> Figures:  # fmt: skip
    told = sum(verdict.sums[name] for name in ("resumed: false", "gone", "not_found"))
    seen = {
        "entries delivered": verdict.sums["entries"],
        "lost": verdict.sums["lost"],
        "doubled": verdict.sums["doubled"],
        "resets": verdict.sums["resets"],
        "told of a loss": told,
        "streams lost by Redis": verdict.sums["streams lost"],
        "requests begun anew": verdict.sums["requests begun anew"],
        "unterminated": verdict.sums["unterminated"],
        "cancels": verdict.sums["cancels"],
        "resumes": verdict.sums["resumes"],
    }
    figures = Figures(
        plan.seed, plan.minutes, plan.redis, dict(sorted(counts.items())), load, seen, _times(timings),
        dict(verdict.broken), findings.unexplained, findings.explained, complaints, leaks, round(cpu_percent, 1),
    )  # fmt: skip
    figures.is_clean = verdict.is_clean and not findings.count and not complaints and not leaks
    return figures


def _times(timings: Timings) -> dict[str, float | None]:
    times: dict[str, float | None] = {}
    spreads: dict[str, Spread] = {
        "takeover": timings.takeovers,
        "hub killed, viewers elsewhere": timings.moves,
        "resume": timings.resumes,
    }
    for name, spread in spreads.items():
        for label, values in (("", spread.calm), (" under further faults", spread.all)):
            times[f"{name}{label} count"] = float(len(values))
            for share in (50, 99):
                value = percentile(values, share / 100)
                times[f"{name}{label} p{share}"] = None if value is None else round(value, 2)
    return times


def show(figures: Figures, verdict: Verdict, findings: Findings, console: Console) -> None:
    table = Table(
        "figure", "value", "target", title=f"chaos, seed {figures.seed}, {figures.minutes:g} min, redis {figures.redis}"
    )
    for group in (figures.faults, figures.load, figures.seen):
        for name, value in group.items():
            table.add_row(name, f"{value:,}", "0" if name in ("lost", "doubled", "unterminated") else "")
        table.add_section()
    for name, seconds in figures.times.items():
        if seconds is not None and not name.endswith("count"):
            count = figures.times[f"{name.rpartition(' ')[0]} count"]
            target = f"≤ {TARGETS[name]:g} s" if name in TARGETS else ""
            table.add_row(f"{name}", f"{seconds:.2f} s of {count:.0f}", target)
    table.add_section()
    table.add_row("CPU of this run, of the machine", f"{figures.cpu_percent:.0f} %", "< 70 %")
    table.add_row("unexplained log lines", str(findings.count), "0")
    table.add_row("violations", str(sum(figures.violations.values())), "0")
    table.add_row("leaks", str(len(figures.leaks)), "0")
    console.print(table)
    for violation in verdict.violations[:40]:
        console.print(f"✗ {violation}", style="red", markup=False, soft_wrap=True)
    for event, example in findings.examples.items():
        console.print(
            f"✗ unexplained, {findings.unexplained[event]}×: {example}", style="red", markup=False, soft_wrap=True
        )
    for line in [*figures.complaints, *figures.leaks]:
        console.print(f"✗ {line}", style="red", markup=False, soft_wrap=True)
    console.print("all promises held" if figures.is_clean else "promises were broken", style="bold")
