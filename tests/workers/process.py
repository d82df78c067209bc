"""`python -m workers`, as operators run it, and what may be done to it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Any, Self

from tests.fakes import FakeProvider
from tests.wire import DEADLINE_S


class WorkerProcess:
    """`async with` waits until it takes requests, and leaves nothing behind. Settings as keywords.

    With `fake` it asks that for Anthropic's models.
    """

    def __init__(self, redis_url: str, fake: FakeProvider | None = None, **settings: Any) -> None:
        environ = {f"HEADRACE_{name.upper()}": str(value) for name, value in settings.items()}
        if fake is not None:
            # One SDK only: on a busy machine each takes seconds to import.
            environ |= {"ANTHROPIC_API_KEY": "key", "ANTHROPIC_BASE_URL": fake.base_url_anthropic}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads would hold it up
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers"],
            env={**os.environ, **environ, "HEADRACE_REDIS_URL": redis_url},
            stderr=self._log,
        )

    async def __aenter__(self) -> Self:
        try:
            await self.logged(" ready")
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self.kill()
        self._process.wait()
        self._log.close()

    @property
    def log(self) -> str:
        return os.pread(self._log.fileno(), 1 << 20, 0).decode()

    async def logged(self, what: str) -> None:
        deadline = time.monotonic() + 4 * DEADLINE_S  # its start takes a second, and ten on a busy machine
        while what not in self.log:
            assert time.monotonic() < deadline and self._process.poll() is None, f"no {what!r} in: {self.log}"
            await asyncio.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL; that also ends a stopped one."""
        self._process.kill()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        self._process.terminate()

    async def ended(self) -> int:
        """Its exit status, once it left."""
        return await asyncio.to_thread(self._process.wait, 2 * DEADLINE_S)
