"""What a chat shows of tools: a dim line for each call as its arguments come, and one for what it returned."""

from __future__ import annotations

from typing import Final

import msgspec

import headrace
from hub.cli.paper import Paper

#: Characters shown of arguments, and of a result's first line.
SHOWN: Final = 120

ToolEvent = headrace.ToolCall | headrace.ToolInput | headrace.ToolReady | headrace.ToolResult


class ToolLines:
    """Of one answer. Bound: a name for each call."""

    def __init__(self, paper: Paper) -> None:
        self._paper = paper
        self._names: dict[str, str] = {}
        self._running: list[str] = []
        self._open = ""  # the call whose line is being written
        self._shown = 0  # of its arguments

    def show(self, event: ToolEvent) -> None:
        if isinstance(event, headrace.ToolCall):
            self._names[event.call] = event.name
            self._begin(event.call)
        elif isinstance(event, headrace.ToolInput):
            if event.call == self._open:  # of calls that come mixed, one at a time
                self._write(event.delta)
        elif isinstance(event, headrace.ToolReady):
            if event.call != self._open:
                self._begin(event.call)
            if not self._shown and event.input not in (None, {}):
                self._write(msgspec.json.encode(event.input).decode())
            self._paper.end_line()
            self._open = ""
            self._running.append(event.call)
            self._note()
        else:
            text = event.output.strip()
            first = text.partition("\n")[0].rstrip()
            cut = "" if first == text and len(first) <= SHOWN else " …"
            self._paper.line(f"{'✖' if event.error else '✓'} {self._name(event.call)}: {first[:SHOWN]}{cut}")
            self._running = [call for call in self._running if call != event.call]
            self._note()

    def _begin(self, call: str) -> None:
        self._open, self._shown = call, 0
        self._paper.end_line()
        self._paper.write(f"⚙ {self._name(call)} ", dim=True)

    def _write(self, piece: str) -> None:
        piece = " ".join(piece.split("\n"))
        room, self._shown = SHOWN - self._shown, self._shown + len(piece)
        if room > 0:
            self._paper.write(piece[:room] + ("…" if len(piece) > room else ""), dim=True)

    def _note(self) -> None:
        if self._running:
            self._paper.note(", ".join(self._name(call) for call in self._running) + " …")

    def _name(self, call: str) -> str:
        return self._names.get(call, "a tool")
