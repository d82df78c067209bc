"""Keeps a socket to a hub: dials, reads, sends what is due, and comes back. What is said is up to `connection`."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Literal

from websockets.exceptions import ConnectionClosed

from headrace.actions import Action, Postponed, TokenExpired, Welcomed
from headrace.backoff import Backoff
from headrace.connection import Connection, batches
from headrace.endpoint import CLOSE_S, OPEN_S, Socket, describe, http_status
from headrace.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionReplaced,
    GenerationClosed,
    HeadraceError,
    ProtocolViolation,
)
from headrace.protocol.codec import Codec, Undecodable
from headrace.protocol.codes import CloseAction, CloseCode, close_action
from headrace.protocol.frames import ClientFrame, Generate

State = Literal["connecting", "online", "reconnecting", "closed"]
Token = str | Callable[[], "str | Awaitable[str]"] | None

#: Sending waits this long for a hub that does not read.
SEND_S: Final = 10.0
#: After this many connections in a row that could not be used, a hub is believed: fresh tokens that are
#: refused, messages that make no sense.
STRIKES: Final = 3
#: The largest message a hub takes, until it said so itself.
MESSAGE_BYTES: Final = 262_144

log = logging.getLogger("headrace")


class Link:
    """Two tasks, from `open` to `close`: one dials and reads, one sends and watches the clock.

    Attributes:
        state: `connecting` until the first welcome, then `online` or `reconnecting`, and `closed` for good.
        failure: Why it is closed for good.
    """

    def __init__(
        self,
        core: Connection,
        codec: Codec,
        dial: Callable[[], Awaitable[Socket]],
        token: Token,
        act: Callable[[Action], None],
        ended: Callable[[HeadraceError], None],
        chance: Callable[[], float],
    ) -> None:
        """`act` takes what concerns streams and requests; `ended` is told once that all is over.

        `chance` draws from [0, 1), for jitter.
        """
        self._core = core
        self._codec = codec
        self._dial = dial
        self._token = token
        self._act = act
        self._ended = ended
        self._chance = chance
        self._backoff = Backoff()
        self._strikes = 0
        self._postponed_until = 0.0
        self._last_failure = "nothing was tried yet"
        self._message_bytes = MESSAGE_BYTES
        self._socket: Socket | None = None
        self._leave: CloseAction | None = None  # why this side wants to leave the connection
        self._sleeps_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._refreshing: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[State], object]] = []
        self.state: State = "connecting"
        self.failure: HeadraceError | None = None

    async def open(self, url: str, timeout: float) -> None:
        """Start, and wait for the first welcome. Raises ConnectionFailed after `timeout` seconds."""
        if self._tasks:
            raise ConnectionFailed("a client is entered once: make another with `headrace.connect`")
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._first: asyncio.Future[None] = self._loop.create_future()
        work = (self._stay_connected(), self._send_what_is_due())
        self._tasks = [asyncio.create_task(self._guard(part)) for part in work]
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._first)
            if self.failure is not None:
                raise self.failure
        except TimeoutError:
            await self.close()
            raise ConnectionFailed(
                f"no hub answered at {url} within {timeout:g} s: {self._last_failure}. Check that the hub is "
                "running, its host and port, and whether a proxy is needed."
            ) from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End both tasks. What was to be sent still goes out, if the hub takes it within 2 s."""
        if not self._tasks:
            return
        if self._socket is not None and self._core.welcome is not None:
            await self._send(self._socket, self._core.frames_to_send(self.now()), CLOSE_S)
        self.fail(GenerationClosed("its client was closed"))
        tasks = [*self._tasks, *([self._refreshing] if self._refreshing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def on_state(self, listener: Callable[[State], object]) -> Callable[[], None]:
        """Call `listener` at every change of state; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def now(self) -> float:
        """Seconds on the loop's clock."""
        return self._loop.time()

    def settle(self) -> None:
        """Do what the core decided, and see that what it has to say is sent in time."""
        while actions := self._core.actions():
            for action in actions:
                self._perform(action)
        at = self._next_at()
        if at is not None and at < self._sleeps_until:
            self._wake.set()

    def fail(self, error: HeadraceError) -> None:
        """It is over: no further connection is made."""
        if self.failure is not None:
            return
        self.failure, self._leave = error, "stop"
        self._change("closed")
        self._ended(error)
        if not self._first.done():
            self._first.set_result(None)

    # The task that dials and reads

    async def _stay_connected(self) -> None:
        while True:
            action = await self._one_connection()
            now = self.now()
            if self._backoff.is_stable(now):
                self._strikes = 0
            if action == "reauth":
                self._strike(AuthenticationFailed(f"the hub refuses the token: {self._last_failure}"))
                if not callable(self._token):
                    self.fail(AuthenticationFailed(f"the token is not valid any more: {self._last_failure}"))
            if self.failure is not None:
                return
            if self.state == "online":
                self._change("reconnecting")
            delay = self._backoff.delay(now, self._chance(), self._postponed_until - now)
            log.debug("- connecting again in %.2f s: %s", delay, self._last_failure)
            await asyncio.sleep(delay)

    async def _one_connection(self) -> CloseAction:
        """From dialling to the end of a connection; what to do then."""
        self._leave = None
        try:
            token = await self._fresh_token()
            socket = await self._dial()
        except Exception as error:  # the application's token function may raise anything
            self._last_failure = describe(error)
            return "reauth" if http_status(error) in (401, 403) else "backoff"
        code = await self._converse(socket, token)
        if self._leave is not None:
            return self._leave
        action = close_action(code)
        if code is not None:
            reason = f": {socket.close_reason}" if socket.close_reason else ""
            self._last_failure = f"the hub closed the connection ({code}{reason})"
        if action == "stop":
            self.fail(_final(code, self._last_failure))
        return action

    async def _converse(self, socket: Socket, token: str | None) -> int | None:
        """Read until the connection ends; the close code that came, if one came."""
        self._socket = socket
        self._core.opened(token, self.now())
        self.settle()
        try:
            while self._leave is None:
                data = await socket.recv(decode=False)
                now = self.now()
                for frame in self._codec.decode_hub(data):
                    self._core.receive(frame, now)
                self.settle()
        except ConnectionClosed as closed:
            self._last_failure = "the connection broke"
            return closed.rcvd.code if closed.rcvd is not None else None
        except Undecodable as error:
            self._last_failure = f"a message from the hub made no sense ({error})"
            self._strike(ProtocolViolation(f"{self._last_failure}; do hub and client have versions that fit?"))
        finally:
            self._socket = None
            self._core.closed()
            await socket.close()
        return None

    def _perform(self, action: Action) -> None:
        if isinstance(action, Welcomed):
            self._message_bytes = action.welcome.limits.message_bytes
            self._backoff.opened(self.now())
            self._change("online")
            if not self._first.done():
                self._first.set_result(None)
        elif isinstance(action, Postponed):
            self._postponed_until = self.now() + action.after_s
        elif isinstance(action, TokenExpired):
            self._last_failure = action.message
            if action.reconnect:
                self._leave = "reauth"
            elif callable(self._token) and (self._refreshing is None or self._refreshing.done()):
                self._refreshing = asyncio.create_task(self._refresh())
        else:
            self._act(action)

    def _strike(self, error: HeadraceError) -> None:
        self._strikes += 1
        if self._strikes >= STRIKES:
            self.fail(error)

    async def _fresh_token(self) -> str | None:
        if not callable(self._token):
            return self._token
        token = self._token()
        if inspect.isawaitable(token):
            async with asyncio.timeout(OPEN_S):
                return await token
        return token

    async def _refresh(self) -> None:
        try:
            token = await self._fresh_token()
        except Exception as error:  # the hub closes the connection after its grace, and the next one asks again
            log.warning("no fresh token (%s); trying again at the next connection", type(error).__name__)
            return
        if token is not None:
            self._core.refresh(token)
            self.settle()

    # The task that sends and watches the clock

    async def _send_what_is_due(self) -> None:
        while True:
            self._wake.clear()
            self._sleeps_until = 0.0  # what becomes due while this sends is seen below
            if self._socket is not None:
                await self._look_after(self._socket)
            at = self._next_at()
            self._sleeps_until = float("inf") if at is None else at
            try:
                async with asyncio.timeout_at(at):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _look_after(self, socket: Socket) -> None:
        now = self.now()
        why = self._core.overdue(socket.heard_at, now)
        if why is None:
            await self._send(socket, self._core.frames_to_send(now), SEND_S)
        else:
            self._break_off(socket, why)

    async def _send(self, socket: Socket, frames: list[ClientFrame], within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                for batch in batches(frames):
                    data = self._codec.encode_batch(batch)
                    if len(data) > self._message_bytes and isinstance(batch[0], Generate):
                        self._core.unsendable(batch[0], f"{len(data)} bytes, the hub takes {self._message_bytes}")
                        self.settle()
                    else:
                        await socket.send(data, text=self._codec.is_text)
        except ConnectionClosed:
            pass  # the reader sees it too; what was not answered is asked again
        except TimeoutError:
            self._break_off(socket, "the hub does not read")

    def _break_off(self, socket: Socket, why: str) -> None:
        """Cut a connection that does not work; a closing handshake would not work either."""
        log.debug("x %s", why)
        self._last_failure = why
        if self._socket is socket:
            self._socket = None
        socket.transport.abort()

    def _next_at(self) -> float | None:
        return None if self._socket is None else self._core.next_at(self._socket.heard_at)

    # Both

    def _change(self, state: State) -> None:
        if state == self.state:
            return
        self.state = state
        for listener in list(self._listeners):
            try:
                listener(state)
            except Exception:  # an application's mistake must not end its connection
                log.exception("a listener to the state of the connection failed")

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Nobody waits for ever because of a bug in here: what is watched fails with it."""
        try:
            await work
        except Exception as bug:
            error = ProtocolViolation(f"this client failed: {type(bug).__name__}; please report it")
            error.__cause__ = bug
            self.fail(error)


def _final(code: int | None, message: str) -> HeadraceError:
    if code == CloseCode.REPLACED:
        return ConnectionReplaced(f"{message}: the same device opened a newer connection")
    if code in (CloseCode.UNAUTHENTICATED, CloseCode.FORBIDDEN):
        return AuthenticationFailed(f"{message}. Check the token, and that it was made for this hub.")
    return ProtocolViolation(message)
