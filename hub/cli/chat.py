"""`headrace chat`: a conversation in the terminal. The terminal has this thread; the hub has `Wire`'s."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

import headrace
from headrace.turns import turns_of
from hub.cli.paper import Paper
from hub.cli.toolline import ToolEvent, ToolLines
from hub.cli.wire import Answer, Wire

#: Older turns are left out of the question above this many bytes: hubs take 128 KiB unless told otherwise.
HISTORY_BYTES = 96 * 1024
CANCELLED, CANCELLING = "cancelled", "cancelling"
RECONNECTING = "connection lost, reconnecting …"
_HINTS = {
    "/new": "begin anew", "/retry": "ask for the rest of an answer that failed", "/model NAME": "ask another model",
    "/help": "this", "/quit": "leave",
}  # fmt: skip


def converse(url: str, token: str, model: str, system: str | None, tools: list[str]) -> int:
    """Chat until the person leaves or the input ends; the exit status. Raises Failure without a hub."""
    with Wire(url, token) as wire:
        chat = Chat(wire, Paper(sys.stdout), model, system, tools)
        return chat.interact(url) if sys.stdin.isatty() else chat.read_prompts()


class Chat:
    """One conversation. Its history is kept here and sent along with every question."""

    def __init__(self, wire: Wire, paper: Paper, model: str, system: str | None, tools: list[str]) -> None:
        """`tools` are names of tools that the workers have."""
        self._wire = wire
        self._paper = paper
        self._model = model
        self._system = system
        self._tools = tools
        self._history: list[headrace.Message] = []
        #: The turns whose answer failed last, and what a retry of it names.
        self._failed: tuple[list[headrace.Message], dict[str, Any]] | None = None
        self._answer: Answer | None = None
        self._is_waiting = False  # for a prompt
        self._is_interrupted = False

    def interact(self, url: str) -> int:
        """Ask the person for prompts until they leave."""
        with suppress(ImportError):
            import readline  # noqa: F401  (line editing and history for input())
        print(f"\x1b[2m{self._model} at {url} · Ctrl-C cancels an answer · Ctrl-D leaves · /help\x1b[0m")
        with self._taking_ctrl_c():
            while (prompt := self._read_prompt()) is not None:
                if prompt.startswith("/"):
                    if not self._obey(prompt):
                        break
                elif prompt.strip():
                    self.ask(prompt)
                    if self._wire.state == "closed":
                        return 1
        return 0

    def _read_prompt(self) -> str | None:
        """What the person typed; None after Ctrl-D, or Ctrl-C twice."""
        was_interrupted = False
        while True:
            try:
                self._is_waiting = True
                return input("\n\x01\x1b[1;36m\x02› \x01\x1b[0m\x02")
            except (EOFError, KeyboardInterrupt) as end:
                self._is_waiting = False
                if was_interrupted or isinstance(end, EOFError):
                    print()
                    return None
                was_interrupted = True
                print("\n\x1b[2mCtrl-C again, or Ctrl-D, leaves\x1b[0m", end="")
            finally:
                self._is_waiting = False

    def read_prompts(self) -> int:
        """One prompt a line, until the input ends or Ctrl-C; 1 if any answer is missing, 130 after Ctrl-C."""
        status = 0
        with self._taking_ctrl_c():
            self._is_waiting = True
            for number, line in enumerate(line for line in sys.stdin if line.strip()):
                if number:
                    print(flush=True)
                if not self.ask(line.rstrip("\n")):
                    status = 1
                if self._is_interrupted:
                    return 130
        return status

    def ask(self, prompt: str) -> bool:
        """Ask, and show the answer as it comes. Whether there is one, complete; what is there is remembered."""
        self._history.append(headrace.Message(role="user", content=_clean(prompt)))
        return self._ask()

    def retry(self) -> bool:
        """Ask the question again whose answer failed last; what is there of it is gone on with."""
        if self._failed is None:
            self._paper.line("nothing to retry: the last answer did not fail, or asking again is no use")
            return False
        self._history, retry_of = self._failed
        return self._ask(retry_of=retry_of)

    def _ask(self, **more: Any) -> bool:
        asked = list(self._history)
        options: dict[str, Any] = {"model": self._model, **more}
        if self._system:
            options["system"] = _clean(self._system)
        if self._tools:
            options["tools"] = self._tools
        answer = self._wire.ask(recent(self._history), **options)
        self._is_interrupted = False
        self._answer = answer
        with without_echo():
            error = self._show(answer)
        self._answer = None
        generation = answer.generation
        turns = turns_of(generation.fold, with_open_calls=False) if generation is not None else []
        self._history += turns
        if not turns:
            self._history.pop()
        self._paper.end_line()
        if error is None and generation is not None and generation.tool_calls:
            self._paper.line("(nobody here runs what the model called: --tool NAME offers a tool of the workers)")
        if not self._paper.is_terminal:
            print(flush=True)
        if error == CANCELLED and self._paper.is_terminal:
            self._paper.line(error)
        elif error is not None:
            print(f"\x1b[31m{error}\x1b[0m" if sys.stderr.isatty() else error, file=sys.stderr)
        if generation is not None and generation.stream is not None:
            self._paper.line(footer(generation))
        self._failed = None
        failure = generation.error if generation is not None else None
        if isinstance(failure, headrace.GenerationFailed) and failure.retry_token is not None:
            self._failed = asked, {"stream": failure.stream, "retry_token": failure.retry_token}
            self._paper.line("(/retry asks for the rest)")
        return error is None

    def _show(self, answer: Answer) -> str | None:
        """Print updates until the end; what to say when there is no complete answer."""
        paper = self._paper
        error: str | None = None
        paper.note("…" if self._wire.state == "online" else RECONNECTING)
        thinking = False
        tools = ToolLines(paper)
        while (update := answer.updates.get()) is not None:
            if isinstance(update, headrace.Text):
                if thinking:
                    paper.line("")
                thinking = False
                paper.write(update.text)
            elif isinstance(update, headrace.Reasoning):
                thinking = True
                paper.write(update.text, dim=True)
            elif isinstance(update, ToolEvent):
                tools.show(update)
            elif isinstance(update, headrace.Done):
                error = ending(update)
            elif isinstance(update, Exception):
                error = str(update)
            else:
                if isinstance(update, headrace.Reset | headrace.Restarted):
                    tools = ToolLines(paper)
                self._remark(update)
        return error

    def _remark(self, update: object) -> None:
        """Whatever is worth a word beside the answer."""
        paper = self._paper
        if update == "reconnecting":
            paper.note(RECONNECTING)
        elif update == CANCELLING:
            paper.note("cancelling … (Ctrl-C again stops waiting for that)")
        elif update == "online":
            paper.clear_note()
        elif isinstance(update, headrace.Status):
            where = f", {update.position} before it" if update.position else ""
            if update.state != "running":
                paper.note(f"{update.state}{where} …")
        elif isinstance(update, headrace.Notice):
            paper.line(f"({_told(update)})")
        elif isinstance(update, headrace.Reset | headrace.Restarted):
            void = f"(what stands above is void, {update.reason.replace('_', ' ')}: from the start)"
            if paper.is_terminal:
                paper.line(void)
            else:  # a script has to be able to tell the two apart
                print(flush=True)
                print(void, file=sys.stderr)

    @contextmanager
    def _taking_ctrl_c(self) -> Iterator[None]:
        """Ctrl-C cancels an answer; once more lets go of it, should the hub be out of reach. It raises
        KeyboardInterrupt only while a person, or a script, is waited for: never in between.
        """

        def interrupted(*_: object) -> None:
            self._is_interrupted = True
            if self._answer is not None:
                self._answer.updates.put(CANCELLING)  # a queue may be used in a signal handler, the terminal may not
                self._answer.cancel()
            elif self._is_waiting:
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _obey(self, command: str) -> bool:
        """A line that begins with a slash; False to leave."""
        name, _, value = command.strip().partition(" ")
        if name in ("/quit", "/exit", "/q"):
            return False
        if name == "/new":
            self._history.clear()
            self._failed = None
            self._paper.line("a new conversation")
        elif name == "/retry":
            self.retry()
        elif name == "/model" and value.strip():
            self._model = value.strip()
            self._paper.line(f"{self._model} from here on")
        else:
            for what, meaning in _HINTS.items():
                self._paper.line(f"{what:<12} {meaning}")
        return True


def _told(notice: headrace.Notice) -> str:
    if notice.code == "failover":
        return f"the provider broke off, {notice.provider} goes on"
    if notice.code == "retrying":
        return f"{notice.provider} broke off and is asked again"
    if notice.code == "parameter_lowered":
        return f"this model writes no more: {notice.parameter} is lowered"
    if notice.code == "parameter_dropped":
        return f"this model does not take {notice.parameter}: left out"
    return notice.code.replace("_", " ")


@contextmanager
def without_echo() -> Iterator[None]:
    """Keys that are pressed meanwhile, Ctrl-C among them, are not written into the answer."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def recent(history: list[headrace.Message]) -> list[headrace.Message]:
    """The newest turns within HISTORY_BYTES, beginning with a person's; always the last one."""
    size, first = 0, len(history) - 1
    for index in range(len(history) - 1, -1, -1):
        size += len(msgspec.json.encode(history[index]))
        if size > HISTORY_BYTES:
            break
        if history[index].role == "user":
            first = index
    return history[first:]


def ending(done: headrace.Done) -> str | None:
    """What to say about an answer that is not complete."""
    if done.status == "completed":
        return None
    if done.status == "cancelled":
        return CANCELLED if done.stop_reason == "cancelled" else f"cancelled: {done.stop_reason}"
    if done.status == "truncated":
        return f"cut off: {'too many rounds of tools' if done.stop_reason == 'tool_steps' else done.stop_reason}"
    reason = f"{done.error.code}: {done.error.message}" if done.error else done.stop_reason
    return f"the answer failed: {reason}"


def footer(generation: headrace.Generation) -> str:
    """Who answered, how fast, over how many connections."""
    parts = []
    source = generation.source
    if source is not None:
        label = f"{source.provider}/{source.model}"
        if source.mode != "live":
            label += f" ({source.mode}{', ' + source.reason.replace('_', ' ') if source.reason else ''})"
        parts.append(label)
    if generation.ttft is not None:
        parts.append(f"first word after {generation.ttft:.2f} s")
    if generation.tokens_per_second:
        parts.append(f"{generation.tokens_per_second:.0f} tokens/s")
    if generation.reconnects:
        parts.append(f"{generation.reconnects} reconnect{'s' if generation.reconnects > 1 else ''}")
    if generation.verified is False:
        parts.append("the text is not the one that was logged")
    parts.append(generation.stream or "")
    return " · ".join(parts)


def _clean(text: str) -> str:
    """What every encoding carries: a terminal may give half a character."""
    return text.encode("utf-8", "replace").decode()
