"""HEADRACE_GENERATORS: what it may say, and the one clear line about what it may not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import registration
from workers.registration import Registered, WrongGenerators, load, parse

MODULE = """
async def agent(request):
    yield "hello"

async def other(request, extra=None):
    yield "other"

class Agents:
    async def run(self, request):
        yield "of an object"

def plain(request):
    yield "plain"

async def silent(request):
    return "nothing"

async def none():
    yield "x"

def delegates(request):
    return agent(request)

agents = Agents()
text = "no function"
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "my_generators.py"
    path.write_text(MODULE)
    yield path
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def test_a_generator_is_called_like_its_function_or_as_it_is_named() -> None:
    assert parse("") == {}
    there = parse(" a:run , fast=b.c:other.run,,")
    assert there == {"run": Registered("a", "run"), "fast": Registered("b.c", "other.run")}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("agent", "“agent” is not module:function"),
        ("a:b:c", "“a:b:c” is not module:function"),
        ("a:", "“a:” is not module:function"),
        ("a/b.py:run", "“a/b.py:run” is not module:function"),
        ("a:run()", "“a:run()” is not module:function"),
        ("my agent=a:run", "“my agent” is no name: letters, digits, . _ -, at most 64"),
        ("=a:run", "“” is no name: letters, digits, . _ -, at most 64"),
        (f"{'n' * 65}=a:run", f"“{'n' * 65}” is no name: letters, digits, . _ -, at most 64"),
        ("a:run,b:run", "a:run and b:run are both called “run”: name one, as in other=b:run"),
        ("x=a:run,x=b:walk", "a:run and b:walk are both called “x”: name one, as in other=b:walk"),
    ],
)
def test_what_cannot_be_read_is_said(setting: str, said: str) -> None:
    with pytest.raises(WrongGenerators) as caught:
        parse(setting)
    assert str(caught.value) == said


@pytest.mark.usefixtures("module")
def test_functions_methods_and_functions_that_return_a_generator_are_loaded() -> None:
    setting = "my_generators:agent,my_generators:other,object=my_generators:agents.run,my_generators:delegates"
    loaded = load(parse(setting))
    assert list(loaded) == ["agent", "other", "object", "delegates"]
    assert all(callable(each) for each in loaded.values())


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "my_agents:run",
            "there is no module “my_agents”: it is looked for where the worker is started",
        ),
        ("my_generators.deep:run", "there is no module “my_generators.deep”: it is looked for "),
        ("my_generators:missing", "“my_generators” has no “missing”"),
        ("my_generators:agents.missing", "“my_generators” has no “agents.missing”"),
        ("my_generators:text", "my_generators:text is no function"),
        ("my_generators:Agents", "my_generators:Agents is no function"),
        ("my_generators:plain", "my_generators:plain is a plain generator: write `async def`"),
        ("my_generators:silent", "my_generators:silent yields nothing: an async generator has `yield` in it"),
        ("my_generators:none", "my_generators:none cannot be called with the request alone: write `async def name(req"),
    ],
)
def test_what_is_no_generator_is_said(setting: str, said: str) -> None:
    with pytest.raises(WrongGenerators) as caught:
        load(parse(setting))
    assert str(caught.value).startswith(f"HEADRACE_GENERATORS: {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import not_installed_anywhere", "“my_broken” needs “not_installed_anywhere”, which is not installed"),
        ("\n1 / 0", "“my_broken” cannot be imported: ZeroDivisionError: division by zero (my_broken.py:2)"),
        ("raise ValueError('two\\nlines')", "“my_broken” cannot be imported: ValueError: two lines (my_broken.py:1)"),
        ("raise ValueError", "“my_broken” cannot be imported: ValueError (my_broken.py:1)"),
        ("import sys\nsys.exit(3)", "“my_broken” cannot be imported: SystemExit: 3 (my_broken.py:2)"),
        ("\n\nasync def (:", "“my_broken” cannot be imported: SyntaxError: invalid syntax (my_broken.py:3)"),
    ],
)
def test_a_module_that_fails_says_where(module: Path, source: str, said: str) -> None:
    module.with_name("my_broken.py").write_text(source)
    with pytest.raises(WrongGenerators) as caught:
        load(parse("my_broken:run"))
    assert str(caught.value) == f"HEADRACE_GENERATORS: {said}"


def test_a_callable_that_tells_no_signature_is_taken() -> None:
    """Some of C's do not; what they return is looked at when they are called."""
    assert registration._takes_request(type)
