"""`HEADRACE_GENERATORS`: which functions are models. Reading the setting is pure; `load` imports them."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

VARIABLE: Final = "HEADRACE_GENERATORS"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class WrongGenerators(ValueError):
    """They cannot be used. The text says which, and what to do."""


class Registered(msgspec.Struct, frozen=True):
    """A function by where it is: `module:function`, where the function may stand inside of something (`agent.run`)."""

    module: str
    function: str

    def __str__(self) -> str:
        return f"{self.module}:{self.function}"


def parse(setting: str) -> dict[str, Registered]:
    """By the name that it is asked by: that before `=`, or the function's own. Raises WrongGenerators."""
    named: dict[str, Registered] = {}
    for item in filter(None, (part.strip() for part in setting.split(","))):
        name, equals, place = (part.strip() for part in item.rpartition("="))
        module, colon, function = (part.strip() for part in place.partition(":"))
        if not (colon and _DOTTED.fullmatch(module) and _DOTTED.fullmatch(function)):
            raise WrongGenerators(f"“{place}” is not module:function")
        name = name if equals else function.rpartition(".")[2]
        if not _NAME.fullmatch(name):
            raise WrongGenerators(f"“{name}” is no name: letters, digits, . _ -, at most 64")
        if name in named:
            raise WrongGenerators(
                f"{named[name]} and {module}:{function} are both called “{name}”: name one, as in other={place}"
            )
        named[name] = Registered(module, function)
    return named


def load(named: Mapping[str, Registered]) -> dict[str, Callable[[Any], Any]]:
    """Import them. Raises WrongGenerators, which names the setting too."""
    try:
        return {name: _checked(place, _imported(place)) for name, place in named.items()}
    except WrongGenerators as error:
        raise WrongGenerators(f"{VARIABLE}: {error}") from None


def _imported(place: Registered) -> Any:
    try:
        found: Any = importlib.import_module(place.module)
    except ModuleNotFoundError as error:
        missing = error.name or place.module
        if place.module == missing or place.module.startswith(f"{missing}."):
            here = "it is looked for where the worker is started, in PYTHONPATH, and among what is installed"
            raise WrongGenerators(f"there is no module “{missing}”: {here}") from None
        raise WrongGenerators(f"“{place.module}” needs “{missing}”, which is not installed") from None
    except (Exception, SystemExit) as error:
        raise WrongGenerators(f"“{place.module}” cannot be imported: {_about(error)}") from None
    for part in place.function.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise WrongGenerators(f"“{place.module}” has no “{place.function}”") from None
    return found


def _checked(place: Registered, found: Any) -> Callable[[Any], Any]:
    """`found`, unless it can be no such function: what a plain one returns is seen only when it is called."""
    wrong = ""
    if not callable(found) or inspect.isclass(found):
        wrong = "is no function"
    elif inspect.isgeneratorfunction(found):
        wrong = "is a plain generator: write `async def`"
    elif inspect.iscoroutinefunction(found):
        wrong = "yields nothing: an async generator has `yield` in it"
    elif not _takes_request(found):
        wrong = "cannot be called with the request alone: write `async def name(request)`"
    if wrong:
        raise WrongGenerators(f"{place} {wrong}")
    checked: Callable[[Any], Any] = found
    return checked


def _takes_request(found: Callable[..., Any]) -> bool:
    try:
        inspect.signature(found).bind(object())
    except TypeError:
        return False
    except ValueError:  # it has none that Python can tell
        return True
    return True


def _about(error: BaseException) -> str:
    """What happened and where, on one line. It is the operator who reads it, at the start: the text may be shown."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename]
    at = f" ({os.path.basename(own[-1].filename)}:{own[-1].lineno})" if own else ""
    if isinstance(error, SyntaxError) and error.filename:
        at = f" ({os.path.basename(error.filename)}:{error.lineno})"
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())[:200]
    return f"{type(error).__name__}{': ' if text else ''}{text}{at}"
