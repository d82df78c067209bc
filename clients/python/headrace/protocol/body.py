"""What a model is asked: the part of a `generate` that the worker sees and that makes two requests equal."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from headrace.protocol.frames import Generate, Message, RetryOf


class Body(msgspec.Struct, omit_defaults=True):
    """The request as the worker gets it (protocol §3, `request`)."""

    messages: list[Message]
    system: str | None = None
    model: str = "standard"
    provider: str | None = None
    fallbacks: list[str] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    stop: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    schema: dict[str, Any] | None = None
    session: str | None = None
    retry_of: RetryOf | None = None

    @classmethod
    def of(cls, frame: Generate) -> Body:
        return cls(**{name: getattr(frame, name) for name in cls.__struct_fields__})

    @property
    def prompt_bytes(self) -> int:
        """Size of everything the model reads, in bytes of UTF-8: turns with their tool calls, tools, schema."""
        texts = [message.content for message in self.messages]
        parts = [self.tools, self.schema, *[call.input for message in self.messages for call in message.calls or ()]]
        size = sum(len(text.encode()) for text in [self.system or "", *texts])
        return size + sum(len(msgspec.json.encode(part)) for part in parts if part)

    def digest(self) -> str:
        """Hash of the canonical form: equal for equal requests, in whatever order their keys came."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class Options(msgspec.Struct, omit_defaults=True):
    """How a generation is run: not part of what makes two requests equal."""

    on_abandon: str = "cancel"
    abandon_after_ms: int = 120_000
    on_worker_loss: str = "restart"
    metadata: dict[str, Any] | None = None
    cache: str = "off"
    prefetch: bool = False
