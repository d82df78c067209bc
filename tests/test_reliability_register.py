"""docs/reliability.md names tests: each of them exists, and no row goes without a test or a reason."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
#: A path below tests/ and the name of a test in it, or of a class and a test in that.
REFERENCE = re.compile(r"`([\w/]+\.py)::(\w+(?:::\w+)?)")
#: What stands in a row instead of a test, or beside it.
REASON = re.compile(r"cannot (?:be|differ): \w|no test(?: yet)?(?:: \w| that \w)")


def names_in(path: Path) -> set[str]:
    """What pytest collects there by its name: functions, methods of classes, state machines that were given a name."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.ClassDef():
                methods = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
                names |= {f"{node.name}::{method.name}" for method in methods}
            case ast.Assign(targets=[ast.Name(name)], value=ast.Attribute(attr="TestCase")):
                names.add(name)
    return {name for name in names if name.rpartition("::")[2].lower().startswith("test")}


def missing(page: str) -> list[str]:
    """The tests that the page names and that do not exist."""
    named = defaultdict(set)
    for path, name in REFERENCE.findall(page):
        named[TESTS / path].add(name)
    return sorted(
        f"{path.relative_to(TESTS)}::{name}"
        for path, names in named.items()
        for name in names - (names_in(path) if path.is_file() else set())
    )


def rows() -> list[list[str]]:
    """The cells of each row of a table whose last column says what guards it."""
    found: list[list[str]] = []
    is_guarded = False
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells or cells[-1] == "guarded by":
            is_guarded = bool(cells)
        elif is_guarded and not set(line) <= set("|- "):
            found.append(cells)
    return found


def test_each_test_that_is_named_exists() -> None:
    assert len(REFERENCE.findall(PAGE)) > 200
    assert missing(PAGE) == []


@pytest.mark.parametrize(
    "reference",
    ["hub/test_relay.py::test_that_was_renamed", "hub/test_that_moved.py::test_any", "hub/scene.py::Scene"],
)
def test_one_that_does_not_exist_is_found(reference: str) -> None:
    assert missing(f"| a promise | `{reference}` |") == [reference]


def test_each_row_has_a_test_or_says_why_not() -> None:
    assert len(rows()) > 100
    assert [cells[:-1] for cells in rows() if not (REFERENCE.search(cells[-1]) or REASON.search(cells[-1]))] == []


def test_rows_are_counted_without_a_gap() -> None:
    numbers = [int(cells[0]) for cells in rows() if len(cells) > 2 and cells[0].isdecimal()]
    faults = numbers[: numbers.index(1, 1)]
    assert faults == list(range(1, len(faults) + 1))
    assert numbers[len(faults) :] == list(range(1, 27)), "the bugs of others"


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m (tests\.[\w.]+)", PAGE))))
def test_each_command_exists(module: str) -> None:
    path = TESTS.parent / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_links_lead_somewhere() -> None:
    files = {link for link in re.findall(r"\]\(([^)#]+)", PAGE) if "://" not in link}
    assert [link for link in files if not (TESTS.parent / "docs" / link).exists()] == []
