"""A viewer that uses the Python client, as an application does, and records the events it got."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec

import headrace
from headrace.backoff import jitter
from headrace.events import Event, Live, Reasoning, Restarted, Status, Text, ToolInput
from tests.chaos import history
from tests.chaos.plan import Intent
from tests.chaos.raw import KEPT_DATA, Surroundings

_KINDS = {
    headrace.Queued: "queued", headrace.Started: "started", headrace.Source: "source", headrace.Notice: "notice",
    headrace.Reset: "reset", headrace.Usage: "usage", headrace.Done: "done", headrace.ToolCall: "tool_call",
    headrace.ToolReady: "tool_ready", headrace.ToolResult: "tool_result", headrace.Citation: "citation",
}  # fmt: skip


class ClientViewer:
    """One watch over a `headrace.Client` that lives longer."""

    def __init__(
        self, name: str, user: str, around: Surroundings, intent: Intent, dice: random.Random, client: headrace.Client,
        *, request: str = "", stream: str = "", on_accepted: Callable[[str], None] = lambda stream: None,
    ) -> None:  # fmt: skip
        self._around = around
        self._intent = intent
        self._dice = dice
        self._client = client
        self._on_accepted = on_accepted
        self.watch = history.Watch(name, "client", "unfinished", stream, user, request, intent.window)
        self.watch.is_whole = not intent.from_now
        self._events = self.watch.events
        self._is_placed = False

    async def run(self) -> history.Watch:
        stop_listening = self._client.on_state(self._state_changed)
        attempts = 0
        try:
            async with asyncio.timeout_at(self._deadline()):
                while True:
                    try:
                        await self._view()
                        return self.watch
                    except headrace.RequestRejected as rejected:
                        self._events.append(history.Told(self._around.now(), rejected.code, True))
                        if rejected.code in ("gone", "not_found"):
                            self.watch.outcome = "told"
                            return self.watch
                        if rejected.retry == "no" or self.watch.stream:
                            self.watch.outcome = "rejected"
                            return self.watch
                        wait = jitter(attempts, self._dice.random()) + (rejected.after_ms or 0) / 1000
                        attempts += 1
                        await asyncio.sleep(wait)
        except TimeoutError:
            return self.watch
        except headrace.HeadraceError as error:
            self._events.append(history.Told(self._around.now(), type(error).__name__, True))
            self.watch.outcome = "rejected"
            return self.watch
        finally:
            stop_listening()

    def _deadline(self) -> float:
        loop = asyncio.get_running_loop()
        return loop.time() + max(0.0, self._around.stop_at() - time.monotonic())

    def _state_changed(self, state: str) -> None:
        now = self._around.now()
        if state == "reconnecting":
            self._events.append(history.Lost(now, 0, False))
        elif state == "online":
            self._events.append(history.Opened(now, -1))

    async def _view(self) -> None:
        intent, now = self._intent, self._around.now()
        if self.watch.stream:
            self._events.append(history.Asked(now, "attach", -2 if intent.from_now else -1))
            after: Any = "now" if intent.from_now else None
            generation = self._client.attach(self.watch.stream, after, window=intent.window, pace_ms=intent.pace_ms)
        else:
            self._events.append(history.Asked(now, "generate", 0))
            generation = self._client.generate(
                intent.prompt, model=intent.model, request=self.watch.request, window=intent.window,
                pace_ms=intent.pace_ms, **intent.options,
            )  # fmt: skip
        alarms: list[asyncio.Task[None]] = []
        try:
            async with generation:
                stream = await generation.accepted()
                self._accepted(stream)
                if intent.options.get("attach") is False:
                    self.watch.outcome = "started"
                    return
                alarms.append(asyncio.create_task(self._alarms(generation)))
                async for event in generation:
                    self._record(event, generation)
                    if intent.nap_s and self._dice.random() < 0.01:
                        await asyncio.sleep(intent.nap_s)
                self._ended(generation)
        except headrace.GenerationClosed:
            self.watch.outcome = "left"
        finally:
            for alarm in alarms:
                alarm.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await alarm

    def _accepted(self, stream: str) -> None:
        if not self.watch.stream:
            self.watch.stream = stream
            self._on_accepted(stream)

    def _placed(self, cursor: headrace.Cursor) -> None:
        """The first event tells where the hub put this viewer: at the start, or just before what came from now on."""
        if not self._is_placed:
            self._is_placed = True
            offset = cursor.offset - 1 if self._intent.from_now else 0
            self._events.append(
                history.Answered(self._around.now(), self.watch.stream, True, offset, cursor.mark, 0, None, True)
            )

    def _ended(self, generation: headrace.Generation) -> None:
        text = generation.text_so_far.encode()
        self.watch.outcome = "done"
        self.watch.verified = generation.verified
        self.watch.text_bytes, self.watch.text_sha256 = len(text), hashlib.sha256(text).hexdigest()

    async def _alarms(self, generation: headrace.Generation) -> None:
        """Cancel, leave, and cut the connection below, each at its time."""
        intent, loop = self._intent, asyncio.get_running_loop()
        began = loop.time()
        cut_at = began + intent.cut_every_s if intent.cut_every_s else None
        moments = [
            (began + seconds, what)
            for seconds, what in (
                (intent.cancel_after_s, "cancel"), (intent.leave_after_s or intent.detach_after_s, "leave"),
            ) if seconds
        ]  # fmt: skip
        while moments or cut_at is not None:
            at, what = min([*moments, *([(cut_at, "cut")] if cut_at is not None else [])])
            await asyncio.sleep(max(0.0, at - loop.time()))
            if what == "cut":
                cut_at = at + intent.cut_every_s * self._dice.uniform(0.3, 1.7)
                self._cut()
                continue
            moments.remove((at, what))
            if what == "cancel":
                asked_at = self._around.now()
                self.watch.is_cancelled = True
                try:
                    await generation.cancel()
                except headrace.ConnectionFailed:
                    continue  # no answer: it is asked again by the client, nobody knows when it was heard
                except headrace.HeadraceError as error:
                    code = getattr(error, "code", type(error).__name__)
                    self._events.append(history.Told(self._around.now(), code, True))
                    continue
                self._events.append(history.Cancelled(self._around.now(), asked_at))
            elif intent.leave_after_s:
                await generation.detach()
            else:
                await generation.detach("continue")

    def _cut(self) -> None:
        """Break the client's socket under it, as a network does."""
        socket = self._client._link._socket
        if socket is not None:
            socket.transport.abort()

    def _record(self, event: Event, generation: headrace.Generation) -> None:
        now, cursor = self._around.now(), generation.cursor
        if isinstance(event, Status):
            self._events.append(history.Told(now, event.state, False))
            return
        if isinstance(event, Live):
            return  # after a reconnect there is another, and no answer is seen between
        assert cursor is not None, "whoever got an entry has a cursor"
        self._placed(cursor)
        if isinstance(event, Text):
            self._events.append(history.Piece(now, 0, cursor.offset, "text", event.text, cursor.mark))
        elif isinstance(event, Reasoning):
            self._events.append(history.Piece(now, 0, cursor.offset, "reasoning", event.text, cursor.mark))
        elif isinstance(event, ToolInput):
            self._events.append(history.Piece(now, 0, cursor.offset, "tool_input", event.delta, cursor.mark))
        elif isinstance(event, Restarted):
            self._events.append(
                history.Answered(now, generation.stream or "", False, cursor.offset, cursor.mark, 0, None, False)
            )
            if event.reason == "digest":
                self._events.append(history.Told(now, "digest mismatch", True))
        else:
            kind = _KINDS.get(type(event), getattr(event, "kind", "?"))
            data = msgspec.to_builtins(event) if kind in KEPT_DATA else None
            self._events.append(history.Seen(now, cursor.offset, kind, cursor.mark, data))
            if kind == "done":
                text = generation.text_so_far.encode()
                self.watch.text_bytes, self.watch.text_sha256 = len(text), hashlib.sha256(text).hexdigest()
