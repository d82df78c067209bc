"""Who may import whom. The wire protocol stands below everything; hub and workers meet only in `hub.broker`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"headrace": ROOT / "clients" / "python", "hub": ROOT, "workers": ROOT}

#: Our packages, and third-party ones, by the package that may import them; the longest name that fits counts.
#: A name allows what is below it too; `stdlib` stands for all of the standard library.
ARROWS = {
    "headrace.protocol": {"stdlib", "msgspec", "headrace.protocol"},
    "headrace": {"stdlib", "msgspec", "websockets", "jiter", "headrace"},
    "hub.broker": {
        *("stdlib", "msgspec", "redis", "hiredis", "pydantic", "pydantic_settings", "structlog", "prometheus_client"),
        "uvloop",  # hub.broker.loop: the loop that both kinds of process run on
        *("headrace.protocol", "hub.broker"),
    },
    "hub": {"*", "hub", "headrace.protocol"},
    "hub.cli": {"*", "hub", "headrace", "workers.catalog"},  # data that it looks at as a worker started here would
    "workers": {"*", "workers", "hub.broker", "headrace.protocol"},
}
#: Pure means pure: no clock to wait on, no socket, no environment.
NEVER = {"headrace.protocol": {"asyncio", "socket", "selectors", "ssl", "threading", "subprocess", "os", "time"}}


def modules() -> Iterator[tuple[str, Path]]:
    for package, root in PACKAGES.items():
        for path in sorted((root / package).rglob("*.py")):
            yield ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"), path


def imports(path: Path, module: str) -> Iterator[str]:
    """Full names of what a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively: write the full name"
            # `from hub import broker` imports hub.broker; `from hub.broker import keys` may import a class.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def allowed(module: str, name: str) -> bool:
    owner = max((package for package in ARROWS if is_below(module, package)), key=len)
    if any(is_below(name, package) for package in NEVER.get(owner, ())):
        return False
    if is_below(name, "hub.cli") and owner != "hub.cli":
        return False
    arrows = ARROWS[owner]
    if any(is_below(name, package) for package in arrows):
        return True
    top = name.split(".")[0]
    return top not in PACKAGES and ("*" in arrows or ("stdlib" in arrows and top in sys.stdlib_module_names))


@pytest.mark.parametrize(("module", "path"), [pytest.param(*pair, id=pair[0]) for pair in modules()])
def test_a_module_imports_only_what_its_package_may(module: str, path: Path) -> None:
    assert [name for name in imports(path, module) if not allowed(module, name)] == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("headrace.protocol.codec", "asyncio"),
        ("headrace.protocol.codec", "websockets.frames"),
        ("headrace.client", "hub.broker"),
        ("headrace.client", "redis"),
        ("hub.broker.log", "starlette"),
        ("hub.broker.log", "hub.settings"),
        ("hub.app", "workers.worker"),
        ("hub.app", "headrace.client"),
        ("hub.app", "hub.cli.chat"),
        ("hub.cli.demo", "workers"),
        ("hub.cli.demo", "workers.worker"),
        ("workers.worker", "hub.settings"),
        ("workers.worker", "hub"),
        ("workers.worker", "headrace.backoff"),
    ],
)
def test_the_rules_forbid(module: str, name: str) -> None:
    assert not allowed(module, name)


@pytest.mark.parametrize("package", ["hub", "workers"])
def test_the_top_of_a_package_is_empty_so_that_importing_a_part_loads_no_more(package: str) -> None:
    assert (ROOT / package / "__init__.py").read_text() == ""
