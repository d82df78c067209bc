"""What a measurement has to reach, and how what it reached is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import median

from rich.table import Table

Figures = Mapping[str, float]
"""What one run measured, by name."""


@dataclass(frozen=True)
class Line:
    """One line of a result. `floor` names the figure of the same run that this one is to be seen against."""

    what: str
    figure: str
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    floor: str = ""
    ratio_at_most: float | None = None

    @property
    def target(self) -> str:
        if self.ratio_at_most is not None:
            return f"≤ {self.ratio_at_most:g} ×"
        if self.at_most is not None:
            return f"≤ {self.at_most:g} {self.unit}".rstrip() if self.at_most else "0"
        return f"≥ {self.at_least:g} {self.unit}".rstrip() if self.at_least is not None else ""


@dataclass(frozen=True)
class Row:
    """A line filled in."""

    what: str
    measured: str
    floor: str
    ratio: str
    target: str
    met: bool | None
    """None where nothing was to be reached."""


def fill(line: Line, runs: Sequence[Figures]) -> Row:
    """The median of several runs; a ratio is the median of the runs' ratios."""
    value = median(run[line.figure] for run in runs)
    floor = median(run[line.floor] for run in runs) if line.floor else None
    ratio = median(run[line.figure] / run[line.floor] for run in runs) if floor else None
    tests = [
        value <= line.at_most if line.at_most is not None else None,
        value >= line.at_least if line.at_least is not None else None,
        ratio is not None and ratio <= line.ratio_at_most if line.ratio_at_most is not None else None,
    ]
    judged = [test for test in tests if test is not None]
    spread = ""
    if len(runs) > 1:
        low, high = min(run[line.figure] for run in runs), max(run[line.figure] for run in runs)
        spread = f" ({number(low)}–{number(high)})" if number(low) != number(high) else ""
    return Row(
        line.what,
        f"{number(value)} {line.unit}".rstrip() + spread,
        f"{number(floor)} {line.unit}".rstrip() if floor is not None else "",
        f"{ratio:.2f} ×" if ratio is not None else "",
        line.target,
        all(judged) if judged else None,
    )


def number(value: float) -> str:
    """Three figures that matter, integers as they are."""
    if isnan(value):
        return "none"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


#: Every measurement ends with it.
OTHERS = Line("everything else on this machine meanwhile", "others_pct", "% of a core")

_HEAD = ("what", "measured", "floor", "ratio", "target", "met")


def _cells(row: Row) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: ""}[row.met]
    return row.what, row.measured, row.floor, row.ratio, row.target, met


def table(title: str, rows: Sequence[Row]) -> Table:
    """For a terminal."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for name in _HEAD:
        shown.add_column(name, justify="left" if name in ("what", "met") else "right")
    for row in rows:
        style = {True: "green", False: "red", None: ""}[row.met]
        shown.add_row(*_cells(row)[:-1], f"[{style}]{_cells(row)[-1]}[/]" if style else "")
    return shown


def markdown(title: str, rows: Sequence[Row]) -> str:
    """For RESULTS.md."""
    lines = [f"### {title}", "", f"| {' | '.join(_HEAD)} |", "|---|---:|---:|---:|---:|---|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join([*lines, ""])
