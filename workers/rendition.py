"""The answer of one stream, told in another: entry by entry, and nothing that viewers have is told twice. Pure.

The log that is read belongs to an equal request. A finished one is first looked over, so that only what its viewers
have in the end is told; one that is being written is told as it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from headrace.protocol import entries as kinds
from headrace.protocol.entries import CONTENT_KINDS, Status
from workers.generation import Ending, Speaker
from workers.providers import Citation, Event, Reasoning, Stop, Text
from workers.retelling import Retelling
from workers.takeover import Kept

#: Why what was told is void when the stream that is followed gives way to another: the reason of a `reset`.
FAILOVER: Final = "failover"
#: Notices about the request rather than about what happened to one answer of it.
_NOTICES: Final = frozenset({"parameter_dropped"})
_TOLD: Final = frozenset({"text", "reasoning", "citation"})
#: Ends that are the model's own or the log's: whoever follows meanwhile would have met the same.
_SHARED_ENDS: Final = frozenset({"length", "context", "too_long"})


class _Source(msgspec.Struct):
    provider: str
    model: str
    mode: str = "live"


class _Done(msgspec.Struct):
    status: Status
    stop_reason: str


_source = msgspec.msgpack.Decoder(_Source).decode
_done = msgspec.msgpack.Decoder(_Done).decode
_notice = msgspec.msgpack.Decoder(kinds.Notice).decode
_reset = msgspec.msgpack.Decoder(kinds.Reset).decode


Step = Event | Speaker | Ending | kinds.Notice | kinds.Reset


class Survey:
    """A log up to where it is now, gathered entry by entry from offset 1."""

    __slots__ = ("_done", "_tells", "count", "speaker", "start")

    def __init__(self) -> None:
        #: Entries gathered.
        self.count = 0
        #: Where to tell from: behind the last `reset`.
        self.start = 1
        #: Who speaks there; None: nobody yet.
        self.speaker: Speaker | None = None
        self._tells = True
        self._done: _Done | None = None

    def add(self, kind: str, data: bytes) -> None:
        self.count += 1
        if kind == "reset":
            self.start = self.count + 1
        elif kind == "source":
            source = _source(data)
            self.speaker = _cached(source)
            self._tells = source.mode != "fallback"
        elif kind == "done":
            self._done = _done(data)
        elif kind in CONTENT_KINDS and kind not in _TOLD:
            self._tells = False

    @property
    def is_useful(self) -> bool:
        """Whether it may be told: written still, or the whole answer of a model. Nothing else is used afterwards."""
        done = self._done
        return self._tells and (done is None or (done.status, done.stop_reason) == ("completed", "stop"))


class Rendition:
    """Takes the entries from a survey's start on. Bounds: those of `Retelling`."""

    def __init__(self, told: Kept) -> None:
        """`told` is what viewers have already: from another stream that was followed, or a lost worker's."""
        self._retelling = Retelling(told.text) if told.is_prose else None
        self._shown = told.text if told.is_prose else ""
        self._voids = told.shows and not told.is_prose
        self._shows = told.shows
        #: This log cannot be told further, and what was told is not all.
        self.is_useless = False

    def take(self, kind: str, data: bytes) -> Sequence[Step]:
        """What to do for the next entry, in order."""
        if kind == "text":
            return self._tell(Text(data.decode()))
        if kind == "reasoning":
            return self._tell(Reasoning(data.decode()))
        if kind == "citation":
            return self._tell(Citation(msgspec.msgpack.decode(data)))
        if kind == "source":
            source = _source(data)
            self.is_useless = source.mode == "fallback"
            return [] if self.is_useless else [_cached(source)]
        if kind == "notice":
            notice = _notice(data)
            return [notice] if notice.code in _NOTICES and self._retelling is None else []
        if kind == "reset":
            return self._reset(_reset(data))
        if kind == "done":
            return self._end(_done(data))
        self.is_useless = kind in CONTENT_KINDS
        return []

    def _tell(self, event: Event) -> list[Step]:
        steps: list[Step] = []
        if self._voids:
            self._voids = False
            steps.append(kinds.Reset(FAILOVER))
        self._shows = True
        if self._retelling is None:
            return [*steps, event]
        joined = self._retelling.join([event])
        if self._retelling.has_diverged:
            steps += [kinds.Reset(FAILOVER), *self._retelling.release()]
            self._retelling = None
        elif joined:
            self._retelling = None  # all that viewers have was repeated
        return [*steps, *joined]

    def _reset(self, reset: kinds.Reset) -> list[Step]:
        if self._retelling is not None:
            self._retelling = Retelling(self._shown)  # nothing of what is void was told
        elif self._shows and not self._voids:
            self._shows = False
            return [reset]
        return []

    def _end(self, done: _Done) -> list[Step]:
        is_whole = done.status == "completed" or (done.status == "truncated" and done.stop_reason in _SHARED_ENDS)
        if not is_whole:
            self.is_useless = True
            return []
        # An end is an event like another: a telling that stops short of what viewers have is another answer.
        steps = [step for step in self._tell(Stop(done.stop_reason)) if not isinstance(step, Stop)]
        return [*steps, Ending(done.status, done.stop_reason)]


def _cached(source: _Source) -> Speaker:
    return Speaker(source.provider, source.model, "cached")
