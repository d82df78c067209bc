"""A hub, worker or provider of a chaos run: a process that ends with the orchestrator, however that ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from hub.broker.lifeline import Lifeline

State = Literal["down", "starting", "up", "ending", "paused"]
"""`ending`: it was told to, or is being killed; whoever does that starts it again."""

START_S = 40.0
_POLL_S = 0.05


class DidNotStart(Exception):
    """A process is not ready in time; the message shows the end of its log."""


class Process:
    """`python -m module …`, started again and again under one name; all its lives log into one file."""

    def __init__(self, name: str, arguments: Sequence[str], directory: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self.state: State = "down"
        #: Lives so far.
        self.lives = 0
        #: How it ended without being told to, one line each.
        self.surprises: list[str] = []
        self.started_at = 0.0
        self._command = [sys.executable, "-P", "-m", *arguments]
        self._environ = dict(environ)
        self._lifeline: Lifeline | None = None
        self._log_start = 0

    def __repr__(self) -> str:
        return f"<Process {self.name} {self.state}>"

    @property
    def pid(self) -> int:
        assert self._lifeline is not None, "not running"
        return self._lifeline.process.pid

    def start(self) -> None:
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._lifeline = Lifeline(self._command, output=self.log, environ=self._environ)
        self.lives += 1
        self.started_at = time.monotonic()
        self.state = "starting"

    def said(self) -> str:
        """What this life has logged so far."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def status(self) -> int | None:
        """The exit status, or minus the signal; None while it runs, 0 when it was reaped."""
        return 0 if self._lifeline is None else self._lifeline.process.poll()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def ended(self, within_s: float) -> bool:
        """Wait for the end; False if it does not come in time."""
        deadline = time.monotonic() + within_s
        while self.status() is None:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def kill(self) -> None:
        """SIGKILL, and wait. Idempotent."""
        if self._lifeline is None:
            return
        self.state = "ending"
        if self._lifeline.process.poll() is None:
            self._lifeline.process.kill()
        await self.ended(10)
        self._let_go()

    def _let_go(self) -> None:
        if self._lifeline is not None:
            self._lifeline.release()
            self._lifeline = None
        self.state = "down"

    async def reap(self) -> int | None:
        """After the end: its status."""
        status = self.status()
        self._let_go()
        return status

    def check(self) -> None:
        """Note an end that nobody asked for."""
        status = self.status()
        if status is not None and self.state in ("up", "starting"):
            tail = " | ".join(self.said().splitlines()[-3:])[-600:]
            self.surprises.append(f"{self.name} ended by itself with {status}: {tail}")
            self._let_go()

    # -- what it uses

    def rss_kib(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


async def until(process: Process, is_ready: object) -> None:
    """Wait until `is_ready()` (a plain or async function) holds. Raises DidNotStart."""
    assert callable(is_ready)
    deadline = time.monotonic() + START_S
    while True:
        holds = is_ready()
        if asyncio.iscoroutine(holds):
            holds = await holds
        if holds:
            return
        if process.status() is not None or time.monotonic() > deadline:
            tail = "".join(f"\n  | {line[:300]}" for line in process.said().splitlines()[-12:])
            raise DidNotStart(f"{process.name} is not ready (status {process.status()}):{tail}")
        await asyncio.sleep(_POLL_S)
