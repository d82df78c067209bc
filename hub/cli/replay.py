"""`headrace replay`: what was recorded, as it was, and whether it is whole."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

from hub.cli.failure import Failure
from hub.cli.paper import Paper
from hub.cli.recording import RESTARTED, Corrupt, Header, Recorded, read


def play(path: Path, speed: float | None) -> int:
    """Print a recording, `speed` times as fast as it was (None: at once); 0 unless its digest does not fit.

    Raises Failure for a file that is cut off or damaged, after what could be read of it.
    """
    player = Player(Paper(sys.stdout))
    began = time.monotonic()
    try:
        with path.open("rb") as file:
            for item in read(file):
                if isinstance(item, Header):
                    player.begin(item)
                    continue
                if speed is not None:
                    time.sleep(max(0.0, began + item.ms / 1000 / speed - time.monotonic()))
                player.show(item)
    except Corrupt as error:
        player.end()
        raise Failure(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from None
    return player.verdict()


class Player:
    """Folds entries (docs/protocol.md §5) and prints them as the chat does."""

    def __init__(self, paper: Paper) -> None:
        self._paper = paper
        self._last: Recorded | None = None
        self._restart()

    def begin(self, header: Header) -> None:
        if self._paper.is_terminal:
            self._paper.line(f"recording of {header.stream}")

    def show(self, entry: Recorded) -> None:
        self._last = entry
        data = entry.data
        if entry.kind == "text":
            text = str(data.get("text", ""))
            self._digest.update(text.encode("utf-8", "surrogatepass"))
            self._paper.write(text)
        elif entry.kind == "reasoning":
            self._paper.write(str(data.get("text", "")), dim=True)
        elif entry.kind in ("reset", RESTARTED):
            self._restart()
            self._paper.line(f"({entry.kind}: what stands above is void)")
        elif entry.kind == "source":
            self._paper.line(f"{data.get('provider')}/{data.get('model')} ({data.get('mode')})")
        elif entry.kind == "notice":
            self._paper.line(f"({str(data.get('code')).replace('_', ' ')})")
        elif entry.kind == "tool_call":
            self._paper.line(f"⚙ {data.get('name')}")

    def end(self) -> None:
        """Leave the terminal at the start of a line."""
        self._paper.end_line()
        if not self._paper.is_terminal:
            print(flush=True)

    def verdict(self) -> int:
        """Say how it ended and whether the text is the one that was logged; the exit status."""
        self.end()
        last = self._last
        if last is None:
            return self._say("nothing was recorded but the header", 0)
        if last.kind != "done":
            return self._say(f"the recording ends before `done`, at entry {last.offset}: nothing to check", 0)
        expected, found = last.data.get("text_sha256"), self._digest.hexdigest()
        if expected != found:
            return self._say(f"the text differs: sha256 is {found}, `done` says {expected}", 1)
        return self._say(f"{last.data.get('status')} · {last.offset} entries · text verified, sha256 {found[:16]}…", 0)

    def _say(self, text: str, status: int) -> int:
        if status or not self._paper.is_terminal:
            print(text, file=sys.stderr)
        else:
            self._paper.line(text)
        return status

    def _restart(self) -> None:
        self._digest = hashlib.sha256()
