"""Answers of the Responses API that go on without a reader, and those who read them, at first or again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

from tests.fakes.messages import Refusal
from tests.fakes.responses import PATH, ResponsesFormat
from tests.fakes.script import Record, Script


class Underway:
    """One answer, from its beginning on. `record` is the request that began it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, response: str, script: Script, record: Record) -> None:
        self.response = response
        self.script = script
        self.record = record
        #: Each with how many tokens are written by then. The number of an event is its place.
        self.events: list[tuple[bytes, int]] = []
        self.is_over = False
        self._again = iter(script.again)
        self._readers: list[Callable[[], None]] = []
        self._loop = loop
        self._steps = self._written()
        self._due = loop.time()
        self._timer: asyncio.Handle | None = loop.call_soon(self._advance)

    def cancel(self) -> None:
        """By its user. One that is over stays as it is."""
        if not self.is_over:
            self.record.cancelled_at = time.monotonic()
            self.stop()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.is_over = True
        self._tell()

    def begin_again(self) -> tuple[int, Any]:
        """What becomes of one more reading: its status, and its fault."""
        fate = next(self._again, None)
        return (fate, None) if isinstance(fate, int) else (200, fate)

    def read(self, after: int, wake: Callable[[], None]) -> Iterator[tuple[bytes, int] | None]:
        """The events after number `after`; None: nothing for now, `wake` will be called."""
        self._readers.append(wake)
        at = after + 1
        while True:
            while at < len(self.events):
                yield self.events[at]
                at += 1
            if self.is_over:
                return
            yield None

    def _advance(self) -> None:
        self._timer = None
        for _ in range(64):
            step = next(self._steps, None)
            if step is None:
                self.is_over = True
                break
            if isinstance(step, float):
                self._due += step
                if self._due > self._loop.time():
                    self._timer = self._loop.call_at(self._due, self._advance)
                    break
            else:
                self.events.append((step, self.record.tokens))
        else:
            self._timer = self._loop.call_soon(self._advance)
        self._tell()

    def _written(self) -> Iterator[bytes | float]:
        script, record = self.script, self.record
        form = ResponsesFormat(script, record.body, self.response)
        yield from form.opening()
        yield float(script.first_s)
        for text in script.pieces():
            if record.tokens == script.fault_after and script.fault == "error":
                yield form.error()
                return
            if record.tokens and script.gap_s:
                yield float(script.gap_s)
            record.tokens += 1
            record.token_times.append(time.monotonic())
            yield form.token(text)
        for event in form.closing():
            if script.tools and script.gap_s:  # arguments come one by one, too
                yield float(script.gap_s)
            yield event

    def _tell(self) -> None:
        for wake in self._readers:
            wake()


class Background:
    """All answers that were begun in the background."""

    def __init__(self) -> None:
        self.answers: dict[str, Underway] = {}

    def begin(self, script: Script, record: Record) -> Underway:
        record.response = response = f"resp_{len(self.answers) + 1}"
        answer = Underway(asyncio.get_running_loop(), response, script, record)
        self.answers[response] = answer
        return answer

    def asked(self, method: str, target: str) -> tuple[Underway, str, int]:
        """Which answer is meant, whether to `read` or `cancel` it, and after which event. Raises Refusal."""
        path, _, query = target.partition("?")
        response, _, verb = path.removeprefix(PATH + "/").partition("/")
        if (method, verb) not in (("GET", ""), ("POST", "cancel")):
            raise Refusal(405, f"{method} {path} does not exist")
        answer = self.answers.get(response)
        if answer is None:
            raise Refusal(404, f"Response with id '{response}' not found.")
        if verb == "cancel":
            return answer, verb, 0
        fields = {name: values[-1] for name, values in parse_qs(query).items()}
        if unknown := fields.keys() - {"stream", "starting_after", "include_obfuscation"}:
            raise Refusal(400, f"Unknown parameter: '{unknown.pop()}'.", code="unknown_parameter")
        if fields.get("stream", "").lower() != "true":
            raise Refusal(400, "this fake only streams")
        return answer, "read", int(fields.get("starting_after", -1))

    def close(self) -> None:
        for answer in self.answers.values():
            answer.stop()
