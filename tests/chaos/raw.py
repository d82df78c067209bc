"""A viewer that speaks the wire protocol by itself and records every frame: a correct client with bad habits.

It cuts its own connection, naps, cancels, leaves and comes back, as its `Intent` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from headrace.backoff import Backoff, jitter
from tests.chaos.fold import Screen
from tests.chaos.history import (
    Acked,
    Answered,
    Asked,
    Cancelled,
    Live,
    Lost,
    Opened,
    Outcome,
    Piece,
    Quiet,
    Seen,
    Told,
    Watch,
)
from tests.chaos.plan import Intent

Map = dict[str, Any]

OPEN_S = 5.0
WELCOME_S = 10.0
ANSWER_S = 30.0
SILENCE_S = 30.0
QUIET_S = 3.0
ACK_IDLE_S = 0.25
KEPT_DATA = frozenset({"started", "notice", "reset", "done"})
#: In place of a close code: the viewer went away for a while.
DETACHED = -1
_NEVER = float("inf")


@dataclass
class Surroundings:
    """What all viewers share."""

    hubs: Sequence[tuple[int, int]]
    """Number and port; a hub may have several ports."""
    front: str
    """Address for viewers that go through the balancer."""
    token: Callable[[str], str]
    epoch: float
    stop_at: Callable[[], float]
    """When watches that have not ended are given up, on the monotonic clock."""
    reconnects: int = 0

    def now(self) -> float:
        return round(time.monotonic() - self.epoch, 4)


class RawViewer:
    """One watch. `run` returns it when it is over, however that came about."""

    def __init__(
        self, name: str, user: str, around: Surroundings, intent: Intent, dice: random.Random,
        *, request: str = "", stream: str = "", on_accepted: Callable[[str], None] = lambda stream: None,
    ) -> None:  # fmt: skip
        """With `request` it asks, else it joins `stream`."""
        self._around = around
        self._intent = intent
        self._dice = dice
        self._on_accepted = on_accepted
        self.watch = Watch(name, "raw", "unfinished", stream, user, request, intent.window, not intent.from_now)
        self._events = self.watch.events
        self._is_json = intent.encoding == "json"
        self._offset = 0
        self._mark = ""
        self._has_cursor = False
        self._asked_at = _NEVER
        self._retry_at = _NEVER
        self._refusals = 0
        self._is_following = False
        self._acked = 0
        self._window = intent.window
        self._ack_at = _NEVER
        self._wants_cancel_at = _NEVER
        self._cancel_asked_at = 0.0
        self._leave_at = _NEVER
        self._detach_at = _NEVER
        self._returns_at = 0.0
        self._ids = 0
        self._ask_id = 0
        self._backoff = Backoff()
        self._postponed_until = 0.0
        self._last_hub = -1
        self._screen = Screen()
        self._socket: ClientConnection | None = None
        self._is_over = False
        self._has_detached = False

    async def run(self) -> Watch:
        try:
            while not self._is_over and time.monotonic() < self._around.stop_at():
                await self._one_connection()
                if self._is_over:
                    break
                now = time.monotonic()
                delay = self._backoff.delay(now, self._dice.random(), self._postponed_until - now)
                delay = max(delay, self._returns_at - now)
                await asyncio.sleep(min(delay, max(0.0, self._around.stop_at() - now)))
        finally:
            self.watch.text_bytes, self.watch.text_sha256 = self._screen.size, self._screen.digest
        return self.watch

    def _over(self, outcome: Outcome) -> None:
        self._is_over = True
        self.watch.outcome = outcome

    # -- a connection

    async def _one_connection(self) -> None:
        hubs = [hub for hub in self._around.hubs if hub[0] != self._last_hub] or list(self._around.hubs)
        hub, port = self._dice.choice(hubs)
        self._last_hub = hub
        protocol = "headrace.v1.json" if self._is_json else "headrace.v1.msgpack"
        try:
            self._socket = socket = await connect(
                f"ws://127.0.0.1:{port}/v1/ws", subprotocols=[Subprotocol(protocol)], compression=None, max_size=2**20,
                ping_interval=None, open_timeout=OPEN_S, close_timeout=0.5, proxy=None,
            )  # fmt: skip
        except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed, RuntimeError):
            return  # uvloop says RuntimeError of a socket that is closed already
        code, own = 0, False
        try:
            own = await self._converse(socket, hub)
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else 0
        finally:
            self._socket, self._is_following = None, False
            self._ack_at = self._asked_at = self._retry_at = _NEVER
            socket.transport.abort()
            with contextlib.suppress(Exception):
                await socket.wait_closed()
        if self._has_detached:
            code, self._has_detached = DETACHED, False
        self._events.append(Lost(self._around.now(), code, own))
        if not 4000 <= code < 4100 and not own and not self._is_over and code >= 4200:
            self._events.append(Told(self._around.now(), f"closed {code}", True))
            self._over("rejected")

    async def _converse(self, socket: ClientConnection, hub: int) -> bool:
        """Until the viewer ends it: True. Raises ConnectionClosed when somebody else does."""
        await self._send({"type": "hello", "token": self._around.token(self.watch.user), "client": "chaos"})
        first = await self._receive(socket, time.monotonic() + WELCOME_S)
        if first is None:
            return True
        self._events.append(Opened(self._around.now(), hub))
        self._around.reconnects += 1
        self._backoff.opened(time.monotonic())
        await self._ask()
        cut_at, heard_at = self._next_cut(), time.monotonic()
        while not self._is_over:
            now = time.monotonic()
            if now >= min(cut_at, self._asked_at + ANSWER_S, self._around.stop_at()):
                return True
            if await self._due(now):
                return True
            wake_at = min(
                cut_at, self._asked_at + ANSWER_S, self._retry_at, self._ack_at, self._wants_cancel_at, self._leave_at,
                self._detach_at, self._around.stop_at(), heard_at + SILENCE_S,
            )  # fmt: skip
            frames = await self._receive(socket, wake_at)
            if frames is None:
                if time.monotonic() >= heard_at + SILENCE_S:
                    if not await self._is_alive(socket):
                        return True
                    heard_at = time.monotonic()
                continue
            heard_at = time.monotonic()
            for frame in frames:
                self._take(frame)
            await self._maybe_nap()
        if self.watch.outcome == "done":
            await self._listen_on(socket)
        return True

    async def _receive(self, socket: ClientConnection, until: float) -> list[Map] | None:
        """The frames of the next message; None if none comes by then."""
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                message = await socket.recv(decode=False)
        except TimeoutError:
            return None
        value = msgspec.json.decode(message) if self._is_json else msgspec.msgpack.decode(message)
        return value if isinstance(value, list) else [value]

    async def _send(self, frame: Map) -> None:
        assert self._socket is not None, "only while there is a connection"
        data = msgspec.json.encode(frame) if self._is_json else msgspec.msgpack.encode(frame)
        try:
            async with asyncio.timeout(5):
                await self._socket.send(data, text=self._is_json)
        except (TimeoutError, RuntimeError):
            self._socket.transport.abort()

    async def _is_alive(self, socket: ClientConnection) -> bool:
        await self._send({"type": "ping", "id": "there?"})
        frames = await self._receive(socket, time.monotonic() + QUIET_S)
        for frame in frames or []:
            self._take(frame)
        return frames is not None

    async def _listen_on(self, socket: ClientConnection) -> None:
        """After `done`: whatever the hub has still to say of this stream comes before the pong."""
        await self._send({"type": "ping", "id": "quiet?"})
        until = time.monotonic() + QUIET_S
        while (frames := await self._receive(socket, until)) is not None:
            for frame in frames:
                if frame["type"] == "pong":
                    self._events.append(Quiet(self._around.now()))
                    return
                self._take(frame)

    # -- what the viewer does of its own will

    def _next_cut(self) -> float:
        mean = self._intent.cut_every_s
        return time.monotonic() + self._dice.uniform(0.3, 1.7) * mean if mean else _NEVER

    async def _maybe_nap(self) -> None:
        if self._intent.nap_s and self._is_following and self._dice.random() < 0.02:
            await asyncio.sleep(self._intent.nap_s)

    async def _due(self, now: float) -> bool:
        """Whatever it is time for; True if that ends the connection."""
        if now >= self._leave_at:
            self._over("left")
            return True
        if now >= self._detach_at:
            self._detach_at = _NEVER
            await self._send({"type": "detach", "id": "detach", "stream": self.watch.stream, "on_abandon": "continue"})
            self._is_following, self._has_detached = False, True
            self._returns_at = now + self._dice.uniform(0.5, 6.0)
            return True
        if now >= self._retry_at:
            await self._ask()
        if now >= self._wants_cancel_at:
            self._wants_cancel_at = now + ANSWER_S
            self._cancel_asked_at = self._around.now()
            await self._send({"type": "cancel", "id": "cancel", "stream": self.watch.stream})
        if now >= self._ack_at:
            await self._ack()
        return False

    async def _ask(self) -> None:
        intent, now = self._intent, self._around.now()
        self._ids += 1
        self._ask_id = self._ids
        self._is_following = False
        self._asked_at, self._retry_at = time.monotonic(), _NEVER
        common: Map = {"id": self._ask_id, "window": intent.window, "pace_ms": intent.pace_ms}
        if not self.watch.stream:
            self._events.append(Asked(now, "generate", 0))
            await self._send(
                {
                    "type": "generate", "request": self.watch.request, "model": intent.model,
                    "messages": [{"role": "user", "content": intent.prompt}], **intent.options, **common,
                }
            )  # fmt: skip
            return
        if self._has_cursor:
            after: Any = {"offset": self._offset, "mark": self._mark}
            self._events.append(Asked(now, "attach", self._offset, self._mark))
        else:
            after = "now" if intent.from_now else None
            self._events.append(Asked(now, "attach", -2 if intent.from_now else -1))
        await self._send({"type": "attach", "stream": self.watch.stream, "after": after, **common})

    async def _ack(self) -> None:
        self._ack_at = _NEVER
        if self._window is None or not self._is_following:
            return
        self._acked = self._offset
        self._events.append(Acked(self._around.now(), self._offset))
        await self._send({"type": "ack", "stream": self.watch.stream, "offset": self._offset})

    # -- frames

    def _take(self, frame: Map) -> None:
        kind = frame["type"]
        if kind == "delta" or kind == "entry":
            self._entries(frame)
        elif kind in ("accepted", "attached"):
            self._answer(frame)
        elif kind == "error":
            self._error(frame)
        elif kind == "ok" and frame["id"] == "cancel":
            self._wants_cancel_at = _NEVER
            self._events.append(Cancelled(self._around.now(), self._cancel_asked_at))
        elif kind == "live":
            if self._is_following:
                self._events.append(Live(self._around.now()))
        elif kind == "status":
            self._events.append(Told(self._around.now(), frame["state"], False))
        elif kind == "drain":
            self._postponed_until = time.monotonic() + frame["after_ms"] / 1000

    def _entries(self, frame: Map) -> None:
        now = self._around.now()
        if not self._is_following:  # of an attachment before; on a new connection there is none
            if not any(isinstance(event, Answered) for event in self._since_opened()):
                self._events.append(Told(now, "early frame", True))
            return
        last, mark = frame["offset"], frame.get("mark", "")
        first: Any = frame.get("first", last)
        if frame["type"] == "delta":
            self._events.append(Piece(now, first, last, frame.get("kind", "text"), frame.get("text", ""), mark))
            if frame.get("kind", "text") == "text":
                self._screen.add(frame.get("text", ""))
        else:
            kind = frame["kind"]
            self._events.append(Seen(now, last, kind, mark, frame["data"] if kind in KEPT_DATA else None))
            if kind == "reset":
                self._screen.clear()
            elif kind == "done" and not self._is_over:
                self._over("done")
        if first != self._offset + 1 and not self._is_over:
            self._retry_at = time.monotonic()  # a hole or an overlap: attach again from the cursor
            return
        self._offset, self._mark = last, mark or self._mark
        if self._ack_at == _NEVER:
            self._ack_at = time.monotonic() + ACK_IDLE_S
        if self._window is not None and self._offset - self._acked >= max(1, self._window // 2):
            self._ack_at = 0.0

    def _since_opened(self) -> list[Any]:
        since = []
        for event in reversed(self._events):
            if isinstance(event, Opened):
                break
            since.append(event)
        return since

    def _answer(self, frame: Map) -> None:
        is_asked = frame.get("id") == self._ask_id and self._asked_at < _NEVER
        if not is_asked and (frame.get("id") is not None or not self._is_following):
            return
        resumed = frame.get("resumed", True)
        first_answer = not self.watch.stream or self._asked_at < _NEVER and not self._has_cursor
        self.watch.stream = frame["stream"]
        self._events.append(
            Answered(
                self._around.now(), frame["stream"], resumed, frame["offset"], frame["mark"], frame["top"],
                frame["window"], is_asked,
            )
        )  # fmt: skip
        if not resumed:
            self._screen.clear()
        self._offset, self._mark, self._has_cursor = frame["offset"], frame["mark"], True
        self._acked, self._window = self._offset, frame["window"]
        self._is_following, self._refusals = True, 0
        self._asked_at = self._retry_at = _NEVER
        if first_answer and frame["type"] == "accepted":
            self._on_accepted(frame["stream"])
            if self._intent.options.get("attach") is False:
                self._over("started")
        if first_answer:
            self._set_alarms(time.monotonic())
        if frame["state"] == "done" and frame["offset"] == frame["top"]:
            self._over("over")

    def _set_alarms(self, now: float) -> None:
        intent = self._intent
        self._wants_cancel_at = now + intent.cancel_after_s if intent.cancel_after_s else _NEVER
        self._leave_at = now + intent.leave_after_s if intent.leave_after_s else _NEVER
        self._detach_at = now + intent.detach_after_s if intent.detach_after_s else _NEVER
        self.watch.is_cancelled = intent.cancel_after_s > 0

    def _error(self, frame: Map) -> None:
        code, retry, now = frame["code"], frame["retry"], time.monotonic()
        if frame.get("id") == "cancel":
            self._wants_cancel_at = now + 1.0 if retry != "no" else _NEVER
            if retry == "no":
                self._events.append(Told(self._around.now(), code, True))
            return
        is_ours = frame.get("id") == self._ask_id
        if not is_ours and frame.get("stream") != self.watch.stream:
            return
        if not is_ours and not self._is_following:
            return
        self._events.append(Told(self._around.now(), code, True))
        if code in ("gone", "not_found"):
            self._over("told")
        elif code == "bad_ack":
            self._retry_at = now
        elif retry == "no":
            self._over("rejected")
        elif is_ours:
            self._retry_at = now + jitter(self._refusals, self._dice.random()) + frame.get("after_ms", 0) / 1000
            self._refusals += 1
            self._asked_at = _NEVER
