"""The text of a failed generation that a request goes on with: `retry_of` (protocol §3)."""

from __future__ import annotations

import msgspec
import structlog

from headrace.protocol.body import Body
from headrace.protocol.entries import Done, Entry, Source
from hub.broker import keys
from hub.broker.keys import StreamKey
from hub.broker.log import StreamLog
from hub.broker.lost import QUOTED
from hub.broker.retry import fits
from workers.providers import Continues
from workers.takeover import Kept

log_ = structlog.get_logger(__name__)

#: Why a text stands at the head of a stream, and why it is void after all: `reason` of `source` and `reset`.
RETRY = QUOTED
_PAGE_ENTRIES = 1000
_NOBODY = Source("unknown", "unknown", "cached")


class Retried(msgspec.Struct, frozen=True):
    """What a new answer begins with, and who wrote it."""

    text: str
    source: Source


class Gathered:
    """A failed log, taken from offset 1 on. Bound: that of a log, LOG_BYTES. Pure."""

    def __init__(self) -> None:
        self._kept = Kept()
        self._speaker = _NOBODY
        self._last: Entry = ("", b"")

    @property
    def count(self) -> int:
        return self._kept.count

    @property
    def is_whole(self) -> bool:
        return self._last[0] == "done"

    def add(self, kind: str, data: bytes) -> None:
        self._kept.add(kind, data)
        self._last = (kind, data)
        if kind == "source":
            self._speaker = msgspec.msgpack.decode(data, type=Source)

    def taken(self, body: Body, continues: Continues) -> Retried | None:
        """What to go on with; None: ask anew. Half a thought, a structured answer and what a tool was run for are not
        gone on with, nor is a log of which anything is missing.
        """
        kept, retry_of = self._kept, body.retry_of
        if retry_of is None or not self.is_whole or not fits(self._last, retry_of.retry_token):
            return None
        if continues == "no" or body.schema is not None or kept.ran_tool or not kept.is_prose:
            return None
        done = msgspec.msgpack.decode(self._last[1], type=Done)
        if (done.text_bytes, done.text_sha256) != (kept.digest.size, kept.digest.hexdigest()):
            return None
        speaker = self._speaker
        return Retried(kept.text, Source(speaker.provider, speaker.model, "cached", RETRY))


async def retried(log: StreamLog, key: StreamKey, body: Body, continues: Continues) -> Retried | None:
    """What the answer `key` begins with; None: nothing, also when the failed stream expired meanwhile.

    Raises `Unreachable`.
    """
    if body.retry_of is None:
        return None
    failed, gathered = keys.stream_key(keys.org_of(key), body.retry_of.stream), Gathered()
    try:
        while not gathered.is_whole and (page := await log.read(failed, gathered.count + 1, _PAGE_ENTRIES)):
            for kind, data in page:
                gathered.add(kind, data)
        return gathered.taken(body, continues)
    except (msgspec.DecodeError, UnicodeDecodeError):
        log_.warning("a failed answer cannot be read, it is asked for anew", stream=key)
        return None
