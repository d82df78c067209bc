"""Tools that an application runs itself: its own functions, described to the model by their signatures."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NotRequired, Required, TypedDict, get_type_hints

import msgspec

from headrace.events import ToolResult

#: Seconds that a tool may take.
TIMEOUT_S: Final = 30.0
#: The model is given at most this much of an output, in bytes of UTF-8.
OUTPUT_BYTES: Final = 24 * 1024
#: Characters of an exception that the model is told.
ERROR_CHARACTERS: Final = 500
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DEFS: Final = "#/$defs/"
_BY_NAME: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Tool:
    """A function that a model may have called.

    The parameters' annotations become the JSON Schema of its arguments, defaults make them optional, the docstring
    tells the model what it is for. `Annotated[str, msgspec.Meta(description="…")]` describes one parameter.

    Attributes:
        name: What the model calls it.
        description: What it is for.
        input_schema: JSON Schema of its arguments, always an object.
        timeout: Seconds that one call may take.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        input_schema: Mapping[str, Any] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        """With `input_schema` the signature is not looked at, and arguments are passed on as the model gave them.

        Args:
            function: Plain or async. A plain one runs in a thread; its return value, if not a string, becomes JSON.

        Raises:
            TypeError: It cannot be described; the message says why.
        """
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"a tool is a function, not {function!r}")
        self.name = name or str(getattr(function, "__name__", ""))
        if not _NAME.fullmatch(self.name):
            raise TypeError(
                f"{self.name or function!r} cannot be a tool's name: give it one of at most 64 letters, digits, _ and "
                "-, as in Tool(function, name=…)"
            )
        self.description = inspect.getdoc(function) or "" if description is None else description
        self.timeout = timeout
        self._function = function
        self._arguments: Any = None  # a TypedDict
        if input_schema is None:
            self._arguments, self.input_schema = _described(self.name, function)
        else:
            self.input_schema = dict(input_schema)

    def __repr__(self) -> str:
        return f"<Tool {self.name}>"

    def declaration(self) -> dict[str, Any]:
        """As `generate` tells it (docs/protocol.md §3)."""
        described = {"description": self.description} if self.description else {}
        return {"name": self.name, **described, "input_schema": self.input_schema}

    async def answer(self, call: str, arguments: Any) -> ToolResult:
        """Run it. Whatever goes wrong, wrong arguments and time included, is a result with `error`: the model may
        correct itself. Only cancelling is passed on; a plain function is then left to end in its thread.
        """
        try:
            given = self._checked(arguments)
            async with asyncio.timeout(self.timeout) as limit:
                output = await self._call(given)
            text = output if isinstance(output, str) else msgspec.json.encode(output).decode()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return ToolResult(call, f"{self.name} was cancelled", error=True)
        except Exception as error:  # the application's own code: anything may come
            if isinstance(error, TimeoutError) and limit.expired():
                return ToolResult(call, f"{self.name} took longer than {self.timeout:g} s", error=True)
            return ToolResult(call, _clean(f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS]), error=True)
        text = _clean(text)
        whole = text.encode()
        if len(whole) <= OUTPUT_BYTES:
            return ToolResult(call, text)
        return ToolResult(call, whole[:OUTPUT_BYTES].decode("utf-8", "ignore"), truncated=True)

    def _checked(self, arguments: Any) -> dict[str, Any]:
        if not isinstance(arguments, dict):
            raise ValueError("the arguments must be a JSON object")
        if self._arguments is None:
            return arguments
        known = self.input_schema["properties"]
        unknown = [name for name in arguments if name not in known]
        if unknown:
            raise ValueError(f"there is no argument {unknown[0]!r}; known: {', '.join(known) or 'none'}")
        given: dict[str, Any] = msgspec.convert(arguments, self._arguments)
        return given

    async def _call(self, given: dict[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self._function):
            return await self._function(**given)
        output = await asyncio.to_thread(self._function, **given)
        return await output if inspect.isawaitable(output) else output


#: What `tools` takes: a function, a `Tool`, the name of a tool that the workers have, or a tool as §3 writes it.
AnyTool = Callable[..., Any] | Tool | str | Mapping[str, Any]


def declaration(tool: AnyTool) -> dict[str, Any]:
    """A tool as `generate` tells it. Raises TypeError for what cannot be described."""
    if isinstance(tool, str):
        return {"type": "worker", "name": tool}
    if isinstance(tool, Mapping):
        return dict(tool)
    return (tool if isinstance(tool, Tool) else Tool(tool)).declaration()


def _described(name: str, function: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """The type that a function's arguments are converted to, and its schema. Raises TypeError."""
    try:
        signature = inspect.signature(function)
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError, ValueError) as error:
        raise TypeError(f"the tool {name} cannot be described: {error}") from None
    fields: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        place = f"the tool {name} cannot be described: its parameter `{parameter.name}`"
        if parameter.kind not in _BY_NAME:
            raise TypeError(f"{place} cannot be given by name, and that is how models give arguments")
        if parameter.name not in hints:
            raise TypeError(f"{place} has no type annotation")
        hint = hints[parameter.name]
        try:
            msgspec.json.schema(hint)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{place} has a type without a JSON form: {str(error).splitlines()[-1]}") from None
        fields[parameter.name] = Required[hint] if parameter.default is parameter.empty else NotRequired[hint]
    arguments = TypedDict(name, fields)  # type: ignore[misc]
    return arguments, _schema(arguments, signature)


def _schema(arguments: Any, signature: inspect.Signature) -> dict[str, Any]:
    [reference], components = msgspec.json.schema_components([arguments], ref_template=f"{_DEFS}{{name}}")
    top = components.pop(reference["$ref"].removeprefix(_DEFS))
    properties = {parameter: top["properties"][parameter] for parameter in signature.parameters}
    for parameter in signature.parameters.values():
        default = parameter.default
        if default is not parameter.empty and default is not None:
            try:
                properties[parameter.name] |= {"default": msgspec.to_builtins(default)}
            except TypeError:
                continue  # a default that has no JSON form stays this program's own
    schema = {
        "type": "object",
        "properties": properties,
        "required": [each.name for each in signature.parameters.values() if each.default is each.empty],
        "additionalProperties": False,
    }
    return schema | ({"$defs": components} if components else {})


def _clean(text: str) -> str:
    """What every encoding carries: halves of a surrogate pair are replaced."""
    return text.encode("utf-8", "replace").decode()
