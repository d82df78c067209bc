"""One JSON document, read so that no two readers differ."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.document import NoDocument, bare, parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.booleans(), st.sampled_from(["{}", " {}\n", "```json\n{}\n```", "\n```\n{}```\n"]))
def test_every_document_is_read_as_it_was_written(value: Any, ascii_only: bool, around: str) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse(around.replace("{}", text)) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there is no text"),
        (" \n", "there is no text"),
        ("Here it is: {}", "expecting value (line 1, column 1)"),
        ("{} Done.", "extra data (line 1, column 4)"),
        ("```json\n{}\n```\nDone.", "extra data (line 2, column 1)"),
        ("```{}```", "expecting value (line 1, column 1)"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[1e999]", "a number is too large"),
        ("[-1e999]", "a number is too large"),
        ("1" * 5000, "a number has too many digits"),
        ('{"a": 1, "a": 2}', "an object names a key twice"),
        ('["\\ud83d"]', "a string holds half of a surrogate pair"),
        ("[" * 100_000, "it is nested too deeply"),
        ("[1,]", ""),
        ("{'a': 1}", ""),
    ],
)
def test_what_is_no_document_is_told(text: str, why: str) -> None:
    with pytest.raises(NoDocument) as raised:
        parse(text)
    assert str(raised.value).startswith(why)


def test_a_whole_pair_of_surrogates_is_a_character() -> None:
    assert parse('["\\ud83d\\ude00"]') == ["😀"]


@pytest.mark.parametrize("text", ["plain", "a ``` b", "", "`{}`"])
def test_what_is_not_in_a_fence_stays(text: str) -> None:
    assert bare(text) == text
