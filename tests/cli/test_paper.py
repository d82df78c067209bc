"""Text on a terminal: what a small emulator shows after the pieces came."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.cli.paper import Paper

_TOKENS = re.compile(r"\x1b\[(\d*)([A-Za-z])|(.|\n)")


class Screen(io.StringIO):
    """Just as much of a terminal as is needed: printing, newline, return, cursor up, right, left, erase line."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = [""]
        self.row = self.column = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for count, command, character in _TOKENS.findall(text):
            steps = int(count or 1)
            if command == "A":
                self.row -= steps
            elif command == "C":
                self.column += steps
            elif command == "D":
                self.column -= steps
            elif command == "K":
                self.rows[self.row] = self.rows[self.row][: self.column]
            elif command == "m":
                pass
            elif character == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.rows):
                    self.rows.append("")
            elif character == "\r":
                self.column = 0
            else:
                assert not command, command
                line = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = line[: self.column] + character + line[self.column + 1 :]
                self.column += 1
        return len(text)

    @property
    def shown(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows).rstrip("\n")


def show(*pieces: str, width: int = 20) -> str:
    screen = Screen()
    paper = Paper(screen, width)
    for piece in pieces:
        paper.write(piece)
    return screen.shown


def test_lines_break_between_words() -> None:
    assert show("The river rises in a field that nobody owns") == "The river rises in\na field that nobody\nowns"


def test_a_word_that_grows_past_its_line_moves_to_the_next_one() -> None:
    assert show("The river rises in a fi", "eld", " that") == "The river rises in\na field that"


def test_a_word_longer_than_a_line_is_broken_where_it_must() -> None:
    assert show("x" * 45) == "\n".join(["x" * 19, "x" * 19, "x" * 7])


def test_line_ends_of_the_text_are_kept() -> None:
    assert show("one\n\ntwo", "\n", "  three") == "one\n\ntwo\n  three"


def test_control_characters_never_reach_the_terminal() -> None:
    screen = Screen()
    Paper(screen, 80).write("a\x1b]0;title\x07b\x1b[2Jc\rd\x9b1me\u202ef")
    assert screen.shown == "a]0;titleb[2Jcd1mef"


def test_a_note_goes_away_without_a_trace() -> None:
    screen = Screen()
    paper = Paper(screen, 30)
    paper.write("half a sen")
    paper.note("connection lost, reconnecting …")
    assert "reconnecting" in screen.shown
    paper.write("tence")
    assert screen.shown == "half a sentence"


def test_without_a_terminal_the_text_is_passed_on_as_it_is() -> None:
    out = io.StringIO()
    paper = Paper(out)
    paper.write("a long line " * 20)
    paper.write("thinking", dim=True)
    paper.note("a note")
    paper.line("a remark")
    assert out.getvalue() == "a long line " * 20


_words = st.text(alphabet="abc déß\n", max_size=12)


@given(st.lists(st.one_of(_words, st.just("\0note")), max_size=30), st.integers(20, 40))
def test_whatever_the_pieces_every_word_is_shown_once_and_in_order(pieces: list[str], width: int) -> None:
    screen = Screen()
    paper = Paper(screen, width)
    for piece in pieces:
        if piece == "\0note":
            paper.note("wait")
        else:
            paper.write(piece)
    paper.clear_note()
    text = "".join(piece for piece in pieces if piece != "\0note")
    assert "".join(screen.shown.split()) == "".join(text.split())
    assert all(len(row) < width for row in screen.rows)


@pytest.mark.parametrize("width", [20, 21, 33, 80])
def test_pieces_of_any_size_give_the_same_picture(width: int) -> None:
    text = "On a dry day you can step over it. Sheep do, without looking down.\n\nBy the first village"
    assert show(*text, width=width) == show(text, width=width)
