"""Text on a terminal as it arrives: wrapped at words, nothing redrawn, so nothing flickers.

What models write is not trusted: control characters never reach the terminal.
"""

from __future__ import annotations

import re
import shutil
from typing import TextIO

from rich.cells import cell_len

_PIECES = re.compile(r"\n|[^\S\n]+|\S+")
#: Everything that could move the cursor or change the terminal's mode; newline and tab stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class Paper:
    """Writes text that comes in pieces. On anything but a terminal it is passed on as it is.

    A word that turns out too long for its line is taken back and begins the next one. Notes stand below the
    text and go away without a trace.
    """

    def __init__(self, out: TextIO, width: int | None = None) -> None:
        """`width` in cells; None asks the terminal each time."""
        self._out = out
        self.is_terminal = out.isatty()
        self._width = width
        self._column = 0
        self._word = ""  # the unfinished word at the end of the line
        self._has_note = False
        self._is_dim = False

    def write(self, text: str, *, dim: bool = False) -> None:
        """Append to the text."""
        if not self.is_terminal:
            if not dim:  # thinking and remarks are for people
                self._out.write(text.encode("utf-8", "replace").decode())
                self._out.flush()
            return
        self.clear_note()
        self._style(dim)
        for piece in _PIECES.findall(_CONTROL.sub("", text).replace("\t", "    ")):
            self._put(piece)
        self._out.flush()

    def line(self, text: str, *, dim: bool = True) -> None:
        """A line of its own."""
        self.end_line()
        self.write(text, dim=dim)
        self.end_line()

    def end_line(self) -> None:
        """Go to the start of a line, unless there already."""
        self.clear_note()
        if self._column and self.is_terminal:
            self._break()
        self._style(False)
        self._out.flush()

    def note(self, text: str) -> None:
        """Show a passing remark below the text; the next one replaces it, and so does more text."""
        if not self.is_terminal:
            return
        self.clear_note()
        self._out.write(f"\n{DIM}{text[: self._columns - 1]}{PLAIN}")
        self._out.flush()
        self._has_note = True

    def clear_note(self) -> None:
        if self._has_note:
            self._has_note = False
            right = f"\x1b[{self._column}C" if self._column else ""
            self._out.write(f"\r\x1b[K\x1b[A{right}{DIM if self._is_dim else ''}")
            self._out.flush()

    @property
    def _columns(self) -> int:
        return max(20, self._width or shutil.get_terminal_size().columns)

    def _style(self, dim: bool) -> None:
        if dim is not self._is_dim:
            self._is_dim = dim
            self._out.write(DIM if dim else PLAIN)

    def _put(self, piece: str) -> None:
        if piece == "\n":
            self._break()
        elif piece.isspace():
            self._word = ""
            if self._column + len(piece) < self._columns:
                self._out.write(piece)
                self._column += len(piece)
            elif self._column:
                self._break()
        else:
            self._put_word(piece)

    def _put_word(self, piece: str) -> None:
        """The last column stays free: a full line leaves a terminal between two lines."""
        room = self._columns - 1
        if self._column + cell_len(piece) > room:
            started = cell_len(self._word)
            if 0 < started < self._column and started + cell_len(piece) <= room:
                self._out.write(f"\x1b[{started}D\x1b[K")
                piece = self._word + piece
                self._break()
            elif not self._word and self._column:
                self._break()
        for character in piece if cell_len(piece) > room else (piece,):
            cells = cell_len(character)
            if self._column + cells > room:
                self._break()
            self._out.write(character)
            self._column += cells
        self._word += piece

    def _break(self) -> None:
        self._out.write("\n")
        self._column = 0
        self._word = ""
