"""A tool as the worker knows it: what a model is told of it, and how its arguments are checked."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Final

from pydantic import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ArgsKwargs

from headrace.protocol.tools import NAME, ToolSpec
from workers.tools.declared import Declared

#: Of what is wrong with the arguments of one call, the model is told so many things.
_FAULTS: Final = 8


class UnusableTools(ValueError):
    """Tools that a worker cannot start with. The text is one line that says which, and what to do."""


class WrongArguments(ValueError):
    """Of a call. The text is for the model; it quotes none of them."""


class Tool:
    """Raises UnusableTools when it is made of what cannot be one."""

    def __init__(self, declared: Declared) -> None:
        function = declared.function
        self.name = declared.name
        self.function = function
        self.timeout_s = declared.timeout_s
        self.repeatable = declared.repeatable
        self.is_async = inspect.iscoroutinefunction(function)
        self.place = _place(function)
        if not NAME.fullmatch(self.name):
            raise self._unusable("a name has 1 to 64 of the characters A-Z a-z 0-9 _ -; write @tool(name=…)")
        if inspect.isclass(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise self._unusable("a tool is a function, def or async def, that returns one result")
        try:
            self._arguments = TypeAdapter[Any](_collecting(function))
            schema = self._arguments.json_schema(schema_generator=_Plain)
        except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError) as error:
            reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
            raise self._unusable(f"its signature cannot be described to a model: {reason}") from None
        except (ValueError, TypeError, NameError) as error:
            raise self._unusable(f"its signature cannot be read: {type(error).__name__}: {error}") from None
        if schema.get("type") != "object":
            raise self._unusable("arguments are given by name: no *args, and none that goes by its position only")
        self.spec = ToolSpec(self.name, inspect.getdoc(function) or "", schema)

    def arguments(self, given: Any) -> dict[str, Any]:
        """What a model gave, as the function's signature wants it. Raises WrongArguments, and what validators of the
        tool's own raise.
        """
        if not isinstance(given, dict):
            raise WrongArguments("the arguments are no valid JSON object")
        try:
            arguments: dict[str, Any] = self._arguments.validate_python(ArgsKwargs((), given))
        except ValidationError as error:
            raise WrongArguments(_told(error)) from None
        return arguments

    def _unusable(self, why: str) -> UnusableTools:
        return UnusableTools(f"the tool “{self.name}” ({self.place}): {why}")


class _Plain(GenerateJsonSchema):
    """Without a title for every argument: it repeats the name, and models are charged for it."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _collecting(function: Any) -> Any:
    """Takes what `function` takes, and returns it by name."""

    @functools.wraps(function)
    def collect(**arguments: Any) -> dict[str, Any]:
        return arguments

    return collect


def _told(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{'.'.join(str(step) for step in fault['loc']) or 'arguments'}: {fault['msg']}" for fault in faults]
    more = [f"and {len(told) - _FAULTS} more"] if len(told) > _FAULTS else []
    return "wrong arguments: " + "; ".join([*told[:_FAULTS], *more])[:1000]


def _place(function: Any) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return str(getattr(function, "__module__", "?")) if code is None else f"{code.co_filename}:{code.co_firstlineno}"
