"""Start a program that ends when its owner ends, also when the owner is killed with SIGKILL.

    lifeline = Lifeline(["valkey-server", "--port", "0"], remove=directory)
    lifeline.process.wait(...)
    lifeline.release()

The owner starts this file as a script, in its own session (Ctrl-C in a terminal reaches the owner, not the
program), with a pipe as standard input. The script turns into the program, so that the owner waits for and
signals the program itself, and leaves one small child behind that reads the pipe:

- a byte: the owner has let go; the child ends and touches nothing;
- end of file without one: the owner is gone, and the kernel closed its end. The child sends SIGTERM, after
  `GRACE_S` SIGKILL, and removes the directory.

A pipe, because PR_SET_PDEATHSIG is Linux only, fires when the *thread* that forked ends, and needs code
between fork and exec, which is not safe in a program with threads. One limit: a process that the owner forks
without exec holds the pipe as well, and the program lives until that one ends too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

TYPE_CHECKING = False  # the script starts with every server: it imports what it needs and no more
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: How long a program whose owner is gone may take to end by itself, in seconds.
GRACE_S = 2.0


class Lifeline:
    """A running program that does not outlive this process. Raises OSError when nothing can be started."""

    def __init__(
        self,
        program: Sequence[str],
        *,
        output: Path,
        remove: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Start `program`; its standard output and error are appended to the file `output`.

        `remove` is a directory to delete should the owner die without `release`.
        """
        import subprocess

        script = [sys.executable, "-I", "-S", __file__, str(remove or ""), *program]
        with output.open("ab") as log:  # a file: a pipe that nobody reads fills up and stops the program
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                script, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environ, start_new_session=True
            )

    def release(self) -> None:
        """Let go: the program runs on if it still does, and nothing is removed. Idempotent."""
        pipe = self.process.stdin
        if pipe is None or pipe.closed:
            return
        with contextlib.suppress(BrokenPipeError):  # the watching child never came up, or was killed
            pipe.write(b".")
            pipe.close()  # writes what is buffered, too


def main(arguments: list[str]) -> None:
    """Become the program, see above. `arguments`: the directory to remove or "", then the program's own."""
    remove, program = arguments[0], arguments[1:]
    program_pid = os.getpid()
    if os.fork() == 0:
        watch(program_pid, remove)
        os._exit(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec keeps that
    try:
        os.execvp(program[0], program)
    except OSError as error:
        os.write(2, f"{program[0]}: {error.strerror}\n".encode())
        os._exit(127)


def watch(program_pid: int, remove: str) -> None:
    """Wait for the end of the owner, then end the program and remove the directory."""
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    if os.read(0, 1):
        return
    _end(program_pid)
    if remove:
        import shutil

        shutil.rmtree(remove, ignore_errors=True)


def _end(program_pid: int) -> None:
    """SIGTERM, then SIGKILL. A living program is our parent, so no stranger with its pid is signalled."""
    deadline = time.monotonic() + GRACE_S
    _signal_parent(program_pid, signal.SIGTERM)
    while os.getppid() == program_pid and time.monotonic() < deadline:
        time.sleep(0.01)
    _signal_parent(program_pid, signal.SIGKILL)


def _signal_parent(program_pid: int, number: signal.Signals) -> None:
    if os.getppid() == program_pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(program_pid, number)


if __name__ == "__main__":
    main(sys.argv[1:])
