"""Stands where a client's socket is: frames and time go in by hand, and everything else of the client is real."""

from __future__ import annotations

import json

from headrace.client import Client
from headrace.errors import HeadraceError
from headrace.protocol.codec import JSON
from tests.clients.model_hub import Frame
from tests.clients.scripted_hub import WELCOME


class Shell:
    """Never sends by itself: whoever holds it decides when. `time` is the client's clock, in seconds."""

    state = "online"
    failure: HeadraceError | None = None

    def __init__(self, client: Client) -> None:
        self.client = client
        self.core = client._core
        self.time = 0.0
        client._link = self  # type: ignore[assignment]

    def now(self) -> float:
        return self.time

    def settle(self) -> None:
        while actions := self.core.actions():
            for action in actions:
                self.client._act(action)

    def open(self) -> None:
        self.core.opened(None, self.time)
        self.receive(WELCOME)

    def receive(self, *frames: Frame) -> None:
        """Take frames of the hub."""
        for frame in frames:
            for decoded in JSON.decode_hub(json.dumps(frame).encode()):
                self.core.receive(decoded, self.time)
            self.settle()

    def sent(self) -> list[Frame]:
        """What is due now, as it goes over the wire."""
        return [json.loads(JSON.encode(frame)) for frame in self.core.frames_to_send(self.time)]

    def close(self, error: HeadraceError) -> None:
        """The client is closed for good."""
        self.failure = error
        self.client._ended(error)
