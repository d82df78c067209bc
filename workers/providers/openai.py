"""OpenAI's chat completions, and every server that speaks them: requests through the SDK, events out of the bytes.

Key and URL come from the catalog; of OpenAI itself from what the SDK reads (`OPENAI_API_KEY`, `OPENAI_BASE_URL`). A
server of somebody else's has another name or another address, and is sent nothing that only the original understands.
"""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from headrace.protocol.body import Body
from headrace.protocol.frames import Call, Message
from headrace.protocol.tools import ToolSpec, chosen_tool, read_tool
from workers.providers import Continues, Event, Speaker, Stop, Usage
from workers.providers.decoder import AnswerDecoder
from workers.providers.failures import Account, Failure, provider_failure
from workers.providers.sdk import SdkProvider, silence
from workers.structured import openai_format, prompted

ACCOUNT = Account("openai", "OPENAI_API_KEY", "OPENAI_BASE_URL")

#: What finish reasons mean here; any other is an orderly stop.
STOP_REASONS = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool",
    "function_call": "tool",
    "content_filter": "filter",
}
#: Finish reasons by which some compatible servers report that the model did not finish.
_FAILED_REASONS = frozenset({"error", "insufficient_system_resource"})


class OpenAIProvider(SdkProvider):
    format = "openai"

    def continues(self, model: str) -> Continues:
        return "prefix" if self._can(model).prefill else "turn"

    def _make_client(self) -> Any:
        import httpx2
        import openai

        silence("openai")
        timeout = httpx2.Timeout(**self._timeouts())
        own = self._credentials("https://api.openai.com/v1")
        http = openai.DefaultAioHttpClient(timeout=timeout, **self._http_options())
        return openai.AsyncOpenAI(max_retries=0, timeout=timeout, http_client=http, **own)

    def _request(self, client: Any, model: str, body: Body) -> AbstractAsyncContextManager[Any]:
        official = self._is_shipped and not os.environ.get("OPENAI_BASE_URL")
        fields = request_fields(model, body, official)
        if not self._is_shipped and "max_completion_tokens" in fields:  # the name that every such server knows
            fields["extra_body"] = {"max_tokens": fields.pop("max_completion_tokens")}
        request: AbstractAsyncContextManager[Any] = client.chat.completions.with_streaming_response.create(
            **fields, stream=True, extra_headers={"accept-encoding": "identity"}
        )
        return request

    def _decoder(self) -> AnswerDecoder[Any]:
        return OpenAIDecoder(self.account)

    def _failure(self, error: Exception) -> Failure | None:
        import openai

        if not isinstance(error, openai.APIStatusError):
            return None
        kinds = frozenset(kind for kind in (error.type, error.code) if kind)
        return Failure(error.status_code, kinds, error.message, error.response.headers)


def request_fields(model: str, body: Body, official: bool) -> dict[str, Any]:
    """Arguments of `chat.completions.create` for `body`; `official` is OpenAI itself, not a compatible server."""
    schema = None if body.schema is None else openai_format(body.schema)
    if schema is None:
        body = prompted(body)
    messages: list[dict[str, Any]] = [{"role": "system", "content": body.system}] if body.system else []
    messages += [_turn(message) for message in body.messages]
    options = {"include_usage": True, **({"include_obfuscation": False} if official else {})}
    fields: dict[str, Any] = {"model": model, "messages": messages, "stream_options": options}
    if body.max_tokens is not None:
        fields["max_completion_tokens"] = body.max_tokens
    if body.temperature is not None:
        fields["temperature"] = body.temperature
    if body.stop:
        fields["stop"] = body.stop
    if body.tools:
        fields["tools"] = [_tool(tool) for tool in body.tools]
    if body.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(body.tool_choice)
    if schema is not None:
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


def _turn(message: Message) -> dict[str, Any]:
    """This format has no word for a tool that failed: its output says so."""
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.call, "content": message.content}
    if message.calls is None:
        return {"role": message.role, "content": message.content}
    return {
        "role": "assistant",
        "content": message.content or None,
        "tool_calls": [_call(each) for each in message.calls],
    }


def _call(call: Call) -> dict[str, Any]:
    arguments = msgspec.json.encode(call.input or {}).decode()
    return {"id": call.call, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    spec = read_tool(tool)
    assert isinstance(spec, ToolSpec), "a worker's tool is described before anybody is asked"
    described = {"description": spec.description} if spec.description else {}
    return {"type": "function", "function": {"name": spec.name, **described, "parameters": spec.schema}}


def _tool_choice(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    name = chosen_tool(choice)
    if name is not None:
        return {"type": "function", "function": {"name": name}}
    word = choice.get("type") if isinstance(choice, dict) else choice
    return "required" if word == "any" else word if word in ("auto", "none", "required") else choice


# -- the stream ------------------------------------------------------------------------------------------------


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    """Compatible servers' reasoning …"""
    reasoning: str | None = None
    """… in its two names."""
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int | None = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Cached(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _Reasoned(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None
    completion_tokens_details: _Reasoned | None = None


class _Wire(msgspec.Struct, gc=False):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class OpenAIDecoder(AnswerDecoder[_Wire]):
    """A finish reason ends an answer; usage and `[DONE]` may follow it. Chunks without choices are passed over."""

    def __init__(self, account: Account = ACCOUNT) -> None:
        super().__init__(_Wire)
        self._account = account
        self._model = ""
        self._reason = "stop"
        self._refused = False
        self._last_tool = 0

    def _known(self, data: Any) -> bool:
        return not isinstance(data, dict) or "choices" in data

    def _take_other(self, name: bytes, data: bytes, error: Exception, events: list[Event]) -> None:
        if data != b"[DONE]":
            super()._take_other(name, data, error, events)
        elif self.stopping:
            self._stop(events)

    def _take(self, name: bytes, wire: _Wire, events: list[Event]) -> None:
        if wire.error is not None or name == b"error":
            raise provider_failure(self._account, _in_band(wire.error), now=0.0)
        if wire.model and wire.model != self._model:
            self._model = wire.model
            events.append(Speaker(wire.model))
        for choice in wire.choices or ():
            if not choice.index:  # one answer was asked for
                self._choice(choice, events)
        if wire.usage is not None:
            events.append(_usage(wire.usage))

    def _choice(self, choice: _Choice, events: list[Event]) -> None:
        delta = choice.delta
        if delta is not None:
            if delta.content:
                self._text("text", delta.content, events)
            if reasoning := delta.reasoning_content or delta.reasoning:
                self._reasoning("reasoning", reasoning, events)
            if delta.refusal:
                self._refused = True
                self._text("text", delta.refusal, events)
            for part in delta.tool_calls or ():
                self._tool_part(part, events)
        if choice.finish_reason is not None and not self.stopping:
            self._finish(choice.finish_reason, events)

    def _tool_part(self, part: _ToolCall, events: list[Event]) -> None:
        """The first part with an index opens the call. Servers that leave the index out start each call with an id."""
        function = part.function or _Function()
        if part.index is not None:
            index = part.index
        else:
            index = self._last_tool + 1 if part.id or not self._tools else self._last_tool
        self._last_tool = index
        if index not in self._tools:
            self._open_tool(index, part.id or f"call_{index}", function.name or "", events)
        if function.arguments:
            self._tool_input(index, function.arguments, events)

    def _finish(self, reason: str, events: list[Event]) -> None:
        if reason in _FAILED_REASONS:
            kinds = frozenset({"overloaded_error"} if reason == "insufficient_system_resource" else ())
            raise provider_failure(self._account, Failure(0, kinds), now=0.0)
        self._text("text", self._joiner.flush("text"), events)
        self._reasoning("reasoning", self._joiner.flush("reasoning"), events)
        for index in list(self._tools):
            self._close_tool(index, events)
        self._reason = "refusal" if self._refused else STOP_REASONS.get(reason, "stop")
        self.stopping = True

    def _stop(self, events: list[Event]) -> None:
        self.stopped = True
        events.append(Stop(self._reason))


def _usage(usage: _Usage) -> Usage:
    entered, reasoned = usage.prompt_tokens_details or _Cached(), usage.completion_tokens_details or _Reasoned()
    return Usage(
        input_tokens=usage.prompt_tokens or 0,
        output_tokens=usage.completion_tokens or 0,
        cached_tokens=entered.cached_tokens or 0,
        cache_write_tokens=entered.cache_write_tokens or 0,
        reasoning_tokens=reasoned.reasoning_tokens or 0,
    )


def _in_band(error: Any) -> Failure:
    """An error inside the stream. Compatible servers put an HTTP status into `code`, or a text for the whole error."""
    if not isinstance(error, dict):
        return Failure(0, frozenset())
    kinds = frozenset(value for value in (error.get("type"), error.get("code")) if isinstance(value, str))
    code = error.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 0
    return Failure(status, kinds, str(error.get("message") or ""))
