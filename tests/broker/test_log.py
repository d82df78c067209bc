"""Every script of a stream's life, against a real server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from headrace.protocol.entries import Entry
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.keys import StreamKey
from hub.broker.log import APPEND_SHA, SCRIPTS, Absent, Cancelled, Claim, Refused, Renewal, append_command

KEY = keys.stream_key("acme", "g_5Zk2mQ9xWb3TnL8r")
LEASE = {"lease_ms": 5000, "ttl_ms": 60_000}
USER = "alice"


def text(*pieces: str) -> list[Entry]:
    return [("text", piece.encode()) for piece in pieces]


async def create(broker: Broker, key: StreamKey = KEY, ttl_ms: int = 60_000) -> str:
    return await broker.log.create(
        key, mark="m0", queued=b"q", user=USER, request=b"asked", options=b"how", lane="standard", ttl_ms=ttl_ms
    )


async def claim(broker: Broker, mark: str = "m1", owner: str = "w1", **changes: Any) -> Claim:
    claimed = await broker.log.claim(KEY, mark=mark, owner=owner, **(LEASE | changes))
    assert isinstance(claimed, Claim), claimed
    return claimed


async def attach(broker: Broker, mailbox: str = "h1", demand: int = 256, **changes: Any) -> Any:
    who: dict[str, Any] = {"user": USER, "may_read": False} | changes
    return await broker.log.attach(KEY, mailbox=mailbox, demand=demand, **who)


async def ttls(broker: Broker) -> list[int]:
    redis: Any = broker.connections.control
    return [await redis.pttl(make(KEY)) for make in (keys.meta, keys.log, keys.interest)]


async def expire(broker: Broker) -> None:
    """As if the retention was over."""
    await broker.connections.control.delete(keys.meta(KEY), keys.log(KEY), keys.interest(KEY))


async def end_lease(broker: Broker) -> None:
    redis: Any = broker.connections.control
    await redis.hset(keys.meta(KEY), "lease", 1)


# -- create --------------------------------------------------------------------------------------------------


async def test_create_makes_a_queued_stream_with_one_entry(broker: Broker) -> None:
    assert await create(broker) == "queued"
    assert await broker.log.read(KEY, 1, 10) == [("queued", b"q")]
    view = await attach(broker, mailbox="")
    assert (view.state, view.top, list(view.runs), view.owner, view.cancelled) == ("queued", 1, [(1, "m0")], "", False)
    meta, log, _ = await ttls(broker)
    assert 50_000 < meta <= 60_000 and 50_000 < log <= 60_000


async def test_create_again_changes_nothing_and_tells_the_state(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    await broker.log.append(KEY, "m1", 2, text("a"))
    assert await create(broker) == "running"
    assert len(await broker.log.read(KEY, 1, 10)) == 2
    assert str((await attach(broker)).runs) == "1:m0 2:m1"


async def test_create_clears_a_log_whose_meta_is_gone(broker: Broker) -> None:
    await create(broker)
    await broker.connections.control.delete(keys.meta(KEY))
    assert await create(broker) == "queued"
    assert await broker.log.read(KEY, 1, 10) == [("queued", b"q")]


# -- claim ---------------------------------------------------------------------------------------------------


async def test_a_claim_tells_all_a_worker_must_know(broker: Broker) -> None:
    await create(broker)
    await attach(broker, mailbox="h1", demand=300)
    claimed = await claim(broker)
    assert (claimed.next_offset, claimed.attempt, claimed.losses) == (2, 1, 0)
    assert (claimed.request, claimed.options, claimed.user) == (b"asked", b"how", USER)
    assert (claimed.cancelled, claimed.shown, claimed.on_abandon, claimed.log_bytes) == (False, False, "", 0)
    assert claimed.watchers == {"h1": 300}
    assert list(claimed.runs) == [(1, "m0"), (2, "m1")]
    view = await attach(broker)
    assert (view.state, view.owner) == ("running", "w1")


async def test_a_claim_repeated_with_its_mark_answers_the_same_and_counts_once(broker: Broker) -> None:
    await create(broker)
    first, again = await claim(broker), await claim(broker)
    assert str(again.runs) == str(first.runs) == "1:m0 2:m1"
    assert replace(again, runs=first.runs) == first


async def test_a_second_claim_is_refused_while_the_lease_lives(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    assert await broker.log.claim(KEY, mark="m2", owner="w2", **LEASE) == Refused("LEASED")
    assert (await broker.log.append(KEY, "m1", 2, text("a")))[0] == "OK", "the healthy run is not fenced"


async def test_a_claim_after_the_lease_is_another_attempt_and_counts_a_loss(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    await broker.log.append(KEY, "m1", 2, text("ab", "cd"), shown="c")
    await end_lease(broker)
    taken = await claim(broker, mark="m2", owner="w2")
    assert (taken.next_offset, taken.attempt, taken.losses, taken.shown) == (4, 2, 1, True)
    assert list(taken.runs) == [(1, "m0"), (2, "m1"), (4, "m2")]
    assert taken.log_bytes == len(b"q" + b"ab" + b"cd")


async def test_an_attempt_that_wrote_nothing_leaves_no_mark(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    await end_lease(broker)
    assert list((await claim(broker, mark="m2")).runs) == [(1, "m0"), (2, "m2")]


async def test_nothing_is_claimed_that_is_done_or_gone(broker: Broker) -> None:
    assert await broker.log.claim(KEY, mark="m1", owner="w1", **LEASE) == Refused("GONE")
    await create(broker)
    await claim(broker)
    await broker.log.append(KEY, "m1", 2, [("done", b"d")], done_ttl_ms=9000)
    await end_lease(broker)
    assert await broker.log.claim(KEY, mark="m2", owner="w2", **LEASE) == Refused("TERMINAL")


async def test_a_claim_keeps_all_three_keys_alive(broker: Broker) -> None:
    await create(broker, ttl_ms=1000)
    await attach(broker)
    await claim(broker)
    assert all(50_000 < ttl <= 60_000 for ttl in await ttls(broker))


# -- append --------------------------------------------------------------------------------------------------


async def test_an_append_is_dense_and_a_repeat_means_in_the_log(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    assert await broker.log.append(KEY, "m1", 2, text("a", "b")) == ("OK", 0)
    assert await broker.log.append(KEY, "m1", 2, text("a", "b")) == ("DUP", 0)
    assert await broker.log.append(KEY, "m1", 3, text("b")) == ("DUP", 0)
    assert await broker.log.read(KEY, 2, 10) == text("a", "b")


async def test_a_batch_that_is_partly_there_is_completed(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    await broker.log.append(KEY, "m1", 2, text("a", "b"))
    assert await broker.log.append(KEY, "m1", 2, text("a", "b", "c", "d")) == ("OK", 0)
    assert await broker.log.read(KEY, 1, 10) == [("queued", b"q"), *text("a", "b", "c", "d")]


async def test_a_hole_is_refused_with_the_top(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    assert await broker.log.append(KEY, "m1", 4, text("x")) == ("GAP", 1)
    assert len(await broker.log.read(KEY, 1, 10)) == 1


async def test_another_mark_is_fenced_before_anything_else_is_looked_at(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    for first in (1, 2, 9):  # known, next, beyond a hole
        assert await broker.log.append(KEY, "old", first, text("x")) == ("FENCED", 0)
    await broker.log.append(KEY, "m1", 2, [("done", b"d")], done_ttl_ms=9000)
    assert await broker.log.append(KEY, "old", 2, text("x")) == ("FENCED", 0)


async def test_after_done_a_known_batch_is_known_and_a_new_one_is_refused_whatever_its_offset(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    await broker.log.append(KEY, "m1", 2, [*text("a"), ("done", b"d")], done_ttl_ms=9000)
    assert await broker.log.append(KEY, "m1", 3, [("done", b"d")], done_ttl_ms=9000) == ("DUP", 0)
    assert await broker.log.append(KEY, "m1", 4, text("x")) == ("TERMINAL", 0)
    assert await broker.log.append(KEY, "m1", 9, text("x")) == ("TERMINAL", 0)


async def test_an_expired_stream_is_gone_and_never_made_again(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    await expire(broker)
    assert await broker.log.append(KEY, "m1", 2, text("x")) == ("GONE", 0)
    assert await broker.log.renew([(KEY, "m1")], owner="w1", **LEASE) == [Refused("GONE")]
    assert not await broker.log.release(KEY, "m1")
    await broker.log.leave(KEY, "h1")
    with pytest.raises(Absent):
        await attach(broker)
    with pytest.raises(Absent):
        await broker.log.cancel(KEY, user=USER, may_cancel=True, done=b"d", ttl_ms=9000)
    with pytest.raises(Absent):
        await broker.log.set_abandon(KEY, user=USER, may_cancel=True, rule="cancel")
    assert await broker.connections.control.dbsize() == 0


async def test_done_closes_the_stream_for_the_retention_time(broker: Broker) -> None:
    await create(broker)
    await attach(broker)
    await claim(broker)
    await broker.log.append(KEY, "m1", 2, [("done", b"d")], done_ttl_ms=9000)
    view = await attach(broker)
    assert (view.state, view.owner) == ("done", "")
    meta, log, interest = await ttls(broker)
    assert 8000 < meta <= 9000 and 8000 < log <= 9000
    assert interest == -2, "nobody need be told any more, and an attach afterwards leaves no interest behind"
    redis: Any = broker.connections.control
    assert await redis.hget(keys.meta(KEY), "request") is None, "the prompt is not kept longer than it is needed"


async def test_an_append_renews_a_lease_that_is_to_be_renewed_and_tells_a_cancel(broker: Broker) -> None:
    await create(broker)
    await claim(broker, lease_ms=100)
    redis: Any = broker.connections.control
    before = int(await redis.hget(keys.meta(KEY), "lease"))
    await broker.log.cancel(KEY, user=USER, may_cancel=False, done=b"d", ttl_ms=9000)
    assert await broker.log.append(KEY, "m1", 2, text("a")) == ("OK", 1)
    assert int(await redis.hget(keys.meta(KEY), "lease")) == before
    raw = await broker.connections.raw()
    command = append_command(KEY, "m1", 3, text("b"), shown="", lease_ms=5000, done_ttl_ms=0)
    assert await raw.execute([("SCRIPT", "LOAD", SCRIPTS["append"]), command], 5) == [APPEND_SHA.encode(), [b"OK", 1]]
    raw.close()
    assert int(await redis.hget(keys.meta(KEY), "lease")) >= before + 4000


async def test_content_is_noted_as_shown_until_a_reset(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    await broker.log.append(KEY, "m1", 2, text("a"), shown="c")
    await broker.log.append(KEY, "m1", 3, [("reset", b"r")], shown="r")
    await end_lease(broker)
    assert not (await claim(broker, mark="m2")).shown


async def test_entries_hold_any_bytes(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    data = bytes(range(256)) * 100
    await broker.log.append(KEY, "m1", 2, [("tool_ready", data), ("text", b"")])
    assert await broker.log.read(KEY, 2, 10) == [("tool_ready", data), ("text", b"")]
    assert await broker.log.read(KEY, 3, 1) == [("text", b"")]
    assert await broker.log.read(KEY, 4, 10) == []


# -- renew, release, cancel, abandon ---------------------------------------------------------------------------


async def test_renewals_are_answered_in_order_each_for_itself(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    await attach(broker, mailbox="h1", demand=9)
    absent = keys.stream_key("acme", "g_aaaaaaaaaaaaaaaa")
    replies = await broker.log.renew([(absent, "m1"), (KEY, "m1"), (KEY, "old")], owner="w1b", **LEASE)
    assert replies == [Refused("GONE"), Renewal(False, {"h1": 9}), Refused("FENCED")]
    assert (await attach(broker)).owner == "w1b", "a worker's mailbox may have changed"
    await broker.log.append(KEY, "m1", 2, [("done", b"d")], done_ttl_ms=9000)
    assert await broker.log.renew([(KEY, "m1")], owner="w1", **LEASE) == [Refused("TERMINAL")]


async def test_a_released_generation_is_claimed_at_once_and_counts_no_loss(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    assert not await broker.log.release(KEY, "old")
    assert await broker.log.release(KEY, "m1")
    assert await broker.log.release(KEY, "m1")
    taken = await claim(broker, mark="m2", owner="w2")
    assert (taken.attempt, taken.losses) == (2, 0)
    assert not await broker.log.release(KEY, "m1")


async def test_a_cancel_before_any_claim_ends_the_stream_itself(broker: Broker) -> None:
    await create(broker)
    await attach(broker, mailbox="h1")
    await attach(broker, mailbox="h2")
    outcome = await broker.log.cancel(KEY, user=USER, may_cancel=False, done=b"cancelled", ttl_ms=9000)
    assert (outcome.offset, outcome.mark, set(outcome.watchers), outcome.owner) == (2, "m0", {"h1", "h2"}, "")
    assert await broker.log.read(KEY, 2, 10) == [("done", b"cancelled")]
    assert (await attach(broker)).state == "done"
    assert await broker.log.claim(KEY, mark="m1", owner="w1", **LEASE) == Refused("TERMINAL")
    assert all(ttl <= 9000 for ttl in await ttls(broker))


async def test_a_cancel_of_what_runs_is_a_flag_that_claim_renew_and_append_tell(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    for _ in range(2):
        outcome = await broker.log.cancel(KEY, user=USER, may_cancel=False, done=b"d", ttl_ms=9000)
        assert outcome == Cancelled(owner="w1")
    assert (await attach(broker)).cancelled
    assert await broker.log.append(KEY, "m1", 2, text("a")) == ("OK", 1)
    assert await broker.log.append(KEY, "m1", 2, text("a")) == ("DUP", 1)
    assert await broker.log.renew([(KEY, "m1")], owner="w1", **LEASE) == [Renewal(True, {"h1": 256})]
    await end_lease(broker)
    assert (await claim(broker, mark="m2", owner="w2")).cancelled


async def test_cancelling_what_is_done_is_fine_and_changes_nothing(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    await broker.log.append(KEY, "m1", 2, [("done", b"d")], done_ttl_ms=9000)
    assert await broker.log.cancel(KEY, user=USER, may_cancel=False, done=b"x", ttl_ms=9000) == Cancelled()
    assert len(await broker.log.read(KEY, 1, 10)) == 2


async def test_an_abandon_rule_set_by_a_detach_reaches_the_next_claim(broker: Broker) -> None:
    await create(broker)
    assert await broker.log.set_abandon(KEY, user=USER, may_cancel=False, rule="continue") == ""
    assert (await claim(broker)).on_abandon == "continue"
    assert await broker.log.set_abandon(KEY, user=USER, may_cancel=False, rule="cancel") == "w1"


# -- access and interest -------------------------------------------------------------------------------------


async def test_a_foreign_user_is_told_the_same_as_for_an_absent_stream(broker: Broker) -> None:
    await create(broker)
    with pytest.raises(Absent):
        await attach(broker, user="mallory")
    with pytest.raises(Absent):
        await broker.log.cancel(KEY, user="mallory", may_cancel=False, done=b"d", ttl_ms=9000)
    with pytest.raises(Absent):
        await broker.log.set_abandon(KEY, user="mallory", may_cancel=False, rule="cancel")
    assert (await claim(broker)).watchers == {}, "and leaves no trace"
    assert not (await attach(broker)).cancelled


async def test_a_scope_lets_others_read_and_cancel(broker: Broker) -> None:
    await create(broker)
    assert (await attach(broker, user="operator", may_read=True)).top == 1
    await broker.log.cancel(KEY, user="operator", may_cancel=True, done=b"d", ttl_ms=9000)
    assert (await attach(broker)).state == "done"


async def test_interest_lives_as_long_as_the_stream_and_ends_with_leave(broker: Broker) -> None:
    await create(broker)
    await attach(broker, mailbox="h1", demand=5)
    await attach(broker, mailbox="h1", demand=7)
    await attach(broker, mailbox="", demand=9)
    meta, _, interest = await ttls(broker)
    assert 0 < interest <= meta
    assert (await claim(broker)).watchers == {"h1": 7}
    await broker.log.leave(KEY, "h1")
    await broker.log.leave(KEY, "h1")
    assert await broker.log.renew([(KEY, "m1")], owner="w1", **LEASE) == [Renewal(False, {})]


async def test_many_standings_in_one_trip(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    there, absent = await broker.log.standings([KEY, keys.stream_key("acme", "g_aaaaaaaaaaaaaaaa")])
    assert there is not None and absent is None
    assert (there.state, there.top, there.mark, there.owner) == ("running", 1, "m1", "w1")
    facts, none = await broker.log.facts([KEY, keys.stream_key("acme", "g_x")], ["state", "attempt", "abandon"])
    assert (facts, none) == ({"state": "running", "attempt": "1", "top": "1"}, None)


async def test_demand_of_a_bogus_cursor_is_cut_to_the_largest_window_past_the_top(broker: Broker) -> None:
    await create(broker)
    await attach(broker, mailbox="h1", demand=2**53 - 1, ahead=4096)
    await attach(broker, mailbox="h2", demand=4097, ahead=4096)
    await attach(broker, mailbox="h3", demand=5, ahead=4096)
    await attach(broker, mailbox="h4", demand=2**53 - 1)
    assert (await claim(broker)).watchers == {"h1": 4097, "h2": 4097, "h3": 5, "h4": 2**53 - 1}


async def test_a_released_lease_ends_now_so_that_it_is_known_since_when_it_waits(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    await broker.log.release(KEY, "m1")
    redis: Any = broker.connections.control
    seconds, _ = await redis.time()
    assert abs(int(await redis.hget(keys.meta(KEY), "lease")) - seconds * 1000) < 10_000


async def test_the_request_of_a_dead_letter_is_kept_as_long_as_the_stream(broker: Broker) -> None:
    await create(broker)
    await claim(broker)
    await broker.log.append(KEY, "m1", 2, [("done", b"d")], shown="k", done_ttl_ms=9000)
    redis: Any = broker.connections.control
    assert await redis.hget(keys.meta(KEY), "request") == b"asked"
    assert (await ttls(broker))[0] <= 9000
