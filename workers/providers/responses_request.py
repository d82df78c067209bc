"""A request as OpenAI's Responses API wants it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from headrace.protocol.tools import ToolSpec, chosen_tool, read_tool
from workers.structured import openai_format, prompted

#: The API refuses less.
_LEAST_TOKENS: Final = 16


def request_fields(
    model: str, body: Body, *, official: bool, background: bool, thinking: bool = False
) -> dict[str, Any]:
    """Arguments of `responses.create` for `body`; `official` is OpenAI itself, not a compatible server. `thinking`: a
    summary of the model's thinking is asked for.

    The API has no stop sequences: `body.stop` is not sent. Nothing is stored unless it is written in the background.
    """
    schema = None if body.schema is None else openai_format(body.schema)
    if schema is None:
        body = prompted(body)
    fields: dict[str, Any] = {"model": model, "input": list(_items(body.messages)), "store": background}
    if background:
        fields["background"] = True
    if official:
        fields["stream_options"] = {"include_obfuscation": False}
    if body.system:
        fields["instructions"] = body.system
    if body.max_tokens is not None:
        fields["max_output_tokens"] = max(_LEAST_TOKENS, body.max_tokens)
    if body.temperature is not None:
        fields["temperature"] = body.temperature
    if body.tools:
        fields["tools"] = [_tool(tool) for tool in body.tools]
    if body.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(body.tool_choice)
    if thinking:
        fields["reasoning"] = {"summary": "auto"}
    if schema is not None:  # left out, `strict` would be true
        fields["text"] = {"format": {"type": "json_schema", "strict": False, **schema}}
    return fields


def _items(messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    """Turns with tool calls are several items. There is no word for a tool that failed: its output says so."""
    for message in messages:
        if message.role == "tool":
            yield {"type": "function_call_output", "call_id": message.call, "output": message.content}
            continue
        if message.content:
            yield {"role": message.role, "content": message.content}
        for call in message.calls or ():
            arguments = msgspec.json.encode(call.input or {}).decode()
            yield {"type": "function_call", "call_id": call.call, "name": call.name, "arguments": arguments}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    spec = read_tool(tool)
    assert isinstance(spec, ToolSpec), "a worker's tool is described before anybody is asked"
    described = {"description": spec.description} if spec.description else {}
    # Left out, `strict` would be true, and change what the schema means.
    return {"type": "function", "name": spec.name, **described, "parameters": spec.schema, "strict": False}


def _tool_choice(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    name = chosen_tool(choice)
    if name is not None:
        return {"type": "function", "name": name}
    word = choice.get("type") if isinstance(choice, dict) else choice
    return "required" if word == "any" else word if word in ("auto", "none", "required") else choice
