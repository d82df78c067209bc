"""A connection as the protocol sees it: hello first and once, a bounded number of frames (protocol §2, §8)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.protocol.codec import JSON, MSGPACK
from headrace.protocol.codes import CloseCode
from headrace.protocol.frames import ErrorFrame, Hello, Ping
from hub.connection import Close, Connection, Instruction, State


def say(connection: Connection, value: Any, now: float = 0.0) -> list[Instruction]:
    return list(connection.receive(json.dumps(value).encode(), True, now))


def fresh(rate: int = 400, size: int = 10_000) -> Connection:
    return Connection(JSON, rate, size, now=0.0)


def greeted(rate: int = 400, size: int = 10_000) -> Connection:
    connection = fresh(rate, size)
    assert say(connection, {"type": "hello"}) == [Hello()]
    return connection


def close_of(instructions: list[Instruction]) -> CloseCode:
    assert isinstance(instructions[-1], Close)
    return instructions[-1].code


def test_hello_opens_it() -> None:
    connection = fresh()
    assert connection.state is State.CONNECTING
    say(connection, {"type": "hello"})
    assert connection.state is State.OPEN


@pytest.mark.parametrize(
    "value", [{"type": "ping"}, {"type": "ack"}, {"type": "nope"}, [], {"type": "hello", "token": 5}]
)
def test_anything_else_first_closes_it(value: Any) -> None:
    connection = fresh()
    assert close_of(say(connection, value)) is CloseCode.BAD_FRAME
    assert connection.is_closed


def test_hello_is_obeyed_before_what_follows_it_is_judged() -> None:
    connection = fresh()
    message = json.dumps([{"type": "hello"}, {"type": "ping", "id": 1}]).encode()
    instructions = connection.receive(message, True, 0.0)
    assert next(instructions) == Hello()
    connection.state = State.CLOSED  # as an endpoint does that refuses the token
    assert list(instructions) == []


def test_what_follows_in_the_same_batch_is_obeyed_when_hello_was_good() -> None:
    assert say(fresh(), [{"type": "hello"}, {"type": "ping", "id": 1}]) == [Hello(), Ping(1)]


def test_a_second_hello_closes_and_nothing_after_it_is_obeyed() -> None:
    instructions = say(greeted(), [{"type": "ping"}, {"type": "hello"}, {"type": "ping"}])
    assert instructions[0] == Ping()
    assert close_of(instructions) is CloseCode.BAD_FRAME
    assert len(instructions) == 2


def test_after_a_close_nothing_is_read() -> None:
    connection = greeted()
    say(connection, {"type": "hello"})
    assert say(connection, {"type": "ping"}) == []


def test_the_message_type_belongs_to_the_subprotocol() -> None:
    assert close_of(list(greeted().receive(b'{"type":"ping"}', False, 0.0))) is CloseCode.BAD_FRAME
    binary = Connection(MSGPACK, 400, 1000, 0.0)
    assert close_of(list(binary.receive(b'{"type":"hello"}', True, 0.0))) is CloseCode.BAD_FRAME


def test_a_wrong_frame_is_answered_and_the_next_is_obeyed() -> None:
    error, ping = say(greeted(), [{"type": "ack", "stream": "g_x", "offset": -1}, {"type": "ping"}])
    assert isinstance(error, ErrorFrame)
    assert (error.code, error.retry, error.stream) == ("invalid_request", "no", "g_x")
    assert ping == Ping()


def test_a_message_above_its_limit_is_answered_unread() -> None:
    connection = greeted(size=100)
    [error] = say(connection, {"type": "ping", "x": "y" * 100})
    assert isinstance(error, ErrorFrame)
    assert error.code == "too_large"
    assert say(connection, {"type": "ping"}) == [Ping()]


def test_twice_the_rate_may_come_at_once_and_a_batch_counts_its_frames() -> None:
    connection = greeted(rate=50)
    assert len(say(connection, [{"type": "ping"}] * 64)) == 64
    assert len(say(connection, [{"type": "ping"}] * 35)) == 35
    assert close_of(say(connection, {"type": "ping"})) is CloseCode.FLOODING


def test_the_rate_is_sustained_for_ever() -> None:
    connection = greeted(rate=50)
    for second in range(1, 20):
        for _ in range(50):
            assert say(connection, {"type": "ping"}, now=float(second)) == [Ping()]


def test_a_long_silence_saves_up_no_more_than_twice_the_rate() -> None:
    connection = greeted(rate=10)
    for _ in range(20):
        assert say(connection, {"type": "ping"}, now=1000.0) == [Ping()]
    assert close_of(say(connection, {"type": "ping"}, now=1000.0)) is CloseCode.FLOODING


def test_what_the_websocket_layer_pays_for_and_frames_come_out_of_one_purse() -> None:
    connection = greeted(rate=10)
    assert all(connection.spend(1, 0.0) for _ in range(10))  # pings, say; and hello took one
    assert len(say(connection, [{"type": "ping"}] * 9)) == 9
    assert not connection.spend(1, 0.0)
    assert connection.spend(1, 1.0)


def test_a_message_that_was_not_kept_is_answered_and_paid_for() -> None:
    connection = greeted(rate=2)
    for _ in range(3):  # hello was the fourth
        [error] = connection.receive_too_large(0.0)
        assert isinstance(error, ErrorFrame) and error.code == "too_large"
    assert close_of(list(connection.receive_too_large(0.0))) is CloseCode.FLOODING
    assert list(connection.receive_too_large(0.0)) == []


def test_messages_above_the_limit_are_paid_for_too() -> None:
    connection = greeted(rate=2, size=100)
    for _ in range(3):
        assert isinstance(say(connection, "x" * 200)[0], ErrorFrame)
    assert close_of(say(connection, "x" * 200)) is CloseCode.FLOODING
