"""Every frame of the protocol, one schema for JSON and MessagePack (docs/protocol.md §2–§8).

A decoded frame is valid. The frames that applications fill in (`Message`, `Generate`, `Attach`) check their
fields in the constructor as well and raise `msgspec.ValidationError`; frames of the hot path do not.
Unknown fields are ignored in both directions.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

from headrace.protocol.codes import Retry
from headrace.protocol.cursor import MAX_INT, Cursor, Mark, Offset

Id = Annotated[int, Meta(ge=-MAX_INT, le=MAX_INT)] | Annotated[str, Meta(max_length=64)]
StreamId = Annotated[str, Meta(min_length=1, max_length=64)]
Window = Annotated[int, Meta(ge=0, le=MAX_INT)] | None
PaceMs = Annotated[int, Meta(ge=0, le=5000)]
Milliseconds = Annotated[int, Meta(ge=0, le=MAX_INT)]
Text = Annotated[str, Meta(min_length=1)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]

#: Tool calls in one turn.
TURN_CALLS = 128
#: Frames in one batch.
BATCH_FRAMES = 64
#: Text merged into one `delta`, in bytes of UTF-8.
DELTA_BYTES = 16 * 1024
#: The hub never sends a larger message.
MESSAGE_OUT_BYTES = 64 * 1024


@cache
def _field_types(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


class _Checked(msgspec.Struct, omit_defaults=True):
    """Checks its fields when it is constructed, not only when it is decoded."""

    def __post_init__(self) -> None:
        types = _field_types(type(self))
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not UNSET:
                try:
                    msgspec.convert(value, types[name])
                except msgspec.ValidationError as error:
                    raise msgspec.ValidationError(f"{error} (in `{name}`)") from None


class Call(msgspec.Struct, omit_defaults=True):
    """A tool call of the model's, in the turn that is sent back to it. `input` are its arguments, parsed."""

    call: Name
    name: Name
    input: Any = None


class Message(_Checked):
    """One turn of what the model is asked.

    An assistant's turn may hold tool `calls`; each is answered by a turn of role `tool` that names its `call` and
    has the output in `content`, with `error` if the tool failed.
    """

    role: Literal["user", "assistant", "tool"]
    content: str = ""
    calls: Annotated[list[Call], Meta(min_length=1, max_length=TURN_CALLS)] | None = None
    call: Name | None = None
    error: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.content and self.calls is None and self.role != "tool":
            raise msgspec.ValidationError("a turn has `content`, or the `calls` of an assistant")
        if self.calls is not None and self.role != "assistant":
            raise msgspec.ValidationError("only an assistant's turn has `calls`")
        if (self.call is not None) != (self.role == "tool") or (self.error and self.role != "tool"):
            raise msgspec.ValidationError("a turn of role `tool`, and no other, names its `call`")


class RetryOf(msgspec.Struct, omit_defaults=True):
    stream: StreamId
    retry_token: str


# -- client → hub ----------------------------------------------------------------------------------------


class Hello(msgspec.Struct, tag="hello", tag_field="type", omit_defaults=True):
    token: Annotated[str, Meta(max_length=8192)] | None = None
    client: Annotated[str, Meta(max_length=128)] | None = None
    device: Annotated[str, Meta(max_length=128)] | None = None


class Generate(_Checked, tag="generate", tag_field="type"):
    """Ask a model. What is asked is `body()`; the rest is how it is delivered."""

    id: Id
    request: Name
    messages: Annotated[list[Message], Meta(min_length=1, max_length=1000)]
    system: str | None = None
    model: Annotated[str, Meta(min_length=1, max_length=256)] = "standard"
    provider: str | None = None
    fallbacks: list[str] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    stop: Annotated[list[Text], Meta(max_length=16)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    schema: dict[str, Any] | None = None
    session: str | None = None
    retry_of: RetryOf | None = None
    metadata: dict[str, Any] | None = None
    attach: bool = True
    window: Window | UnsetType = UNSET
    pace_ms: PaceMs = 0
    on_abandon: Literal["cancel", "continue"] | None = None
    abandon_after_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 120_000
    on_worker_loss: Literal["restart", "continue", "fail"] = "restart"
    cache: Literal["off", "use"] = "off"
    prefetch: bool = False
    notify: bool = False


class Attach(_Checked, tag="attach", tag_field="type"):
    id: Id
    stream: StreamId
    after: Cursor | Literal["now"] | None = None
    window: Window | UnsetType = UNSET
    pace_ms: PaceMs = 0


class Ack(msgspec.Struct, tag="ack", tag_field="type", omit_defaults=True, gc=False):
    stream: StreamId
    offset: Offset
    window: Window | UnsetType = UNSET


class Detach(msgspec.Struct, tag="detach", tag_field="type", omit_defaults=True):
    stream: StreamId
    id: Id | None = None
    on_abandon: Literal["cancel", "continue"] | None = None


class Cancel(msgspec.Struct, tag="cancel", tag_field="type", omit_defaults=True):
    id: Id
    stream: StreamId


class ListStreams(msgspec.Struct, tag="list", tag_field="type", omit_defaults=True):
    id: Id
    state: Literal["queued", "running", "done"] | None = None


class Ping(msgspec.Struct, tag="ping", tag_field="type", omit_defaults=True):
    id: Id | None = None


class Refresh(msgspec.Struct, tag="refresh", tag_field="type", omit_defaults=True):
    id: Id
    token: Annotated[str, Meta(max_length=8192)]


ClientFrame = Hello | Generate | Attach | Ack | Detach | Cancel | ListStreams | Ping | Refresh

# -- hub → client ----------------------------------------------------------------------------------------

StreamState = Literal["queued", "running", "done"]


class Limits(msgspec.Struct):
    message_bytes: int
    prompt_bytes: int
    window: int
    attachments: int
    frames_per_second: int


class Welcome(msgspec.Struct, tag="welcome", tag_field="type"):
    connection: str
    user: str
    heartbeat_ms: int
    limits: Limits


class Accepted(msgspec.Struct, tag="accepted", tag_field="type"):
    id: Id
    stream: StreamId
    offset: Offset
    mark: Mark
    top: int
    state: StreamState
    window: Window


class Attached(msgspec.Struct, tag="attached", tag_field="type"):
    """Answer of an attach; without `id` a push: history changed under the viewer, obey it like an answer."""

    stream: StreamId
    resumed: bool
    offset: Offset
    mark: Mark
    top: int
    state: StreamState
    window: Window
    id: Id | UnsetType = UNSET


class Delta(msgspec.Struct, tag="delta", tag_field="type", omit_defaults=True, gc=False):
    stream: str
    offset: Offset
    first: Offset | UnsetType = UNSET
    kind: str = "text"
    """`text`, `reasoning` or `tool_input`; a client advances over kinds it does not know."""
    call: str | None = None
    text: str = ""
    mark: Mark | None = None


class EntryFrame(msgspec.Struct, tag="entry", tag_field="type", omit_defaults=True):
    stream: str
    offset: Offset
    kind: str
    data: dict[str, Any] | msgspec.Raw
    mark: Mark | None = None


class Live(msgspec.Struct, tag="live", tag_field="type"):
    stream: StreamId


class StatusFrame(msgspec.Struct, tag="status", tag_field="type", omit_defaults=True):
    """Pushed, never logged, may be lost. An unknown state is to be ignored."""

    state: str
    stream: str | None = None
    position: int | None = None
    after_ms: Milliseconds | None = None


class Ok(msgspec.Struct, tag="ok", tag_field="type", omit_defaults=True):
    id: Id


class StreamInfo(msgspec.Struct, omit_defaults=True):
    stream: StreamId
    state: StreamState
    top: int
    created_ms: int


class Streams(msgspec.Struct, tag="streams", tag_field="type"):
    """Answer of `list`: the caller's own streams, newest first."""

    id: Id
    streams: list[StreamInfo]


class Pong(msgspec.Struct, tag="pong", tag_field="type", omit_defaults=True):
    id: Id | None = None


class ErrorFrame(msgspec.Struct, tag="error", tag_field="type", omit_defaults=True):
    code: str
    message: str
    retry: Retry
    id: Id | None = None
    stream: str | None = None
    after_ms: Milliseconds | None = None


class Drain(msgspec.Struct, tag="drain", tag_field="type"):
    after_ms: Milliseconds


HubFrame = (
    Welcome | Accepted | Attached | Delta | EntryFrame | Live | StatusFrame | Ok | Streams | Pong | ErrorFrame | Drain
)
