"""What `headrace demo --chaos` looks like: who is up, how far each answer is, what just broke, what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from hub.cli.crowd import Pair, Viewer
from hub.cli.screen import Screen

_EVENTS = 6
_COLUMNS = 3
#: Figures that must be 0.
_BAD = ("lost", "doubled", "wrong texts", "never ended")
_TOLD = ("started over, and said so", "gone, and said so", "failed, and said so", "refused, and said so")


class Pulse(Screen):
    """Who is up, two bars for each answer, and the figures so far."""

    def __init__(self, console: Console, seconds: float) -> None:
        super().__init__(console, events=_EVENTS, pictures_a_second=12)
        self.pairs: Sequence[Pair] = ()
        #: Which process is up.
        self.up: dict[str, bool] = {}
        self._planned_s = seconds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Group(self._processes(), "", self._answers(options.max_width), "", self._figures(), "", *self._events)

    def _processes(self) -> Text:
        line = Text(f"{min(self.seconds, self._planned_s):3.0f} of {self._planned_s:.0f} s   ", "bold")
        for name, is_up in self.up.items():
            line.append("● " if is_up else "✖ ", "green" if is_up else "bold red")
            line.append(f"{name}   ", "" if is_up else "red")
        return line

    def _answers(self, width: int) -> Table:
        grid = Table.grid(expand=False, padding=(0, 2))
        bar = max(4, (width // _COLUMNS - 8) // 2)
        cells = [_answer(pair, bar) for pair in self.pairs]
        for start in range(0, len(cells), _COLUMNS):
            grid.add_row(*cells[start : start + _COLUMNS])
        return grid

    def _figures(self) -> Text:
        sums = sum((pair.figures for pair in self.pairs), Counter[str]())
        line = Text()
        for name in ("answers", "reconnects", "entries delivered"):
            line.append(f"{sums[name]:,} {name}   ")
        for name in _BAD[:2]:
            line.append(f"{sums[name]} {name}   ", "bold red" if sums[name] else "bold green")
        return line


def _answer(pair: Pair, width: int) -> Text:
    """Two bars, one for each viewer: how much of the answer has come."""
    line = Text(f"{pair.name:>2} ", "dim", no_wrap=True)
    for viewer in pair.viewers:
        line.append_text(_bar(viewer, pair.tokens, width))
        line.append(" ")
    return line


def _bar(viewer: Viewer, tokens: int, width: int) -> Text:
    filled = min(width, viewer.witness.last * width // (tokens + 4))
    bar = Text("━" * filled, "green" if viewer.client.state == "online" else "yellow")
    bar.append("━" * (width - filled), "grey30")
    return bar


def verdict(faults: Mapping[str, int], figures: Mapping[str, int]) -> Table:
    """What broke, what was told, and what must not be."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", border_style="dim", pad_edge=False, show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for name, count in sorted(faults.items()):
        table.add_row(name, str(count))
    table.add_section()
    for name in ("answers", "reconnects", "entries delivered", *_TOLD):
        table.add_row(name, f"{figures.get(name, 0):,}")
    table.add_section()
    for name in _BAD:
        count = figures.get(name, 0)
        table.add_row(Text(name, "bold"), Text(str(count), "bold red" if count else "bold green"))
    return table
