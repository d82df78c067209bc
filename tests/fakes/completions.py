"""OpenAI's chat completions as a fake speaks them: what it refuses, and the bytes of its stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.fakes.messages import Refusal, quoted
from tests.fakes.script import Script

PATH = "/v1/chat/completions"

#: Every field that the API takes; the SDK's own list is checked against this one.
FIELDS = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "modalities",
        "moderation",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    }
)

_ERROR_TYPES = {401: "invalid_request_error", 429: "requests", 500: "server_error", 503: "server_error"}
_ROLES = frozenset({"developer", "system", "user", "assistant", "tool", "function"})


def error_body(status: int, fields: Mapping[str, Any]) -> bytes:
    kind = _ERROR_TYPES.get(status, "invalid_request_error")
    error = {"message": "Scripted error", "type": kind, "param": None, "code": None, **fields}
    return json.dumps({"error": error}).encode()


def check(headers: Mapping[str, str], body: dict[str, Any]) -> None:
    """Raises Refusal as the API would."""
    check_key(headers)
    for name in body.keys() - FIELDS:
        raise Refusal(400, f"Unrecognized request argument supplied: {name}")
    if not body.get("model"):
        raise Refusal(400, "you must provide a model parameter")
    if "messages" not in body:
        message = "Missing required parameter: 'messages'."
        raise Refusal(400, message, param="messages", code="missing_required_parameter")
    if body.get("stream") is not True:
        raise Refusal(400, "this fake only streams")
    check_model(body)
    _check_messages(body["messages"])
    for name in body.get("stream_options", {}).keys() - {"include_usage", "include_obfuscation"}:
        raise Refusal(400, f"Unknown parameter: 'stream_options.{name}'.", code="unknown_parameter")
    if not 0 <= body.get("temperature", 0) <= 2:
        raise Refusal(400, "Invalid 'temperature': decimal above maximum value.", param="temperature")
    for index, tool in enumerate(body.get("tools", [])):
        if tool.get("type") == "function" and "name" not in tool.get("function", {}):
            param = f"tools[{index}].function"
            raise Refusal(400, f"Missing required parameter: '{param}'.", param=param)
    if "response_format" in body:
        check_format(body["response_format"], body["response_format"].get("json_schema", {}), "response_format")
    choice = body.get("tool_choice", "auto")
    if choice not in ("auto", "none", "required") and not isinstance(choice, dict):
        raise Refusal(400, f"Invalid value: {choice!r}.", param="tool_choice", code="invalid_value")


def check_format(form: dict[str, Any], described: dict[str, Any], param: str) -> None:
    """What is asked for as a format, and where its schema is described."""
    if form.get("type") not in ("text", "json_object", "json_schema"):
        raise Refusal(400, f"Invalid value: {form.get('type')!r}.", param=f"{param}.type", code="invalid_value")
    if form["type"] == "json_schema":
        for name in {"name", "schema"} - described.keys():
            raise Refusal(400, f"Missing required parameter: '{param}.{name}'.", code="missing_required_parameter")
        schema = described["schema"]
        if schema.get("type") != "object" or "properties" not in schema:
            raise Refusal(400, f"Invalid schema for {param}: schema must be an object with properties.", param=param)
        if described.get("strict"):
            _check_strict(schema, param)


def _check_strict(schema: Any, param: str) -> None:
    if isinstance(schema, list):
        for each in schema:
            _check_strict(each, param)
    if not isinstance(schema, dict):
        return
    is_object = schema.get("type") == "object"
    if is_object and schema.get("additionalProperties") is not False:
        raise Refusal(400, f"Invalid schema for {param}: 'additionalProperties' must be false.", param=param)
    if is_object and set(schema.get("required", ())) != schema["properties"].keys():
        raise Refusal(400, f"Invalid schema for {param}: 'required' must include every key.", param=param)
    for name in schema.keys() & {"allOf", "oneOf", "not", "if", "patternProperties", "minLength", "default"}:
        if isinstance(schema.get("type"), str):
            raise Refusal(400, f"Invalid schema for {param}: '{name}' is not permitted.", param=param)
    for each in schema.values():
        _check_strict(each, param)


def check_key(headers: Mapping[str, str]) -> None:
    key = headers.get("authorization", "").removeprefix("Bearer ")
    if not key:
        raise Refusal(401, "You didn't provide an API key.")
    if key.startswith("invalid"):
        raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")


def check_model(body: dict[str, Any]) -> None:
    model = str(body["model"])
    if not model.startswith(("gpt-", "o1", "o3", "fake-")):
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise Refusal(404, message, code="model_not_found")
    if "max_tokens" in body and model.startswith(("gpt-5", "gpt-6", "o")):
        message = "Unsupported parameter: 'max_tokens' is not supported with this model."
        raise Refusal(400, message, param="max_tokens", code="unsupported_parameter")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "Invalid 'messages': empty array.", param="messages", code="empty_array")
    for index, message in enumerate(messages):
        role = message.get("role")
        if role not in _ROLES:
            raise Refusal(400, f"Invalid value: {role!r}.", param=f"messages[{index}].role", code="invalid_value")
        is_call = role == "assistant" and "tool_calls" in message and message.get("content") is None
        if not is_call and not isinstance(message.get("content"), str | list):
            raise Refusal(400, "Invalid type.", param=f"messages[{index}].content", code="invalid_type")
    _check_tool_turns(messages)


def _check_tool_turns(messages: list[dict[str, Any]]) -> None:
    """Each call is answered by one `tool` message, right after the message that made it."""
    asked: list[str] = []
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            if message.get("tool_call_id") not in asked:
                text = "messages with role 'tool' must be a response to a preceding message with 'tool_calls'."
                raise Refusal(400, text, param=f"messages[{index}].role")
            asked.remove(message["tool_call_id"])
            continue
        if asked:
            text = f"An assistant message with 'tool_calls' must be followed by tool messages: {asked}"
            raise Refusal(400, text, param=f"messages[{index}]")
        for call in message.get("tool_calls", ()):
            function = call.get("function", {})
            if call.get("type") != "function" or not isinstance(function.get("arguments"), str) or not function["name"]:
                raise Refusal(400, "Invalid tool call.", param=f"messages[{index}].tool_calls")
            asked.append(call["id"])
    if asked:
        raise Refusal(400, f"An assistant message with 'tool_calls' must be followed by tool messages: {asked}")


class CompletionsFormat:
    """The chunks of one answer, in the API's order."""

    def __init__(self, script: Script, body: dict[str, Any]) -> None:
        self._script = script
        self._include_usage = body.get("stream_options", {}).get("include_usage", False)
        head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1795000000}
        head |= {"model": body["model"], "service_tier": "default", "system_fingerprint": None}
        self._head = b"data: " + json.dumps(head).encode()[:-1]
        padding = body.get("stream_options", {}).get("include_obfuscation", True)
        tail = b',"usage":null' if self._include_usage else b""
        tail += b',"obfuscation":"aB3dE"' if padding else b""
        self._tail = tail + b"}\n\n"
        self._token_head = self._head + b', "choices":[{"index":0,"delta":{"content":'
        self._token_tail = b'},"logprobs":null,"finish_reason":null}]' + self._tail
        self._written = 0

    def opening(self) -> Iterator[bytes]:
        yield self._chunk({"role": "assistant", "content": "", "refusal": None})
        for text in self._script.reasoning:
            yield self._chunk({"reasoning_content": text})

    def token(self, text: str) -> bytes:
        self._written += 1
        return self._token_head + quoted(text) + self._token_tail

    def closing(self) -> Iterator[bytes]:
        script = self._script
        for index, (name, parts) in enumerate(script.tools):
            function = {"name": name, "arguments": ""}
            opened = {"index": index, "id": f"call_{index + 1}", "type": "function", "function": function}
            yield self._chunk({"tool_calls": [opened]})
            for part in parts:
                yield self._chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
        yield self._chunk({}, script.stop or ("tool_calls" if script.tools else "stop"))
        if self._include_usage:
            usage = {"prompt_tokens": 12, "completion_tokens": self._written, **(script.usage or {})}
            yield self._head + b', "choices":[],"usage":' + json.dumps(usage).encode() + b"}\n\n"
        if script.done_marker:
            yield b"data: [DONE]\n\n"

    def ping(self) -> bytes:
        return b": ping\n\n"

    def error(self) -> bytes:
        fields = {"message": "The server had an error", "type": "server_error", "param": None, "code": None}
        return b"data: " + json.dumps({"error": {**fields, **(self._script.error or {})}}).encode() + b"\n\n"

    def _chunk(self, delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._head + b', "choices":[' + json.dumps(choice).encode() + b"]" + self._tail
