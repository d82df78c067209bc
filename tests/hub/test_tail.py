"""What a hub holds of a stream, and the frames cut from it (protocol §4)."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocol.codec import JSON, MSGPACK
from headrace.protocol.cursor import MarkRuns
from headrace.protocol.entries import Entry, ToolInput, Usage, encode_data
from headrace.protocol.frames import DELTA_BYTES
from hub import tail as tails
from hub.broker.keys import stream_key
from hub.tail import Frame, Held, Tail, cut, prepare
from tests.protocol.test_vectors import payload

KEY = stream_key("acme", "g_5Zk2mQ9xWb3TnL8r")


def text(what: str) -> Entry:
    return ("text", what.encode())


def tool_input(call: str, delta: str) -> Entry:
    return ("tool_input", encode_data(ToolInput(call, delta)))


def shown(frame: Frame) -> Any:
    return json.loads(payload(frame.wire(JSON)))


entries = st.lists(
    st.one_of(
        st.builds(text, st.text(min_size=1, max_size=4)),
        st.builds(lambda said: ("reasoning", said.encode()), st.text(min_size=1, max_size=4)),
        st.builds(tool_input, st.sampled_from("ab"), st.text(min_size=1, max_size=4)),
        st.just(("usage", encode_data(Usage()))),
        st.builds(lambda size: text("x" * size), st.sampled_from([2048, 2047])),
    ),
    min_size=1,
    max_size=30,
)
runs_over = st.lists(st.integers(2, 30), max_size=4).map(
    lambda firsts: MarkRuns([(1, "m0"), *((first, f"m{first}") for first in sorted(set(firsts)))])
)


@given(entries, runs_over, st.integers(1, 5))
@settings(deadline=None)
def test_frames_cover_every_entry_once_merge_what_they_may_and_name_a_mark_where_it_changes(
    log: list[Entry], runs: MarkRuns, first: int
) -> None:
    offset, mark, former = first, runs.at(first - 1), None
    for frame in cut("g_x", runs, first, log):
        seen = shown(frame)
        assert (frame.first, frame.last) == (seen.get("first", seen["offset"]), seen["offset"])
        assert frame.first == offset, "dense, from the first on"
        covered = log[frame.first - first : frame.last - first + 1]
        assert {kind for kind, _ in covered} == {seen.get("kind", "text")}
        assert len({runs.at(n) for n in range(frame.first, frame.last + 1)}) == 1, "never across marks"
        assert ("mark" in seen) is (runs.at(frame.first) != runs.at(frame.first - 1)), "only where it changes"
        mark = seen.get("mark", mark)
        assert mark == runs.at(frame.last)
        if seen["type"] == "delta":
            assert ("first" in seen) is (frame.last > frame.first)
            assert len(seen["text"].encode()) <= DELTA_BYTES
        else:
            assert frame.first == frame.last
        if former and former["type"] == seen["type"] == "delta" and "mark" not in seen:
            mixes = (former.get("kind"), former.get("call")) != (seen.get("kind"), seen.get("call"))
            size = len((former["text"] + seen["text"]).encode())
            assert mixes or size > DELTA_BYTES - 2100, "what could have been one frame is one"
        offset, former = frame.last + 1, seen
    assert offset == first + len(log)


def test_text_merges_to_16_kib_and_no_further() -> None:
    sizes = [len(shown(frame)["text"]) for frame in cut("g_x", MarkRuns([(1, "m")]), 1, [text("x" * 2048)] * 20)]
    assert sizes == [DELTA_BYTES, DELTA_BYTES, 4 * 2048]


def test_the_arguments_of_two_calls_do_not_mix() -> None:
    log = [tool_input("a", "{"), tool_input("a", "}"), tool_input("b", "{}")]
    assert [(f["call"], f["text"]) for f in map(shown, cut("g_x", MarkRuns([(1, "m")]), 1, log))] == [
        ("a", "{}"), ("b", "{}"),
    ]  # fmt: skip


def test_an_empty_text_is_left_out() -> None:
    [frame] = cut("g_x", MarkRuns([(1, "m")]), 1, [tool_input("a", "")])
    assert shown(frame) == {"type": "delta", "stream": "g_x", "offset": 1, "kind": "tool_input", "call": "a"}


def test_a_frame_is_encoded_once_for_each_encoding() -> None:
    [frame] = cut("g_x", MarkRuns([(1, "m")]), 1, [text("blue")])
    assert frame.wire(JSON) is frame.wire(JSON)
    assert frame.wire(MSGPACK) is frame.wire(MSGPACK)
    assert msgpack.unpackb(payload(frame.wire(MSGPACK))) == shown(frame)


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_a_prepared_message_has_the_length_form_of_its_size(size: int) -> None:
    for is_text, opcode in ((True, 0x81), (False, 0x82)):
        wire = prepare(b"x" * size, is_text)
        assert wire[0] == opcode
        assert payload(wire) == b"x" * size


def opened(top: int = 0) -> Tail:
    tail = Tail(KEY, Held(), now=0.0)
    tail.begin("running", top, MarkRuns([(1, "m0")]), "w1")
    return tail


def test_a_tail_begins_with_nothing_and_holds_what_is_appended() -> None:
    tail = opened(top=10)
    assert not tail.holds(10)
    assert tail.append("m0", [text("a"), text("b")]) == 11
    assert (tail.top, tail.base, tail.holds(11), tail.holds(10)) == (12, 10, True, False)
    assert tail.slice(11, 12) == [text("a"), text("b")]
    assert tail.slice(12, 12) == [text("b")]


def test_another_mark_opens_a_run() -> None:
    tail = opened(top=10)
    tail.append("m0", [text("a")])
    tail.append("m1", [("started", b"\x80")])
    assert list(tail.runs) == [(1, "m0"), (12, "m1")]


def test_its_state_follows_the_entries() -> None:
    tail = Tail(KEY, Held(), now=0.0)
    tail.begin("queued", 1, MarkRuns([(1, "m0")]), "")
    tail.append("m1", [("started", b"\x80")])
    assert tail.state == "running"
    tail.append("m1", [text("a"), ("done", b"\x80")])
    assert tail.state == "done"


def test_older_entries_are_kept_only_where_they_reach_what_is_held() -> None:
    tail = opened(top=10)
    tail.append("m0", [text("k")])
    tail.prepend(3, [text(c) for c in "cdefg"])
    assert tail.base == 10, "3 to 7 do not reach 11"
    tail.prepend(9, [text(c) for c in "ijkl"])
    assert (tail.base, tail.slice(9, 11)) == (8, [text("i"), text("j"), text("k")])


@given(st.lists(st.lists(st.sampled_from([1, 30_000, 100_000]), min_size=1, max_size=3), max_size=12))
@settings(deadline=None)
def test_what_is_held_is_bounded_and_counted(batches: list[list[int]]) -> None:
    held = Held()
    tail = Tail(KEY, held, now=0.0)
    for sizes in batches:
        tail.append("m0", [("text", b"x" * size) for size in sizes])
        size = sum(tails.ENTRY_BYTES + len(data) for _, data in tail.entries)
        assert held.bytes == size
        assert tail.base + len(tail.entries) == tail.top
        assert size <= tails.TAIL_BYTES + 300_000, "the bound, and a batch beyond it"
        tail.prepend(max(1, tail.base - 1), [("text", b"y" * 50_000)] * 2)
        assert held.bytes == sum(tails.ENTRY_BYTES + len(data) for _, data in tail.entries)
    tail.release()
    assert held.bytes == 0
    assert not tail.holds(tail.top)


def test_another_history_lets_go_of_what_was_held() -> None:
    tail = opened()
    tail.append("m0", [text("a")])
    tail.begin("running", 57, MarkRuns([(1, "m0"), (40, "m7")]), "w2")
    assert (tail.top, tail.base, tail.entries, tail.owner, tail.runs.last) == (57, 57, [], "w2", "m7")
