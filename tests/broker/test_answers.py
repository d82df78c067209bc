"""Which requests are equal, who leads, and how many may be prepared ahead."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Call, Message, RetryOf
from hub.broker import keys
from hub.broker.answers import Answers, Scope, answer_key, may_share
from hub.broker.broker import Broker
from hub.broker.log import SCRIPTS

STREAM, OTHER, THIRD = (keys.stream_key("acme", f"g_{letter * 16}") for letter in "abc")


def body(**fields: Any) -> Body:
    return Body(fields.pop("messages", [Message("user", "Why?")]), **fields)


def key(
    asked: Body, *, scope: Scope = "org", user: str = "alice", candidates: tuple[str, ...] = ("a/b",)
) -> str | None:
    return answer_key(STREAM, user, asked, candidates, scope)


# -- what is equal


def test_equal_requests_have_one_name_whoever_asks_in_whatever_session() -> None:
    assert key(body()) == key(body(), user="bob") == key(body(session="s_1"))


@pytest.mark.parametrize(
    "fields",
    [{"messages": [Message("user", "Why ?")]}, {"messages": [Message("assistant", "Why?")]}, {"system": ""},
     {"model": "fast"}, {"provider": "openai"}, {"fallbacks": ["a/b"]}, {"max_tokens": 1}, {"temperature": 0.0},
     {"stop": ["."]}, {"schema": {}}],
    ids=str,
)  # fmt: skip
def test_whatever_the_model_is_asked_is_part_of_the_name(fields: dict[str, Any]) -> None:
    assert key(body(**fields)) != key(body())


def test_who_may_answer_is_part_of_the_name() -> None:
    assert key(body(), candidates=("a/b", "c/d")) != key(body()) != key(body(), candidates=("c/d",))


def test_an_organisation_or_a_user_never_shares_with_another() -> None:
    assert answer_key(keys.stream_key("globex", "g_1"), "alice", body(), ["a/b"], "org") != key(body())
    assert key(body(), scope="user") != key(body(), scope="user", user="bob")
    assert key(body(), scope="user", user="") == key(body()), "a user always has a name"
    assert key(body(), scope="off") is None


@pytest.mark.parametrize(
    "asked",
    [
        body(tools=[{"name": "search", "input_schema": {}}]),
        body(messages=[Message("user", "?"), Message("assistant", calls=[Call("t1", "search")])]),
        body(messages=[Message("user", "?"), Message("tool", "42", call="t1")]),
        body(retry_of=RetryOf("g_1", "token")),
    ],
)
def test_an_answer_with_tools_or_that_goes_on_with_another_is_nobody_else_s(asked: Body) -> None:
    assert not may_share(asked)
    assert key(asked) is None


# -- who leads


async def test_the_first_leads_until_it_is_of_no_use(broker: Broker) -> None:
    answers, redis = Answers(broker.connections.control), broker.connections.control
    name = keys.answer_key("acme", "", "d")
    assert await answers.lead(name, STREAM, ttl_ms=60_000) == STREAM
    assert await answers.lead(name, STREAM, ttl_ms=99_000_000) == STREAM
    assert await redis.pttl(keys.answer(name)) <= 60_000, "a repeat changes nothing"
    assert await answers.lead(name, OTHER, ttl_ms=60_000) == STREAM
    assert await answers.lead(name, OTHER, ttl_ms=60_000, useless=STREAM) == OTHER
    assert await answers.lead(name, THIRD, ttl_ms=60_000, useless=STREAM) == OTHER, "somebody was faster"
    assert await answers.lead(keys.answer_key("acme", "", "e"), THIRD, ttl_ms=60_000) == THIRD


# -- how many may be prepared


async def counted(broker: Broker, request: str, *, hour_ms: int = 3_600_000) -> tuple[bytes, int]:
    run: Any = broker.connections.control.register_script(SCRIPTS["prefetch"])
    names = [keys.prefetched("acme", "alice"), keys.prefetching("acme", "alice")]
    outcome, wait_ms = await run(keys=names, args=[request, f"c{request}", 3, 2, hour_ms, 60_000])
    return outcome, wait_ms


async def test_a_user_has_so_many_at_a_time_and_so_many_an_hour(broker: Broker) -> None:
    redis: Any = broker.connections.control
    current = keys.prefetching("acme", "alice")
    for request in ("r1", "r2", "r1", "r2"):
        assert await counted(broker, request) == (b"OK", 0), "a repeat counts once"
    assert await redis.hgetall(current) == {b"r1": b"cr1", b"r2": b"cr2"}
    assert await counted(broker, "r3") == (b"BUSY", 0)
    await redis.hdel(current, "r1")
    assert await counted(broker, "r3") == (b"OK", 0)
    await redis.delete(current)
    outcome, wait_ms = await counted(broker, "r4")
    assert outcome == b"SPENT" and 3_590_000 < wait_ms <= 3_600_000
    outcome, _ = await counted(broker, "r4", hour_ms=0)
    assert outcome == b"OK", "what is older than an hour does not count"
    assert 0 < await redis.pttl(current) <= 60_000
