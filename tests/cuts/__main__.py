"""`python -m tests.cuts`: one generation, two viewers; each Redis call cut, each await cancelled, one at a time.

Exit status 1 if anything went wrong that viewers were not told of, or anything was left behind; 2 if the machine
was too busy to say.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter, defaultdict

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hub.broker.embedded import EmbeddedRedis
from tests.cuts import plan
from tests.cuts.campaign import AT_ONCE, clean_run, runs
from tests.cuts.scenario import Cancel, Cut, Outcome
from tests.faults.pace import quick

#: Lines of log shown with a run that went wrong.
LOG_LINES = 30


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cuts", description=__doc__)
    parser.add_argument("--only", default="", help="only runs whose name contains this, e.g. “append #3, after”")
    parser.add_argument("--seed", type=int, default=0, help="the order of the runs; 0 is by name")
    parser.add_argument("--most", type=int, help="at most so many runs, chosen by the seed")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, choices=range(1, 16), metavar="1…15")
    parser.add_argument("--list", action="store_true", help="name the runs, and run none")
    options = parser.parse_args()
    console = Console(soft_wrap=True)
    with EmbeddedRedis() as redis, quick():
        sys.exit(asyncio.run(_campaign(console, redis, options)))


async def _campaign(console: Console, redis: EmbeddedRedis, options: argparse.Namespace) -> int:
    socket = redis.url.removeprefix("unix://")
    clean = await clean_run(socket)
    if clean.faults:
        console.print("[red]The scenario fails with nothing cut:[/]", *map(escape, clean.faults), sep="\n  ")
        return 1
    for name in plan.unknown(clean):
        console.print(f"[yellow]No task is called {name} any more: tests/cuts/plan.py is out of date.[/]")
    all_plans: list[Cut | Cancel] = [*plan.cuts(clean), *plan.cancels(clean)]
    plans = [each for each in all_plans if options.only in str(each)]
    if options.seed or options.most:
        random.Random(options.seed).shuffle(plans)
    plans = plans[: options.most]
    console.print(
        f"{sum(clean.counts.values())} Redis calls in {clean.took_s:.1f} s; {len(plans)} runs with one fault."
    )
    if options.list:
        for each in plans:
            console.print(str(each), highlight=False)
        return 0
    began = time.monotonic()
    outcomes = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("runs", total=len(plans))
        async for outcome in runs(socket, plans, at_once=options.at_once):
            outcomes.append(outcome)
            progress.advance(bar)
            if outcome.faults:
                _show(console, outcome)
            if not console.is_terminal and len(outcomes) % 50 == 0:
                console.print(f"{len(outcomes)} of {len(plans)} runs after {time.monotonic() - began:.0f} s")
    console.print(_table(outcomes))
    void = sum(outcome.is_void for outcome in outcomes)
    wrong = sum(bool(outcome.faults) for outcome in outcomes) - void
    hit = sum(outcome.was_hit for outcome in outcomes)
    console.print(
        f"{len(outcomes)} runs in {time.monotonic() - began:.0f} s; {hit} of them met their fault; {wrong} went wrong.",
        style="red" if wrong else "green",
    )
    if void:
        console.print(
            f"{void} say nothing: this machine was too busy for them. Run them again with --only.", style="yellow"
        )
    return 1 if wrong else 2 if void else 0


def _show(console: Console, outcome: Outcome) -> None:
    busy = f" (a busy machine: {outcome.lag_s:.2f} s without a turn)" if outcome.is_void else ""
    console.print(f"[red]✗[/] {escape(str(outcome.what))}{busy}", highlight=False)
    for fault in outcome.faults:
        console.print(f"    {escape(fault)}", highlight=False)
    for line in outcome.logs[-LOG_LINES:]:
        console.print(f"      {escape(line)}", style="dim", highlight=False)


def _table(outcomes: list[Outcome]) -> Table:
    """One line for each kind of call and each kind of task."""
    table = Table(title="One fault at a time")
    for name in ("what", "runs", "met", "wrong", "told", "slowest"):
        is_text = name in ("what", "told")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name == "what")
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[_group(outcome)].append(outcome)
    for name, group in sorted(groups.items()):
        told: Counter[str] = sum((outcome.told for outcome in group), Counter())
        table.add_row(
            name,
            str(len(group)),
            str(sum(outcome.was_hit for outcome in group)),
            str(sum(bool(outcome.faults) for outcome in group)),
            ", ".join(f"{what} {count}" for what, count in sorted(told.items())),
            f"{max(outcome.took_s for outcome in group):.1f} s",
        )
    return table


def _group(outcome: Outcome) -> str:
    what = outcome.what
    if isinstance(what, Cut):
        return f"{what.address.side} {what.address.kind}"
    return f"cancel {what.at.name}" if what else "nothing"


if __name__ == "__main__":
    main()
