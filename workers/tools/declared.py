"""`@tool`: a function that a model may call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, overload

_MARK: Final = "__headrace_tool__"
_F = TypeVar("_F", bound=Callable[..., Any])


class ToolError(Exception):
    """Raised by a tool to tell the model what went wrong. Its text is for the model, and viewers see it."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What `@tool` noted of a function."""

    function: Callable[..., Any]
    name: str
    timeout_s: float | None
    repeatable: bool


@overload
def tool(function: _F, /) -> _F: ...
@overload
def tool(
    *, name: str | None = None, timeout_s: float | None = None, repeatable: bool = False
) -> Callable[[_F], _F]: ...


def tool(
    function: Any = None, /, *, name: str | None = None, timeout_s: float | None = None, repeatable: bool = False
) -> Any:
    """Offer a typed function, `def` or `async def`, to models. It stays what it is, and can be called as before.

    Its signature says what the arguments may be, its docstring what it is for. `name` instead of the function's own;
    `timeout_s` instead of the worker's time limit. `repeatable`: running it twice does no harm, so that an answer whose
    worker was lost may run it again; without it such an answer ends with what is there.
    """

    def declare(chosen: Any) -> Any:
        if not callable(chosen):
            raise TypeError(f"@tool is for functions, not for a {type(chosen).__name__}")
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError("timeout_s is more than 0")
        named = name or str(getattr(chosen, "__name__", ""))
        setattr(chosen, _MARK, Declared(chosen, named, timeout_s, repeatable))
        return chosen

    return declare if function is None else declare(function)


def declared(value: object) -> Declared | None:
    """What `@tool` noted of `value`; None if it is no tool."""
    mark = getattr(value, _MARK, None)
    return mark if isinstance(mark, Declared) and mark.function is value else None
