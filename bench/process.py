"""A measured child process: started so that it cannot outlive the benchmark, read through /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hub.broker.lifeline import Lifeline

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A measurement could not be made; the message says why, and shows the log where there is one."""


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, that a process used so far. 10 ms steps."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def machine_cpu_s() -> float:
    """CPU seconds that all programs, the kernel and the hosts of a virtual machine took so far."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def rss_kib(pid: int) -> int:
    """Resident memory. From smaps_rollup: the figure in statm lags behind by up to 64 pages a core."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise BenchError(f"/proc/{pid}/smaps_rollup names no Rss")


class Process:
    """`python -m …`, with its output in the file `log`, whose directory goes too should the benchmark be killed.

    Raises OSError when it cannot be started.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        self._lifeline = Lifeline(
            [sys.executable, "-m", *arguments],
            output=log,
            remove=log.parent,
            environ={**os.environ, **environ, "PYTHONUNBUFFERED": "1"},
        )

    @property
    def pid(self) -> int:
        return self._lifeline.process.pid

    def check(self) -> None:
        """Raises BenchError if the process has ended."""
        status = self._lifeline.process.poll()
        if status is not None:
            raise BenchError(f"{self.name} ended with status {status}.{self.log_tail()}")

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def log_tail(self, lines: int = 15) -> str:
        return "".join(f"\n  | {line[:400]}" for line in self.log().splitlines()[-lines:]) or " Its log is empty."

    def kill(self) -> None:
        """SIGKILL, and wait for the end. Idempotent."""
        process = self._lifeline.process
        if process.poll() is None:
            process.kill()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{self.name} (pid {process.pid}) does not end") from error
        self._lifeline.release()
