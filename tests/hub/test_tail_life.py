"""Frames cut from a log: whatever is cut, from wherever, in whatever portions, reads back as the log (protocol §4)."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocol.codec import JSON, MSGPACK
from headrace.protocol.cursor import MarkRuns
from headrace.protocol.entries import DELTA_KINDS, Entry, ToolInput, encode_data
from headrace.protocol.frames import DELTA_BYTES, MESSAGE_OUT_BYTES
from hub.tail import Frame, cut
from tests.protocol.test_vectors import payload

#: Text of the greatest size an entry may have, and of the kinds that grow most when they are written as JSON.
large = st.sampled_from(["x" * 2048, "\x01" * 2048, "\n" * 2047, "🌤" * 512, '"' * 2048, "\\" * 2048, "ä" * 1024])
texts = st.one_of(st.text(max_size=6), large)
pieces = st.one_of(
    st.tuples(st.sampled_from(["text", "reasoning"]), texts.map(str.encode)),
    st.builds(lambda call, text: ("tool_input", encode_data(ToolInput(call, text))), st.sampled_from("ab"), texts),
    st.just(("reset", msgpack.packb({"reason": "worker_lost"}))),
    st.tuples(st.just("later"), st.just(msgpack.packb({"x": [1, None]}))),
    st.tuples(st.sampled_from(["text", "tool_input", "usage"]), st.just(b"\xff\xfe")),  # what nobody can read
)


@st.composite
def logs(draw: Any) -> tuple[list[Entry], MarkRuns]:
    entries = draw(st.lists(pieces, min_size=1, max_size=24))
    firsts = draw(st.sets(st.integers(2, len(entries) + 1), max_size=5))
    return entries, MarkRuns([(1, "m0"), *((first, f"m{first}") for first in sorted(firsts))])


def seen(frame: Frame) -> dict[str, Any]:
    return json.loads(payload(frame.wire(JSON)))


def pieces_of(entries: list[Entry]) -> list[tuple[str, str | None, str]]:
    """What a viewer is to have of these, neighbours of one kind joined."""
    shown: list[tuple[str, str | None, str]] = []
    for kind, data in entries:
        try:
            text: str | None = None
            call = None
            if kind == "tool_input":
                fields = msgpack.unpackb(data)
                call, text = fields["call"], fields["delta"]
            elif kind in DELTA_KINDS:
                text = data.decode()
        except (ValueError, TypeError, KeyError, msgpack.UnpackException):
            text = None
        if text is None:
            shown.append((f"entry {kind}", None, ""))
        elif shown and shown[-1][:2] == (kind, call):
            shown[-1] = (kind, call, shown[-1][2] + text)
        else:
            shown.append((kind, call, text))
    return shown


def joined(frames: list[Frame]) -> list[tuple[str, str | None, str]]:
    shown: list[tuple[str, str | None, str]] = []
    for frame in map(seen, frames):
        if frame["type"] == "entry":
            shown.append((f"entry {frame['kind']}", None, ""))
            continue
        kind, call = frame.get("kind", "text"), frame.get("call")
        if shown and shown[-1][:2] == (kind, call):
            shown[-1] = (kind, call, shown[-1][2] + frame.get("text", ""))
        else:
            shown.append((kind, call, frame.get("text", "")))
    return shown


@given(logs(), st.lists(st.integers(0, 24), max_size=8), st.integers(1, 24))
@settings(max_examples=200, deadline=None)
def test_any_cuts_of_any_log_read_back_as_the_log(
    log: tuple[list[Entry], MarkRuns], cuts: list[int], begin: int
) -> None:
    entries, runs = log
    begin = min(begin, len(entries))
    borders = sorted({begin - 1, len(entries), *(place for place in cuts if begin <= place <= len(entries))})
    frames = [frame for first, last in pairwise(borders) for frame in cut("g_x", runs, first + 1, entries[first:last])]
    # dense, in order, each entry once
    assert [frame.first for frame in frames] == [begin, *(frame.last + 1 for frame in frames[:-1])]
    assert frames[-1].last == len(entries)
    assert joined(frames) == pieces_of(entries[begin - 1 :])
    # a viewer that knows the mark before always knows its mark, and no frame has two
    mark = runs.at(begin - 1)
    for frame in frames:
        mark = seen(frame).get("mark", mark)
        assert {runs.at(offset) for offset in range(frame.first, frame.last + 1)} == {mark}


@given(logs())
@settings(max_examples=200, deadline=None)
def test_no_frame_is_above_its_bounds_in_either_encoding(log: tuple[list[Entry], MarkRuns]) -> None:
    entries, runs = log
    for frame in cut("g_x" * 20, runs, 1, entries):
        assert len(seen(frame).get("text", "").encode()) <= DELTA_BYTES
        packed = payload(frame.wire(MSGPACK))
        assert max(len(packed), len(payload(frame.wire(JSON)))) <= MESSAGE_OUT_BYTES
        assert msgpack.unpackb(packed) == seen(frame)
