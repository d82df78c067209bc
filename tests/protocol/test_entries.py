"""What a log holds, and what makes two requests equal (protocol §3, §5)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol import entries as kinds
from headrace.protocol.body import Body
from headrace.protocol.codec import JSON, MSGPACK
from headrace.protocol.codes import DONE_ERROR_CODES, ERROR_CODES, CloseCode, close_action
from headrace.protocol.entries import TextDigest, decode_data, delta_text, encode_data
from headrace.protocol.frames import Generate, Message

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def shuffled(value: Any, draw: Any) -> Any:
    """The same value with the keys of every map in another order."""
    if isinstance(value, dict):
        names = draw(st.permutations(sorted(value)))
        return {name: shuffled(value[name], draw) for name in names}
    return [shuffled(item, draw) for item in value] if isinstance(value, list) else value


@given(st.data())
def test_the_digest_of_a_body_does_not_depend_on_the_order_of_keys(data: Any) -> None:
    literal = {
        "type": "generate", "id": 1, "request": "r", "messages": [{"role": "user", "content": "x"}],
        "schema": data.draw(st.dictionaries(st.text(max_size=8), json_values, max_size=4)),
        "tool_choice": data.draw(st.dictionaries(st.text(max_size=8), json_values, max_size=4)),
    }  # fmt: skip
    [one] = JSON.decode_client(json.dumps(literal).encode())
    [other] = MSGPACK.decode_client(msgpack.packb(shuffled(literal, data.draw)))
    assert isinstance(one, Generate) and isinstance(other, Generate)
    assert Body.of(one).digest() == Body.of(other).digest()


BODY = Generate(1, "r", [Message("user", "x")])


@pytest.mark.parametrize(
    "change",
    [{"messages": [Message("user", "y")]}, {"messages": [Message("assistant", "x")]}, {"system": ""},
     {"model": "fast"}, {"provider": "openai"}, {"fallbacks": []}, {"max_tokens": 5}, {"temperature": 0.0},
     {"stop": []}, {"tools": []}, {"tool_choice": "auto"}, {"schema": {}}, {"session": "s_x"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_the_model_is_asked_makes_another_request(change: dict[str, Any]) -> None:
    changed = Generate(**{"id": 1, "request": "r", "messages": [Message("user", "x")]} | change)
    assert Body.of(changed).digest() != Body.of(BODY).digest()


@pytest.mark.parametrize(
    "change",
    [{"id": 2}, {"request": "s"}, {"metadata": {"a": 1}}, {"attach": False}, {"window": 7}, {"pace_ms": 7},
     {"on_abandon": "continue"}, {"abandon_after_ms": 7}, {"on_worker_loss": "fail"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_how_the_answer_is_delivered_does_not(change: dict[str, Any]) -> None:
    changed = Generate(**{"id": 1, "request": "r", "messages": [Message("user", "x")]} | change)
    assert Body.of(changed).digest() == Body.of(BODY).digest()


def test_a_prompt_is_measured_in_bytes_of_utf8_system_included() -> None:
    body = Body([Message("user", "é"), Message("assistant", "日本")], system="abc")
    assert body.prompt_bytes == 2 + 6 + 3


@pytest.mark.parametrize("kind", ["text", "reasoning"])
def test_text_lies_in_the_log_as_it_is(kind: str) -> None:
    assert decode_data(kind, "né".encode()) == {"text": "né"}
    assert delta_text(kind, "né".encode()) == (None, "né")


def test_other_entries_lie_in_the_log_as_maps_without_what_is_at_its_default() -> None:
    data = encode_data(kinds.Usage(input_tokens=3))
    assert data == msgpack.packb({"input_tokens": 3})
    assert decode_data("usage", data) == {"input_tokens": 3}
    assert delta_text("tool_input", encode_data(kinds.ToolInput("t1", '{"q"'))) == ("t1", '{"q"')
    assert encode_data(kinds.ToolReady("t1")) == msgpack.packb({"call": "t1"})
    assert encode_data(kinds.ToolReady("t1", None)) == msgpack.packb({"call": "t1", "input": None})


@given(st.lists(st.tuples(st.sampled_from(["text", "reasoning", "reset", "usage"]), st.text(max_size=9)), max_size=20))
def test_the_digest_covers_the_folded_text_and_nothing_else(log: list[tuple[str, str]]) -> None:
    digest, text = TextDigest(), ""
    for kind, piece in log:
        digest.add(kind, piece.encode())
        text = "" if kind == "reset" else text + piece if kind == "text" else text
    assert (digest.size, digest.hexdigest()) == (len(text.encode()), hashlib.sha256(text.encode()).hexdigest())


@pytest.mark.parametrize(
    ("code", "action"),
    [(None, "backoff"), (1000, "backoff"), (1006, "backoff"), (1012, "backoff"), (3999, "backoff"),
     (4000, "reconnect"), (4001, "reconnect"), (4003, "stop"), (4099, "reconnect"), (4100, "backoff"),
     (4199, "backoff"), (4200, "reauth"), (4299, "reauth"), (4300, "backoff"), (4399, "backoff"), (4400, "stop"),
     (4499, "stop"), (4500, "backoff")],
)  # fmt: skip
def test_the_range_of_a_close_code_says_what_to_do(code: int | None, action: str) -> None:
    assert close_action(code) == action


def test_every_close_code_and_error_has_its_rule() -> None:
    assert {close_action(code) for code in CloseCode} == {"reconnect", "stop", "backoff", "reauth"}
    assert set(ERROR_CODES.values()) | set(DONE_ERROR_CODES.values()) <= {"no", "now", "after", "backoff", "reauth"}
