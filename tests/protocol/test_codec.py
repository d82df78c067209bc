"""Bytes to frames and back in both encodings; whatever comes, only `Undecodable` leaves (protocol §2)."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocol.codec import _CLIENT_TYPES, CODECS, JSON, MSGPACK, Codec, Fault, Undecodable
from headrace.protocol.frames import Ack, Generate, Live, Ok, Ping, Pong

CODEC = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
GENERATE = {"type": "generate", "id": 1, "request": "r", "messages": [{"role": "user", "content": "x"}]}


def pack(codec: Codec, value: Any) -> bytes:
    packed: bytes = json.dumps(value).encode() if codec is JSON else msgpack.packb(value)
    return packed


def only_fault(codec: Codec, message: bytes) -> Fault:
    [fault] = codec.decode_client(message)
    assert isinstance(fault, Fault)
    return fault


def test_each_subprotocol_names_its_codec() -> None:
    assert CODECS == {"headrace.v1.json": JSON, "headrace.v1.msgpack": MSGPACK}
    assert (JSON.is_text, MSGPACK.is_text) == (True, False)


@CODEC
def test_one_frame_travels_as_a_map_and_several_as_a_flat_array(codec: Codec) -> None:
    assert codec.encode_batch([Ok(1)]) == codec.encode(Ok(1))
    assert codec.decode_hub(codec.encode_batch([Ok(1)])) == [Ok(1)]
    assert codec.decode_hub(codec.encode_batch([Ok(1), Pong(2)])) == [Ok(1), Pong(2)]


@CODEC
def test_a_batch_keeps_its_order_and_a_wrong_frame_in_it_hides_no_other(codec: Codec) -> None:
    batch = [{"type": "ping", "id": 1}, {"type": "ack", "stream": "g_x", "offset": -1}, {"type": "ping", "id": 3}]
    first, fault, last = codec.decode_client(pack(codec, batch))
    assert (first, last) == (Ping(1), Ping(3))
    assert isinstance(fault, Fault)
    assert (fault.code, fault.stream) == ("invalid_request", "g_x")


@CODEC
@pytest.mark.parametrize(
    ("count", "code"), [(0, "invalid_request"), (1, None), (64, None), (65, "too_large"), (5000, "too_large")]
)
def test_a_batch_holds_1_to_64_frames(codec: Codec, count: int, code: str | None) -> None:
    decoded = codec.decode_client(pack(codec, [{"type": "ping"}] * count))
    if code is None:
        assert decoded == [Ping()] * count
    else:
        assert [fault.code for fault in decoded if isinstance(fault, Fault)] == [code]


def test_msgpack_arrays_are_batches_in_every_length_form() -> None:
    ping = msgpack.packb({"type": "ping"})
    for head in (b"\x91", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01"):
        assert MSGPACK.decode_client(head + ping) == [Ping()]


def test_json_arrays_are_batches_behind_white_space_too() -> None:
    assert JSON.decode_client(b' \r\n\t[ {"type": "ping"} ]') == [Ping()]


@CODEC
@pytest.mark.parametrize(
    "value",
    [None, 1, "x", True, 1.5, {}, {"typ": "ping"}, {"type": 5}, {"type": None}, [[]], [[{"type": "ping"}]],
     [{"type": "ping"}, [{"type": "ping"}]], [1], [None], ["ping"]],
    ids=repr,
)  # fmt: skip
def test_what_is_no_frame_is_undecodable(codec: Codec, value: Any) -> None:
    with pytest.raises(Undecodable):
        codec.decode_client(pack(codec, value))


@pytest.mark.parametrize(
    "message",
    [b"", b"  ", b"nope", b'{"type":"ping"', b'{"type":"ping"} x', b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 100_000,
     b'{"a":' * 100_000, b'{"type":"ping","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
     b'{"type":"ping","x":"\\ud83d"}', b'{"type":"nope","x":"\\ud83d"}', b'{"type":"ping","id":NaN}',
     b'{"type":"ack","stream":"g","offset":1e400}'],
    ids=lambda message: repr(message[:24]),
)  # fmt: skip
def test_broken_json_is_undecodable(message: bytes) -> None:
    with pytest.raises(Undecodable):
        JSON.decode_client(message)


@pytest.mark.parametrize(
    "message",
    [b"", b"\xc1", b"\x81\xa4type\xa4ping\x00", b"\x91" * 100_000, b"\x81\xa1a" * 100_000,
     b"\x82\xa4type\xa4ping\xa1x" + b"\x91" * 100_000 + b"\xc0", b"\x82\xa4type\xa4ping\xa2id\xa1\xff",
     b"\x82\xa4type\xa4nope\xa1x\xa1\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
     b"\x82\xa4type\xa4ping\x01\x02", b"\x82\xa4type\xa4ping\xc0\x02", b"\x81\xa4type\xc4\x04ping"],
    ids=lambda message: message[:20].hex(),
)  # fmt: skip
def test_broken_msgpack_is_undecodable(message: bytes) -> None:
    with pytest.raises(Undecodable):
        MSGPACK.decode_client(message)


@CODEC
def test_unknown_fields_are_ignored(codec: Codec) -> None:
    assert codec.decode_client(pack(codec, {"type": "ping", "id": 1, "colour": {"a": [1]}})) == [Ping(1)]


def test_an_integer_of_400_digits_is_too_large_for_an_offset_and_nothing_where_unknown() -> None:
    digits = b"1" + b"0" * 399
    fault = only_fault(JSON, b'{"type":"ack","stream":"g_x","offset":' + digits + b"}")
    assert (fault.code, fault.stream) == ("invalid_request", "g_x")
    assert JSON.decode_client(b'{"type":"ping","x":' + digits + b"}") == [Ping()]


@CODEC
@pytest.mark.parametrize("offset", [-1, 1.0, 1.5, True, "1", None, 2**53, 2**63], ids=repr)
def test_an_offset_is_an_exact_integer_in_range(codec: Codec, offset: Any) -> None:
    fault = only_fault(codec, pack(codec, {"type": "ack", "stream": "g_x", "offset": offset}))
    assert fault.code == "invalid_request"


@CODEC
@pytest.mark.parametrize("window", [-1, 1.5, True, "4", 2**63], ids=repr)
def test_a_window_is_null_or_an_exact_integer_in_range(codec: Codec, window: Any) -> None:
    fault = only_fault(codec, pack(codec, GENERATE | {"window": window}))
    assert (fault.code, fault.id) == ("invalid_request", 1)


@CODEC
def test_a_window_of_null_a_window_of_0_and_no_window_are_three_things(codec: Codec) -> None:
    windows = [
        codec.decode_client(pack(codec, {"type": "ack", "stream": "g_x", "offset": 1} | extra))[0].window  # type: ignore[union-attr]
        for extra in ({"window": None}, {"window": 0}, {})
    ]
    assert windows[:2] == [None, 0]
    assert windows[2] == Ack("g_x", 1).window


@CODEC
def test_an_unknown_type_is_unsupported_and_its_name_is_cut(codec: Codec) -> None:
    fault = only_fault(codec, pack(codec, {"type": "z" * 1000, "id": "a", "stream": "g_x"}))
    assert (fault.code, fault.id, fault.stream) == ("unsupported", "a", "g_x")
    assert len(fault.message) < 100


@CODEC
@pytest.mark.parametrize(
    ("frame", "id_", "stream"),
    [
        ({"type": "attach", "id": 7, "stream": ""}, 7, None),
        ({"type": "attach", "id": True, "stream": "g_x"}, None, "g_x"),
        ({"type": "attach", "id": "x" * 65, "stream": "y" * 65}, None, None),
        ({"type": "attach", "id": 2**53, "stream": "g_x"}, None, "g_x"),
    ],
)
def test_a_fault_names_the_frame_as_far_as_that_is_valid(codec: Codec, frame: Any, id_: Any, stream: Any) -> None:
    fault = only_fault(codec, pack(codec, frame))
    assert (fault.code, fault.id, fault.stream) == ("invalid_request", id_, stream)


@CODEC
def test_a_fault_stays_small_whatever_it_quotes(codec: Codec) -> None:
    turn = {"role": "z" * 100_000, "content": "x"}
    assert len(only_fault(codec, pack(codec, GENERATE | {"messages": [turn]})).message) <= 200


@CODEC
@pytest.mark.parametrize("name", ["metadata", "schema", "tool_choice"])
def test_free_form_fields_hold_what_json_can_hold(codec: Codec, name: str) -> None:
    value = {"a": [1, -(2**63), 2**64 - 1, 0.5, "x", None, True, {"b": []}]}
    [frame] = codec.decode_client(pack(codec, GENERATE | {name: value}))
    assert isinstance(frame, Generate)
    assert getattr(frame, name) == value


@pytest.mark.parametrize(
    "value",
    [{"a": math.nan}, {"a": math.inf}, {"a": b"x"}, {"a": msgpack.ExtType(5, b"x")}, {"a": msgpack.Timestamp(1, 1)},
     {"a": [{"b": b"x"}]}, {"a": {1: 2}}, {"a": {b"x": 1}}, {1: 2}],
    ids=repr,
)  # fmt: skip
def test_what_only_msgpack_can_say_is_refused_in_free_form_fields(value: Any) -> None:
    fault = only_fault(MSGPACK, msgpack.packb(GENERATE | {"metadata": value}))
    assert (fault.code, fault.id) == ("invalid_request", 1)


def test_arguments_of_tool_calls_are_free_form_too() -> None:
    for arguments, is_plain in (({"a": [1]}, True), (None, True), ({"a": b"x"}, False), ({1: 2}, False)):
        turns = [{"role": "assistant", "calls": [{"call": "t1", "name": "f", "input": arguments}]}]
        message = msgpack.packb(GENERATE | {"messages": [*GENERATE["messages"], *turns]})
        [frame] = MSGPACK.decode_client(message)
        assert isinstance(frame, Generate) == is_plain


def test_an_integer_that_msgpack_cannot_carry_is_refused_in_json_too() -> None:
    for number in (2**64, -(2**63) - 1):
        fault = only_fault(JSON, json.dumps(GENERATE | {"metadata": {"a": number}}).encode())
        assert (fault.code, fault.id) == ("invalid_request", 1)


@CODEC
@pytest.mark.parametrize("temperature", [-0.1, 2.1, math.nan, math.inf], ids=repr)
def test_a_temperature_is_within_0_and_2(codec: Codec, temperature: float) -> None:
    message = pack(codec, GENERATE | {"temperature": temperature})
    if codec is JSON and not math.isfinite(temperature):
        with pytest.raises(Undecodable):
            codec.decode_client(message)
    else:
        assert only_fault(codec, message).code == "invalid_request"


@CODEC
def test_a_client_leaves_out_hub_frames_it_does_not_know(codec: Codec) -> None:
    batch = [{"type": "presence", "joined": []}, {"type": "live", "stream": "g_x"}, {"type": "later", "id": {}}]
    assert codec.decode_hub(pack(codec, batch)) == [Live("g_x")]


@CODEC
def test_a_hub_frame_that_is_wrong_is_undecodable(codec: Codec) -> None:
    with pytest.raises(Undecodable, match="offset"):
        codec.decode_hub(pack(codec, {"type": "delta", "stream": "g_x", "offset": "1"}))


@CODEC
@pytest.mark.parametrize("number", [-1, 2**53, 2**63, -(2**63)])
def test_a_client_takes_no_number_that_no_hub_sends(codec: Codec, number: int) -> None:
    delta = {"type": "delta", "stream": "g_x", "offset": 1}
    answer = {"type": "attached", "stream": "g_x", "resumed": True, "offset": 1, "mark": "m", "top": 1, "state": "done"}
    for frame, field in [
        (delta, "offset"), (delta, "first"), ({"type": "entry", "kind": "text", "data": {}} | delta, "offset"),
        (answer | {"window": 1}, "offset"), (answer, "window"), ({"type": "drain"}, "after_ms"),
    ]:  # fmt: skip
        with pytest.raises(Undecodable):
            codec.decode_hub(pack(codec, frame | {field: number}))


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_no_bytes_make_decoding_raise_anything_else(message: bytes) -> None:
    for codec in (JSON, MSGPACK):
        for decode in (codec.decode_client, codec.decode_hub):
            with contextlib.suppress(Undecodable):
                decode(message)


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=5),
        st.binary(max_size=5),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
frames = st.fixed_dictionaries(
    {"type": st.sampled_from([*sorted(_CLIENT_TYPES), "x"])},
    optional={
        name: values
        for name in ("id", "stream", "offset", "window", "after", "request", "messages", "metadata", "token", "state")
    },
)  # fmt: skip


@given(st.lists(frames, min_size=1, max_size=3))
@settings(max_examples=300)
def test_no_frame_shaped_value_makes_decoding_raise_anything_else(batch: list[Any]) -> None:
    try:
        decoded = MSGPACK.decode_client(msgpack.packb(batch))
    except Undecodable:
        return
    assert len(decoded) == len(batch)
