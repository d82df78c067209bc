"""Anthropic's Messages API as a fake speaks it: what it refuses, and the bytes of its stream."""

from __future__ import annotations

import json
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
    if not isinstance(body["max_tokens"], int) or body["max_tokens"] < 1:
        raise Refusal(400, "max_tokens: must be greater than or equal to 1")
    if not isinstance(body.get("system", ""), str | list):
        raise Refusal(400, "system: Input should be a valid string")
    for index, tool in enumerate(body.get("tools", [])):
        if tool.get("type", "custom") == "custom" and not {"name", "input_schema"} <= tool.keys():
            raise Refusal(400, f"tools.{index}.custom.input_schema: Field required")
    if body.get("tool_choice", {"type": "auto"}).get("type") not in ("auto", "any", "none", "tool"):
        raise Refusal(400, "tool_choice: Input tag does not match any of the expected tags")


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
    if messages[-1]["role"] != "user":
        if "-4-5" not in model:
            raise Refusal(400, "This model does not support assistant message prefill.")
        if last_prompt(messages) != last_prompt(messages).rstrip():
            raise Refusal(400, "messages: final assistant content cannot end with trailing whitespace")


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
