"""A hub's tail and its viewers over a long life: parts come late, twice, from zombies and from other histories.

The log is played with everything that a failover does to it; the hub does what `hub.recovery` says and no more:
merge, look at the facts where merging says so, put viewers where `resume_at` says.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.protocol.cursor import Cursor, MarkRuns
from headrace.protocol.entries import Entry
from hub.recovery import Fresh, Outcome, merge, resume_at, same_history

Part = tuple[str, int, list[Entry]]


@dataclass
class Log:
    """Entries, each with its mark: what Redis holds at one time."""

    entries: list[Entry]
    marks: list[str]

    @property
    def top(self) -> int:
        return len(self.entries)

    @property
    def runs(self) -> MarkRuns:
        runs = MarkRuns()
        for offset, mark in enumerate(self.marks, 1):
            if mark != runs.last:
                runs.add(offset, mark)
        return runs

    def copy(self) -> Log:
        return Log(list(self.entries), list(self.marks))

    def begins_with(self, entries: list[Entry]) -> bool:
        return self.entries[: len(entries)] == entries


@dataclass
class Viewer:
    """A screen and a cursor. `told` counts how often it was told to begin again."""

    cursor: Cursor
    screen: list[Entry]
    told: int = 0


class RecoveryLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.log = Log([("queued", b"")], ["m0"])
        self.histories: list[Log] = []  # as they were before Redis lost their ends
        self.flying: list[Part] = []
        self.marks = 0
        self.top, self.runs = 0, MarkRuns()  # the tail
        self.entries: list[Entry] = []  # all of its entries, to compare
        self.viewers: list[Viewer] = []
        self.screens: dict[tuple[int, str], list[Entry]] = {}

    # Workers and Redis

    @initialize()
    def a_run_is_watched(self) -> None:
        self.look_at_the_facts()
        self.claim()
        self.attach(fresh=True, which=0)

    def claim(self) -> None:
        """An attempt. Its number, kept by nobody here, may repeat one that Redis lost: the mark is another."""
        self.marks += 1
        self.append([("started", f"m{self.marks}".encode())], f"m{self.marks}")

    def append(self, entries: list[Entry], mark: str) -> None:
        self.flying.append((mark, self.log.top + 1, entries))
        self.log.entries += entries
        self.log.marks += [mark] * len(entries)

    @property
    def is_done(self) -> bool:
        return self.log.entries[-1][0] == "done"

    @precondition(lambda self: not self.is_done)
    @rule(count=st.integers(1, 5))
    def write(self, count: int) -> None:
        mark = self.log.marks[-1]
        self.append([("text", f"{mark} {self.log.top + n}".encode()) for n in range(count)], mark)

    @precondition(lambda self: not self.is_done)
    @rule()
    def take_over(self) -> None:
        self.claim()

    @precondition(lambda self: not self.is_done)
    @rule()
    def end_at_the_claim(self) -> None:
        """Given up or cancelled: an attempt of one entry."""
        self.marks += 1
        self.append([("done", f"m{self.marks}".encode())], f"m{self.marks}")

    @precondition(lambda self: not self.is_done)
    @rule()
    def end(self) -> None:
        self.append([("done", f"{self.log.marks[-1]} {self.log.top}".encode())], self.log.marks[-1])

    @rule(count=st.integers(1, 6))
    def redis_loses_the_end(self, count: int) -> None:
        """… and whoever comes next claims anew."""
        self.histories.append(self.log.copy())
        keep = max(1, self.log.top - count)
        del self.log.entries[keep:], self.log.marks[keep:]
        self.claim()

    # The network

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 30), again=st.booleans())
    def part_arrives(self, which: int, again: bool) -> None:
        part = self.flying[which % len(self.flying)]
        if not again:
            self.flying.remove(part)
        self.take(part)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 30))
    def part_is_lost(self, which: int) -> None:
        del self.flying[which % len(self.flying)]

    @rule(first=st.integers(1, 40), count=st.integers(0, 8))
    def part_is_cut_anew(self, first: int, count: int) -> None:
        """A worker answers an announcement, or appends again what Redis lost: the same entries, cut elsewhere."""
        first = min(first, self.log.top + 1)
        mark = self.log.marks[min(first, self.log.top) - 1]
        entries = []
        while len(entries) < count and first + len(entries) <= self.log.top:
            if self.log.marks[first + len(entries) - 1] != mark:
                break
            entries.append(self.log.entries[first + len(entries) - 1])
        self.flying.append((mark, first, entries))

    # The hub

    def take(self, part: Part) -> None:
        mark, first, entries = part
        outcome = merge(self.top, self.runs, mark, first, entries)
        if isinstance(outcome, Fresh):
            assert outcome.entries, "fresh is never nothing"
            if mark != self.runs.last:
                self.runs.add(self.top + 1, mark)
            self.entries += outcome.entries
            self.top += len(outcome.entries)
        elif outcome is not Outcome.KNOWN:
            self.look_at_the_facts()

    @rule()
    def look_at_the_facts(self) -> None:
        """What repair does: read on, or begin again and put every viewer where its cursor leads."""
        log = self.log
        # A mailbox is read in order: what an attempt said that Redis forgot was read before what came after it.
        self.flying = [part for part in self.flying if part[0] in log.marks]
        if same_history(self.top, self.runs, log.top, log.runs):
            self.entries += log.entries[self.top :]
            self.top, self.runs = log.top, log.runs
            return
        old = self.runs
        self.top, self.runs, self.entries = log.top, log.runs, list(log.entries)
        for viewer in self.viewers:
            assert old.at(viewer.cursor.offset) == viewer.cursor.mark or not viewer.cursor.offset
            self.put(viewer)

    def put(self, viewer: Viewer) -> None:
        before = viewer.cursor
        resumed, offset = resume_at(before, self.top, self.runs)
        assert resumed == (
            before.offset == 0 or self.log.begins_with(viewer.screen) and self.marks_at(before.offset) == before.mark
        ), "resumed exactly where the log holds that entry, and then all before it is the same"
        if resumed:
            assert offset == before.offset, "never a repeat, never a hole"
        else:
            viewer.screen, viewer.told = [], viewer.told + 1
        viewer.cursor = Cursor(offset, self.runs.at(offset))

    def marks_at(self, offset: int) -> str:
        return self.log.marks[offset - 1] if offset <= self.log.top else ""

    @rule(fresh=st.booleans(), which=st.integers(0, 3))
    def attach(self, fresh: bool, which: int) -> None:
        """Somebody comes with nothing, or comes back, from another hub perhaps, with the cursor that it has."""
        self.look_at_the_facts()
        viewer = Viewer(Cursor(0), []) if fresh or not self.viewers else self.viewers.pop(which % len(self.viewers))
        self.put(viewer)
        if len(self.viewers) < 4:
            self.viewers.append(viewer)

    @precondition(lambda self: self.viewers)
    @rule(which=st.integers(0, 3), count=st.integers(1, 8))
    def send(self, which: int, count: int) -> None:
        viewer = self.viewers[which % len(self.viewers)]
        last = min(self.top, viewer.cursor.offset + count)
        viewer.screen = viewer.screen + self.entries[viewer.cursor.offset : last]
        viewer.cursor = Cursor(last, self.runs.at(last))

    # What must hold

    @invariant()
    def a_tail_is_the_beginning_of_one_history(self) -> None:
        assert len(self.entries) == self.top
        fitting = [log for log in [*self.histories, self.log] if log.begins_with(self.entries)]
        assert fitting
        marks = [self.runs.at(offset) for offset in range(1, self.top + 1)]
        assert any(log.marks[: self.top] == marks for log in fitting)

    @invariant()
    def the_same_place_is_the_same_screen(self) -> None:
        for viewer in self.viewers:
            assert len(viewer.screen) == viewer.cursor.offset
            place = viewer.cursor.offset, viewer.cursor.mark
            if place[0]:
                assert self.screens.setdefault(place, viewer.screen) == viewer.screen

    def teardown(self) -> None:
        """One look at the facts, and everybody has the log."""
        self.look_at_the_facts()
        for viewer in self.viewers:
            viewer.screen = viewer.screen + self.entries[viewer.cursor.offset :]
            assert viewer.screen == self.log.entries


RecoveryLife.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestRecoveryLife = RecoveryLife.TestCase
