"""Histories in, verdict out: what docs/protocol.md promises (§4, §5, §6, §9), held against what was seen. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tests.chaos.fold import Screen
from tests.chaos.history import (
    Acked,
    Answered,
    Asked,
    Cancelled,
    Live,
    Log,
    Lost,
    Opened,
    Piece,
    Seen,
    Told,
    Watch,
)
from tests.chaos.verdict import Rules, Verdict

#: Errors that end a stream for its viewer.
ENDS = frozenset({"gone", "not_found"})
#: Errors that say "later", and cost nothing but time.
LATER = frozenset({"overloaded", "internal"})
FROM_NOW = -2

Place = tuple[str, int]
"""Mark and offset: equal places mean equal histories."""


class _Viewing:
    """One watch, read event by event."""

    def __init__(self, watch: Watch, rules: Rules, verdict: Verdict) -> None:
        self.watch = watch
        self.screens: dict[Place, str] = {}
        self.done: Seen | None = None
        self.done_place: Place | None = None
        self.cancelled_at: float | None = None
        self.last_content_at = 0.0
        self._rules = rules
        self._verdict = verdict
        self._screen = Screen()
        self._is_whole = watch.is_whole
        self._offset = 0
        self._mark = ""
        self._left: set[str] = set()
        self._asked: Asked | None = None
        self._is_attached = watch.kind == "client"
        self._is_live = False
        self._limit = float("inf")
        self._at = 0.0

    def broken(self, rule: str, what: str) -> None:
        self._verdict.add(rule, self.watch.stream, self.watch.viewer, self._at, what)

    def read(self) -> None:
        for event in self.watch.events:
            self._at = event.at
            if isinstance(event, Piece):
                self._entries(event.first, event.last, event.mark)
                if event.kind == "text":
                    self._screen.add(event.text)
                self.last_content_at = event.at
                self._note()
            elif isinstance(event, Seen):
                self._seen(event)
            elif isinstance(event, Answered):
                self._answered(event)
            elif isinstance(event, Opened | Lost | Asked):
                self._is_attached = self.watch.kind == "client"
                if isinstance(event, Asked):
                    self._asked = event
                elif self.watch.kind == "raw":  # the client asks again by itself, unseen
                    self._asked = None
            elif isinstance(event, Acked):
                if event.window == -2:
                    self._limit = float("inf")
                elif event.window >= 0:
                    self._limit = event.offset + event.window
                elif self.watch.window is not None:
                    self._limit = max(self._limit, event.offset + self.watch.window)
            elif isinstance(event, Live):
                if self._is_live:
                    self.broken("live once", "`live` came twice after one answer")
                self._is_live = True
            elif isinstance(event, Told):
                self._told(event)
            elif isinstance(event, Cancelled):
                self.cancelled_at = event.at
        self._over()

    def _answered(self, event: Answered) -> None:
        if self.done is not None:
            self.broken("after done", "an answer came after `done`")
        asked, self._asked = self._asked, None
        self._is_attached, self._is_live = True, False
        self._limit = float("inf") if event.window is None else event.offset + event.window
        if not event.resumed:
            self._restart(event, asked)
        elif asked is not None and asked.offset == FROM_NOW:
            self._offset, self._mark = event.offset, event.mark
        elif self.watch.kind == "raw" and event.offset != self._offset:
            self.broken("resume", f"the viewer was at {self._offset}, the answer says {event.offset}")
            self._offset, self._mark = event.offset, event.mark
        elif self._offset and event.mark != self._mark:
            self.broken("resume", f"the entry at {event.offset} had the mark {self._mark}, now it has {event.mark}")
        else:
            self._mark = event.mark
        if asked is not None and asked.verb == "attach" and asked.offset > 0:
            self._verdict.sums["resumes"] += 1

    def _restart(self, event: Answered, asked: Asked | None) -> None:
        self._verdict.sums["resumed: false"] += 1
        if not self._rules.loses_writes:
            self.broken("cursor honoured", f"history was replaced at {self._offset}, although Redis lost nothing")
        self._screen.clear()
        self._left.clear()
        self._offset, self._mark, self._is_whole = event.offset, event.mark, event.offset == 0

    def _entries(self, first: int, last: int, mark: str) -> None:
        sums = self._verdict.sums
        if self.done is not None:
            self.broken("after done", f"entries {first} to {last} came after `done`")
        if not self._is_attached:
            self.broken("answer first", f"entries {first} to {last} came before the answer")
        if not first:  # the client does not tell where a piece began
            first = self._offset + 1
        if first > self._offset + 1:
            sums["lost"] += first - self._offset - 1
            self.broken("no hole", f"after {self._offset} came {first}")
        elif first <= self._offset or last < first:
            sums["doubled"] += self._offset - first + 1
            self.broken("no double", f"after {self._offset} came {first} to {last}")
        if last > self._limit:
            self.broken("window", f"entry {last} is past the limit {self._limit:g}")
        sums["entries"] += last - first + 1
        if mark and mark != self._mark:
            if mark in self._left:
                self.broken("marks in runs", f"the mark {mark} came back at {first}")
            if self._mark:
                self._left.add(self._mark)
            self._mark = mark
        self._offset = last

    def _seen(self, event: Seen) -> None:
        if event.kind == "done" and self.done is not None:
            self.broken("one done", f"a second `done` at {event.offset}")
            return
        self._entries(event.offset, event.offset, event.mark)
        if event.kind == "reset":
            self._screen.clear()
            self._verdict.sums["resets"] += 1
        elif event.kind == "done":
            self._end(event)
        self._note()

    def _end(self, event: Seen) -> None:
        self.done, self.done_place = event, (self._mark, event.offset)
        data = event.data or {}
        if self._is_whole and (self._screen.size, self._screen.digest) != (data["text_bytes"], data["text_sha256"]):
            self.broken("text", f"the screen holds {self._screen.size} bytes, `done` says {data['text_bytes']}")
        watch = self.watch
        if self._is_whole and watch.kind == "client" and (watch.text_bytes, watch.text_sha256) != (
            self._screen.size, self._screen.digest,
        ):  # fmt: skip
            self.broken("text", "what the client calls its text is not the sum of its events")

    def _told(self, event: Told) -> None:
        if not event.is_error:
            return
        self._verdict.sums[event.code] += 1
        if event.code in ENDS:
            if not self._rules.loses_writes:
                self.broken("nothing gone", f"`{event.code}`, although Redis lost nothing")
        elif event.code == "early frame":
            self.broken("answer first", "an entry came before the answer")
        elif event.code not in LATER:
            self.broken("no error", f"`{event.code}` for a request that is in order")

    def _note(self) -> None:
        """What the screen shows here. Only the last of several entries with one place counts."""
        if self._is_whole:
            self.screens[self._mark, self._offset] = self._screen.digest

    def _over(self) -> None:
        watch = self.watch
        if watch.verified is False:
            self.broken("text", "the client itself says that the text is not what was logged")
        if watch.outcome == "done" and self.done is None:
            self.broken("one done", "the watch ended without `done`")
        elif watch.outcome == "over" and (self._is_whole or self.done is not None):
            self.broken("one done", "the hub had nothing more to say, and had not said `done`")
        elif watch.outcome == "rejected":
            self.broken("no error", "the request was refused for good")
        elif watch.outcome == "unfinished":
            self.broken(
                "convergence", f"still waiting after the run, at {self._offset}" if watch.stream else "no answer"
            )


def check_stream(watches: Iterable[Watch], log: Log | None, rules: Rules, verdict: Verdict) -> None:
    """All watches of one stream, and the log as Redis holds it at the end (None: nobody looked)."""
    viewings = []
    for watch in watches:
        viewing = _Viewing(watch, rules, verdict)
        viewing.read()
        viewings.append(viewing)
    screens: dict[Place, tuple[str, str]] = {}
    stream = log.stream if log is not None else viewings[0].watch.stream if viewings else ""
    if log is not None:
        if log.entries:
            for place, digest in check_log(log, verdict).items():
                screens[place] = (digest, "the log")
        elif rules.loses_writes:
            verdict.sums["streams lost"] += 1
        else:
            verdict.add("nothing gone", stream, "the log", 0.0, "the stream is not there any more")
    for viewing in viewings:
        for place, digest in viewing.screens.items():
            other, who = screens.setdefault(place, (digest, viewing.watch.viewer))
            if other != digest:
                at = viewing.watch.events[-1].at
                verdict.add("one history", stream, viewing.watch.viewer, at, f"{place} shows another text than {who}")
                break
    _check_ends(stream, viewings, log, rules, verdict)
    for viewing in viewings:
        _check_cancel(viewing, log, rules, verdict)


def _check_ends(stream: str, viewings: list[_Viewing], log: Log | None, rules: Rules, verdict: Verdict) -> None:
    """Whoever saw the end of one history saw the same end, and where nothing is lost there is one history."""
    ends: dict[Place, tuple[object, str]] = {}
    for viewing in viewings:
        if viewing.done is None or viewing.done_place is None:
            continue
        place, end = viewing.done_place, _end_of(viewing.done)
        other, who = ends.setdefault(place, (end, viewing.watch.viewer))
        if other != end:
            verdict.add("one done", stream, viewing.watch.viewer, viewing.done.at, f"another `done` than {who} saw")
    kept = log.entries[-1].offset if log is not None and log.entries and log.entries[-1].kind == "done" else None
    offsets = {offset for _, offset in ends} | ({kept} if kept is not None else set())
    if (len(ends) > 1 or len(offsets) > 1) and not rules.loses_writes:
        verdict.add("one done", stream, "all", 0.0, f"ends were seen at {sorted(offsets)}")


def _end_of(done: Seen) -> tuple[object, ...]:
    """What two viewers of one end must agree on."""
    data = done.data or {}
    return tuple(data.get(name) for name in ("status", "stop_reason", "text_bytes", "text_sha256"))


def _check_cancel(viewing: _Viewing, log: Log | None, rules: Rules, verdict: Verdict) -> None:
    """A cancel that was answered ends the generation, unless it had its end already (§3)."""
    cancelled_at, done = viewing.cancelled_at, viewing.done
    if cancelled_at is None:
        return
    verdict.sums["cancels"] += 1
    if done is None or rules.loses_writes:
        return
    late_s = viewing.last_content_at - cancelled_at
    if (done.data or {}).get("status") != "cancelled" and late_s > rules.cancel_s:
        verdict.add(
            "cancel",
            viewing.watch.stream,
            viewing.watch.viewer,
            done.at,
            f"content came {late_s:.1f} s after its cancel",
        )


def check_log(log: Log, verdict: Verdict) -> dict[Place, str]:
    """The log by itself: dense, its runs in order, one end, its text the one that it names. Its screens by place."""
    stream = log.stream

    def broken(rule: str, what: str) -> None:
        verdict.add(rule, stream, "the log", 0.0, what)

    offsets = [entry.offset for entry in log.entries]
    if offsets != list(range(1, len(offsets) + 1)):
        broken("log dense", f"offsets are not 1 to {len(offsets)}")
    runs = [(int(first), mark) for first, _, mark in (run.partition(":") for run in log.runs.split())]
    if [first for first, _ in runs] != sorted({first for first, _ in runs}) or len({mark for _, mark in runs}) != len(
        runs
    ):
        broken("marks in runs", f"the runs are {log.runs}")
    ends = [entry.offset for entry in log.entries if entry.kind == "done"]
    if len(ends) > 1 or (ends and ends[0] != offsets[-1]):
        broken("one done", f"the log has `done` at {ends} of {offsets[-1]}")
    if not ends or log.state != "done":
        broken("terminated", f"the stream is {log.state or 'without a state'}, `done` at {ends or 'no place'}")
        verdict.sums["unterminated"] += 1
    screen, screens, attempts = Screen(), {}, []
    firsts = dict(runs)
    mark = ""
    for entry in log.entries:
        if entry.offset in firsts:
            mark = firsts[entry.offset]
            if entry.offset > 1 and entry.kind not in ("started", "done"):
                broken("marks in runs", f"the run at {entry.offset} begins with `{entry.kind}`")
        if entry.kind == "text":
            screen.add(str(entry.data["text"]))
        elif entry.kind == "reset":
            screen.clear()
        elif entry.kind == "started":
            attempts.append(entry.data.get("attempt"))
        elif entry.kind == "done":
            said = (entry.data["text_bytes"], entry.data["text_sha256"])
            if said != (screen.size, screen.digest):
                broken("text", f"the log folds to {screen.size} bytes, its `done` says {said[0]}")
        screens[mark, entry.offset] = screen.digest
    if attempts != sorted(set(attempts), key=lambda attempt: int(str(attempt))):
        broken("one writer", f"attempts were started as {attempts}")
    return screens


def check_requests(watches: Iterable[tuple[str, str, str]], rules: Rules, verdict: Verdict) -> None:
    """(user, request key, stream) of every acceptance: one key is one stream (§3)."""
    streams: dict[tuple[str, str], set[str]] = defaultdict(set)
    for user, request, stream in watches:
        streams[user, request].add(stream)
    for (user, request), found in streams.items():
        if len(found) > 1:
            if rules.loses_writes:
                verdict.sums["requests begun anew"] += 1
            else:
                verdict.add("one stream a key", min(found), user, 0.0, f"{request} became {sorted(found)}")
