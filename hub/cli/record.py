"""`headrace record`: a stream's entries as a file, for bug reports and play-back."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from headrace.protocol.frames import Attached, Delta
from hub.cli.failure import Failure
from hub.cli.recording import RESTARTED, Recorded, Writer
from hub.cli.watch import Frame, watch


def record_stream(stream: str, out: Path | None, force: bool, url: str, token: str) -> int:
    """Record until `done` (status 0) or Ctrl-C (130). Raises Failure; the file then ends where things ended."""
    path = out or Path(f"{Path(stream).name}.msgpack")
    try:
        file = path.open("wb" if force else "xb")
    except FileExistsError:
        raise Failure(f"{path} is there already: name another with --out, or overwrite it with --force") from None
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from None
    recording = Recording(stream)
    try:
        with file:
            return asyncio.run(recording.run(Writer(file, stream), url, token))
    finally:
        if recording.entries:
            print(f"{path}: {recording.entries} entries; play it with: headrace replay {path}", file=sys.stderr)
        else:
            path.unlink(missing_ok=True)


class Recording:
    """Counts and times what is written."""

    def __init__(self, stream: str) -> None:
        self.entries = 0
        self._stream = stream
        self._mark = ""
        self._offset = 0
        self._began_at: float | None = None

    async def run(self, writer: Writer, url: str, token: str) -> int:
        """Record until `done` or a signal; the exit status."""
        task = asyncio.create_task(self._write(writer, url, token))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await task
        return 130 if task.cancelled() else 0

    async def _write(self, writer: Writer, url: str, token: str) -> None:
        async for frame in watch(url, token, self._stream, lambda text: print(text, file=sys.stderr)):
            recorded = self.take(frame, time.monotonic())
            if recorded is not None:
                writer.add(recorded)

    def take(self, frame: Frame, now: float) -> Recorded | None:
        """What to write of a frame received at `now`, in seconds."""
        if self._began_at is None:
            self._began_at = now
        ms = int((now - self._began_at) * 1000)
        if isinstance(frame, Attached):
            self._mark = frame.mark
            if not self.entries:
                return None
            self._offset = frame.offset
            return Recorded(frame.offset, frame.mark, RESTARTED, {}, ms)
        first = self._offset + 1
        if isinstance(frame, Delta) and isinstance(frame.first, int):
            first = frame.first
        elif isinstance(frame, Delta):
            first = frame.offset
        self._mark = self._mark if frame.mark is None else frame.mark
        self._offset = frame.offset
        if not isinstance(frame, Delta):
            self.entries += 1
            assert isinstance(frame.data, dict), "decoded"
            return Recorded(frame.offset, self._mark, frame.kind, frame.data, ms)
        self.entries += frame.offset - first + 1
        data = {"text": frame.text} if frame.kind != "tool_input" else {"call": frame.call, "delta": frame.text}
        merged = first if first != frame.offset else None
        return Recorded(frame.offset, self._mark, frame.kind, msgspec.to_builtins(data), ms, merged)
