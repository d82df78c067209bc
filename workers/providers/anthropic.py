"""Anthropic's Messages API: requests through its SDK, events out of its stream's bytes.

Key and URL come from the catalog; of Anthropic itself from what the SDK reads (`ANTHROPIC_API_KEY` or
`ANTHROPIC_AUTH_TOKEN`, `ANTHROPIC_BASE_URL`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from headrace.protocol.tools import ToolSpec, chosen_tool, forces, read_tool
from workers.catalog import ModelEntry
from workers.providers import Citation, Continues, Event, Speaker, Stop, Usage
from workers.providers.decoder import AnswerDecoder, MalformedStream
from workers.providers.failures import Account, Failure, provider_failure
from workers.providers.sdk import SdkProvider, silence
from workers.structured import anthropic_schema, prompted

ACCOUNT = Account("anthropic", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL")

#: The API demands a bound on the answer; this one when the request has none.
MAX_TOKENS = 4096

#: What the API's stop reasons mean here. `pause_turn` is an answer that is not finished: nearest to `length`.
STOP_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "pause_turn": "length",
    "tool_use": "tool",
    "refusal": "refusal",
    "model_context_window_exceeded": "context",
}
#: The last models that take the beginning of their own answer; later ones want the user to have the last word.
_TAKES_PREFIX = re.compile(r"claude-(haiku|sonnet|opus)-4-5(-|$)")
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_-]")


class AnthropicProvider(SdkProvider):
    format = "anthropic"

    def continues(self, model: str) -> Continues:
        prefill = self._can(model).prefill
        takes = _TAKES_PREFIX.match(model) is not None if prefill is None else prefill
        return "prefix" if takes else "turn"

    def _make_client(self) -> Any:
        import anthropic
        import httpx2

        silence("anthropic")
        timeout = httpx2.Timeout(**self._timeouts())
        own = self._credentials("https://api.anthropic.com")
        http = anthropic.DefaultAioHttpClient(timeout=timeout, **self._http_options())
        return anthropic.AsyncAnthropic(max_retries=0, timeout=timeout, http_client=http, **own)

    def _request(self, client: Any, model: str, body: Body) -> AbstractAsyncContextManager[Any]:
        request: AbstractAsyncContextManager[Any] = client.messages.with_streaming_response.create(
            **request_fields(model, body, self._can(model)), stream=True, extra_headers={"accept-encoding": "identity"}
        )
        return request

    def _decoder(self) -> AnthropicDecoder:
        return AnthropicDecoder(self.account)

    def _failure(self, error: Exception) -> Failure | None:
        import anthropic

        if not isinstance(error, anthropic.APIStatusError):
            return None
        kinds = frozenset(kind for kind in (error.type, error.error_code) if kind)
        return Failure(error.status_code, kinds, error.api_message or "", error.response.headers)


def request_fields(model: str, body: Body, can: ModelEntry) -> dict[str, Any]:
    """Arguments of `messages.create` for `body`; `can` is what the model can.

    `temperature` is sent only if the request has one, and past the SDK, which dropped the parameter: the newest
    models refuse it.
    """
    schema = None if body.schema is None else anthropic_schema(body.schema)
    if schema is None:
        body = prompted(body)
    fields: dict[str, Any] = {
        "model": model,
        "max_tokens": body.max_tokens or min(MAX_TOKENS, can.max_output or MAX_TOKENS),
        "messages": turns(body.messages),
    }
    if body.system:
        fields["system"] = body.system
    if body.stop:
        fields["stop_sequences"] = body.stop
    if body.tools:
        fields["tools"] = [_tool(tool) for tool in body.tools]
    if body.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(body.tool_choice)
    if schema is not None:
        fields["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    if can.thinking and _may_think(body):
        fields["thinking"] = {"type": "adaptive", "display": "summarized"}
    if body.temperature is not None:
        fields["extra_body"] = {"temperature": body.temperature}
    return fields


def _may_think(body: Body) -> bool:
    """The API refuses thinking beside a temperature or a forced tool, in an answer that was begun for the model, and
    between results of tools without the thinking that led to them, which nobody keeps.
    """
    before = next((message.role for message in reversed(body.messages) if message.role != "user"), "assistant")
    is_answer_new = body.messages[-1].role == "user" and before == "assistant"
    return is_answer_new and body.temperature is None and not forces(body.tool_choice)


def turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation as the API wants it: results of tools are blocks that begin the user's next turn."""
    written: list[dict[str, Any]] = []
    blocks: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "tool":
            if not blocks:
                written.append({"role": "user", "content": blocks})
            blocks.append(_result(message))
        elif message.role == "user" and blocks:
            blocks.append({"type": "text", "text": message.content})
            blocks = []
        else:
            written.append({"role": message.role, "content": _content(message)})
            blocks = []
    return written


def _content(message: Message) -> str | list[dict[str, Any]]:
    if message.calls is None:
        return message.content
    uses = [
        {"type": "tool_use", "id": _id(each.call), "name": each.name, "input": each.input or {}}
        for each in message.calls
    ]
    return [*([{"type": "text", "text": message.content}] if message.content.strip() else []), *uses]


def _result(message: Message) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": _id(message.call or "")}
    if message.content:
        block["content"] = message.content
    if message.error:
        block["is_error"] = True
    return block


def _id(call: str) -> str:
    """Other servers name calls with characters that this API refuses."""
    return _NOT_IN_IDS.sub("_", call)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    spec = read_tool(tool)
    assert isinstance(spec, ToolSpec), "a worker's tool is described before anybody is asked"
    return spec.written()


def _tool_choice(choice: str | dict[str, Any]) -> dict[str, Any]:
    name = chosen_tool(choice)
    if name is not None:
        return {"type": "tool", "name": name}
    return choice if isinstance(choice, dict) else {"type": "any" if choice == "required" else choice}


# -- the stream ------------------------------------------------------------------------------------------------


class _Thought(msgspec.Struct, gc=False):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_details: _Thought | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class _Delta(msgspec.Struct, gc=False):
    type: str | None = None
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    citation: dict[str, Any] | None = None
    stop_reason: str | None = None


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    id: str = ""
    name: str = ""


class _Message(msgspec.Struct, gc=False):
    model: str = ""
    usage: _Usage | None = None


class _Error(msgspec.Struct, gc=False):
    type: str | None = None
    message: str | None = None


class _Wire(msgspec.Struct, gc=False):
    """Any event of the stream: one flat shape decodes faster than one per kind."""

    type: str
    index: int = 0
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: _Usage | None = None
    error: _Error | None = None


_KINDS = frozenset(
    {
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    }
)


class AnthropicDecoder(AnswerDecoder[_Wire]):
    """Only `message_stop` ends an answer. Unknown events, blocks and deltas, pings and signatures are passed over."""

    def __init__(self, account: Account = ACCOUNT) -> None:
        super().__init__(_Wire)
        self._account = account
        self._usage = _Usage()
        self._reason = "stop"
        #: Open blocks of thinking.
        self._thoughts: set[int] = set()

    def _known(self, data: Any) -> bool:
        return not isinstance(data, dict) or data.get("type", "") in _KINDS

    def _take(self, name: bytes, wire: _Wire, events: list[Event]) -> None:
        kind = wire.type
        if kind == "content_block_delta":
            self._block_delta(wire, events)
        elif kind == "content_block_start":
            self._block_start(wire, events)
        elif kind == "content_block_stop":
            self._close_tool(wire.index, events)
            flushed = self._reasoning if wire.index in self._thoughts else self._text
            flushed(wire.index, self._joiner.flush(wire.index), events)
            self._thoughts.discard(wire.index)
        elif kind == "message_delta":
            if wire.delta is not None and wire.delta.stop_reason is not None:
                self._reason = STOP_REASONS.get(wire.delta.stop_reason, "stop")
            self._count(wire.usage, events)
        elif kind == "message_stop":
            self.stopping = True
            self._stop(events)
        elif kind == "message_start":
            if wire.message is None:
                raise MalformedStream
            if wire.message.model:
                events.append(Speaker(wire.message.model))
            self._count(wire.message.usage, events)
        elif kind == "error":
            error = wire.error or _Error()
            kinds = frozenset({error.type} if error.type else ())
            raise provider_failure(self._account, Failure(0, kinds, error.message or ""), now=0.0)

    def _block_delta(self, wire: _Wire, events: list[Event]) -> None:
        delta = wire.delta
        if delta is None:
            raise MalformedStream
        kind = delta.type
        if kind == "text_delta":
            self._text(wire.index, delta.text, events)
        elif kind == "input_json_delta":
            self._tool_input(wire.index, delta.partial_json, events)
        elif kind == "thinking_delta":
            self._reasoning(wire.index, delta.thinking, events)
        elif kind == "citations_delta" and delta.citation is not None:
            events.append(Citation(delta.citation))

    def _block_start(self, wire: _Wire, events: list[Event]) -> None:
        block = wire.content_block
        if block is None:
            raise MalformedStream
        if block.type == "tool_use":  # tools that the provider runs itself are its own business
            self._open_tool(wire.index, block.id, block.name, events)
        elif block.type == "text" and block.text:
            self._text(wire.index, block.text, events)
        elif block.type == "thinking":
            self._thoughts.add(wire.index)
            self._reasoning(wire.index, block.thinking or "", events)

    def _count(self, usage: _Usage | None, events: list[Event]) -> None:
        """Figures of this API are totals so far: a later one replaces, and what is absent stays."""
        if usage is None:
            return
        total = self._usage
        for field in _Usage.__struct_fields__:
            value = getattr(usage, field)
            if value is not None:
                setattr(total, field, value)
        cached = total.cache_read_input_tokens or 0
        written = total.cache_creation_input_tokens or 0
        entered = (total.input_tokens or 0) + written + cached
        thought = (total.output_tokens_details or _Thought()).thinking_tokens or 0
        events.append(Usage(entered, total.output_tokens or 0, cached, written, thought))

    def _stop(self, events: list[Event]) -> None:
        for index in list(self._tools):
            self._close_tool(index, events)
        self.stopped = True
        events.append(Stop(self._reason))
