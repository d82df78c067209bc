"""Client for a Headrace hub: streamed model answers that survive dropped connections.

async with headrace.connect("ws://127.0.0.1:8080", token) as client:
    async for event in client.generate("Why is the sky blue?"):
        if isinstance(event, headrace.Text):
            print(event.text, end="")
"""

from headrace.client import Client, Options, connect
from headrace.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionReplaced,
    DigestMismatch,
    GenerationCancelled,
    GenerationClosed,
    GenerationFailed,
    HeadraceError,
    InvalidOutput,
    InvalidRequest,
    NotFound,
    ProtocolViolation,
    RequestRejected,
    RoundsExhausted,
    StreamGone,
)
from headrace.events import (
    Citation,
    Done,
    DoneError,
    Entry,
    Event,
    Live,
    Notice,
    Queued,
    Reasoning,
    Reset,
    Restarted,
    Source,
    Started,
    Status,
    Text,
    ToolCall,
    ToolInput,
    ToolReady,
    ToolResult,
    Usage,
)
from headrace.fold import Fold, ToolUse
from headrace.generation import Generation
from headrace.link import State
from headrace.protocol.cursor import Cursor
from headrace.protocol.frames import Call, Message, StreamInfo
from headrace.run import Run
from headrace.tools import Tool

__all__ = [
    "AuthenticationFailed",
    "Call",
    "Citation",
    "Client",
    "ConnectionFailed",
    "ConnectionReplaced",
    "Cursor",
    "DigestMismatch",
    "Done",
    "DoneError",
    "Entry",
    "Event",
    "Fold",
    "Generation",
    "GenerationCancelled",
    "GenerationClosed",
    "GenerationFailed",
    "HeadraceError",
    "InvalidOutput",
    "InvalidRequest",
    "Live",
    "Message",
    "NotFound",
    "Notice",
    "Options",
    "ProtocolViolation",
    "Queued",
    "Reasoning",
    "RequestRejected",
    "Reset",
    "Restarted",
    "RoundsExhausted",
    "Run",
    "Source",
    "Started",
    "State",
    "Status",
    "StreamGone",
    "StreamInfo",
    "Text",
    "Tool",
    "ToolCall",
    "ToolInput",
    "ToolReady",
    "ToolResult",
    "ToolUse",
    "Usage",
    "connect",
]
