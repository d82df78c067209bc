"""Tools as requests describe them (docs/protocol.md §3), read into one form that each adapter writes out its own way.

Either provider's way of writing is taken: `{name, description, input_schema}`, the same with `parameters`, or
`{type: "function", function: {…}}`. Anything else is a provider's own tool and passes through as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolSpec:
    name: str
    description: str
    schema: dict[str, Any]


def read_tool(tool: dict[str, Any]) -> ToolSpec | dict[str, Any]:
    """What a tool is; the tool itself if only its provider knows."""
    function = tool.get("function") if tool.get("type") == "function" else None
    described = function if isinstance(function, dict) else tool
    if described is tool and tool.get("type", "custom") not in ("custom", "function"):
        return tool
    name = described.get("name")
    schema = described.get("input_schema", described.get("parameters", {"type": "object", "properties": {}}))
    if not isinstance(name, str) or not isinstance(schema, dict):
        return tool
    return ToolSpec(name, str(described.get("description") or ""), schema)


def chosen_tool(choice: str | dict[str, Any]) -> str | None:
    """The tool that a `tool_choice` names; None for `auto`, `none`, `required`, `any` and forms unknown here."""
    if isinstance(choice, str):
        return None
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    return name if isinstance(name, str) else None
