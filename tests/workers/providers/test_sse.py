from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.providers.sse import EventTooLarge, SseSplitter


def split(*chunks: bytes) -> list[tuple[bytes, bytes]]:
    splitter = SseSplitter()
    return [event for chunk in chunks for event in splitter.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: one\n\n", [(b"", b"one")]),
        (b"event: a\ndata: one\n\n", [(b"a", b"one")]),
        (b"event: a\ndata: one\ndata: two\n\n", [(b"a", b"one\ntwo")]),
        (b"event: a\nid: 1\ndata: one\n\n", [(b"a", b"one")]),
        (b"event: a\nevent: b\ndata: one\n\n", [(b"b", b"one")]),
        (b"event: a\ndata: \n\n", [(b"a", b"")]),
        (b"event: a\ndata: one\nid: 1\n\n", [(b"a", b"one")]),
        (b"data:one\n\ndata:  two\n\n", [(b"", b"one"), (b"", b" two")]),
        (b"data: one\ndata: two\n\n", [(b"", b"one\ntwo")]),
        (b"data\n\n", [(b"", b"")]),
        (b": keep-alive\n\ndata: one\n: more\n\n", [(b"", b"one")]),
        (b"id: 7\nretry: 10\ndata: one\n\n", [(b"", b"one")]),
        (b"event: a\n\ndata: one\n\n", [(b"", b"one")]),
        (b"\n\n\n\ndata: one\n\n\n\n\n", [(b"", b"one")]),
        (b"data: one\r\n\r\ndata: two\r\r\n\n", [(b"", b"one"), (b"", b"two")]),
        (b"\xef\xbb\xbfdata: one\n\n", [(b"", b"one")]),
        (b"data: one\n", []),
        (b"data: one", []),
    ],
)
def test_a_stream_gives_its_events_whole_and_byte_by_byte(stream: bytes, events: list[tuple[bytes, bytes]]) -> None:
    assert split(stream) == events
    assert split(*(stream[i : i + 1] for i in range(len(stream)))) == events


def test_a_carriage_return_alone_ends_an_event_without_waiting_for_what_follows() -> None:
    assert split(b"data: one\r\r") == [(b"", b"one")]
    assert split(b"data: one\r", b"\r", b"\n", b"data: two\r\n\r\n") == [(b"", b"one"), (b"", b"two")]


_PIECES = st.sampled_from(
    [
        b"data:",
        b"data: x",
        b"event: e",
        b": c",
        b"id: 1",
        b"\xef\xbb\xbf",
        b"\xe2\x82\xac",
        b" ",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
    ]
)


@given(st.lists(_PIECES, max_size=40), st.lists(st.integers(0, 200), max_size=20))
def test_any_chunking_gives_equal_events(pieces: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(pieces)
    at = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    chunks = [stream[a:b] for a, b in zip(at, at[1:], strict=False)]
    assert split(*chunks) == split(stream)


@pytest.mark.parametrize("newline", [b"\r", b"\r\n"])
@given(pieces=st.lists(st.sampled_from([b"data: x", b"event: e", b"\xe2\x82\xac", b"\n", b"\n\n"]), max_size=30))
def test_every_kind_of_line_end_means_the_same(newline: bytes, pieces: list[bytes]) -> None:
    stream = b"".join(pieces)
    assert split(stream.replace(b"\n", newline)) == split(stream)


@pytest.mark.parametrize("before", [b"", b"data: x\n\n"])
@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 1000])
def test_an_event_above_the_limit_is_refused_however_it_arrives(chunk_bytes: int, before: bytes) -> None:
    splitter = SseSplitter(limit=100)
    splitter.feed(before)
    stream = b"data: " + b"x" * 200 + b"\n\n"
    with pytest.raises(EventTooLarge):
        for start in range(0, len(stream), chunk_bytes):
            splitter.feed(stream[start : start + chunk_bytes])


def test_many_events_below_the_limit_are_no_event_above_it() -> None:
    splitter = SseSplitter(limit=100)
    for _ in range(2):
        assert len(splitter.feed(b"data: xxxxxxxxxxxxxxxxxxxx\n\n" * 50)) == 50


def test_the_limit_is_of_the_whole_event_and_not_one_byte_less() -> None:
    for data, fits in ((b"x" * 94, True), (b"x" * 95, False)):
        splitter = SseSplitter(limit=100)
        splitter.feed(b"data: x\n\n")
        try:
            assert splitter.feed(b"data: " + data + b"\n\n") and fits
        except EventTooLarge:
            assert not fits
