"""Tools in a request: what they are, and what is wrong with them (protocol §3). Pure.

A tool is the client's own, described as `{name, description?, input_schema}` or in OpenAI's form `{type: function,
function: {name, description?, parameters}}`, or one that runs in the worker, named as `{type: worker, name}`. What a
provider would run by itself is refused: nobody allowed it, and no other provider could take its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from headrace.protocol.frames import Message

#: Tools of one request.
TOOLS: Final = 128
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: What `tool_choice` may be beside the name of a tool.
WORDS: Final = ("auto", "none", "required", "any")
_FORMS: Final = "{name, description?, input_schema}, {type: function, function: {…}} or {type: worker, name}"


class WrongTools(ValueError):
    """Tools, a choice of one, or tool turns that nobody could be asked with. The text says where and what to do."""


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool as a model is told of it."""

    name: str
    description: str
    schema: dict[str, Any]

    def written(self) -> dict[str, Any]:
        """As a request describes it."""
        described = {"description": self.description} if self.description else {}
        return {"name": self.name, **described, "input_schema": self.schema}


class WorkerTool(msgspec.Struct, frozen=True):
    """A tool that workers bring and run: a request only names it."""

    name: str


def read_tool(tool: dict[str, Any], at: str = "a tool") -> ToolSpec | WorkerTool:
    """What one tool of a request is; `at` is its place, for the error. Raises WrongTools."""
    kind = tool.get("type", "custom")
    described = tool
    if kind == "function" and "function" in tool:
        described, at = tool["function"], f"{at}.function"
    elif kind not in ("custom", "function", "worker"):
        raise WrongTools(f"{at}.type is not known here: a tool is {_FORMS}")
    if not isinstance(described, dict) or not isinstance(name := described.get("name"), str):
        raise WrongTools(f"{at} has no `name`: a tool is {_FORMS}")
    if not NAME.fullmatch(name):
        raise WrongTools(f"{at}.name has 1 to 64 of the characters A-Z a-z 0-9 _ -")
    if kind == "worker":
        return WorkerTool(name)
    description = described.get("description")
    if not isinstance(description, str | None):
        raise WrongTools(f"{at}.description is a text")
    field = "parameters" if "parameters" in described and "input_schema" not in described else "input_schema"
    schema = described.get(field) or {"type": "object", "properties": {}}
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise WrongTools(f'{at}.{field} is a JSON schema of an object: {{"type": "object", "properties": {{…}}}}')
    return ToolSpec(name, description or "", schema)


def chosen_tool(choice: str | dict[str, Any]) -> str | None:
    """The tool that a `tool_choice` names; None for one of WORDS, alone or as `{type: …}`, and for what is none."""
    if isinstance(choice, str):
        return None
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    return name if isinstance(name, str) else None


def forces(choice: str | dict[str, Any] | None) -> bool:
    """Whether a `tool_choice` leaves the model no answer but a call."""
    if isinstance(choice, dict):
        return choice.get("type") not in ("auto", "none")
    return choice in ("required", "any")


def check_tools(tools: Sequence[dict[str, Any]], choice: str | dict[str, Any] | None) -> None:
    """Raises WrongTools."""
    if len(tools) > TOOLS:
        raise WrongTools(f"`tools` has {len(tools)} tools, at most {TOOLS} are allowed")
    names: dict[str, int] = {}
    for index, tool in enumerate(tools):
        name = read_tool(tool, f"tools[{index}]").name
        if name in names:
            raise WrongTools(f"tools[{index}] has the name of tools[{names[name]}]: each has one of its own")
        names[name] = index
    if choice is None:
        return
    if not names:
        raise WrongTools("`tool_choice` without `tools`: there is nothing to choose from")
    chosen = chosen_tool(choice)
    word = choice.get("type") if isinstance(choice, dict) else choice
    if chosen is None and word not in WORDS:
        raise WrongTools(f"`tool_choice` is one of {', '.join(WORDS)}, or names a tool: {{type: tool, name}}")
    if chosen is not None and chosen not in names:
        raise WrongTools(f"`tool_choice` names none of the tools: {', '.join(names)}")


def check_turns(messages: Sequence[Message]) -> None:
    """Every call of an assistant's turn is answered by one `tool` turn, right after it. Raises WrongTools."""
    open_: list[str] = []
    calls: set[str] = set()
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        if message.role == "tool":
            id_ = message.call or ""
            if id_ not in calls:
                raise WrongTools(f"{at} answers the call “{id_}”, which the assistant's turn before it did not make")
            if id_ not in open_:
                raise WrongTools(f"{at} answers the call “{id_}” a second time")
            open_.remove(id_)
            continue
        if open_:
            raise WrongTools(f"{at} comes before the calls were answered: a tool turn is missing for {_named(open_)}")
        open_ = [call.call for call in message.calls or ()]
        calls = set(open_)
        if len(calls) < len(open_):
            raise WrongTools(f"{at}.calls has two calls with one id: each has one of its own")
        for number, call in enumerate(message.calls or ()):
            if not isinstance(call.input, dict | None):
                raise WrongTools(f"{at}.calls[{number}].input is an object: the arguments by name")
    if open_:
        raise WrongTools(f"`messages` ends before the calls were answered: a tool turn is missing for {_named(open_)}")


def _named(calls: Sequence[str]) -> str:
    return ", ".join(f"“{call}”" for call in calls[:8])
