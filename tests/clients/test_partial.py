"""A JSON document while it arrives: every snapshot is true, none is late by much, and the last one is exact."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.partial import PartialJSON

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def begins(part: Any, whole: Any) -> bool:
    """Whether `part` is what a reader of a beginning of `whole` may see."""
    if isinstance(part, str) and isinstance(whole, str):
        return whole.startswith(part)
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(map(begins, part, whole))
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and begins(value, whole[key]) for key, value in part.items())
    if type(part) is int and type(whole) is int:  # the last number may still grow
        return str(whole).startswith(str(part))
    return bool(part == whole)


@given(JSON, st.integers(1, 9), st.booleans())
def test_every_snapshot_is_a_beginning_of_the_value(value: Any, size: int, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    partial = PartialJSON()
    for start in range(0, len(text), size):
        if partial.feed(text[start : start + size]):
            assert begins(partial.value, value)
    assert partial.finish() == value
    assert partial.text == text


def test_text_shows_while_its_string_is_open() -> None:
    partial = PartialJSON()
    partial.feed('{"title": "The ri')
    assert partial.value == {"title": "The ri"}


def test_a_long_document_is_parsed_some_hundred_times_and_not_for_every_piece() -> None:
    text = json.dumps([{"name": f"item {number}", "price": number / 4} for number in range(2000)])
    partial = PartialJSON()
    snapshots = sum(partial.feed(text[start : start + 4]) for start in range(0, len(text), 4))
    assert len(text) > 70_000
    assert 20 < snapshots < 150


@pytest.mark.parametrize("text", ["", "{", '{"a": 1} and more', "[1,]", "NaN", "prose", '{"a": Infinity}'])
def test_what_is_not_one_json_document_is_refused_at_the_end(text: str) -> None:
    partial = PartialJSON()
    partial.feed(text)
    with pytest.raises(ValueError):
        partial.finish()
    assert partial.text == text


def test_a_code_fence_around_the_document_is_not_part_of_it() -> None:
    partial = PartialJSON()
    for piece in ("```json\n", '{"a": ', "[1, 2", "]}\n```\n"):
        partial.feed(piece)
    assert partial.finish() == {"a": [1, 2]}
