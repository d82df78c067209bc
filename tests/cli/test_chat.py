"""`headrace chat`: in a script, in a terminal, and when the answer is not wanted any more."""

from __future__ import annotations

import asyncio
import codecs
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

import headrace
from hub.broker.broker import Broker
from hub.cli.chat import HISTORY_BYTES, ending, recent
from tests.cli.command import HEADRACE, PATIENCE_S, environment, run
from tests.conftest import StartHub
from tests.fakes import Script
from tests.installation import eventually
from tests.integration.failover import Scene, scene


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


# -- a provider that breaks off: two fakes, a worker and a hub here, the chat a process of its own

#: The primary is asked twice, then the other fake.
TIERS = {"t": {"models": ["anthropic/claude-haiku-5-5", "backup/gpt-6-luna"]}}
TEXTS = ("Rivers ", "carry ", "snow ", "to ", "the ", "sea.")
OTHER = ("Quite ", "another ", "answer.")
SHOWN, REST = "Rivers carry snow ", "to the sea."
BREAKS = Script(texts=TEXTS, fault="cut", fault_after=3)
DOWN = Script(status=529)
AGAIN, ELSEWHERE = "(anthropic broke off and is asked again)", "(the provider broke off, backup goes on)"


def lines(written: str) -> list[str]:
    """What a person reads, without empty lines: notes that went away are gone."""
    rows = [""]
    for part in re.findall(r"\x1b\[[\d;]*[A-Za-z]|\n|[^\x1b\n]+", written.replace("\r", "")):
        if part == "\x1b[K":
            rows[-1] = ""
        elif part == "\x1b[A":
            rows.pop()
        elif part == "\n":
            rows.append("")
        elif not part.startswith("\x1b"):
            rows[-1] += part
    return [row.strip() for row in rows if row.strip()]


async def hub_before(stage: Scene, start_hub: StartHub) -> str:
    """The URL of a hub that has heard what the worker of `stage` offers; its answers to `go on` are whole."""
    stage.primary.by_turn["go on"] = deque([Script(texts=("Fine.",))])
    hub = await start_hub(auth="none", providers="")
    await eventually(lambda: hub.node.fleet.choices.allows("t"), "the hub knows the worker's tier")
    return hub.url.removesuffix("/v1/ws")


def conversation(url: str) -> list[str]:
    """Ask `go`, then `go on`; what stands between the first question and the prompt after it."""
    with terminal(url, "--model", "t") as chatting:
        chatting.wait_for(PROMPT)
        chatting.type("go\n")
        chatting.wait_for("go\r\n")
        read = chatting.wait_for(PROMPT)
        chatting.type("go on\n")
        chatting.wait_for(r"Fine\.[\s\S]*" + PROMPT)
        chatting.type(CTRL_D)
        assert chatting.end() == 0
        return lines(read.removesuffix(PROMPT))


@pytest.mark.parametrize(
    ("second", "backup", "read", "speaker"),
    [
        (DOWN, TEXTS, [SHOWN, AGAIN, ELSEWHERE, REST], "backup/"),
        (Script(texts=TEXTS), OTHER, [SHOWN, AGAIN, REST], "anthropic/"),
        (DOWN, OTHER, [SHOWN, AGAIN, ELSEWHERE, "void", "".join(OTHER)], "backup/"),
        (Script(texts=OTHER), TEXTS, [SHOWN, AGAIN, "void", "".join(OTHER)], "anthropic/"),
    ],
    ids=["goes on elsewhere", "goes on", "begins again elsewhere", "begins again"],
)
async def test_a_person_reads_what_became_of_an_answer_that_broke_off(
    broker: Broker,
    redis_url: str,
    start_hub: StartHub,
    second: Script,
    backup: tuple[str, ...],
    read: list[str],
    speaker: str,
) -> None:
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        stage.primary.by_turn["go"] = deque([BREAKS, second])
        stage.backup.by_turn["go"] = deque([Script(texts=backup)])
        *rows, footer = await asyncio.to_thread(conversation, await hub_before(stage, start_hub))
        turns = stage.primary.last.body["messages"]
    assert footer.startswith(speaker)
    for row, expected in zip(rows, read, strict=True):
        if expected == "void":
            assert row.startswith("(what stands above is void") and row.endswith("from the start)")
        else:
            assert row == expected.strip()
    whole = "".join(OTHER) if "void" in read else "".join(TEXTS)
    assert [turn["content"] for turn in turns] == ["go", whole, "go on"], "what the model is told that it said"


async def test_a_script_reads_an_answer_that_another_provider_went_on_with_as_one(
    broker: Broker, redis_url: str, start_hub: StartHub
) -> None:
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        stage.primary.by_turn["go"] = deque([BREAKS, DOWN])
        stage.backup.by_turn["go"] = deque([Script(texts=TEXTS)])
        done = await asyncio.to_thread(chat, await hub_before(stage, start_hub), "go\ngo on\n", "--model", "t")
    assert (done.returncode, done.stdout, done.stderr) == (0, "".join(TEXTS) + "\n\nFine.\n", "")


async def test_a_script_can_tell_void_text_from_the_answer_that_began_again(
    broker: Broker, redis_url: str, start_hub: StartHub
) -> None:
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        stage.primary.by_turn["go"] = deque([BREAKS, DOWN])
        stage.backup.by_turn["go"] = deque([Script(texts=OTHER)])
        done = await asyncio.to_thread(chat, await hub_before(stage, start_hub), "go\n", "--model", "t")
    assert (done.returncode, done.stdout) == (0, SHOWN + "\n" + "".join(OTHER) + "\n")
    assert "what stands above is void" in done.stderr
