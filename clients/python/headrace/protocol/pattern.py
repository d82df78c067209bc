"""A schema's regular expressions, made ready for an engine whose time is linear in the text. Pure.

JSON Schema means ECMA-262's. They are run by Rust's `regex`, which never backtracks, and therefore has no look-around
and no back-references. `\\d` and `\\w` mean ASCII, as in ECMA-262.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

#: The longest pattern.
PATTERN_CHARACTERS: Final = 512
#: The most states that a pattern may stand for once its counted repetitions are written out, as `weight` counts them.
PATTERN_WEIGHT: Final = 2000

_ASCII: Final = {"d": "[0-9]", "D": "[^0-9]", "w": "[0-9A-Za-z_]", "W": "[^0-9A-Za-z_]"}  # also inside of a class
#: Characters that mean something in the engine's classes and nothing in ECMA-262's.
_LITERAL_INSIDE: Final = "[&~"
_COUNT: Final = re.compile(r"\{(?P<least>[0-9]{1,9})(?P<open>,(?P<most>[0-9]{1,9})?)?\}")
_PROPERTY: Final = re.compile(r"\\[pPux](\{[^}]*\})?")
_GROUP: Final = re.compile(r"\((\?(P?<[A-Za-z_]\w*>|[A-Za-z-]*:))?")
#: What one character takes beyond ASCII, and what a property of Unicode takes.
_WIDE: Final = 4
_PROPERTY_WEIGHT: Final = 100


class WrongPattern(ValueError):
    """A pattern that is not run. The text says why, to follow its name."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """`text` is the pattern in the engine's words, `weight` what it costs, about: states at each character."""

    text: str
    weight: int


def prepare(pattern: str) -> Pattern:
    """Raises WrongPattern. Whether the engine takes it is the engine's to say."""
    if len(pattern) > PATTERN_CHARACTERS:
        raise WrongPattern(f"has more than {PATTERN_CHARACTERS} characters")
    text = _translated(pattern)
    weight = _weight(text)
    if weight > PATTERN_WEIGHT:
        raise WrongPattern("is too large: write smaller repetitions")
    return Pattern(text, weight)


def _translated(pattern: str) -> str:
    words: list[str] = []
    is_inside = False
    escaped = False
    for character in pattern:
        if escaped:
            words.append(_ASCII.get(character, "\\" + character))
            escaped = False
        elif character == "\\":
            escaped = True
        elif is_inside:
            is_inside = character != "]"
            words.append("\\" + character if character in _LITERAL_INSIDE else character)
        else:
            is_inside = character == "["
            words.append(character)
    return "".join(words) + "\\" * escaped


def _weight(text: str) -> int:
    """States of `text`, about, with its counted repetitions written out."""
    totals, last, at = [0], 0, 0
    while at < len(text):
        character = text[at]
        counted = _COUNT.match(text, at) if character == "{" else None
        if counted:
            times = int(counted["most"] or counted["least"]) + (counted["open"] == ",")
            totals[-1] += last * (max(times, 1) - 1)
            last *= max(times, 1)
            at = counted.end()
        elif character == "(":
            totals.append(0)
            match = _GROUP.match(text, at)
            assert match is not None
            last, at = 0, match.end()
        elif character == ")" and len(totals) > 1:
            last = totals.pop() + 1
            totals[-1] += last
            at += 1
        else:
            last, at = _atom(text, at)
            totals[-1] += last
    return sum(totals)


def _atom(text: str, at: int) -> tuple[int, int]:
    """What the atom at `at` weighs, and where it ends."""
    character = text[at]
    if character == "\\":
        match = _PROPERTY.match(text, at)
        return (_PROPERTY_WEIGHT if text[at + 1 : at + 2] in ("p", "P") else _WIDE, match.end() if match else at + 2)
    if character == "[":
        end = _class_end(text, at)
        inside = text[at:end]
        return _WIDE + len(inside) // 8 + _PROPERTY_WEIGHT * len(re.findall(r"\\[pP]", inside)), end
    return (_WIDE if character == "." or not character.isascii() else 1), at + 1


def _class_end(text: str, at: int) -> int:
    depth = 0
    while at < len(text):
        character = text[at]
        if character == "\\":
            at += 1
        else:
            depth += (character == "[") - (character == "]")
            if depth == 0:
                return at + 1
        at += 1
    return at
