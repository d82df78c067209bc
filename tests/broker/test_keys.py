"""Every key in its slot, and no name that reaches another tenant's key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from hub.broker import keys
from hub.broker.log import SCRIPTS

NAMES = ["alice", "a}b", "{a}", "a{b", "a:b", "a b", "}", "{}", "日本", "%7B", "*", "a\x00b", "streams", "@-_.~"]


def slot(key: str) -> int:
    return key_slot(key.encode())


@pytest.mark.parametrize("org", NAMES)
@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_all_keys_of_a_script_lie_in_one_slot(script: str, org: str) -> None:
    user = (org, "b}c:d")
    of_users = {  # their keys are a user's, not a stream's
        "reserve": [keys.request(*user, "k{}:ey"), keys.user_streams(*user)],
        "prefetch": [keys.prefetched(*user), keys.prefetching(*user)],
    }
    if script in of_users:
        names = of_users[script]
    else:
        key = keys.stream_key(org, "g_5Zk2mQ9xWb3TnL8r")
        names = [make(key) for make in keys.SCRIPT_KEYS[script]]
    assert len({slot(name) for name in names}) == 1


@pytest.mark.parametrize("org", NAMES)
def test_streams_spread_over_slots_whatever_their_organisation_is_called(org: str) -> None:
    slots = {slot(keys.meta(keys.stream_key(org, f"g_{number:016}"))) for number in range(200)}
    assert len(slots) > 150


def test_lanes_share_a_slot_so_that_one_read_spans_them() -> None:
    names = [keys.lane("standard"), keys.lane(keys.TAKEOVER_LANE), keys.dead_letters()]
    assert len({slot(name) for name in names}) == 1


def test_every_script_has_its_keys_named() -> None:
    assert set(keys.SCRIPT_KEYS) | {"reserve", "prefetch"} == set(SCRIPTS)


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_two_tenants_or_streams_never_share_a_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    pairs = [keys.stream_key(*pair) for pair in (one, other) if all(part.isprintable() for part in pair)]
    if len(pairs) == 2 and one != other:
        assert pairs[0] != pairs[1]
        assert keys.meta(pairs[0]) != keys.meta(pairs[1])


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_stream_key_tells_its_organisation_and_stream(org: str, stream: str) -> None:
    key = keys.stream_key(org, stream)
    assert (keys.org_of(key), keys.stream_of(key)) == (org, stream)
    assert not set("{} \x00") & set(key)


safe = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.tuples(safe, safe, safe), st.tuples(safe, safe, safe))
def test_two_requests_never_share_a_key(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    if one != other:
        assert keys.request(*one) != keys.request(*other)
        assert keys.request(*one) != keys.user_streams(*other[:2])


def test_a_shard_is_one_of_those_that_the_janitor_walks() -> None:
    shards = {keys.live_shard(keys.stream_key("acme", f"g_{number:016}")) for number in range(500)}
    assert shards == set(range(keys.LIVE_SHARDS))
