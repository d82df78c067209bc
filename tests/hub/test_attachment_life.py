"""A viewer's window over a long life: whatever it acks, a hub sends no further than it was allowed (protocol §6)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.protocol.cursor import MAX_INT, Cursor, MarkRuns
from hub.attachment import Attachment

AHEAD = 50
sizes = st.none() | st.integers(0, 12) | st.just(MAX_INT)
#: Offsets as an ill-meaning client has them: ahead, negative, long past, at the ends of 53 and 64 bits.
hostile = st.integers(-3, 60) | st.sampled_from([-(2**63), -1, MAX_INT, MAX_INT + 1, 2**63, 2**64])


class AttachmentLife(RuleBasedStateMachine):
    @initialize(start=st.integers(0, 9), size=sizes)
    def attach(self, start: int, size: int | None) -> None:
        nobody: Any = None
        self.top = max(start, 9)
        self.runs = MarkRuns([(1, "m0"), (5, "m1")])
        self.viewer = Attachment(nobody, nobody, "g_x", Cursor(start, self.runs.at(start)), size, AHEAD, 0.0)
        # The model: what was acked, and the greatest offset that any credit ever allowed.
        self.acked, self.sent, self.size = start, start, size
        self.marks = 1
        self.crossing = 0  # the last entry sent of any history before this one

    @property
    def limit(self) -> int:
        return 2**70 if self.size is None else self.acked + self.size

    @rule(count=st.integers(1, 9))
    def the_log_grows(self, count: int) -> None:
        self.top += count

    @rule()
    def an_attempt_begins(self) -> None:
        self.marks += 1
        self.runs.add(self.top + 1, f"m{self.marks}")
        self.top += 1

    @rule(count=st.integers(1, 9))
    def send(self, count: int) -> None:
        """What a delivery does: through the top or the limit, and nothing if that is not ahead."""
        last = min(self.viewer.through(self.top), self.viewer.sent + count)
        assert isinstance(last, int)
        if last > self.viewer.sent:
            assert self.viewer.is_open
            self.viewer.sent = self.sent = last
            assert last <= self.limit, "never past acked + window"

    @rule(offset=hostile, size=st.just(-1) | sizes)
    def ack(self, offset: int, size: int | None) -> None:
        before = (self.viewer.acked, self.viewer.size, self.viewer.limit, self.viewer.sent)
        if self.viewer.ack(offset, size):
            assert offset <= max(self.sent, self.crossing)
            if offset <= self.sent:
                self.acked = max(self.acked, offset)
            self.size = self.size if size == -1 else size
        else:
            assert offset > max(self.sent, self.crossing), "an honest ack is taken, also one that crossed a restart"
            assert (self.viewer.acked, self.viewer.size, self.viewer.limit, self.viewer.sent) == before

    @rule(offset=hostile, size=st.just(-1) | sizes)
    def the_same_ack_twice(self, offset: int, size: int | None) -> None:
        self.ack(offset, size)
        before = (self.viewer.acked, self.viewer.size, self.viewer.limit)
        self.ack(offset, size)
        assert (self.viewer.acked, self.viewer.size, self.viewer.limit) == before

    @precondition(lambda self: self.top > 3)
    @rule(keep=st.integers(0, 40))
    def history_changes(self, keep: int) -> None:
        """Redis lost the end; the viewer is put where its cursor fits, or at the start."""
        cursor = self.viewer.cursor(self.runs)
        keep = min(keep, self.top - 1)
        self.runs = MarkRuns([run for run in self.runs if run[0] <= max(keep, 1)])
        self.top = keep
        self.an_attempt_begins()
        start = cursor.offset if self.runs.fits(cursor, self.top) else 0
        self.crossing = max(self.crossing, self.sent)
        self.viewer.restart(Cursor(start, self.runs.at(start)))
        self.acked = self.sent = start
        assert not self.viewer.is_live

    @invariant()
    def it_is_where_the_model_is(self) -> None:
        viewer = self.viewer
        assert (viewer.acked, viewer.sent, viewer.size) == (self.acked, self.sent, self.size)
        assert 0 <= viewer.acked <= viewer.sent <= self.top
        assert viewer.is_open is (viewer.sent < self.limit)
        assert viewer.demand == (viewer.sent + AHEAD if self.size is None else self.limit)
        assert viewer.through(self.top) == min(self.top, self.limit)

    @invariant()
    def its_cursor_names_the_entry_that_it_was_sent_last(self) -> None:
        cursor = self.viewer.cursor(self.runs)
        assert cursor == Cursor(self.sent, self.runs.at(self.sent)) or self.sent == 0
        assert self.viewer.fits(self.runs)

    @invariant()
    def with_credit_and_entries_there_is_something_to_send(self) -> None:
        if self.sent < min(self.top, self.limit):
            assert self.viewer.through(self.top) > self.viewer.sent

    def teardown(self) -> None:
        """A viewer that acks reaches the top."""
        self.ack(self.sent, 3)
        for _ in range(self.top + 1):
            self.send(9)
            self.ack(self.sent, -1)
        assert self.viewer.sent == self.top


def test_it_is_attached_until_its_connection_follows_the_stream_by_another() -> None:
    endpoint: Any = SimpleNamespace(attachments={})
    nobody: Any = None
    first, second = (Attachment(endpoint, nobody, "g_x", Cursor(0, "m0"), 4, AHEAD, 0.0) for _ in range(2))
    endpoint.attachments["g_x"] = first
    assert first.is_attached and not second.is_attached
    endpoint.attachments["g_x"] = second
    assert second.is_attached and not first.is_attached
    del endpoint.attachments["g_x"]
    assert not second.is_attached


AttachmentLife.TestCase.settings = settings(
    max_examples=70, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAttachmentLife = AttachmentLife.TestCase
