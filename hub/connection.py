"""One client's connection as the protocol sees it: messages in, what to do out. No I/O; time is an argument.

Legality is small: nothing before `hello` but what travels behind it in the same flight, no second `hello`, a
bounded number of frames a second (protocol §2, §8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from headrace.protocol.codec import Codec, Fault, Undecodable
from headrace.protocol.codes import ERROR_CODES, CloseCode
from headrace.protocol.frames import ClientFrame, ErrorFrame, Hello


class State(Enum):
    CONNECTING = "connecting"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Close:
    code: CloseCode
    reason: str


Instruction = ClientFrame | ErrorFrame | Close
"""Obey this frame, send this answer, or close."""


class Connection:
    """Feeds on whole messages. After a `Close` it gives no further instruction."""

    __slots__ = ("_allowance", "_allowed_at", "_rate", "codec", "message_bytes", "state")

    def __init__(self, codec: Codec, frames_per_second: int, message_bytes: int, now: float) -> None:
        self.codec = codec
        self.state = State.CONNECTING
        self.message_bytes = message_bytes
        self._rate = frames_per_second
        self._allowance = 2.0 * frames_per_second
        self._allowed_at = now

    @property
    def is_closed(self) -> bool:
        return self.state is State.CLOSED

    def receive(self, data: bytes, is_text: bool, now: float) -> Iterator[Instruction]:
        """What one message asks for, frame by frame: `hello` is obeyed before what follows it is judged."""
        if self.is_closed:
            return
        if is_text is not self.codec.is_text:
            yield self._close(CloseCode.BAD_FRAME, "wrong message type for the subprotocol")
            return
        if len(data) > self.message_bytes:
            yield from self.receive_too_large(now)
            return
        try:
            frames = self.codec.decode_client(data)
        except Undecodable as error:
            yield self._close(CloseCode.BAD_FRAME, str(error))
            return
        if not self.spend(len(frames), now):
            yield self._close(CloseCode.FLOODING, "too many frames")
            return
        for frame in frames:
            instruction = self._judge(frame)
            yield instruction
            if isinstance(instruction, Close) or self.is_closed:
                return

    def receive_too_large(self, now: float) -> Iterator[Instruction]:
        """What comes of a message above `message_bytes`, which nobody needs to have kept."""
        if self.is_closed:
            return
        if not self.spend(1, now):
            yield self._close(CloseCode.FLOODING, "too many frames")
            return
        yield ErrorFrame("too_large", f"a message holds at most {self.message_bytes} bytes", ERROR_CODES["too_large"])

    def _judge(self, frame: ClientFrame | Fault) -> Instruction:
        if isinstance(frame, Fault):
            if self.state is State.CONNECTING:
                return self._close(CloseCode.BAD_FRAME, "the first frame must be a valid hello")
            return ErrorFrame(frame.code, frame.message, ERROR_CODES[frame.code], frame.id, frame.stream)
        if isinstance(frame, Hello):
            if self.state is State.OPEN:
                return self._close(CloseCode.BAD_FRAME, "a second hello")
            self.state = State.OPEN
        elif self.state is State.CONNECTING:
            return self._close(CloseCode.BAD_FRAME, "the first frame must be hello")
        return frame

    def spend(self, count: int, now: float) -> bool:
        """Pay for `count` frames; False if the client sends too many.

        A token bucket: `frames_per_second` sustained, twice that at once. A batch counts its frames, and the
        WebSocket layer pays for what it sees and we do not: control frames, and fragments after a message's first.
        """
        self._allowance = min(2.0 * self._rate, self._allowance + (now - self._allowed_at) * self._rate)
        self._allowed_at = now
        self._allowance -= count
        return self._allowance >= 0

    def _close(self, code: CloseCode, reason: str) -> Close:
        self.state = State.CLOSED
        return Close(code, reason)
