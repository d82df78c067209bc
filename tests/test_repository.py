"""What must hold for the repository as a whole."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Folders that tools make; where git is at hand, it says what belongs to the project.
MADE = {".git", ".venv", "node_modules", "__pycache__", "dist", ".hypothesis"}

#: Commands and arguments that Redis 6.2 or Valkey 8 lack. Type stubs offer them, so only a search finds them.
TOO_NEW = re.compile(
    r"""\b(
        XACKDEL | XDELEX | XNACK | XCFGSET | IDMP(AUTO)? | ENTRIES_?READ | CLAIM_MIN_IDLE_TIME | REF_POLICY
      | H(P?EXPIRE(AT|TIME)? | P?TTL | PERSIST | GETEX | GETDEL | SETEX) | P?EXPIRETIME | MSETEX
      | FCALL(_RO)? | FUNCTION_LOAD | EVAL(SHA)?_RO | SPUBLISH | SSUBSCRIBE | SUNSUBSCRIBE | WAITAOF
      | B?LMPOP | B?ZMPOP | SINTERCARD | ZINTERCARD
    )\b""",
    re.VERBOSE,
)
#: The same in scripts only: conditions of EXPIRE, half an entry id, Valkey's own name for `redis`, 7.0's first line.
TOO_NEW_IN_LUA = re.compile(
    r"""EXPIRE(AT)?['"][^\n]*['"](NX|XX|GT|LT)['"] | \d-\*['"] | \bSERVER\.P?CALL | \A\#!""", re.VERBOSE
)


def project_files() -> list[Path]:
    listed = None
    if (ROOT / ".git").exists():
        command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "-co", "--exclude-standard"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git here: look at the files themselves
            listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=30).stdout.decode()
    if listed is None:
        found = (path for path in ROOT.rglob("*") if not MADE.intersection(path.relative_to(ROOT).parts))
        return sorted(path for path in found if path.is_file())
    return sorted(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


FILES = project_files()


def texts(*suffixes: str) -> Iterator[tuple[str, str]]:
    """(name, content) of the text files, or of those with one of the suffixes."""
    for path in FILES:
        if suffixes and path.suffix not in suffixes:
            continue
        content = path.read_bytes()
        if b"\0" not in content:
            yield str(path.relative_to(ROOT)), content.decode()


def project(path: str) -> dict[str, object]:
    table = tomllib.loads((ROOT / path).read_text())["project"]
    assert isinstance(table, dict)
    return table


def too_new(name: str, text: str) -> list[str]:
    """What a file may send that old servers lack. In Python: called names, and strings that are one command."""
    if name.endswith(".lua"):
        code = re.sub(r"--.*", "", text).upper()
        return [match[0] for pattern in (TOO_NEW, TOO_NEW_IN_LUA) for match in pattern.finditer(code)]
    places = []
    for node in ast.walk(ast.parse(text, name)):
        if isinstance(node, ast.Call):
            places += [keyword.arg for keyword in node.keywords if keyword.arg]
            places += [node.func.attr] if isinstance(node.func, ast.Attribute) else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            value = node.value if isinstance(node.value, str) else node.value.decode(errors="replace")
            places += [value] if value.isupper() else []  # prose may speak of what is not used
    return [match[0] for place in places if (match := TOO_NEW.search(place.upper()))]


def test_there_are_files_to_look_at() -> None:
    assert Path(__file__) in FILES
    assert len(FILES) > 20


def test_no_file_names_a_place_outside_the_project() -> None:
    places = "|".join(("work", "root", "home", "Users", "farm"))
    absolute = re.compile(rf"(?<![\w.$}}\])/-])/({places})/\w")
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if absolute.search(line)
    ]
    assert found == []


def test_every_script_can_be_run() -> None:
    scripts = [path for path in FILES if path.parent in (ROOT / "scripts", ROOT / ".ci")]
    assert {"setup", "dev", "test", "check", "coverage", "run"} <= {path.name for path in scripts}
    for path in scripts:
        assert os.access(path, os.X_OK), f"chmod +x {path.relative_to(ROOT)}"
        assert path.read_text().startswith("#!/usr/bin/env ")


def test_the_licence_is_mit() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License\n\nCopyright (c) 2026 Headrace contributors\n")
    assert 'THE SOFTWARE IS PROVIDED "AS IS"' in text
    for name in ("pyproject.toml", "clients/python/pyproject.toml"):
        assert project(name)["license"] == "MIT"


def test_both_distributions_have_the_same_version() -> None:
    assert project("pyproject.toml")["version"] == project("clients/python/pyproject.toml")["version"]


@pytest.mark.parametrize("package", ["hub", "workers", "clients/python/headrace"])
def test_a_package_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


def test_only_commands_of_redis_6_2_are_used() -> None:
    served = [(name, text) for name, text in texts(".py", ".lua") if name.startswith(("hub/", "workers/"))]
    assert any(name.endswith(".lua") for name, _ in served)
    assert {name: found for name, text in served if (found := too_new(name, text))} == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.lua", "redis.call('xackdel', KEYS[1])"),
        ("a.lua", "return redis.call('HPEXPIRE', KEYS[1], 1000)"),
        ("a.lua", "redis.call('PEXPIRE', key, 1000, 'NX')"),
        ("a.lua", "redis.call('XADD', key, '57-*', 'kind', 'text')"),
        ("a.lua", "#!lua name=headrace"),
        ("a.py", "await client.xackdel(key, group, entry)"),
        ("a.py", "await client.xadd(key, fields, idmp=('a', 'b'))"),
        ("a.py", "pack(b'WAITAOF', 1, 0, 100)"),
    ],
)
def test_a_newer_command_would_be_noticed(name: str, text: str) -> None:
    assert too_new(name, text)
