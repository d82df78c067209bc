"""OpenAI's Responses API as a fake speaks it: what it refuses, and the bytes of its stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.fakes.completions import check_format, check_key, check_model, error_body
from tests.fakes.messages import Refusal, quoted
from tests.fakes.script import Script

__all__ = ["FIELDS", "PATH", "ResponsesFormat", "check", "error_body", "turns"]

PATH = "/v1/responses"

#: Every field that the API takes; the SDK's own list is checked against this one.
FIELDS = frozenset(
    {
        "access_programs",
        "background",
        "background_options",
        "context_management",
        "conversation",
        "image",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "model",
        "moderation",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
    }
)
_ROLES = frozenset({"user", "assistant", "system", "developer"})
_ITEMS: Mapping[str, frozenset[str]] = {
    "message": frozenset({"role", "content"}),
    "function_call": frozenset({"call_id", "name", "arguments"}),
    "function_call_output": frozenset({"call_id", "output"}),
}
#: The API's least.
_LEAST_TOKENS = 16


def check(headers: Mapping[str, str], body: dict[str, Any]) -> None:
    """Raises Refusal as the API would."""
    check_key(headers)
    for name in body.keys() - FIELDS:
        raise _unknown(name)
    if body.get("stream") is not True:
        raise Refusal(400, "this fake only streams")
    check_model(body)
    if body.get("background") and body.get("store") is False:
        raise Refusal(400, "Background mode requires 'store' to be true.", param="background")
    _check_input(body.get("input"))
    if not isinstance(body.get("instructions", ""), str):
        raise _invalid("instructions")
    tokens = body.get("max_output_tokens", _LEAST_TOKENS)
    if not isinstance(tokens, int) or tokens < _LEAST_TOKENS:
        message = f"Invalid 'max_output_tokens': expected a value >= {_LEAST_TOKENS}."
        raise Refusal(400, message, param="max_output_tokens", code="integer_below_min_value")
    if not 0 <= body.get("temperature", 0) <= 2:
        raise Refusal(400, "Invalid 'temperature': decimal above maximum value.", param="temperature")
    for name in body.get("stream_options", {}).keys() - {"include_obfuscation"}:
        raise _unknown(f"stream_options.{name}")
    for index, tool in enumerate(body.get("tools", [])):
        if tool.get("type") == "function":
            for name in {"name", "parameters", "strict"} - tool.keys():
                raise _missing(f"tools[{index}].{name}")
    choice = body.get("tool_choice", "auto")
    if choice not in ("auto", "none", "required") and not (isinstance(choice, dict) and "type" in choice):
        raise _invalid("tool_choice")
    _check_text(body.get("text", {}))


def _check_input(items: Any) -> None:
    if not isinstance(items, list) or not items:
        raise _missing("input")
    called: set[str] = set()
    for index, item in enumerate(items):
        kind = item.get("type", "message")
        if kind not in _ITEMS:
            raise _invalid(f"input[{index}].type")
        for name in _ITEMS[kind] - item.keys():
            raise _missing(f"input[{index}].{name}")
        for name in item.keys() - _ITEMS[kind] - {"type", "id", "status"}:
            raise _unknown(f"input[{index}].{name}")
        if kind == "message" and (item["role"] not in _ROLES or not isinstance(item["content"], str | list)):
            raise _invalid(f"input[{index}]")
        if kind == "function_call":
            called.add(item["call_id"])
        elif kind == "function_call_output" and item["call_id"] not in called:
            raise Refusal(400, f"No tool call found for function call output with call_id {item['call_id']}.")


def _check_text(text: dict[str, Any]) -> None:
    for name in text.keys() - {"format", "verbosity"}:
        raise _unknown(f"text.{name}")
    form = text.get("format", {"type": "text"})
    if form.get("type") not in ("text", "json_object", "json_schema"):
        raise _invalid("text.format.type")
    if form["type"] == "json_schema":
        for name in {"name", "schema"} - form.keys():
            raise _missing(f"text.format.{name}")
        for name in form.keys() - {"type", "name", "schema", "strict", "description"}:
            raise _unknown(f"text.format.{name}")
        check_format(form, form, "text.format")


def _missing(param: str) -> Refusal:
    return Refusal(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def _unknown(param: str) -> Refusal:
    return Refusal(400, f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")


def _invalid(param: str) -> Refusal:
    return Refusal(400, f"Invalid value: '{param}'.", param=param, code="invalid_value")


def turns(body: dict[str, Any]) -> list[dict[str, Any]]:
    """What scripts are chosen by: the input as messages."""
    return [{"role": "tool", "content": item.get("output", ""), **item} for item in body["input"]]


class ResponsesFormat:
    """The events of one answer, in the API's order and with its numbers.

    `stop` of the script is the word for an incomplete answer, `refusal` (the text is one), or `failed`.
    """

    def __init__(self, script: Script, body: dict[str, Any], response: str = "resp_fake") -> None:
        self._script = script
        self._is_background = bool(body.get("background"))
        self._response = {
            "id": response,
            "object": "response",
            "created_at": 1795000000,
            "model": body["model"],
            "background": self._is_background,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "usage": None,
            "tools": body.get("tools", []),
            "store": body.get("store", True),
        }
        self._padding = b',"obfuscation":"aB3dE"' if _pads(body) else b""
        self._number = -1
        self._output = -1
        self._written = 0
        self._texts: list[str] = []
        self._kind = "refusal" if script.stop == "refusal" else "output_text"

    def opening(self) -> Iterator[bytes]:
        yield self._lifecycle("created", "queued" if self._is_background else "in_progress")
        if self._is_background:
            yield self._lifecycle("queued", "queued")
        yield self._lifecycle("in_progress", "in_progress")
        if self._script.reasoning:
            yield from self._reasoning(self._script.reasoning)
        self._output += 1
        item = {"id": "msg_1", "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        yield self._event("response.output_item.added", output_index=self._output, item=item)
        yield self._event("response.content_part.added", **self._at(), part=self._part(""))

    def token(self, text: str) -> bytes:
        self._written += 1
        self._number += 1
        self._texts.append(text)
        return b'event: response.%s.delta\ndata: {"type":"response.%s.delta",%s,"delta":%s%s}\n\n' % (
            self._kind.encode(), self._kind.encode(), self._token_head(), quoted(text), self._padding
        )  # fmt: skip

    def closing(self) -> Iterator[bytes]:
        script = self._script
        if script.citation is not None:
            yield self._event(
                "response.output_text.annotation.added", **self._at(), annotation_index=0, annotation=script.citation
            )
        text = "".join(self._texts)
        word = {"refusal": {"refusal": text}}.get(self._kind, {"text": text, "logprobs": []})
        yield self._event(f"response.{self._kind}.done", **self._at(), **word)
        yield self._event("response.content_part.done", **self._at(), part=self._part(text))
        item = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant"}
        item |= {"content": [self._part(text)]}  # type: ignore[dict-item]
        yield self._event("response.output_item.done", output_index=self._output, item=item)
        for number, (name, parts) in enumerate(script.tools, 1):
            yield from self._tool(number, name, parts)
        yield self._last()

    def ping(self) -> bytes:
        return b": ping\n\n"

    def error(self) -> bytes:
        """Flat, as the API writes it; with a `type` of its own: in the nested form that it also has."""
        fields = {"code": "server_error", "message": "The server had an error", "param": None}
        fields |= dict(self._script.error or {})
        return self._event("error", **({"error": fields} if "type" in fields else fields))

    def _last(self) -> bytes:
        script = self._script
        details = {"cached_tokens": 0, "cache_write_tokens": 0}
        usage: dict[str, Any] = {"input_tokens": 12, "input_tokens_details": details, "output_tokens": self._written}
        usage |= {"output_tokens_details": {"reasoning_tokens": 0}, **(script.usage or {})}
        usage["total_tokens"] = usage["input_tokens"] + usage["output_tokens"]
        if script.stop == "failed":
            error = {"code": "server_error", "message": "The server had an error", **(script.error or {})}
            return self._lifecycle("failed", "failed", error=error)
        if script.stop is None or script.stop in ("refusal", "completed"):
            return self._lifecycle("completed", "completed", usage=usage)
        details = {"reason": script.stop}  # type: ignore[dict-item]
        return self._lifecycle("incomplete", "incomplete", incomplete_details=details, usage=usage)

    def _reasoning(self, texts: Any) -> Iterator[bytes]:
        self._output += 1
        item = {"id": "rs_1", "type": "reasoning", "summary": []}
        at = {"item_id": "rs_1", "output_index": self._output, "summary_index": 0}
        yield self._event("response.output_item.added", output_index=self._output, item=item)
        yield self._event("response.reasoning_summary_part.added", **at, part={"type": "summary_text", "text": ""})
        for text in texts:
            yield self._event("response.reasoning_summary_text.delta", **at, delta=text)
        part = {"type": "summary_text", "text": "".join(texts)}
        yield self._event("response.reasoning_summary_text.done", **at, text=part["text"])
        yield self._event("response.reasoning_summary_part.done", **at, part=part)
        yield self._event("response.output_item.done", output_index=self._output, item=item | {"summary": [part]})

    def _tool(self, number: int, name: str, parts: Any) -> Iterator[bytes]:
        self._output += 1
        item = {"id": f"fc_{number}", "type": "function_call", "status": "in_progress"}
        item |= {"call_id": f"call_{number}", "name": name, "arguments": ""}
        at = {"item_id": f"fc_{number}", "output_index": self._output}
        yield self._event("response.output_item.added", output_index=self._output, item=item)
        for part in parts:
            yield self._event("response.function_call_arguments.delta", **at, delta=part)
        whole = "".join(parts)
        yield self._event("response.function_call_arguments.done", **at, arguments=whole)
        item |= {"status": "completed", "arguments": whole}
        yield self._event("response.output_item.done", output_index=self._output, item=item)

    def _part(self, text: str) -> dict[str, Any]:
        if self._kind == "refusal":
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _at(self) -> dict[str, Any]:
        return {"item_id": "msg_1", "output_index": self._output, "content_index": 0}

    def _token_head(self) -> bytes:
        logprobs = b"" if self._kind == "refusal" else b',"logprobs":[]'
        return b'"sequence_number":%d,"item_id":"msg_1","output_index":%d,"content_index":0%s' % (
            self._number, self._output, logprobs
        )  # fmt: skip

    def _lifecycle(self, name: str, status: str, **changes: Any) -> bytes:
        return self._event(f"response.{name}", response={**self._response, "status": status, **changes})

    def _event(self, name: str, **fields: Any) -> bytes:
        self._number += 1
        data = json.dumps({"type": name, "sequence_number": self._number, **fields})
        return b"event: %s\ndata: %s\n\n" % (name.encode(), data.encode())


def _pads(body: dict[str, Any]) -> bool:
    return bool(body.get("stream_options", {}).get("include_obfuscation", True))
