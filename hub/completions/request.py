"""A chat completion request, read into the `generate` that a socket would have sent. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headrace.protocol.codec import JSON, Fault
from headrace.protocol.frames import Generate
from headrace.protocol.tools import WrongTools, check_turns
from hub.completions.problem import Problem
from hub.completions.turns import Turn, generate_turns

#: Fields that would change the answer and that no model here is told of: only what changes nothing is taken.
NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "functions": (None, []),
    "function_call": (None, "none"),
    "logit_bias": (None, {}),
    "prediction": (None,),
    "web_search_options": (None,),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "top_p": (None, 1),
    "reasoning_effort": (None,),
    "verbosity": (None,),
}
#: Fields of `generate` that OpenAI's clients know by another name.
_NAMES: Final = {"schema": "response_format", "request": "Idempotency-Key"}
#: Nobody can come back to a request without a key: once its client is gone it is not kept for long.
ABANDON_AFTER_MS: Final = 5000
_MESSAGE = re.compile(r"messages\[(\d+)\]")
_PLACE = re.compile(r" - at `\$\.?(?P<place>[^`]*)`")


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _ChatRequest(msgspec.Struct):
    messages: list[Turn]
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    stop: str | list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    fallbacks: list[str] | None = None
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, and how the client wants to hear the answer."""

    frame: Generate
    streams: bool
    include_usage: bool
    tools: frozenset[str]
    """Names of the tools that the client runs itself."""


def read_request(body: bytes, key: str | None, new_key: str) -> Question:
    """Raises Problem. `key` is the client's own idempotency key, `new_key` stands in for it."""
    chat = _decode(body)
    system, messages, places = generate_turns(chat.messages)
    own_tools = _own_tools(chat)
    options: dict[str, Any] = {} if key is not None else {"abandon_after_ms": ABANDON_AFTER_MS}
    if chat.stream:
        options["on_worker_loss"] = "continue"  # what was shown cannot be taken back in this format
    fields = {
        "type": "generate",
        "id": 0,
        "request": new_key if key is None else key,
        "messages": messages,
        "system": system,
        "model": chat.model,
        "max_tokens": chat.max_completion_tokens if chat.max_tokens is None else chat.max_tokens,
        "temperature": chat.temperature,
        "stop": [chat.stop] if isinstance(chat.stop, str) else chat.stop,
        "tools": chat.tools or None,
        "tool_choice": chat.tool_choice if chat.tools else None,
        "schema": _schema(chat.response_format),
        "fallbacks": chat.fallbacks,
        "cache": chat.cache,
        **options,
    }
    frame = _frame({name: value for name, value in fields.items() if value is not None})
    try:
        check_turns(frame.messages)
    except WrongTools as error:
        raise _misplaced(str(error), places) from None
    return Question(
        frame,
        bool(chat.stream),
        bool(chat.stream and chat.stream_options and chat.stream_options.include_usage),
        own_tools,
    )


def _decode(body: bytes) -> _ChatRequest:
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem("invalid_request", "the body is no JSON") from None
    if not isinstance(fields, dict):
        raise Problem("invalid_request", "the body must be a JSON object")
    for name, neutral in NEUTRAL.items():
        if fields.get(name) not in neutral:
            raise Problem("unsupported", f"`{name}` is not available on this hub", param=name)
    try:
        return msgspec.convert(fields, _ChatRequest)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None


def _frame(fields: dict[str, Any]) -> Generate:
    """Checked exactly as what a socket sends."""
    [frame] = JSON.decode_client(msgspec.json.encode(fields))
    if isinstance(frame, Fault):
        raise _invalid(frame.message)
    assert isinstance(frame, Generate)
    return frame


def _invalid(message: str) -> Problem:
    place = _PLACE.search(message)
    param = place["place"] if place else ""
    name = re.split(r"[.\[]", param)[0]
    return Problem("invalid_request", _PLACE.sub("", message), param=_NAMES.get(name, param) or None)


def _schema(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    kind = (response_format or {"type": "text"}).get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    described = (response_format or {}).get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict):
        raise Problem(
            "invalid_request",
            "response_format is {type: text}, {type: json_object} or {type: json_schema, json_schema: {name, schema}}",
            param="response_format",
        )
    return schema


def _own_tools(chat: _ChatRequest) -> frozenset[str]:
    """Names of the tools that the client runs itself. What else is wrong with them, the hub's own check says."""
    names = []
    for index, tool in enumerate(chat.tools or []):
        kind, function = tool.get("type"), tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if kind == "function" and isinstance(name, str):
            names.append(name)
        elif kind != "worker":
            raise Problem(
                "unsupported",
                "a tool is {type: function, function: {name, parameters}} or one of the workers': {type: worker, name}",
                param=f"tools[{index}]",
            )
    if chat.tools and chat.parallel_tool_calls is False:
        raise Problem(
            "unsupported",
            "`parallel_tool_calls: false` is not available on this hub: a model may make several calls at once",
            param="parallel_tool_calls",
        )
    return frozenset(names)


def _misplaced(message: str, places: list[int]) -> Problem:
    """With the index that the client knows a message by: its system messages are none of the hub's."""

    def place(found: re.Match[str]) -> str:
        return f"messages[{places[int(found[1])]}]"

    message = _MESSAGE.sub(place, message)
    found = _MESSAGE.search(message)
    return Problem("invalid_request", message, param=found[0] if found else "messages")
