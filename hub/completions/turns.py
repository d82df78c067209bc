"""OpenAI's messages as turns of a `generate` (protocol §3). Pure.

`system` and `developer` messages become the one `system` text, wherever they stand. Text parts are put together.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hub.completions.problem import Problem


class Turn(msgspec.Struct):
    """One of OpenAI's messages; what is not named here (`name`, `refusal`, …) is ignored."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    function_call: Any = None


def generate_turns(turns: list[Turn]) -> tuple[str | None, list[dict[str, Any]], list[int]]:
    """(system, messages, index of each among `turns`) of a `generate`. Raises Problem, which names the message that
    cannot be said.
    """
    system: list[str] = []
    messages: list[dict[str, Any]] = []
    places = [index for index, turn in enumerate(turns) if turn.role not in ("system", "developer")]
    for index, turn in enumerate(turns):
        where = f"messages[{index}]"
        text = _text(turn.content, where)
        if turn.function_call is not None or turn.role == "function":
            raise Problem("unsupported", "functions are not available: use tools", param=where)
        if turn.role in ("system", "developer"):
            system.append(text)
        elif turn.role == "tool":
            messages.append(_result(turn, text, where))
        elif turn.role == "assistant" and turn.tool_calls:
            messages.append(_calls(turn.tool_calls, text, where))
        elif turn.role in ("user", "assistant"):
            if not text:
                raise Problem("invalid_request", "this message has no text", param=where)
            messages.append({"role": turn.role, "content": text})
        else:
            raise Problem(
                "invalid_request",
                "role is one of system, developer, user, assistant, tool",
                param=f"{where}.role",
            )
    return "\n\n".join(system) or None, messages, places


def _text(content: str | list[dict[str, Any]] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type")
        text = part.get(kind) if kind in ("text", "refusal") else None
        if not isinstance(text, str):
            raise Problem("unsupported", "only text parts can be sent", param=f"{where}.content[{index}]")
        texts.append(text)
    return "".join(texts)


# -- tool calls and their results: as the entries of a log name them (protocol §5) --------------------------


def _calls(tool_calls: list[dict[str, Any]], text: str, where: str) -> dict[str, Any]:
    calls = []
    for index, call in enumerate(tool_calls):
        function = call.get("function")
        name, arguments = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (0, 0)
        at = f"{where}.tool_calls[{index}]"
        if not (isinstance(call.get("id"), str) and isinstance(name, str) and isinstance(arguments, str)):
            raise Problem("invalid_request", "a tool call has an id and a function with name and arguments", param=at)
        try:
            value = msgspec.json.decode(arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            raise Problem("invalid_request", "the arguments are no JSON", param=f"{at}.function.arguments") from None
        calls.append({"call": call["id"], "name": name, "input": value})
    return {"role": "assistant", "content": text, "calls": calls}


def _result(turn: Turn, text: str, where: str) -> dict[str, Any]:
    if not turn.tool_call_id:
        raise Problem("invalid_request", "a tool message has a tool_call_id", param=f"{where}.tool_call_id")
    return {"role": "tool", "call": turn.tool_call_id, "content": text}
