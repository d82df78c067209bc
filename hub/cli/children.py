"""Processes that a command starts and that end with it, also when it is killed; their logs come line by line."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hub.broker.lifeline import Lifeline

#: A longer line comes in pieces.
LINE_BYTES = 64 * 1024
#: A process has this long to end by itself, in seconds, before SIGKILL.
STOP_S = 4.0


class _Lines(asyncio.Protocol):
    """Bytes to lines. Holds at most one line."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            if line.strip():
                self._on_line(line.decode(errors="replace").rstrip())


class Child:
    """One `python -m module` in a session of its own: Ctrl-C in the terminal reaches this process, not the child.

    Its output goes through a pipe; should this process stop reading, a full pipe makes the child wait. Start it
    with `start`, end it with `stop` or `kill`; whoever started it does one of both.
    """

    def __init__(self, name: str, module: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name = name
        self.ended = asyncio.Event()
        #: Exit status, or minus the signal; None while it runs.
        self.status: int | None = None
        # -P: a folder called `hub` or `workers` in the current directory is not ours.
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._environ = environ
        self._lifeline: Lifeline | None = None
        self._output: asyncio.BaseTransport | None = None

    def __repr__(self) -> str:
        return f"<Child {self.name} pid={self.pid} status={self.status}>"

    @property
    def pid(self) -> int | None:
        return self._lifeline.process.pid if self._lifeline else None

    async def start(self, on_line: Callable[[str], None]) -> None:
        """Start it; `on_line` gets every line it writes, as long as it lives."""
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        self._output, _ = await loop.connect_read_pipe(lambda: _Lines(on_line), os.fdopen(reading, "rb", 0))
        try:
            self._lifeline = Lifeline(self._command, output=Path(f"/dev/fd/{writing}"), environ=self._environ)
        finally:
            os.close(writing)
        process = self._lifeline.process

        def wait() -> None:
            status = process.wait()
            with suppress(RuntimeError):  # the loop is gone: nobody asks any more
                loop.call_soon_threadsafe(self._over, status)

        threading.Thread(target=wait, name=f"wait-{self.name}", daemon=True).start()

    def _over(self, status: int) -> None:
        self.status = status
        self.ended.set()

    async def stop(self, within_s: float = STOP_S) -> None:
        """SIGTERM, and SIGKILL if it takes longer than `within_s`. Idempotent."""
        if self._lifeline is None:
            return
        if self.status is None:
            self._signal(self._lifeline.process.terminate)
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self.ended.wait()
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL, as a crash of the machine would. Idempotent."""
        if self._lifeline is None:
            return
        if self.status is None:
            self._signal(self._lifeline.process.kill)
            await self.ended.wait()
        self._lifeline.release()
        if self._output is not None:
            self._output.close()

    @staticmethod
    def _signal(send: Callable[[], None]) -> None:
        with suppress(ProcessLookupError, subprocess.SubprocessError):
            send()
