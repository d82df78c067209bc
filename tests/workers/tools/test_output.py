"""What a tool returned, as the text that a model gets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.entries import ENTRY_BYTES, ToolResult, encode_data
from workers.providers import OUTPUT_BYTES
from workers.tools.output import NoText, cut, text_of


@dataclass
class Sky:
    colour: str


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("blue", "blue"),
        ('"blue"', '"blue"'),
        ("", ""),
        (None, "null"),
        (42, "42"),
        ({"sky": ["blue", 1.5, True]}, '{"sky":["blue",1.5,true]}'),
        (Sky("blau"), '{"colour":"blau"}'),
        (date(2026, 11, 21), '"2026-11-21"'),
    ],
)
def test_a_text_stays_and_anything_else_becomes_json(value: Any, text: str) -> None:
    assert text_of(value) == text


def test_what_json_cannot_hold_is_told_by_its_type() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (object(), endless, {1: object()}, b"\xff\xfe", [chr(0xD800)]):
        with pytest.raises(NoText, match=type(value).__name__):
            text_of(value)


@given(st.text(max_size=40), st.integers(0, 20_000))
def test_a_text_is_cut_at_a_whole_character_and_fits_an_entry(text: str, times: int) -> None:
    whole = text * times
    kept, is_cut = cut(whole)
    size = len(whole.encode("utf-8", "replace"))
    assert is_cut == (size > OUTPUT_BYTES) and len(kept.encode()) <= OUTPUT_BYTES
    assert whole.startswith(kept) or "\ud800" <= max(whole, default="") <= "\udfff"
    if is_cut:
        assert len(kept.encode()) > OUTPUT_BYTES - 4
    assert len(encode_data(ToolResult("c" * 256, kept, True, True))) <= ENTRY_BYTES


def test_half_a_character_is_replaced() -> None:
    assert cut("a\ud800b") == ("a?b", False)
