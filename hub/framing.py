"""WebSocket frames out of bytes (RFC 6455), with the bounds that the library leaves to its users. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Generator
from logging import Logger
from typing import Final

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from headrace.protocol.codes import CloseCode

#: Fragments of one message (protocol §2).
MAX_FRAGMENTS = 64
#: Stands for the payload of a frame that was too large to be kept.
SKIPPED: Final = bytearray()


class Flooded(Exception):
    """The peer sent more frames than it may."""


class Framing(ServerProtocol):
    """One connection's frames. Differs from the library's in what follows from *a peer may be hostile*:

    - a control frame, and each fragment after a message's first, must be paid for with `spend`; so must every frame
      that comes once the close was sent. Without that the connection fails with FLOODING at this very frame:
      what was read behind it is dropped, not parsed
    - a frame larger than `keep_bytes` is passed over as it arrives, never held; its payload is SKIPPED
    - a ping is not answered once the close was sent

    And it takes a close between two fragments for what it is: RFC 6455 §5.4 lets control frames come there.
    """

    def __init__(self, max_size: int | None, logger: Logger) -> None:
        super().__init__(max_size=max_size, logger=logger)
        #: Whether one more frame may be taken. Nothing may, before the connection is served.
        self.spend: Callable[[], bool] = _nothing
        self._fragments = 0
        self.reader: _BoundedReader = _BoundedReader()
        self.parser = self.parse()
        next(self.parser)

    def keep(self, size: int) -> None:
        """Hold payloads of up to `size` bytes from now on."""
        self.reader.keep_bytes = size

    def recv_frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.CLOSE:
            self.current_size = None
            super().recv_frame(frame)
            return
        is_first = opcode is Opcode.TEXT or opcode is Opcode.BINARY
        if is_first:
            self._fragments = 1
        elif opcode is Opcode.CONT:
            self._fragments += 1
        is_open = self.state is OPEN
        if (not is_first or not is_open) and not self.spend():
            self._fail("too many frames")
        elif self._fragments > MAX_FRAGMENTS:
            self._fail("too many fragments")
        elif is_open or opcode is not Opcode.PING:
            skipped = self.reader.take_skipped()
            super().recv_frame(frame)
            if skipped:
                frame.data = SKIPPED
                if self.current_size is not None:
                    self.current_size += skipped

    def _fail(self, reason: str) -> None:
        self.fail(CloseCode.FLOODING, reason)
        self.parser_exc = Flooded(reason)


class _BoundedReader(StreamReader):
    """Holds what was received and not yet parsed; of one payload at most `keep_bytes`."""

    def __init__(self) -> None:
        super().__init__()
        self.keep_bytes = 0
        self._skipped = 0

    def take_skipped(self) -> int:
        """The size of the payload that was passed over since the last call; 0 if none was."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def read_exact(self, n: int) -> Generator[None, None, bytearray]:
        if n <= max(self.keep_bytes, _HEADER_BYTES):
            return (yield from super().read_exact(n))
        left = n
        while True:
            taken = min(left, len(self.buffer))
            del self.buffer[:taken]
            left -= taken
            if not left:
                break
            if self.eof:
                raise EOFError(f"stream ends {left} bytes before a frame does")
            yield
        self._skipped = n
        return bytearray()


#: Everything of a frame that is not payload comes in pieces of at most this.
_HEADER_BYTES = 8


def _nothing() -> bool:
    return False
