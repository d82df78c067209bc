"""What the demonstration looks like: two viewers side by side, what happened below, a verdict at the end."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hub.cli.screen import Screen
from hub.cli.viewer import Viewer

#: Lines of an answer that are shown, if the terminal is high enough.
_LINES = 10
_EVENTS = 8
_STATES = {"online": "green", "reconnecting": "yellow"}


class Stage(Screen):
    """Two viewers side by side."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, events=_EVENTS, pictures_a_second=15)
        self.viewers: Sequence[Viewer] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = max(3, min(_LINES, console.height - _EVENTS - 7))
        columns = Table.grid(expand=True, padding=(0, 1))
        panels = [
            _panel(viewer, console, options.max_width // max(1, len(self.viewers)), lines) for viewer in self.viewers
        ]
        for _ in panels:
            columns.add_column(ratio=1)
        if panels:
            columns.add_row(*panels)
        yield Group(columns, *self._events)


def _panel(viewer: Viewer, console: Console, width: int, lines: int) -> Panel:
    state = viewer.client.state
    shown = Text(viewer.text).wrap(console, max(10, width - 7))[-lines:]
    body = Text("\n").join(shown)
    body.append("\n" * (lines - len(shown)))
    done = viewer.generation is not None and viewer.generation.verified is not None
    status = Text()
    status.append("● ", _STATES.get(state, "dim"))
    status.append(f"{viewer.switch.hub} · entry {viewer.witness.last} · {'done' if done else state}")
    return Panel(
        body,
        title=f"[bold]{viewer.name}[/]",
        title_align="left",
        subtitle=status,
        subtitle_align="left",
        border_style=_STATES.get(state, "dim"),
        padding=(0, 1),
    )


def verdict(viewers: Sequence[Viewer], digest: str) -> Group:
    """The figures of every viewer, each in green where it is what it must be."""
    digests = Table.grid(padding=(0, 2))
    for viewer in viewers:
        digests.add_row(f"  {viewer.name}", Text(viewer.sha256, "green" if viewer.sha256 == digest else "bold red"))
    digests.add_row("  in `done`", digest or "none came")
    table = Table(box=SIMPLE_HEAD, header_style="bold", border_style="dim", pad_edge=False)
    table.add_column("")
    for viewer in viewers:
        table.add_column(viewer.name, justify="right", min_width=8)

    def row(name: str, values: Sequence[object], good: Sequence[bool] | None = None) -> None:
        styles = ["" if good is None else "green" if fine else "bold red" for fine in good or [True] * len(values)]
        table.add_row(name, *(Text(str(value), style) for value, style in zip(values, styles, strict=True)))

    def zeros(name: str, values: Sequence[int]) -> None:
        row(name, values, [value == 0 for value in values])

    row("last entry", [viewer.witness.last for viewer in viewers])
    row("reconnects", [viewer.reconnects for viewer in viewers])
    zeros("duplicates", [viewer.witness.duplicates for viewer in viewers])
    zeros("gaps", [viewer.witness.gaps for viewer in viewers])
    return Group("", Text("SHA-256 of the text", "bold"), digests, "", table)
