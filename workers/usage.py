"""What each call of a provider used, on its way to the ledger: counted, priced, and put into Redis off every path.

`report` is called at the end of every call and returns at once. Rows travel with their answer's `done`: the appender
puts them into the same write, before it (`unsent`), so that an answer whose end is in the log has its rows in Redis.
What has no `done` to travel with goes by itself, `GRACE_S` later. A worker that is killed before `done` cannot tell;
whoever takes its generation over reads the log and tells (`lost`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

import msgspec
import structlog

from headrace.protocol.cursor import MarkRuns
from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.keys import StreamKey, org_of, stream_key, stream_of
from hub.broker.lost import Asked, LostCalls, row_id
from hub.broker.usage import Outcome, UsageQueue, UsageRow, estimated_tokens, name, tokens
from workers import pricing
from workers.catalog import Price
from workers.providers import Event, Reasoning, Stop, Text, ToolCall, ToolInput, Usage

log_ = structlog.get_logger(__name__)

#: Rows kept here while Redis is away, some 400 bytes each. Beyond it the oldest go: how many is logged.
ROWS = 20_000
#: Logs to be read for lost attempts. Beyond it the oldest are not read, and whoever claims next will.
LOSSES = 1_000
#: A row that no `done` took along for so long, in seconds, goes by itself.
GRACE_S = 0.05
_BATCH = 200
_PAGE_ENTRIES = 1000
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
#: How a provider's orderly end counts; any other word is an answer.
_ENDS: dict[str, Outcome] = {"length": "truncated", "context": "truncated", "filter": "failed"}


class Attempt(msgspec.Struct, frozen=True):
    """Whose call it is: one attempt of one stream, for one user."""

    key: StreamKey
    mark: str
    number: int
    user: str


class Meter:
    """What one call has said so far. One per call; `hear` costs some 0.1 µs an event."""

    __slots__ = ("said", "usage", "was_answered", "word")

    def __init__(self) -> None:
        #: The last figures that the provider reported.
        self.usage: Usage | None = None
        #: Bytes of UTF-8 that the model wrote.
        self.said = 0
        #: The provider said anything at all.
        self.was_answered = False
        #: The provider's word at an orderly end; empty before it.
        self.word = ""

    def hear(self, events: Sequence[Event]) -> None:
        self.was_answered = True
        for event in events:
            kind = type(event)
            if kind is Text or kind is Reasoning:
                self._count(event.text)  # type: ignore[attr-defined]
            elif kind is ToolInput:
                self._count(event.delta)  # type: ignore[attr-defined]
            elif kind is ToolCall:
                self._count(event.name)  # type: ignore[attr-defined]
            elif kind is Usage:
                self.usage = event  # type: ignore[assignment]
            elif kind is Stop:
                self.word = event.reason  # type: ignore[attr-defined]

    @property
    def has_ended(self) -> bool:
        """In order: what is reported by now is the whole."""
        return bool(self.word)

    def outcome(self, otherwise: Outcome) -> Outcome:
        """Of the call; `otherwise` for one that did not end in order."""
        return _ENDS.get(self.word, "completed") if self.word else otherwise

    def _count(self, text: str) -> None:
        self.said += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def counted(provider: str, meter: Meter, outcome: Outcome, prompt_bytes: int) -> tuple[Usage, bool]:
    """The tokens of a call, and whether they are estimated.

    What the provider reported at an orderly end is the truth. Otherwise the larger of what it reported on the way
    and the estimate. A provider that failed without a word charged nothing; one that was not waited for may have.
    """
    if provider == "fallback":  # no model was asked
        return Usage(), False
    usage = meter.usage or Usage()
    is_reported = usage.output_tokens > 0 or (usage.input_tokens > 0 and not meter.said)
    if meter.has_ended and is_reported:
        return usage, False
    if outcome == "failed" and not meter.was_answered:
        return Usage(), False
    estimate = Usage(
        input_tokens=usage.input_tokens or estimated_tokens(prompt_bytes),
        output_tokens=max(usage.output_tokens, estimated_tokens(meter.said)),
        cached_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )
    return estimate, True


class Call:
    """One call of a provider, from asking to its row. Whatever becomes of it, `end` must be reached."""

    def __init__(
        self, reporter: UsageReporter, attempt: Attempt, number: int, provider: str, model: str, prompt_bytes: int
    ) -> None:
        self._reporter = reporter
        self._attempt = attempt
        self._number = number
        self._provider = provider
        self._model = model
        self._prompt_bytes = prompt_bytes
        self._meter = Meter()
        self._started_ms = reporter.now_ms()
        self._is_told = False
        self._cost_usd: float | None = None

    def hear(self, events: Sequence[Event]) -> Sequence[Event]:
        """Count what the provider said, before the generation gets it; with an orderly end the row is reported.

        Returns the same events; the last figures have their cost where it is known at once.
        """
        meter = self._meter
        meter.hear(events)
        if not meter.has_ended or self._is_told:
            return events
        self.end("completed")
        return self._with_cost(events)

    def end(self, otherwise: Outcome) -> None:
        """No more is read; once. `otherwise` is the outcome without an orderly end."""
        if not self._is_told:
            self._is_told = True
            row = self._reporter.report(
                self._attempt, self._number, self._provider, self._model, self._meter, otherwise,
                prompt_bytes=self._prompt_bytes, started_ms=self._started_ms,
            )  # fmt: skip
            if row.cost_nanos is not None and not row.estimated and self._provider not in pricing.FREE:
                self._cost_usd = row.cost_nanos / 1e9

    def void(self) -> None:
        """It told nothing of an answer that was begun before: what was reported of that stands."""
        self._is_told = True

    def _with_cost(self, events: Sequence[Event]) -> Sequence[Event]:
        usage = self._meter.usage
        if usage is None:
            return events
        usage.cost_usd = self._cost_usd
        if usage.cost_usd is None or any(event is usage for event in events):
            return events
        return [*events[:-1], usage, events[-1]]


class _Loss(msgspec.Struct, frozen=True):
    """A log to be read up to, and without, offset `end`."""

    key: StreamKey
    runs: MarkRuns
    except_mark: str
    end: int
    asked: Asked
    same: Sequence[str] = ()


class UsageReporter:
    """One per worker. `run` until cancelled, then `flush` once nothing is reported any more.

    `price_of` gives an operator's own price of a provider's model. Times are Unix seconds by `now`.
    """

    def __init__(
        self,
        broker: Broker,
        price_of: Callable[[str, str], Price | None] = lambda provider, model: None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._broker = broker
        self._queue = UsageQueue(broker.connections.control)
        self._price_of = price_of
        self._now = now
        self._rows: dict[str, UsageRow] = {}  # the oldest first
        self._of: dict[StreamKey, list[str]] = {}
        self._unpriced: set[str] = set()
        self._losses: deque[_Loss] = deque()
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._dropped = 0

    @property
    def waiting(self) -> int:
        """Rows and logs that are not dealt with."""
        return len(self._rows) + len(self._losses)

    def now_ms(self) -> int:
        return int(self._now() * 1000)

    def call(self, attempt: Attempt, number: int, provider: str, model: str, prompt_bytes: int) -> Call:
        """A provider is asked now. `number` counts from 1 within the attempt."""
        return Call(self, attempt, number, provider, model, prompt_bytes)

    def report(
        self,
        attempt: Attempt,
        call: int,
        provider: str,
        model: str,
        meter: Meter,
        outcome: Outcome,
        *,
        prompt_bytes: int,
        started_ms: int,
    ) -> UsageRow:
        """One call ended now. `call` counts from 1 within the attempt; `outcome` is for one without an orderly end."""
        outcome = meter.outcome(outcome)
        usage, is_estimated = counted(provider, meter, outcome, prompt_bytes)
        stream = stream_of(attempt.key)
        row = UsageRow(
            row_id(stream, attempt.mark, call),
            stream,
            org_of(attempt.key),
            attempt.user,
            attempt.number,
            name(provider),
            name(model),
            outcome,
            self.now_ms(),
            started_ms=started_ms,
            input_tokens=tokens(usage.input_tokens),
            output_tokens=tokens(usage.output_tokens),
            cached_tokens=tokens(usage.cached_tokens),
            cache_write_tokens=tokens(usage.cache_write_tokens),
            reasoning_tokens=tokens(usage.reasoning_tokens),
            estimated=is_estimated,
        )
        # Without an orderly end nothing else may take it along: a cancelled answer's `done` is on its way already.
        return self._keep(row, may_wait=meter.has_ended)

    def unsent(self, key: StreamKey) -> list[UsageRow]:
        """Rows of this stream that Redis is not known to have. To be confirmed by `sent`."""
        return [self._rows[id_] for id_ in self._of.get(key, ()) if id_ not in self._unpriced]

    def sent(self, rows: Sequence[UsageRow]) -> None:
        """Redis has these rows."""
        for row in rows:
            if self._rows.get(row.id) is row:
                self._forget(row)

    def lost(self, key: StreamKey, runs: MarkRuns, mark: str, end: int, asked: Asked, same: Sequence[str] = ()) -> None:
        """Attempts before the one under `mark`, which begins at offset `end`, were lost or handed on: tell for them.

        The calls `same`, each as `mark/number`, read one answer: they are one call, the first.
        """
        if end <= 1:
            return
        if len(self._losses) >= LOSSES:
            self._losses.popleft()
        self._losses.append(_Loss(key, runs, mark, end, asked, same))
        self._news.set()

    async def run(self) -> None:
        """Deal with what is reported, at once, and again while Redis is away."""
        pause = _PAUSE_S
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._deal()
                pause = _PAUSE_S
            except Unreachable as error:
                if pause == _PAUSE_S:
                    log_.warning("usage waits for redis", error=type(error).__name__)
                self._news.set()
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE_S, pause * 2)

    async def flush(self, deadline_s: float) -> None:
        """Deal with the rest before the worker leaves; what stays is logged."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._deal()
        except (*Unreachable, TimeoutError) as error:
            log_.error("usage of some calls is lost", calls=self.waiting, error=type(error).__name__)

    async def _deal(self) -> None:
        """Send everything. Raises `Unreachable`; a row is dropped once it is in Redis, and not before."""
        while self._rows or self._losses:
            while self._rows:
                await self._send()
            if self._losses:
                loss = self._losses[0]
                try:
                    rows = await self._read(loss)
                except Unreachable:
                    raise
                except Exception:  # a damaged log: it must not keep others' rows from the ledger
                    log_.exception("a lost attempt cannot be counted", stream=loss.key)
                    rows = []
                if self._losses and self._losses[0] is loss:
                    self._losses.popleft()
                for row in rows:
                    self._keep(row)
        if self._dropped:
            log_.error("usage of some calls is lost: redis was away for too long", calls=self._dropped)
            self._dropped = 0

    async def _send(self) -> None:
        if self._unpriced:
            await asyncio.to_thread(pricing.load)
            for id_ in self._unpriced:
                self._rows[id_] = self._priced(self._rows[id_])
            self._unpriced.clear()
        rows = list(islice(self._rows.values(), _BATCH))
        await self._queue.add(rows)
        self.sent(rows)

    def _priced(self, row: UsageRow) -> UsageRow:
        own = self._price_of(row.provider, row.model)
        return msgspec.structs.replace(row, cost_nanos=pricing.cost_nanos(row.provider, row.model, row, own))

    async def _read(self, loss: _Loss) -> list[UsageRow]:
        calls, first = LostCalls(loss.runs, loss.except_mark, loss.same), 1
        while first < loss.end:
            page = await self._broker.log.read(loss.key, first, min(_PAGE_ENTRIES, loss.end - first))
            if not page:  # Redis lost it
                break
            for kind, data in page:
                calls.add(kind, data)
            first += len(page)
        return list(calls.rows(loss.asked, self.now_ms()))

    def _keep(self, row: UsageRow, *, may_wait: bool = False) -> UsageRow:
        """The row as it is kept: with its price, unless the prices are yet to be loaded."""
        while len(self._rows) >= ROWS:
            self._forget(next(iter(self._rows.values())))
            self._dropped += 1
        known = self._rows.get(row.id)
        if known is not None:
            if row.outcome == "lost" and known.outcome != "lost":  # whoever read the answer to its end knows better
                return known
            self._forget(known)
        if pricing.is_loaded() or not pricing.needs_library(row.provider, self._price_of(row.provider, row.model)):
            row = self._priced(row)
        else:
            self._unpriced.add(row.id)
        self._rows[row.id] = row
        self._of.setdefault(_key(row), []).append(row.id)
        if not may_wait:
            self._news.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GRACE_S, self._ring)
        return row

    def _ring(self) -> None:
        self._timer = None
        self._news.set()

    def _forget(self, row: UsageRow) -> None:
        del self._rows[row.id]
        self._unpriced.discard(row.id)
        ids = self._of[_key(row)]
        ids.remove(row.id)
        if not ids:
            del self._of[_key(row)]


def _key(row: UsageRow) -> StreamKey:
    return stream_key(row.org, row.stream)
