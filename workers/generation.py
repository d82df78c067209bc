"""One run's life: from what a provider says to frozen batches for the log, and exactly one `done` (protocol §5).

Pure: no I/O; time (monotonic seconds) and ids are arguments. What has its offset is the `journal`'s: `take` freezes
what is pending, and until it is answered `take` returns that batch again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final

import msgspec

from headrace.protocol import entries as kinds
from headrace.protocol.body import Options
from headrace.protocol.codes import DONE_ERROR_CODES
from headrace.protocol.entries import (
    CONTENT_KINDS,
    DELTA_KINDS,
    ENTRY_BYTES,
    LOG_BYTES,
    Entry,
    Status,
    TextDigest,
    delta_text,
    encode_data,
)
from hub.broker.log import Claim
from workers import providers
from workers.attendance import Attendance
from workers.batching import Outbox
from workers.journal import BATCH_BYTES, Batch, Journal

#: What a provider said and the log has not confirmed; reading stops above it.
PENDING_BYTES = 256 * 1024
#: Kept free in a log for the last usage and `done`.
RESERVE_BYTES = 8 * 1024
#: A running `usage` is logged at most this often, in seconds.
USAGE_EVERY_S = 1.0
_NAME_CHARACTERS = 256
_NOTHING: Final = kinds.Usage()
_MESSAGE_CHARACTERS = 500

#: How a provider's orderly end reads in `done`. `refusal` is the model's own answer; `filter` is somebody else
#: cutting it off, and the only one that is a failure (`content_blocked`, see `_stop`).
_STOPS: Final[dict[str, tuple[Status, str]]] = {
    "stop": ("completed", "stop"),
    "tool": ("completed", "tool_calls"),
    "refusal": ("completed", "refusal"),
    "length": ("truncated", "length"),
    "context": ("truncated", "context"),
    "filter": ("failed", "filter"),
}


class Ending(msgspec.Struct, frozen=True):
    """What `done` will say."""

    status: Status
    stop_reason: str
    error: kinds.DoneError | None = None

    @classmethod
    def failed(cls, code: str, message: str, *, retry: Any = None, after_ms: int | None = None) -> Ending:
        retry = retry or DONE_ERROR_CODES[code]
        return cls("failed", "error", kinds.DoneError(code, _clean(message, _MESSAGE_CHARACTERS), retry, after_ms))


CANCELLED: Final = Ending("cancelled", "cancelled")
ABANDONED: Final = Ending("cancelled", "abandoned")
TOO_LONG: Final = Ending("truncated", "too_long")
MAX_RUN: Final = Ending("truncated", "max_run")
#: The model would go on calling tools for ever, or calls for too many at once.
TOOL_STEPS: Final = Ending("truncated", "tool_steps")


def worker_lost() -> Ending:
    return Ending.failed("worker_lost", "the worker of this answer was lost; what it wrote is kept")


class Speaker(msgspec.Struct, frozen=True):
    """Who was chosen to answer."""

    provider: str
    model: str
    mode: Any
    reason: str | None = None
    call: int | None = None
    """Of its attempt, from 2 on."""


class Generation:
    """The life of one attempt. Bounds: PENDING_BYTES not yet confirmed, LOG_BYTES kept for repair.

    `over` names the end once nothing more can be appended: `done` when that is in the log; `fenced`, `gone`,
    `terminal` as append.lua says them; `gap` when Redis lost more of the log than is kept; `lost` when the lease
    was not confirmed for too long.
    """

    __slots__ = (
        "_aside", "_before", "_deadline", "_ending", "_is_silent", "_journal", "_opening", "_outbox", "_retry_token",
        "_speaker", "_spent", "_spoken_at", "_started_at", "_step_at", "_told", "_usage", "_usage_at", "_usage_told",
        "_voids", "attendance", "call_spoken_at", "held", "over", "paused",
    )  # fmt: skip

    def __init__(
        self,
        claim: Claim,
        options: Options,
        speaker: Speaker,
        *,
        now: float,
        run_ahead: int,
        max_run_s: float,
        retry_token: str,
        waited_s: float = 0.0,
        ending: Ending | None = None,
        goes_on: bool = False,
        digest: TextDigest | None = None,
    ) -> None:
        """`ending` ends the run before it starts. `goes_on` keeps what the log shows and adds to it; otherwise that
        is reset. With either, `digest` is the fold of the log if anything is shown.

        `waited_s` is how long the request has been unattended if nobody watches it now.
        """
        self.attendance = Attendance(options.on_abandon, options.abandon_after_ms / 1000, run_ahead, now - waited_s)
        #: The last answer of the log was not "in the log": the provider waits.
        self.held = False
        #: The lease is in doubt: the provider waits.
        self.paused = False
        self.over = ""
        #: When the provider call that runs showed its first content.
        self.call_spoken_at: float | None = None
        self._outbox = Outbox()
        self._journal = Journal(claim.next_offset, claim.log_bytes, digest or TextDigest())
        self._ending = ending
        self._speaker = speaker
        self._told: Speaker | None = None
        self._retry_token = retry_token
        self._started_at = now
        self._deadline = now + max_run_s
        self._spoken_at: float | None = None
        self._is_silent = True  # the provider call that runs has shown nothing
        self._aside: list[kinds.Notice] = []  # to be told with its first content
        self._voids = ""  # why its first content voids what is shown
        self._before: list[Entry] = []  # content of the steps before the one that runs
        self._step_at = 0  # the first entry of that step, among those of this attempt
        self._spent = _NOTHING  # by the calls before it
        self._usage: kinds.Usage | None = None
        self._usage_told: kinds.Usage | None = None
        self._usage_at = now - USAGE_EVERY_S
        self._opening: list[Entry] = []
        if ending is None:
            self._opening.append(("started", encode_data(kinds.Started(claim.attempt))))
            if claim.shown:
                self._opening.append(("notice", encode_data(kinds.Notice("worker_lost"))))
                if not goes_on:
                    self._opening.append(("reset", encode_data(kinds.Reset("worker_lost"))))

    # -- the provider's side

    @property
    def ended(self) -> bool:
        """Nothing more is wanted of the provider."""
        return self._ending is not None or self.over != ""

    @property
    def status(self) -> Status | None:
        """How it ends, once that is certain. None too for what is not this worker's any more."""
        return None if self._ending is None else self._ending.status

    @property
    def may_read(self) -> bool:
        """Whether the provider may be read now (protocol §6, upstream)."""
        return (
            self._ending is None
            and not self.held
            and not self.paused
            and not self.over
            and self._outbox.size <= PENDING_BYTES - BATCH_BYTES
            and self._journal.top + len(self._opening) + len(self._outbox) < self.attendance.bound
        )

    def feed(self, events: Sequence[providers.Event], now: float) -> None:
        """Take what the provider said. After the end it is ignored."""
        if self._ending is not None:
            return
        for event in events:
            kind = type(event)
            if kind is providers.Text:
                text = event.text  # type: ignore[attr-defined]
                if text:
                    if self._is_silent:
                        self._first_content(now)
                    self._outbox.text("text", text)
            elif self._feed_rare(event, now):
                break
        if self._journal.size + self._outbox.size > LOG_BYTES - RESERVE_BYTES:
            self._outbox.trim(LOG_BYTES - RESERVE_BYTES - self._journal.size)
            self._ending = None  # whatever the provider said at its end, not all of it fits
            self.end(TOO_LONG)

    def quote(self, source: kinds.Source, text: str) -> None:
        """Begin with what another stream had; it is gone on with. Before anything is fed."""
        self._outbox.entry("source", encode_data(source))
        self._outbox.text("text", text)
        self._outbox.flush()

    def start_over(self, reason: str = "worker_lost") -> bool:
        """The provider refuses to go on: void what was shown before this attempt or quoted, to ask anew.

        False, and nothing happens, once the provider said anything or the run has ended.
        """
        if self.ended or self._spoken_at is not None:
            return False
        reset = encode_data(kinds.Reset(reason))
        if len(self._outbox):
            self._outbox.entry("reset", reset)
        else:
            self._opening.append(("reset", reset))
        return True

    # -- failover: several calls in one attempt

    @property
    def has_spoken(self) -> bool:
        """Whether this attempt has shown any content, by whichever call."""
        return self._spoken_at is not None

    @property
    def is_void(self) -> bool:
        """What is shown is reset by the next content, or by an end without any."""
        return self._voids != ""

    def begin_call(self, speaker: Speaker, aside: Sequence[kinds.Notice] = (), *, voids: str = "") -> None:
        """Another provider call begins: with its first content `source` is told if it changed, and `aside`.

        With `voids`, the reason, its first content, or its end without any, resets what was shown before.
        """
        self._speaker = speaker
        self._aside = list(aside)
        self._voids = voids
        self._is_silent, self.call_spoken_at = True, None
        if self._usage is not None:
            self._spent, self._usage = _sum(self._spent, self._usage), None
        self._outbox.flush()

    def notice(self, notice: kinds.Notice) -> None:
        """Tell viewers at once. After the end it is ignored."""
        if self._ending is None:
            self._outbox.entry("notice", encode_data(notice))

    def reset(self, reason: str) -> None:
        """Void what this step shows; what is fed from here on takes its place. After the end it is ignored.

        A `reset` voids all content (protocol §5): that of the steps before is told again.
        """
        if self._ending is None:
            self._voids = ""
            self._outbox.entry("reset", encode_data(kinds.Reset(reason)))
            for kind, data in self._before:
                if kind in DELTA_KINDS:
                    call, text = delta_text(kind, data)
                    self._outbox.text(kind, text, call or "")
                else:
                    self._outbox.entry(kind, data)
            if self._before:  # otherwise the reset itself is told: it may void what was shown before this attempt
                self._step_at = self._told_entries

    def begin_step(self, kept: str = "") -> None:
        """The model is asked what it makes of its tools' results, which are fed. `kept` is what was shown before this
        attempt and is gone on with. What was told until now stays, whatever becomes of the step that begins.
        """
        told: list[Entry] = [("text", kept.encode())] if kept else []
        for entry in self.entries():
            if entry[0] == "reset":
                told.clear()
            elif entry[0] in CONTENT_KINDS:
                told.append(entry)
        self._before += told
        self._step_at = self._told_entries

    def entries(self) -> Iterator[Entry]:
        """What this step of the attempt has told so far, in the log or on its way there: of an answer without tools,
        all of it.
        """
        told = chain(self._journal.entries, self._opening, self._outbox.peek())
        return islice(told, self._step_at, None)

    @property
    def _told_entries(self) -> int:
        return len(self._journal.entries) + len(self._opening) + len(self._outbox)

    def fail(self, error: providers.ProviderError) -> None:
        """The provider failed: what it said before is kept."""
        self.end(Ending.failed(error.code, error.message, retry=error.retry, after_ms=error.after_ms))

    def end(self, ending: Ending) -> None:
        """The first end wins; `done` follows what is pending."""
        if self._ending is None:
            self._ending = ending
            self._outbox.flush()
            if self._total() != self._usage_told:
                self._tell_usage()

    def cancel(self) -> None:
        self.end(CANCELLED)

    def attend(self, demand: int, watched: bool, now: float) -> None:
        """The greatest demand of all hubs, 0 when none holds any, and whether any hub watches."""
        self.attendance.update(demand, watched, now)

    def tick(self, now: float) -> None:
        """Time passed: end what nobody waits for, and what runs too long."""
        if self._ending is None:
            if now >= self._deadline:
                self.end(MAX_RUN)
            elif self.attendance.is_abandoned(now):
                self.end(ABANDONED)

    def _feed_rare(self, event: providers.Event, now: float) -> bool:
        """Anything but text; True if it is the end."""
        if isinstance(event, providers.Reasoning):
            self._say("reasoning", event.text, "", now)
        elif isinstance(event, providers.ToolInput):
            self._say("tool_input", event.delta, _clean(event.call), now)
        elif isinstance(event, providers.ToolCall):
            self._show("tool_call", kinds.ToolCall(_clean(event.call), _clean(event.name)), now)
        elif isinstance(event, providers.ToolReady):
            call = _clean(event.call)
            whole = msgspec.UNSET if event.input is None else event.input
            if not self._show("tool_ready", kinds.ToolReady(call, whole), now):
                self._show("tool_ready", kinds.ToolReady(call), now)  # its pieces are in the log already
        elif isinstance(event, providers.ToolResult):
            result = kinds.ToolResult(_clean(event.call), event.output, event.error, event.truncated)
            self._show("tool_result", result, now)
        elif isinstance(event, providers.Citation):
            self._show("citation", event.data, now)
        elif isinstance(event, providers.Usage):
            self._usage = kinds.Usage(event.input_tokens, event.output_tokens, event.cached_tokens, event.cost_usd)
            if self._total() != self._usage_told and now - self._usage_at >= USAGE_EVERY_S:
                self._usage_at = now
                self._tell_usage()
        elif isinstance(event, providers.Speaker):
            self._speaker = msgspec.structs.replace(self._speaker, model=event.model)
            if not self._is_silent:
                self._tell_speaker()
        elif isinstance(event, providers.Stop):
            self._stop(event.reason)
            return True
        return False

    def _stop(self, reason: str) -> None:
        if self._voids:
            self.reset(self._voids)
        status, stop_reason = _STOPS.get(reason, ("completed", _clean(reason)))
        error = None
        if status == "failed":
            error = Ending.failed("content_blocked", "the provider's filter cut this answer off").error
        self.end(Ending(status, stop_reason, error))

    def _say(self, kind: str, text: str, call: str, now: float) -> None:
        if text:
            if self._is_silent:
                self._first_content(now)
            self._outbox.text(kind, text, call)

    def _show(self, kind: str, data: kinds.Data | dict[str, Any], now: float) -> bool:
        """Add an entry of content, unless it cannot be encoded or is too large: then False."""
        try:
            encoded = msgspec.msgpack.encode(data)
        except (UnicodeEncodeError, OverflowError, TypeError, RecursionError):
            return False
        if len(encoded) > ENTRY_BYTES:
            return False
        if self._is_silent:
            self._first_content(now)
        self._outbox.entry(kind, encoded)
        return True

    def _first_content(self, now: float) -> None:
        self._is_silent, self.call_spoken_at = False, now
        if self._spoken_at is None:
            self._spoken_at = now
        if self._voids:
            self.reset(self._voids)
        self._tell_speaker()
        for notice in self._aside:
            self._outbox.entry("notice", encode_data(notice))
        self._aside = []

    def _tell_speaker(self) -> None:
        if self._told != self._speaker:
            self._told = speaker = self._speaker
            source = kinds.Source(speaker.provider, _clean(speaker.model), speaker.mode, speaker.reason, speaker.call)
            self._outbox.entry("source", encode_data(source))

    def _tell_usage(self) -> None:
        self._usage_told = total = self._total()
        assert total is not None
        self._outbox.entry("usage", encode_data(total))

    def _total(self) -> kinds.Usage | None:
        """Of all calls of this attempt; None if no provider said anything about it."""
        if self._usage is None:
            return None if self._spent == _NOTHING else self._spent
        return self._usage if self._spent == _NOTHING else _sum(self._spent, self._usage)

    # -- the log's side

    @property
    def logged(self) -> int:
        """The offset up to which this attempt's entries are in the log, and therefore relayed."""
        return self._journal.logged

    @property
    def is_closing(self) -> bool:
        """Whether `done` has its offset: it may be in the log already, though no answer said so."""
        return self._journal.done_at > 0

    @property
    def has_batch(self) -> bool:
        """Whether `take` returns a batch."""
        if self.over:
            return False
        return (
            self._journal.has_batch
            or len(self._outbox) > 0
            or len(self._opening) > 0
            or (self._ending is not None and not self._journal.done_at)
        )

    def take(self, now: float) -> Batch | None:
        """The batch to append now: the unanswered one again if there is one."""
        journal = self._journal
        if self.over:
            return None
        if journal.has_batch:
            return journal.again()
        if self._opening:
            entries, self._opening = self._opening, []
        else:
            entries = self._outbox.take(BATCH_BYTES)
        is_last = self._ending is not None and not journal.done_at and not self._outbox
        return journal.freeze(entries, self._done if is_last else None)

    def answered(self, status: bytes, number: int) -> bool:
        """Take append.lua's reply to the batch in flight; True if the batch is in the log, and to be relayed."""
        batch = self._journal.landed()
        if status == b"OK" or status == b"DUP":
            self.held = False
            self._journal.logged = batch.first + len(batch.entries) - 1
            if batch.ends:
                self.over = self.over or "done"
            elif number:
                self.cancel()
            return True
        if status != b"GAP":
            self.over = status.decode().lower()
        elif self._journal.fall_back(number):
            self.held = True
        else:
            self.over = "gap"
        return False

    def refused(self) -> None:
        """The batch in flight was not applied, or nobody knows: it stays, and the provider waits."""
        self.held = True

    def done_lost(self) -> None:
        """Redis says that a generation whose `done` it confirmed is not done: append again."""
        if self.over == "done":
            self.over = ""
            self._journal.logged = self._journal.done_at - 1

    def lose(self, reason: str) -> None:
        """The generation is not this worker's any more: append nothing further."""
        self.over = self.over or reason

    def _done(self) -> bytes:
        ending, digest = self._ending, self._journal.digest
        assert ending is not None
        ttft_ms = None if self._spoken_at is None else round((self._spoken_at - self._started_at) * 1000)
        may_retry = ending.error is not None and ending.error.retry != "no"
        return encode_data(
            kinds.Done(
                ending.status,
                ending.stop_reason,
                digest.size,
                digest.hexdigest(),
                usage=self._total(),
                ttft_ms=ttft_ms,
                error=ending.error,
                retry_token=self._retry_token if may_retry else None,
            )
        )


def _sum(one: kinds.Usage, other: kinds.Usage) -> kinds.Usage:
    """Of two calls together. The cost is known if both are, or if one used nothing."""
    if _NOTHING in (one, other):
        return one if other == _NOTHING else other
    known = one.cost_usd is not None and other.cost_usd is not None
    return kinds.Usage(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.cached_tokens + other.cached_tokens,
        (one.cost_usd or 0.0) + (other.cost_usd or 0.0) if known else None,
        one.estimated or other.estimated,
    )


def _clean(text: str, length: int = _NAME_CHARACTERS) -> str:
    """A name or message that any encoding carries."""
    return text[:length].encode("utf-8", "replace").decode()
