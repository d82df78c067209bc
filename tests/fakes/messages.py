"""Anthropic's Messages API as a fake speaks it: what it refuses, and the bytes of its stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.fakes.script import Script

PATH = "/v1/messages"

#: Every field that the API takes; the SDK's own list is checked against this one.
FIELDS = frozenset(
    {
        "model",
        "messages",
        "max_tokens",
        "stream",
        "system",
        "stop_sequences",
        "tools",
        "tool_choice",
        "metadata",
        "thinking",
        "output_config",
        "service_tier",
        "container",
        "inference_geo",
        "cache_control",
        "speed",
        "diagnostics",
        "temperature",
        "top_p",
        "top_k",
    }
)

#: Fields of the blocks that may stand in a message, by the role of its author.
_BLOCKS = {
    ("text", "user"): {"text"},
    ("text", "assistant"): {"text"},
    ("tool_use", "assistant"): {"id", "name", "input"},
    ("tool_result", "user"): {"tool_use_id", "content", "is_error"},
}

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Refusal(Exception):
    """The request is answered with `status` and an error."""

    def __init__(self, status: int, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.fields = {"message": message, **fields}


def error_body(status: int, fields: Mapping[str, Any]) -> bytes:
    error = {"type": _ERROR_TYPES.get(status, "api_error"), "message": "Scripted error", **fields}
    return json.dumps({"type": "error", "error": error, "request_id": "req_fake"}).encode()


def check(headers: Mapping[str, str], body: dict[str, Any]) -> None:
    """Raises Refusal as the API would."""
    key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
    if not key:
        raise Refusal(401, "x-api-key header is required")
    if key.startswith("invalid"):
        raise Refusal(401, "invalid x-api-key")
    if "anthropic-version" not in headers:
        raise Refusal(400, "anthropic-version: header is required")
    for name in body.keys() - FIELDS:
        raise Refusal(400, f"{name}: Extra inputs are not permitted")
    for name in ("model", "messages", "max_tokens"):
        if name not in body:
            raise Refusal(400, f"{name}: Field required")
    if body.get("stream") is not True:
        raise Refusal(400, "stream: this fake only streams")
    _check_model(body)
    _check_messages(body["messages"], body["model"])
    if "tools" not in body and any(_blocks(message, "tool_use") for message in body["messages"]):
        raise Refusal(400, "tools: must be defined for messages with tool_use blocks")
    if not isinstance(body["max_tokens"], int) or body["max_tokens"] < 1:
        raise Refusal(400, "max_tokens: must be greater than or equal to 1")
    if not isinstance(body.get("system", ""), str | list):
        raise Refusal(400, "system: Input should be a valid string")
    for index, tool in enumerate(body.get("tools", [])):
        if tool.get("type", "custom") == "custom" and not {"name", "input_schema"} <= tool.keys():
            raise Refusal(400, f"tools.{index}.custom.input_schema: Field required")
    form = body.get("output_config", {}).get("format")
    if form is not None:
        if form.get("type") != "json_schema":
            raise Refusal(400, "output_config.format.type: Input should be 'json_schema'")
        _check_schema(form["schema"])
    if body.get("tool_choice", {"type": "auto"}).get("type") not in ("auto", "any", "none", "tool"):
        raise Refusal(400, "tool_choice: Input tag does not match any of the expected tags")


_UNSUPPORTED = frozenset(
    {"minimum", "maximum", "multipleOf", "minLength", "maxLength", "maxItems", "oneOf", "patternProperties", "not"}
)


def _check_schema(schema: Any) -> None:
    """Closed objects, and few keywords."""
    if isinstance(schema, list):
        for each in schema:
            _check_schema(each)
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind == "object" and schema.get("additionalProperties") is not False:
        raise Refusal(400, "output_config.format.schema: For 'object' type, 'additionalProperties' must be false")
    for name in schema.keys() & _UNSUPPORTED if isinstance(kind, str) else ():
        raise Refusal(400, f"output_config.format.schema: For '{kind}' type, property '{name}' is not supported")
    for each in schema.values():
        _check_schema(each)


def _check_model(body: dict[str, Any]) -> None:
    model = body["model"]
    if not isinstance(model, str) or not model.startswith(("claude-", "fake-")):
        raise Refusal(404, f"model: {model}")
    for name in ("temperature", "top_p", "top_k"):
        if name in body and "-5" in model:
            raise Refusal(400, f"{name}: not supported by this model")
    if not 0 <= body.get("temperature", 0) <= 1:
        raise Refusal(400, "temperature: range: 0..1")


def _check_messages(messages: Any, model: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "messages: at least one message is required")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise Refusal(400, f"messages.{index}: Field required")
        for name in message.keys() - {"role", "content"}:
            raise Refusal(400, f"messages.{index}.{name}: Extra inputs are not permitted")
        if message["role"] not in ("user", "assistant"):
            raise Refusal(400, f"messages: Unexpected role {message['role']!r}")
        if not message["content"]:
            raise Refusal(400, f"messages.{index}: all messages must have non-empty content")
    _check_tool_turns(messages)
    if messages[-1]["role"] != "user":
        if "-4-5" not in model:
            raise Refusal(400, "This model does not support assistant message prefill.")
        if last_prompt(messages) != last_prompt(messages).rstrip():
            raise Refusal(400, "messages: final assistant content cannot end with trailing whitespace")


def _check_tool_turns(messages: Sequence[dict[str, Any]]) -> None:
    """Each `tool_use` has its `tool_result` in the next message, before anything else, and no other is there."""
    asked: list[str] = []
    for index, message in enumerate(messages):
        _check_blocks(index, message)
        answered = [block["tool_use_id"] for block in _blocks(message, "tool_result")]
        for call in answered:
            if call not in asked:
                raise Refusal(400, f"messages.{index}: unexpected `tool_use_id` found in `tool_result` blocks: {call}")
        if sorted(answered) != sorted(asked):
            raise Refusal(400, f"messages.{index}: `tool_use` ids were found without `tool_result` blocks: {asked}")
        kinds = [block["type"] for block in _blocks(message)]
        if "tool_result" in kinds[kinds.count("tool_result") :]:
            raise Refusal(400, f"messages.{index}: `tool_result` blocks must come first")
        asked = [block["id"] for block in _blocks(message, "tool_use")]
        if len(set(asked)) < len(asked):
            raise Refusal(400, f"messages.{index}: `tool_use` ids must be unique")
    if asked:
        raise Refusal(400, f"messages: `tool_use` ids were found without `tool_result` blocks: {asked}")


def _check_blocks(index: int, message: dict[str, Any]) -> None:
    for number, block in enumerate(_blocks(message)):
        at = f"messages.{index}.content.{number}"
        if (block["type"], message["role"]) not in _BLOCKS:
            raise Refusal(400, f"{at}: `{block['type']}` blocks are not permitted in {message['role']} messages")
        if block.keys() - _BLOCKS[block["type"], message["role"]] - {"type"}:
            raise Refusal(400, f"{at}: Extra inputs are not permitted")
        if block["type"] == "text" and not block["text"].strip():
            raise Refusal(400, "messages: text content blocks must contain non-whitespace text")
        if block["type"] == "tool_use" and not isinstance(block["input"], dict):
            raise Refusal(400, f"{at}.tool_use.input: Input should be a valid dictionary")
        if block["type"] == "tool_use" and not re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"]):
            raise Refusal(400, f"{at}.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
        if block["type"] == "tool_use" and not re.fullmatch(r"[a-zA-Z0-9_-]{1,200}", block["name"]):
            raise Refusal(400, f"{at}.tool_use.name: String should match pattern '^[a-zA-Z0-9_-]{{1,200}}$'")


def _blocks(message: dict[str, Any], kind: str = "") -> list[dict[str, Any]]:
    content = message["content"]
    return [block for block in content if kind in ("", block["type"])] if isinstance(content, list) else []


def quoted(text: str) -> bytes:
    """`text` as JSON; raw UTF-8, but escapes where a surrogate stands alone."""
    try:
        return json.dumps(text, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(text).encode()


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def _json(name: str, **fields: Any) -> bytes:
    return _event(name, json.dumps({"type": name, **fields}).encode())


class MessagesFormat:
    """The events of one answer, in the API's order."""

    def __init__(self, script: Script, body: dict[str, Any]) -> None:
        self._script = script
        self._model = body["model"]
        self._index = -1
        self._written = 0
        self._usage = {
            "input_tokens": 12,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            **(script.usage or {}),
        }
        self._prefix = b""

    def opening(self) -> Iterator[bytes]:
        message = {
            "id": "msg_fake",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**self._usage, "output_tokens": 1},
        }
        yield _json("message_start", message=message)
        yield _json("ping")
        if self._script.reasoning:
            yield self._open({"type": "thinking", "thinking": "", "signature": ""})
            for text in self._script.reasoning:
                yield self._delta("thinking_delta", b"thinking", quoted(text))
            yield self._delta("signature_delta", b"signature", b'"c2lnbmF0dXJl"')
            yield self._close()
        yield self._open({"type": "text", "text": ""})
        opened = f'{{"type":"content_block_delta","index":{self._index},"delta":{{"type":"text_delta","text":'
        self._prefix = b"event: content_block_delta\ndata: " + opened.encode()

    def token(self, text: str) -> bytes:
        self._written += 1
        return self._prefix + quoted(text) + b"}}\n\n"

    def closing(self) -> Iterator[bytes]:
        script = self._script
        if script.citation is not None:
            yield self._delta("citations_delta", b"citation", json.dumps(script.citation).encode())
        yield self._close()
        for number, (name, parts) in enumerate(script.tools, 1):
            yield self._open({"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {}})
            for part in ("", *parts):
                yield self._delta("input_json_delta", b"partial_json", quoted(part))
            yield self._close()
        stop = script.stop or ("tool_use" if script.tools else "end_turn")
        usage = {**self._usage, "output_tokens": self._written}
        yield _json("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage=usage)
        yield _json("message_stop")

    def ping(self) -> bytes:
        return _json("ping")

    def error(self) -> bytes:
        fields = {"type": "overloaded_error", "message": "Overloaded", **(self._script.error or {})}
        return _json("error", error=fields, request_id="req_fake")

    def _open(self, block: Mapping[str, Any]) -> bytes:
        self._index += 1
        return _json("content_block_start", index=self._index, content_block=block)

    def _delta(self, kind: str, field: bytes, value: bytes) -> bytes:
        data = b'{"type":"content_block_delta","index":%d,"delta":{"type":"%s","%s":%s}}'
        return _event("content_block_delta", data % (self._index, kind.encode(), field, value))

    def _close(self) -> bytes:
        return _json("content_block_stop", index=self._index)


def last_prompt(messages: Sequence[dict[str, Any]]) -> str:
    content = messages[-1]["content"]
    return content if isinstance(content, str) else json.dumps(content)


def question(messages: Sequence[dict[str, Any]]) -> str:
    """What the user asked last: results of tools are no question."""
    contents = [each["content"] for each in messages if each.get("role") == "user"]
    asked = [content if isinstance(content, str) else _text(content) for content in contents]
    return next((text for text in reversed(asked) if text), "")


def _text(blocks: Sequence[dict[str, Any]]) -> str:
    return "".join(block.get("text", "") for block in blocks)
