"""A `Connection` without sockets or clocks: frames go in as the hub's JSON, and come out as plain dicts."""

from __future__ import annotations

import json
from typing import Any

from headrace.actions import Action, Delivered, Moved
from headrace.attachment import Attachment
from headrace.connection import Connection
from headrace.protocol.codec import JSON
from headrace.protocol.frames import Generate, Message
from tests.clients.scripted_hub import WELCOME

Frame = dict[str, Any]


class CoreDriver:
    """Feeds a core and remembers what came out. `now` is the test's clock, in seconds."""

    def __init__(self) -> None:
        self.core = Connection("test", None, lambda: 0.5)
        self.now = 0.0
        self.actions: list[Action] = []

    def open(self, token: str | None = "t") -> list[Frame]:
        """A new socket, welcomed; the frames sent after `hello`."""
        self.core.opened(token, self.now)
        frames = self.sent()
        assert frames[0]["type"] == "hello"
        self.receive(WELCOME)
        return frames[1:]

    def sent(self) -> list[Frame]:
        """What is due now, as it goes over the wire."""
        return [json.loads(JSON.encode(frame)) for frame in self.core.frames_to_send(self.now)]

    def receive(self, *frames: Frame) -> list[Action]:
        """Feed frames of the hub; the actions that follow."""
        for frame in frames:
            for decoded in JSON.decode_hub(json.dumps(frame).encode()):
                self.core.receive(decoded, self.now)
        actions = self.core.actions()
        self.actions += actions
        return actions

    def ask(self, window: int | None = 256, **fields: Any) -> Attachment:
        """Have the core ask a model."""
        message = Message(role="user", content="Why is the sky blue?")
        return self.core.generate(Generate(id=0, request="r1", messages=[message], **fields), window, self.now)

    def follow(self, window: int | None = 256) -> Attachment:
        """A generation that was asked for on an open connection and accepted as g_1."""
        attachment = self.ask(window)
        (asked,) = self.sent()
        self.receive(accepted(asked["id"], window=window))
        return attachment

    def delivered(self) -> list[str]:
        """Texts of the pieces delivered, a bar where everything before was void."""
        pieces = []
        for action in self.actions:
            if isinstance(action, Delivered):
                pieces.append(getattr(action.frame, "text", None) or getattr(action.frame, "kind", "live"))
            elif isinstance(action, Moved) and action.restarted:
                pieces.append("|")
        return pieces


def accepted(id: int, **changes: Any) -> Frame:
    return {
        "type": "accepted",
        "id": id,
        "stream": "g_1",
        "offset": 0,
        "mark": "m1",
        "top": 1,
        "state": "queued",
        "window": 256,
    } | changes


def attached(id: int | None, **changes: Any) -> Frame:
    frame = {
        "type": "attached",
        "stream": "g_1",
        "resumed": True,
        "offset": 0,
        "mark": "m1",
        "top": 90,
        "state": "running",
        "window": 256,
    }
    return frame | changes | ({} if id is None else {"id": id})


def delta(offset: int, text: str, **changes: Any) -> Frame:
    return {"type": "delta", "stream": "g_1", "offset": offset, "text": text} | changes
