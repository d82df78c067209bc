"""What lost attempts asked of providers, read out of the log: their workers cannot tell any more. Pure.

Every figure is an estimate: a provider says what it used at the end of its answer, and these had none. What was
received but not logged, and calls that failed before they showed anything, leave no trace here: their worker's
own rows are on their way within a moment of the call's end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from headrace.protocol.body import Body
from headrace.protocol.cursor import MarkRuns
from headrace.protocol.entries import Entry, delta_text
from hub.broker.keys import StreamKey, org_of, stream_of
from hub.broker.usage import UsageRow, estimated_tokens, name, tokens

_decode = msgspec.msgpack.Decoder(dict[str, object]).decode
#: Why a failed answer's text stands at the head of a stream: `source.reason`.
QUOTED = "retry"
_SPEECH = frozenset({"text", "reasoning", "tool_input", "tool_call"})


class Asked(msgspec.Struct, frozen=True):
    """What all attempts of a stream have in common. `provider` and `model`: of a call that showed nothing yet."""

    stream: str
    org: str
    user: str
    prompt_bytes: int
    provider: str = ""
    model: str = ""


class _Call:
    __slots__ = ("attempt", "before", "mark", "model", "number", "provider", "quotes", "said", "shared", "usage")

    def __init__(self, mark: str, attempt: int, number: int, before: int) -> None:
        self.mark = mark
        self.attempt = attempt
        self.number = number
        #: Bytes that the attempt had said before this call: with tools they are part of its prompt.
        self.before = before
        self.provider = ""
        self.model = ""
        self.said = 0
        #: What is shown is a failed answer, which it was asked to go on with.
        self.quotes = False
        #: What is shown is another stream's answer: nobody was asked.
        self.shared = False
        self.usage: dict[str, object] = {}


class LostCalls:
    """Takes a log from its first entry on, and tells the calls of every attempt in it but the one under `except_mark`.

    A call begins with `started`, with a `notice` of code `failover`, with a `source` of another `call`, and with
    the model's first word after a `tool_result`. Bound: one record a call, some 200 bytes.
    """

    def __init__(self, runs: MarkRuns, except_mark: str, same: Sequence[str] = ()) -> None:
        """The calls `same`, each as `mark/number`, read one answer: they are one call, the first."""
        self._runs = runs
        self._same = same
        self._except = except_mark
        self._top = 0
        self._calls: list[_Call] = []
        self._call: _Call | None = None
        self._has_result = False

    def add(self, kind: str, data: bytes) -> None:
        """The next entry. One that cannot be read counts as nothing."""
        self._top += 1
        try:
            if kind == "started":
                self._start(_decode(data))
            elif self._call is not None:
                self._follow(self._call, kind, data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # an estimate is not worth a generation

    def _start(self, data: dict[str, object]) -> None:
        mark = self._runs.at(self._top)
        self._call, self._has_result = None, False
        if mark and mark != self._except:
            self._begin(_Call(mark, _number(data.get("attempt"), 1), 1, 0))

    def _begin(self, call: _Call) -> None:
        self._call, self._has_result = call, False
        self._calls.append(call)

    def _next(self, call: _Call, number: int) -> _Call:
        following = _Call(call.mark, call.attempt, number, call.before + call.said)
        self._begin(following)
        return following

    def _follow(self, call: _Call, kind: str, data: bytes) -> None:
        if kind in _SPEECH:
            if self._has_result:
                provider, model = call.provider, call.model
                call = self._next(call, call.number + 1)
                call.provider, call.model = provider, model
            size = len(delta_text(kind, data)[1].encode()) if kind == "tool_input" else len(data)
            if call.quotes:
                call.before += size
            else:
                call.said += size
        elif kind == "tool_result":
            self._has_result = True
            call.said += len(data)
        elif kind == "source":
            self._speak(call, _decode(data))
        elif kind == "usage":
            call.usage = _decode(data)
        elif kind == "notice":
            code = _decode(data).get("code")
            if code == "failover":
                self._next(call, call.number + 1)
            elif code == "shared":
                call.shared = True

    def _speak(self, call: _Call, source: dict[str, object]) -> None:
        call.quotes = source.get("mode") == "cached" and source.get("reason") == QUOTED
        if call.quotes:
            return
        number = _number(source.get("call"), call.number)
        if number != call.number:
            if call.provider or call.said:
                call = self._next(call, number)
            call.number = number
        call.provider, call.model = str(source.get("provider", "")), str(source.get("model", ""))
        if source.get("mode") == "cached":
            call.shared = True
        elif call.shared:  # it asked after all: what was said before was told by nobody whom it asked
            call.shared, call.said = False, 0

    def rows(self, asked: Asked, ended_ms: int) -> Iterator[UsageRow]:
        """One row a call, under the id that its own worker would have used. No price."""
        for call in self._each():
            if call.shared:
                continue
            said = estimated_tokens(call.said)
            prompt = estimated_tokens(asked.prompt_bytes + call.before)
            # Later figures may be sums over all calls of the attempt: only the first call's are surely its own.
            usage = call.usage if call.number == 1 else {}
            provider = call.provider or asked.provider
            if provider == "fallback":  # no model was asked
                prompt = said = 0
            yield UsageRow(
                row_id(asked.stream, call.mark, call.number),
                asked.stream,
                asked.org,
                asked.user,
                call.attempt,
                name(provider),
                name(_model(call, provider, asked)),
                "lost",
                ended_ms,
                input_tokens=tokens(_number(usage.get("input_tokens"), 0)) or prompt,
                output_tokens=max(tokens(_number(usage.get("output_tokens"), 0)), said),
                cached_tokens=tokens(_number(usage.get("cached_tokens"), 0)),
                estimated=True,
            )

    def _each(self) -> Iterator[_Call]:
        begun: _Call | None = None
        for call in self._calls:
            if f"{call.mark}/{call.number}" not in self._same:
                yield call
            elif begun is None:
                begun = call
            else:
                begun.said, call.said = begun.said + call.said, 0
        if begun is not None:
            begun.mark, _, number = self._same[0].rpartition("/")
            begun.number = int(number)
            yield begun


def lost_rows(
    entries: Iterable[Entry], runs: MarkRuns, except_mark: str, asked: Asked, ended_ms: int
) -> list[UsageRow]:
    """The rows of all attempts in a whole log but that of `except_mark`."""
    lost = LostCalls(runs, except_mark)
    for kind, data in entries:
        lost.add(kind, data)
    return list(lost.rows(asked, ended_ms))


def row_id(stream: str, mark: str, call: int) -> str:
    return f"{stream}/{mark}/{call}"


def asked_of(key: StreamKey, user: str, body: Body | None) -> Asked:
    """`body` None: it cannot be read. Of a tier nobody knows here who was asked."""
    model = "" if body is None else body.model
    provider, _, concrete = model.partition("/")
    size = 0 if body is None else body.prompt_bytes
    known = (provider, concrete) if concrete else ("unknown", model or "unknown")
    return Asked(stream_of(key), org_of(key), user, size, *known)


def _model(call: _Call, provider: str, asked: Asked) -> str:
    """As it was asked for, where the provider only has a longer name for it: one model is one line of a bill."""
    is_same = provider == asked.provider and call.model.startswith(asked.model)
    return asked.model if is_same or not call.model else call.model


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and value >= 0 else otherwise
