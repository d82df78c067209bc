"""The modules that bring tools, and what is said of those that do not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from workers.tools.described import UnusableTools
from workers.tools.toolbox import Toolbox

GOOD = '''
from workers.tools import tool

@tool
def weather(city: str) -> str:
    """The weather."""
    return city

alias = weather

@tool(repeatable=True)
async def clock() -> str:
    return ""
'''


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Writes a module, named after the test's own folder so that none is found twice, and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> str:
        unique = f"{name}_{abs(hash(str(tmp_path)))}"
        (tmp_path / f"{unique}.py").write_text(text)
        return unique

    return write


def test_modules_bring_their_tools_each_once(write: Callable[[str, str], str]) -> None:
    first = write("first", GOOD)
    again = write("again", f"from {first} import weather\n")
    toolbox = Toolbox.load(f" {first}, {again} ,")
    assert toolbox.names == ["clock", "weather"]
    assert toolbox.get("weather") is not None and toolbox.get("nothing") is None
    assert Toolbox.load("").names == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = 1\n", "has no tool; write @tool"),
        ("import nowhere_to_be_found\n", "needs the module “nowhere_to_be_found”"),
        ("raise ValueError('no\\nkey')\n", "cannot be imported: ValueError: no key, at "),
        ("def (:\n", r"cannot be imported: SyntaxError: .*\(bad_\d+.py, line 1\)"),
        ("import sys\nsys.exit(3)\n", "cannot be imported: SystemExit: 3, at "),
        ("from workers.tools import tool\n@tool\ndef f(*a): ...\n", "the tool “f” .* by name"),
        (f"{GOOD}\n@tool(name='weather')\ndef other() -> None: ...\n", "two tools are called “weather”"),
    ],
)
def test_a_module_that_is_of_no_use_is_told_in_one_line(write: Callable[[str, str], str], text: str, why: str) -> None:
    name = write("bad", text)
    with pytest.raises(UnusableTools, match=why) as unusable:
        Toolbox.load(name)
    assert "\n" not in str(unusable.value) and str(unusable.value).startswith("HEADRACE_TOOLS: ")


@pytest.mark.parametrize("name", ["nowhere_at_all", "nowhere_at_all.tools", "workers.nothing"])
def test_a_module_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(UnusableTools, match=f"there is no module “{name}”; it is looked for"):
        Toolbox.load(name)


def test_a_request_names_tools_and_is_told_what_they_are(write: Callable[[str, str], str]) -> None:
    toolbox = Toolbox.load(write("first", GOOD))
    own: dict[str, Any] = {"name": "own", "input_schema": {"type": "object"}}
    asked: list[dict[str, Any]] = [{"type": "worker", "name": "weather"}, own, {"type": "worker", "name": "clock"}]
    body = Body([Message("user", "?")], tools=asked)
    assert toolbox.missing(body) == [] and Toolbox().missing(body) == ["weather", "clock"]
    assert toolbox.wanted(body) == {"weather": False, "clock": True}
    assert Toolbox().wanted(body) == {"weather": False, "clock": False}
    described = toolbox.described(body).tools
    assert described is not None
    first, second, third = described
    assert second == own and "required" not in third["input_schema"]
    assert first["name"] == "weather" and first["input_schema"]["required"] == ["city"]
    assert body.tools == asked
    plain = Body([Message("user", "?")])
    assert toolbox.described(plain) == plain and toolbox.missing(plain) == [] and toolbox.wanted(plain) == {}


def test_a_worker_looks_where_it_is_started_and_does_not_start_with_what_it_cannot_use(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from workers.tools import tool\n")
    environ = {**os.environ, "HEADRACE_REDIS_URL": "redis://127.0.0.1:1", "HEADRACE_TOOLS": "mine"}
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "workers"], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == 2 and ended.stderr.startswith("workers: HEADRACE_TOOLS: the module “mine” has no tool")
    assert ended.stderr.count("\n") == 1
