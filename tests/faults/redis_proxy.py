"""A `FaultProxy` in front of Redis that knows where a command begins and which reply is its own.

    async with RedisProxy(target) as proxy:
        proxy.decide = lambda call: CUT_AFTER if call.name == "XADD" else None

A test decides for each command, when it comes: forward it, cut the connection before it is applied, or after,
or delay it or its reply. Everything that `FaultProxy` does goes too.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.faults.connection import Connection, Side
from tests.faults.proxy import FaultProxy
from tests.faults.resp import Cutter, is_push, words_of

#: So many of the last calls are kept.
CALLS_KEPT = 100_000


@dataclass(frozen=True)
class Cut:
    """Reset the connection: before Redis sees the command, or after it applied it and before the reply leaves.

    What was pipelined before the command is applied and answered; what comes behind it is not applied.
    """

    is_applied: bool


@dataclass(frozen=True)
class Delay:
    """Hold the command, or its reply, and everything behind it on its connection. A held command still
    arrives when its sender gave up meanwhile, as packets do.
    """

    s: float
    is_applied: bool = False


Fault = Cut | Delay
CUT_BEFORE = Cut(is_applied=False)
CUT_AFTER = Cut(is_applied=True)


def delay_command(s: float) -> Delay:
    return Delay(s)


def delay_reply(s: float) -> Delay:
    return Delay(s, is_applied=True)


@dataclass
class Call:
    """One command, as a test sees it."""

    #: 1 for the first that the proxy saw.
    ordinal: int
    #: Upper case; a script that the proxy was told of has its own name, in lower case.
    name: str
    #: The first key, as far as that is known; otherwise the first word after the name.
    key: str
    words: list[bytes] = field(repr=False)
    #: Number of the connection, 1 for the first.
    connection: int
    began: float
    #: When its reply came from Redis.
    answered: float | None = None
    reply: bytes | None = field(default=None, repr=False)
    fault: Fault | None = None


_KEY_AT = {"EVALSHA": 3, "EVAL": 3, "OBJECT": 2, "XGROUP": 2, "XINFO": 2}


def _key_of(words: list[bytes]) -> str:
    name = words[0].decode().upper()
    if name in ("XREAD", "XREADGROUP"):
        at = [word.upper() for word in words].index(b"STREAMS") + 1
    else:
        at = _KEY_AT.get(name, 1)
    return words[at].decode(errors="replace") if len(words) > at else ""


class RedisProxy(FaultProxy):
    """`scripts` maps SHA-1 digests to names, for EVALSHA."""

    def __init__(
        self, target: str, *, port: int = 0, seed: int = 0, scripts: Mapping[str, str] | None = None,
        keep_replies: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(target, port=port, seed=seed)
        self.scripts = dict(scripts or {})
        self.keep_replies = keep_replies
        #: Asked for each command; None forwards it.
        self.decide: Callable[[Call], Fault | None] | None = None
        self.calls: deque[Call] = deque(maxlen=CALLS_KEPT)
        #: How many of each name, since the beginning.
        self.counts: Counter[str] = Counter()
        self._ordinal = 0
        self._connections_made = 0

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    @property
    def seen(self) -> list[tuple[str, str]]:
        """(name, key) of each call, in the order in which they came."""
        return [(call.name, call.key) for call in self.calls]

    def forget(self) -> None:
        """Count from here on."""
        self.calls.clear()
        self.counts.clear()
        self._ordinal = 0

    def make_connection(self) -> Connection:
        self._connections_made += 1
        return _RedisConnection(self, self._connections_made)

    def note(self, words: list[bytes], connection: int) -> Call:
        name = words[0].decode().upper()
        if name == "EVALSHA":
            name = self.scripts.get(words[1].decode().lower(), name)
        self._ordinal += 1
        self.counts[name] += 1
        call = Call(self._ordinal, name, _key_of(words), words, connection, time.monotonic())
        self.calls.append(call)
        call.fault = self.decide(call) if self.decide else None
        return call


class _RedisConnection(Connection):
    def __init__(self, proxy: RedisProxy, number: int) -> None:
        super().__init__(proxy)
        self._redis = proxy
        self._number = number
        self._commands = Cutter()
        self._replies = Cutter()
        self._unanswered: deque[Call] = deque()
        self._is_cutting = False  # nothing more is forwarded; the replies of what was, are

    def arrived(self, side: Side, data: bytes) -> None:
        if side is self.client:
            for command in self._commands.feed(data):
                self._command(command)
        else:
            for value in self._replies.feed(data):
                self._reply(value)

    def _command(self, command: bytes) -> None:
        if self._is_cutting:
            return
        call = self._redis.note(words_of(command), self._number)
        if isinstance(call.fault, Cut):
            self._is_cutting = True
            if not call.fault.is_applied:
                self._cut_when_idle()
                return
        self._unanswered.append(call)
        is_late = isinstance(call.fault, Delay) and not call.fault.is_applied
        self.up.push(command, delay_s=call.fault.s if is_late and isinstance(call.fault, Delay) else 0.0)

    def _reply(self, value: bytes) -> None:
        if is_push(value) or not self._unanswered:
            self.down.push(value)
            return
        call = self._unanswered.popleft()
        call.answered = time.monotonic()
        if self._redis.keep_replies:
            call.reply = value
        if call.fault == CUT_AFTER:
            self._cut_when_idle()
            return
        is_late = isinstance(call.fault, Delay) and call.fault.is_applied
        self.down.push(value, delay_s=call.fault.s if is_late and isinstance(call.fault, Delay) else 0.0)
        if self._is_cutting:
            self._cut_when_idle()

    def _cut_when_idle(self) -> None:
        if not self._unanswered and not self.is_silent:
            self._when_delivered()

    def _when_delivered(self) -> None:
        if self.down.held:
            self._loop.call_later(0.002, self._when_delivered)
        else:
            self.cut()
