"""What a client says to its hub and makes of the answers: frames and time in, frames and actions out. No I/O.

One `Connection` lives as long as its client and sees many sockets come and go. The shell calls `opened` when
a socket is up, `receive` for every frame, `closed` when it is gone; after each it does what `actions`
returns, sends what `frames_to_send` returns, and looks again at `next_at`. Times are seconds on any one clock.

Guarantees, whatever socket dies when:
- Entries of an attachment are delivered in order, each once; where history changed, `Moved` says so first.
- What was not answered is asked again on the next connection, with the same request key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from headrace.actions import Action, Answered, Delivered, Moved, Postponed, Refused, TokenExpired, Welcomed
from headrace.attachment import REPAIRS, Attachment, Placed
from headrace.backoff import jitter
from headrace.protocol.cursor import Cursor
from headrace.protocol.frames import (
    BATCH_FRAMES,
    Accepted,
    Attached,
    Cancel,
    ClientFrame,
    Delta,
    Detach,
    Drain,
    EntryFrame,
    ErrorFrame,
    Generate,
    Hello,
    HubFrame,
    ListStreams,
    Live,
    Ok,
    Refresh,
    StatusFrame,
    Streams,
    Welcome,
)

#: A hub says `welcome` within this time, or the connection is given up.
WELCOME_S: Final = 10.0
#: A `generate` or `attach` without an answer for this long means that the connection does not work.
ANSWER_S: Final = 30.0
#: Nothing heard for the heartbeat and this long: the connection is dead (docs/protocol.md §2).
SILENCE_S: Final = 10.0

Verb = Cancel | Detach | ListStreams
OnAbandon = Literal["cancel", "continue"]


def batches(frames: list[ClientFrame]) -> list[list[ClientFrame]]:
    """Frames as messages, in order. What may be long travels alone: a message has a limit of bytes as well."""
    messages: list[list[ClientFrame]] = []
    closed = False
    for frame in frames:
        alone = isinstance(frame, (Hello, Generate, Refresh))
        if alone or not messages or len(messages[-1]) >= BATCH_FRAMES or closed:
            messages.append([])
        messages[-1].append(frame)
        closed = alone
    return messages


class Connection:
    """The client's side of the protocol.

    Bounds: attachments and verbs are as many as the application has open; what is to be sent holds a few
    frames for each of them, and actions those of the message just received.
    """

    def __init__(self, client: str, device: str | None, chance: Callable[[], float]) -> None:
        """`chance` draws from [0, 1), for jitter."""
        self._hello = Hello(client=client, device=device)
        self._chance = chance
        self._attachments: dict[int, Attachment] = {}
        self._streams: dict[str, Attachment] = {}
        self._verbs: dict[int, Verb] = {}  # unanswered
        self._asks: dict[int, Attachment] = {}  # unanswered on this connection
        self._abandoned: set[int] = set()  # asks whose attachment is not wanted any more
        self._retry_at: dict[int, float] = {}  # attachment -> when to ask again
        self._outbox: list[ClientFrame] = []
        self._actions: list[Action] = []
        self._ack_now = False
        self._last_id = 0
        self._connections = 0
        self._opened_at: float | None = None
        self.welcome: Welcome | None = None

    # What the application wants

    def generate(self, request: Generate, window: int | None, now: float) -> Attachment:
        """Ask a model; on every connection again, until there is an answer."""
        return self._follow(Attachment(self._next_id(), request, None, None, window, request.pace_ms), now)

    def attach(
        self,
        stream: str,
        after: Cursor | Literal["now"] | None,
        window: int | None,
        pace_ms: int,
        now: float,
    ) -> Attachment:
        """Follow a stream from a cursor on. Whoever followed it on this client before is told `superseded`."""
        attachment = Attachment(self._next_id(), None, stream, after, window, pace_ms)
        self._register(attachment, stream)
        return self._follow(attachment, now)

    def replay(self, attachment: Attachment, now: float) -> None:
        """Read a stream again from its start."""
        attachment.restart()
        assert attachment.stream is not None, "only what was read can be read again"
        self._register(attachment, attachment.stream)
        self._follow(attachment, now)

    def detach(self, attachment: Attachment, on_abandon: OnAbandon | None = None) -> int | None:
        """Stop following: nothing of this stream is delivered afterwards.

        With `on_abandon` the hub's answer matters: it is asked for on every connection until it comes, and
        this returns its id.
        """
        if attachment.asked is not None:
            self._abandoned.add(attachment.asked)  # its answer may come after the hub saw our `detach`
        followed = attachment.key in self._attachments
        self._forget(attachment)
        if attachment.stream is None:
            return None
        if on_abandon is not None:
            return self.request(Detach, stream=attachment.stream, on_abandon=on_abandon)
        if followed and self._is_open:
            self._outbox.append(Detach(attachment.stream))
        return None

    def request(self, verb: type[Verb], **fields: Any) -> int:
        """Send a `cancel`, `detach` or `list`; on every connection again, until it is answered. Returns its id."""
        id = self._next_id()
        self._verbs[id] = verb(id=id, **fields)
        if self._is_open:
            self._outbox.append(self._verbs[id])
        return id

    def withdraw(self, id: int) -> None:
        """Nobody waits for this answer any more: do not ask again."""
        self._verbs.pop(id, None)

    def refresh(self, token: str) -> None:
        """Renew the token in band. Never repeated: the next connection says hello with a token of its own."""
        if self._is_open:
            self._outbox.append(Refresh(self._next_id(), token))

    def consumed(self, attachment: Attachment, offset: int, now: float) -> None:
        """The application took everything up to `offset`."""
        if attachment.consumed(offset, now) and attachment.is_following:
            self._ack_now = True

    def unsendable(self, frame: Generate, message: str) -> None:
        """A request turned out larger than the hub's limit: sending it would cost the connection, every time."""
        attachment = self._asks.get(frame.id) if isinstance(frame.id, int) else None
        if attachment is not None:
            self._refuse(attachment, "too_large", message)

    # What the shell reports

    def opened(self, token: str | None, now: float) -> None:
        """A socket is up: say hello and resume everything, in one flight."""
        self.closed()
        self._opened_at = now
        self._connections += 1
        self._outbox.append(msgspec.structs.replace(self._hello, token=token))
        for attachment in self._attachments.values():
            self._ask(attachment, now)
        self._outbox += self._verbs.values()

    def closed(self) -> None:
        """The socket is gone, and with it all that was said on it and not answered."""
        self._opened_at, self.welcome, self._ack_now = None, None, False
        self._outbox.clear()
        self._asks.clear()
        self._abandoned.clear()
        self._retry_at.clear()
        for attachment in self._attachments.values():
            attachment.asked = None

    def receive(self, frame: HubFrame, now: float) -> None:
        """Take one frame. Frames that this version cannot place are ignored (docs/protocol.md §2)."""
        if isinstance(frame, (Delta, EntryFrame)):
            self._entries(frame, now)
        elif isinstance(frame, (Live, StatusFrame)):
            self._told(frame)
        elif isinstance(frame, (Accepted, Attached)):
            self._placed(frame, now)
        elif isinstance(frame, (Ok, Streams)):
            self._answered(frame.id, frame)
        elif isinstance(frame, ErrorFrame):
            self._error(frame, now)
        elif isinstance(frame, Welcome):
            self.welcome = frame
            self._actions.append(Welcomed(frame))
        elif isinstance(frame, Drain):
            self._actions.append(Postponed(frame.after_ms / 1000))

    def actions(self) -> list[Action]:
        """What is to be done, once."""
        actions, self._actions = self._actions, []
        return actions

    def frames_to_send(self, now: float) -> list[ClientFrame]:
        """Everything due. One due ack takes along those of all other streams: they cost nothing more then."""
        if not self._is_open:
            return []
        for key in [key for key, at in self._retry_at.items() if at <= now]:
            self._ask(self._attachments[key], now)
        frames, self._outbox = self._outbox, []
        due_at = self._ack_at()
        if self._ack_now or (due_at is not None and due_at <= now):
            self._ack_now = False
            frames += [item.ack() for item in self._following() if item.schedule.due_at() is not None]
        return frames

    def next_at(self, heard_at: float) -> float | None:
        """When to look again, if nothing happens before; `heard_at` is when the last byte came."""
        if not self._is_open:
            return None
        if self._outbox or self._ack_now:
            return 0.0
        times = [*self._deadlines(heard_at).values(), *self._retry_at.values()]
        due_at = self._ack_at()
        return min(times if due_at is None else [*times, due_at])

    def overdue(self, heard_at: float, now: float) -> str | None:
        """Why this connection is to be given up, or None."""
        return next((why for why, at in self._deadlines(heard_at).items() if at <= now), None)

    # One frame each

    def _entries(self, frame: Delta | EntryFrame, now: float) -> None:
        attachment = self._streams.get(frame.stream)
        if attachment is None or not attachment.is_following:
            return
        cursor = attachment.take(frame)
        if cursor is None:
            self._repair(attachment, now)
            return
        self._actions.append(Delivered(attachment.key, frame, cursor))
        if isinstance(frame, EntryFrame) and frame.kind == "done":
            self._forget(attachment)  # after `done` the attachment is over by itself (§4)

    def _told(self, frame: Live | StatusFrame) -> None:
        if frame.stream is None:
            self._actions.append(Delivered(None, frame))
            return
        attachment = self._streams.get(frame.stream)
        if attachment is not None and attachment.is_following:
            self._actions.append(Delivered(attachment.key, frame))

    def _placed(self, frame: Accepted | Attached, now: float) -> None:
        attachment: Attachment | None
        if not isinstance(frame.id, int):  # ours are integers: this is no answer
            attachment = self._streams.get(frame.stream)
            if attachment is None or not attachment.is_following:
                return  # between our `attach` and its answer this is old news
        elif frame.id in self._abandoned:
            self._abandoned.discard(frame.id)
            if frame.stream not in self._streams:
                self._outbox.append(Detach(frame.stream))
            return
        else:
            attachment = self._asks.pop(frame.id, None)
            if attachment is None:
                return
        if attachment.stream is None and not attachment.only_starts:
            self._register(attachment, frame.stream)
        placed = attachment.placed(frame, now)
        if placed is Placed.ASTRAY:
            self._repair(attachment, now)
            return
        self._ack_now |= attachment.owes_ack
        reconnected = attachment.connection not in (0, self._connections)
        attachment.connection = self._connections
        self._actions.append(Moved(attachment.key, frame, placed is Placed.RESTARTED, reconnected))
        if attachment.only_starts:
            self._forget(attachment)
        elif frame.state == "done" and 0 < frame.offset == frame.top:
            attachment.step_back()
            self._repair(attachment, now)

    def _answered(self, id: int | str, frame: Ok | Streams | ErrorFrame) -> None:
        if isinstance(id, int) and self._verbs.pop(id, None) is not None:
            self._actions.append(Answered(id, frame))

    def _error(self, frame: ErrorFrame, now: float) -> None:
        attachment = self._asks.get(frame.id) if isinstance(frame.id, int) else None
        if frame.retry == "reauth" and self.welcome is not None:
            # Whatever it answered stays unanswered, and is asked again on the next connection.
            self._actions.append(TokenExpired(frame.message, reconnect=frame.id is not None))
        elif attachment is not None:
            self._ask_refused(attachment, frame, now)
        elif frame.id is not None:
            self._answered(frame.id, frame)
        elif frame.stream is not None:
            self._stream_error(frame.stream, frame, now)
        elif frame.after_ms is not None:
            self._actions.append(Postponed(frame.after_ms / 1000))

    def _ask_refused(self, attachment: Attachment, frame: ErrorFrame, now: float) -> None:
        del self._asks[attachment.asked]  # type: ignore[arg-type]
        if attachment.stream is not None and frame.retry in ("now", "after", "backoff"):
            # Resuming is ours to repeat; a new request is the application's to decide. `asked` stays set:
            # until there is an answer nothing of this stream is taken.
            delay = jitter(attachment.refusals, self._chance()) + (frame.after_ms or 0) / 1000
            attachment.refusals += 1
            self._retry_at[attachment.key] = now + delay
            return
        self._forget(attachment)
        self._actions.append(Refused(attachment.key, frame.code, frame.message, frame.retry, frame.after_ms))

    def _stream_error(self, stream: str, frame: ErrorFrame, now: float) -> None:
        attachment = self._streams.get(stream)
        if attachment is None or not attachment.is_following:
            return
        if frame.code == "bad_ack":  # without credit the stream would stand still: attaching sets it anew
            self._repair(attachment, now)
        elif frame.code in ("gone", "not_found", "forbidden"):
            self._forget(attachment)
            self._actions.append(Refused(attachment.key, frame.code, frame.message, frame.retry, frame.after_ms))

    # Attachments

    def _follow(self, attachment: Attachment, now: float) -> Attachment:
        self._attachments[attachment.key] = attachment
        if self._is_open:
            self._ask(attachment, now)
        return attachment

    def _register(self, attachment: Attachment, stream: str) -> None:
        older = self._streams.get(stream)
        if older is not None and older is not attachment:
            self._refuse(older, "superseded", "another generation of this client follows the stream now")
        self._streams[stream] = attachment

    def _ask(self, attachment: Attachment, now: float) -> None:
        self._asks.pop(attachment.asked, None)  # type: ignore[arg-type]
        self._retry_at.pop(attachment.key, None)
        id = self._next_id()
        self._asks[id] = attachment
        self._outbox.append(attachment.ask(id, now))

    def _repair(self, attachment: Attachment, now: float) -> None:
        """Attach again from the cursor, unless that has not helped before."""
        attachment.repairs += 1
        if attachment.repairs <= REPAIRS:
            self._ask(attachment, now)
            return
        assert attachment.stream is not None, "only what was answered can be repaired"
        self._outbox.append(Detach(attachment.stream))
        self._refuse(attachment, "protocol_violation", "the hub's frames do not fit the cursor, again and again")

    def _refuse(self, attachment: Attachment, code: str, message: str) -> None:
        self._forget(attachment)
        self._actions.append(Refused(attachment.key, code, message))

    def _forget(self, attachment: Attachment) -> None:
        attachment.is_over = True
        self._attachments.pop(attachment.key, None)
        self._asks.pop(attachment.asked, None)  # type: ignore[arg-type]
        self._retry_at.pop(attachment.key, None)
        attachment.asked = None
        if attachment.stream is not None and self._streams.get(attachment.stream) is attachment:
            del self._streams[attachment.stream]

    def _following(self) -> list[Attachment]:
        return [attachment for attachment in self._attachments.values() if attachment.is_following]

    # Times

    @property
    def _is_open(self) -> bool:
        return self._opened_at is not None

    def _ack_at(self) -> float | None:
        times = [item.schedule.due_at() for item in self._following()]
        return min((at for at in times if at is not None), default=None)

    def _deadlines(self, heard_at: float) -> dict[str, float]:
        assert self._opened_at is not None, "a closed connection has no deadlines"
        if self.welcome is None:
            return {"the hub did not say welcome": self._opened_at + WELCOME_S}
        silence = self.welcome.heartbeat_ms / 1000 + SILENCE_S
        deadlines = {"nothing was heard from the hub": max(heard_at, self._opened_at) + silence}
        if self._asks:
            asked_at = min(attachment.asked_at for attachment in self._asks.values())
            deadlines["a request was not answered"] = asked_at + ANSWER_S
        return deadlines

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id
