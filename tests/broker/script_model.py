"""What the scripts of `hub/broker/scripts` do to one stream and one request key, in memory and in plain words.

Replies are those of Redis: texts as bytes, numbers as integers. Time is reduced to what decides: a lease lives or is
over, a key has the time to live that was set last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Entry = tuple[bytes, bytes]
Reply = list[Any]


@dataclass
class Meta:
    state: bytes
    mark: str
    runs: list[tuple[int, str]]
    user: str
    request: bytes | None
    options: bytes
    lane: str
    attempt: int = 0
    losses: int = 0
    barren: int = 0
    owner: str = ""
    is_leased: bool = False
    cancel: int = 0
    shown: int = 0
    abandon: str | None = None
    underway: str | None = None

    def is_for(self, user: str, may: int) -> bool:
        return user == self.user or may == 1

    @property
    def runs_text(self) -> bytes:
        return " ".join(f"{first}:{mark}" for first, mark in self.runs).encode()


@dataclass
class StreamModel:
    """Each method is the script of its name, with the arguments that it takes after the keys."""

    meta: Meta | None = None
    log: list[Entry] = field(default_factory=list)
    interest: dict[str, int] = field(default_factory=dict)
    ttl: dict[str, int] = field(default_factory=dict)
    """Of the keys that are there: meta, log, interest."""
    reserved: bytes | None = None

    def create(self, mark: str, queued: bytes, user: str, request: bytes, options: bytes, lane: str, ttl: int) -> Reply:
        if self.meta:
            return [b"EXISTS", self.meta.state]
        self.meta = Meta(b"queued", mark, [(1, mark)], user, request, options, lane)
        self.log = [(b"queued", queued)]
        self.ttl |= {"meta": ttl, "log": ttl}
        return [b"CREATED", b"queued"]

    def claim(self, mark: str, owner: str, lease: int, ttl: int) -> Reply:
        meta = self.meta
        if meta is None:
            return [b"GONE"]
        if meta.state == b"done":
            return [b"TERMINAL"]
        top = len(self.log)
        if meta.mark != mark:
            if mark in [known for _, known in meta.runs]:
                return [b"FENCED"]
            if meta.owner:
                if meta.is_leased:
                    return [b"LEASED"]
                meta.losses += 1
                meta.barren += 1
            meta.attempt += 1
            meta.runs = [run for run in meta.runs if run[0] <= top] + [(top + 1, mark)]
        meta.state, meta.mark, meta.owner, meta.is_leased = b"running", mark, owner, lease > 0
        self._extend(ttl)
        size = sum(len(data) for _, data in self.log) if meta.attempt > 1 else 0
        return [
            b"OK", top + 1, meta.attempt, meta.runs_text, meta.cancel, meta.shown, meta.losses, meta.request,
            meta.options, meta.user.encode(), size, self._watchers(), (meta.abandon or "").encode(),
            (meta.underway or "").encode(),
        ]  # fmt: skip

    def append(self, mark: str, first: int, shown: str, lease: int, done_ttl: int, *flat: bytes) -> Reply:
        meta, top = self.meta, len(self.log)
        entries = list(zip(flat[::2], flat[1::2], strict=True))
        if meta is None:
            return [b"GONE", 0]
        if meta.mark != mark:
            return [b"FENCED", 0]
        if first + len(entries) - 1 <= top:
            return [b"DUP", meta.cancel]
        if meta.state == b"done":
            return [b"TERMINAL", 0]
        if first > top + 1:
            return [b"GAP", top]
        if not self.log:
            self.ttl["log"] = self.ttl["meta"]
        self.log += entries[top + 1 - first :]
        if shown == "c":
            meta.shown, meta.barren = 1, 0
        elif shown == "r":
            meta.shown = 0
        if done_ttl:
            meta.state, meta.owner, meta.is_leased, meta.underway = b"done", "", False, None
            if shown != "k":
                meta.request = None
            self._close(done_ttl)
        elif lease:
            meta.is_leased = True
        return [b"OK", meta.cancel]

    def _of(self, mark: str) -> Meta | bytes:
        """What the attempt `mark` may still change, or the word for why it may not."""
        if self.meta is None:
            return b"GONE"
        if self.meta.mark != mark:
            return b"FENCED"
        return b"TERMINAL" if self.meta.state == b"done" else self.meta

    def renew(self, mark: str, owner: str, lease: int, ttl: int) -> Reply:
        meta = self._of(mark)
        if isinstance(meta, bytes):
            return [meta]
        meta.owner, meta.is_leased = owner, lease > 0
        self._extend(ttl)
        return [b"OK", meta.cancel, self._watchers()]

    def cancel(self, user: str, may: int, done: bytes, ttl: int) -> Reply:
        meta = self.meta
        if meta is None or not meta.is_for(user, may):
            return [b"ABSENT"]
        if meta.state == b"done":
            return [b"DONE"]
        meta.cancel = 1
        if meta.attempt:
            return [b"FLAGGED", meta.owner.encode()]
        watchers = self._watchers()
        self.log.append((b"done", done))
        self.ttl["log"] = ttl
        meta.state, meta.request = b"done", None
        self._close(ttl)
        return [b"ENDED", len(self.log), meta.mark.encode(), watchers]

    def attach(self, user: str, may: int, mailbox: str, demand: int, ahead: int | str) -> Reply:
        meta, top = self.meta, len(self.log)
        if meta is None or not meta.is_for(user, may):
            return [b"ABSENT"]
        if mailbox and meta.state != b"done":
            self.interest[mailbox] = demand if isinstance(ahead, str) else min(demand, top + ahead)
            self.ttl["interest"] = self.ttl["meta"]
        return [b"OK", meta.state, top, meta.runs_text, meta.owner.encode(), meta.cancel]

    def leave(self, mailbox: str) -> int:
        left = self.interest.pop(mailbox, None) is not None
        if not self.interest:
            self.ttl.pop("interest", None)
        return int(left)

    def release(self, mark: str) -> Reply:
        meta = self._of(mark)
        if isinstance(meta, bytes):
            return [meta]
        meta.owner, meta.is_leased = "", False
        return [b"OK"]

    def remember(self, mark: str, underway: str) -> Reply:
        meta = self._of(mark)
        if isinstance(meta, bytes):
            return [meta]
        meta.underway = underway or None
        return [b"OK"]

    def abandon(self, user: str, may: int, rule: str) -> Reply:
        meta = self.meta
        if meta is None or not meta.is_for(user, may):
            return [b"ABSENT"]
        meta.abandon = rule
        return [b"OK", meta.owner.encode()]

    def reserve(self, stream: str, digest: str, ttl: int, kept: int) -> bytes:
        if self.reserved is None:
            self.reserved = f"{stream} {digest} 0".encode()
        return self.reserved

    # -- what happens beside scripts

    def lease_over(self) -> None:
        if self.meta:
            self.meta.is_leased = False

    def expire(self, *names: str) -> None:
        for name in names:
            self.ttl.pop(name, None)
        if "meta" in names:
            self.meta = None
        if "log" in names:
            self.log = []
        if "interest" in names:
            self.interest = {}

    def _extend(self, ttl: int) -> None:
        self.ttl = dict.fromkeys(self.ttl, ttl)

    def _close(self, ttl: int) -> None:
        self.interest = {}
        self.ttl.pop("interest", None)
        self._extend(ttl)

    def _watchers(self) -> dict[bytes, bytes]:
        return {mailbox.encode(): str(demand).encode() for mailbox, demand in self.interest.items()}
