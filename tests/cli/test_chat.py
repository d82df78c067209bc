"""`headrace chat`: in a script, in a terminal, and when the answer is not wanted any more."""

from __future__ import annotations

import codecs
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import headrace
from hub.cli.chat import HISTORY_BYTES, ending, recent
from tests.cli.command import HEADRACE, PATIENCE_S, environment, run


def chat(url: str, stdin: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("chat", *arguments, stdin=stdin, environ=environment(HEADRACE_URL=url))


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process = process
        self._screen = screen
        self.shown = ""
        self._seen = 0
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def wait_for(self, pattern: str) -> str:
        """Read until `pattern` is found past what was found before; everything up to its end."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := re.search(pattern, self.shown[self._seen :])) is None:
            left = deadline - time.monotonic()
            came = left > 0 and select.select([self._screen], [], [], left)[0]
            assert came, f"{pattern!r} did not come:\n{self.shown}"
            self.shown += self._decode(os.read(self._screen, 65536))
        start, self._seen = self._seen, self._seen + found.end()
        return self.shown[start : self._seen]

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def press_until_it_leaves(self, key: str) -> None:
        """As a person does: one that comes before Python waits for keys is seen with the next."""
        for _ in range(5):
            self.type(key)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
                return

    def end(self) -> int:
        """Read until the program ends."""
        with suppress(OSError):  # how a terminal says that nobody has it any more
            while select.select([self._screen], [], [], PATIENCE_S)[0] and (data := os.read(self._screen, 65536)):
                self.shown += self._decode(data)
        return self.process.wait(PATIENCE_S)


@contextmanager
def terminal(url: str, *arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", *HEADRACE, "chat", "--url", url, *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment(TERM="xterm"),
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)


PROMPT = "› "
CTRL_C, CTRL_D = "\x03", "\x04"


def test_a_script_gets_one_answer_a_line_and_nothing_else(hub_url: str) -> None:
    done = chat(hub_url, "first words\n\nsecond words\n", "--model", "scripted/echo=1,rate=0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "first words\n\nsecond words\n"
    assert done.stderr == ""


def test_the_model_is_asked_with_what_was_said_before(hub_url: str) -> None:
    done = chat(hub_url, "hello\nthanks\n")
    assert "Hello! The connection works" in done.stdout
    assert "You are welcome!" in done.stdout


def test_an_answer_that_fails_gives_its_text_its_reason_and_status_1(hub_url: str) -> None:
    done = chat(hub_url, "go\n", "--model", "scripted/tokens=9,rate=0,size=5,fail_after=2")
    assert done.returncode == 1
    assert done.stdout == "0000 0001 \n"
    assert done.stderr == "the answer failed: provider_error: scripted failure after 2 pieces\n"


def test_an_unknown_model_is_one_line(hub_url: str) -> None:
    done = chat(hub_url, "go\n", "--model", "nonsense")
    assert done.returncode == 1
    assert done.stderr.startswith("unknown_model: ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_in_a_script_cancels_the_answer_and_ends_with_130(hub_url: str) -> None:
    process = subprocess.Popen(
        [*HEADRACE, "chat", "--url", hub_url, "--model", "scripted/tokens=1000,rate=20"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        bufsize=1,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\nand on\n")
    assert process.stdout.read(5) == "0000 "
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert err == "cancelled\n"
    assert "0500" not in out


def test_a_terminal_shows_the_answer_and_who_gave_it(hub_url: str) -> None:
    with terminal(hub_url, "--model", "scripted/tokens=3,rate=20") as chatting:
        chatting.wait_for(PROMPT)
        chatting.type("hello\n")
        shown = chatting.wait_for(r"g_\w{16}")
        assert "0000 0001 0002" in shown
        assert "scripted/tokens=3,rate=20" in shown
        assert re.search(r"first word after \d\.\d\d s", shown)
        assert re.search(r"\d+ tokens/s", shown)
        chatting.wait_for(PROMPT)
        chatting.type(CTRL_D)
        assert chatting.end() == 0


def test_ctrl_c_cancels_the_answer_and_not_the_program(hub_url: str) -> None:
    with terminal(hub_url, "--model", "scripted/tokens=2000,rate=20") as chatting:
        chatting.wait_for(PROMPT)
        chatting.type("go on for ever\n")
        chatting.wait_for("0005 ")
        chatting.type(CTRL_C)
        chatting.wait_for("cancelled")
        chatting.wait_for(PROMPT)
        chatting.type("/model scripted/echo=1,rate=0\n")
        chatting.wait_for(PROMPT)
        chatting.type("still here\n")
        chatting.wait_for(r"still here[\s\S]*still here")
        chatting.wait_for(PROMPT)
        chatting.press_until_it_leaves(CTRL_C)
        assert chatting.end() == 0
        assert "Ctrl-C again, or Ctrl-D, leaves" in chatting.shown
        assert "Traceback" not in chatting.shown


def test_an_answer_that_failed_is_gone_on_with_by_retry(hub_url: str) -> None:
    with terminal(hub_url, "--model", "scripted/tokens=9,rate=0,fail_after=4,fault=idle") as chatting:
        chatting.wait_for(PROMPT)
        chatting.type("/retry\n")
        chatting.wait_for("nothing to retry")
        chatting.wait_for(PROMPT)
        chatting.type("go\n")
        chatting.wait_for("the answer failed")
        chatting.wait_for("/retry asks for the rest")
        chatting.wait_for(PROMPT)
        chatting.type("/model scripted/tokens=9,rate=0\n")
        chatting.wait_for(PROMPT)
        chatting.type("/retry\n")
        assert "0000 0001 0002 0003 0004 0005 0006 0007 0008" in chatting.wait_for(r"g_\w{16}")
        chatting.wait_for(PROMPT)
        chatting.type("/retry\n")
        chatting.wait_for("nothing to retry")
        chatting.wait_for(PROMPT)
        chatting.type(CTRL_D)
        assert chatting.end() == 0


def message(role: str, size: int) -> headrace.Message:
    return headrace.Message(role=role, content="x" * size)  # type: ignore[arg-type]


def test_a_long_history_is_cut_at_a_question() -> None:
    half = HISTORY_BYTES // 2
    history = [message("user", half), message("assistant", half), message("user", half - 9), message("assistant", 5)]
    history.append(message("user", 3))
    assert recent(history) == history[2:]


def test_the_last_question_is_sent_however_long_it_is() -> None:
    history = [message("user", 1), message("assistant", 1), message("user", HISTORY_BYTES * 2)]
    assert recent(history) == history[2:]


def test_an_ending_is_told_in_words() -> None:
    def done(status: str, reason: str) -> headrace.Done:
        return headrace.Done(status, reason, 0, "")  # type: ignore[arg-type]

    assert ending(done("completed", "stop")) is None
    assert ending(done("cancelled", "cancelled")) == "cancelled"
    assert ending(done("cancelled", "abandoned")) == "cancelled: abandoned"
    assert ending(done("truncated", "length")) == "cut off: length"
