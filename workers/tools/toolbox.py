"""The tools of one worker, by name, and the modules that bring them."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from headrace.protocol.body import Body
from headrace.protocol.tools import WorkerTool, read_tool
from workers.tools.declared import declared
from workers.tools.described import Tool, UnusableTools

_SETTING: Final = "HEADRACE_TOOLS"


class Toolbox:
    """Raises UnusableTools when two tools have one name."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for each in tools:
            former = self._tools.setdefault(each.name, each)
            if former.function is not each.function:
                raise UnusableTools(
                    f"{_SETTING}: two tools are called “{each.name}”, at {former.place} and {each.place}; "
                    "give one another: @tool(name=…)"
                )

    @classmethod
    def load(cls, modules: str) -> Toolbox:
        """What modules bring, named with commas between them. Raises UnusableTools."""
        found: list[Tool] = []
        for name in filter(None, (part.strip() for part in modules.split(","))):
            tools = _tools_of(name)
            if not tools:
                raise UnusableTools(
                    f"{_SETTING}: the module “{name}” has no tool; write @tool above a function, "
                    "with `from workers.tools import tool`"
                )
            found += tools
        return cls(found)

    @property
    def names(self) -> list[str]:
        return sorted(self._tools)

    def get(self, name: str) -> Tool | None:
        return self._tools.get(name)

    # -- what a request wants of them

    def missing(self, body: Body) -> list[str]:
        """Tools that `body` names and this worker does not have."""
        return [name for name in _named(body) if name not in self._tools]

    def wanted(self, body: Body) -> Mapping[str, bool]:
        """The tools that `body` names, and whether they are repeatable; of one that is missing nobody can say so."""
        return {name: name in self._tools and self._tools[name].repeatable for name in _named(body)}

    def described(self, body: Body) -> Body:
        """`body` with the description of every tool that it names. None may be missing."""
        tools = [self._described(tool) for tool in body.tools or ()]
        return msgspec.structs.replace(body, tools=tools or None)

    def _described(self, tool: dict[str, Any]) -> dict[str, Any]:
        read = read_tool(tool)
        return self._tools[read.name].spec.written() if isinstance(read, WorkerTool) else tool


def _named(body: Body) -> list[str]:
    return [read.name for tool in body.tools or () if isinstance(read := read_tool(tool), WorkerTool)]


def _tools_of(module: str) -> list[Tool]:
    """The tools that can be found in a module, its own and those that it imports."""
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise UnusableTools(
                f"{_SETTING}: there is no module “{module}”; it is looked for where the worker is started, "
                "in PYTHONPATH, and among what is installed"
            ) from None
        raise UnusableTools(f"{_SETTING}: “{module}” needs the module “{error.name}”, which is not there") from None
    except (Exception, SystemExit) as error:
        at = "" if isinstance(error, SyntaxError) else f", at {_where(error)}"  # which says so itself
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnusableTools(f"{_SETTING}: “{module}” cannot be imported: {reason}{at}") from None
    marked = {id(mark.function): mark for value in vars(loaded).values() if (mark := declared(value)) is not None}
    try:
        return [Tool(mark) for mark in marked.values()]
    except UnusableTools as error:
        raise UnusableTools(f"{_SETTING}: {error}") from None


def _where(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"
