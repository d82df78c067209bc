"""Run the real command as a process, and look at what it leaves behind."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

#: A busy machine with two cores needs its time.
PATIENCE_S = 30.0
_URL = re.compile(r"ws://127\.0\.0\.1:\d+(?=/v1/ws)")
#: `marked` looks into /proc.
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc here")
HEADRACE = [sys.executable, "-m", "hub.cli"]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of Headrace and keys of providers, and with `more`."""
    foreign = ("HEADRACE_", "ANTHROPIC_", "OPENAI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "COLUMNS": "200", "NO_COLOR": "1", "HEADRACE_LEDGER": "off", **more}


def run(
    *arguments: str, environ: Mapping[str, str] | None = None, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*HEADRACE, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=dict(environ) if environ is not None else environment(),
        timeout=PATIENCE_S * 1.5,
        cwd=cwd,
    )


def until(condition: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


def marked(mark: str) -> dict[int, str]:
    """Process id and command line of the running processes whose environment holds TEST_MARK=mark."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TEST_MARK={mark}".encode() in process.joinpath("environ").read_bytes().split(b"\0"):
                found[int(process.name)] = process.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # ended meanwhile
    return found


class Running:
    """A command that runs on, in a session of its own, and what it wrote so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._fresh: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            self._fresh.put(line)
        self._fresh.put(None)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str, within_s: float = PATIENCE_S) -> str:
        """The first line from here on that holds `text`."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                line = self._fresh.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{text!r} did not come in time:\n{self.output}") from None
            assert line is not None, f"it ended before {text!r} came:\n{self.output}"
            if text in line:
                return line

    def signal_group(self, number: signal.Signals) -> None:
        """As a terminal does it for Ctrl-C: to the whole process group."""
        os.killpg(self.process.pid, number)

    def finish(self, within_s: float = PATIENCE_S) -> int:
        status = self.process.wait(within_s)
        self._thread.join(PATIENCE_S)
        return status


@contextmanager
def running(*arguments: str, environ: Mapping[str, str]) -> Iterator[Running]:
    process = subprocess.Popen(
        [*HEADRACE, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(environ),
        start_new_session=True,
    )
    command = Running(process)
    try:
        yield command
    finally:
        if process.poll() is None:
            process.kill()
        command.finish()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def development(mark: str, *arguments: str, **more: str) -> Iterator[tuple[Running, str]]:
    """A running `headrace dev` on a free port, and the URL of its hub. All its processes carry `mark`."""
    with running("dev", "--port", "0", *arguments, environ=environment(TEST_MARK=mark, **more)) as dev:
        dev.wait_for("Ctrl-C here ends")
        url = _URL.search(dev.output)
        assert url is not None, dev.output
        yield dev, url[0]
