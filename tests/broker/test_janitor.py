"""What nobody owns is finished or handed on; never twice, and never what somebody owns."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

import msgpack
import pytest
from redis.asyncio import Redis

from headrace.protocol.body import Body, Options
from headrace.protocol.frames import Message
from hub.broker import janitor as janitors
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.janitor import (
    BARREN_ATTEMPTS,
    FORGET_MS,
    LOST_ATTEMPTS,
    PATIENCE_MS,
    QUEUE_SLACK_MS,
    VANISHED_MS,
    Janitor,
    Memory,
    Verdict,
    judge,
)
from hub.broker.keys import TAKEOVER_LANE
from hub.broker.letters import Letters
from hub.broker.log import Claim
from hub.broker.mailbox import HubPacket, MailboxReader, new_mailbox
from hub.broker.settings import BrokerSettings
from tests.installation import eventually

KEY = keys.stream_key("acme", "g_5Zk2mQ9xWb3TnL8r")
SETTINGS = BrokerSettings(lease_grace_s=3, queue_timeout_s=120, janitor_interval_s=0.5)
NOW = 1_000_000


def facts(**changes: object) -> dict[str, str]:
    known = {"state": "running", "owner": "w1", "lease": NOW + 5000, "created": NOW - 9000, "losses": 0, "barren": 0,
             "lane": "standard", "cancel": 0, "top": 5}  # fmt: skip
    return {name: str(value) for name, value in (known | changes).items()}


def act(
    found: dict[str, str] | None,
    oldest: int | None = None,
    now: int = NOW,
    memory: Memory | None = None,
    settled: int = NOW,
) -> str:
    return judge(KEY, found, oldest, now, memory or Memory(), SETTINGS, settled).act


@pytest.mark.parametrize(
    ("found", "oldest", "expected"),
    [
        (None, None, "wait"),
        (facts(state="done"), None, "remove"),
        (facts(), None, "wait"),
        (facts(lease=NOW), None, "wait"),  # over now, and Redis has only just come back
        (facts(lease=0, owner=""), None, "takeover"),  # handed back: nobody to wait for
        (facts(lease=NOW + 500, owner=""), None, "wait"),  # somebody is ending it
        (facts(lease=NOW + 500, cancel=1), None, "wait"),  # its owner ends it
        (facts(lease=0, owner="", cancel=1), None, "cancelled"),
        (facts(lease=0, cancel=1), None, "wait"),  # its owner may come back in the grace
        (facts(state="queued", owner="", created=NOW - 1000), None, "wait"),
        (facts(state="queued", owner="", created=NOW - QUEUE_SLACK_MS - 1), None, "enqueue"),
        (facts(state="queued", owner="", created=NOW - 60_000), NOW - 59_000, "wait"),  # waits behind others
        (facts(state="queued", owner="", created=NOW - 60_000), NOW - 54_000, "enqueue"),  # all there came later
        (facts(state="queued", owner="", created=NOW - 120_000), NOW - 120_000, "wait"),
        (facts(state="queued", owner="", created=NOW - 120_001), NOW - 120_001, "overloaded"),
    ],
)
def test_what_is_seen_first_is_judged_by_its_facts(
    found: dict[str, str] | None, oldest: int | None, expected: str
) -> None:
    assert act(found, oldest) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "takeover"),
        ({"barren": BARREN_ATTEMPTS - 2, "losses": 2}, "takeover"),
        ({"barren": BARREN_ATTEMPTS - 1, "losses": 2}, "bury"),
        ({"barren": 0, "losses": LOST_ATTEMPTS - 2}, "takeover"),
        ({"barren": 0, "losses": LOST_ATTEMPTS - 1}, "bury"),
    ],
)
def test_a_lease_still_over_after_the_grace_is_taken_over_or_given_up(
    changes: dict[str, object], expected: str
) -> None:
    memory, lost = Memory(), facts(lease=NOW - 1, **changes)
    first = judge(KEY, lost, None, NOW, memory, SETTINGS, NOW)
    assert (first.act, first.look_ms) == ("wait", NOW + 3000)
    assert act(lost, now=NOW + 2999, memory=memory) == "wait"
    assert act(lost, now=NOW + 3000, memory=memory) == expected


def test_an_owner_that_gets_through_in_the_grace_is_left_alone() -> None:
    memory = Memory()
    assert act(facts(lease=NOW - 1), memory=memory) == "wait"
    assert act(facts(lease=NOW + 6000), now=NOW + 1000, memory=memory) == "wait"
    assert act(facts(lease=NOW + 6000), now=NOW + 6000, memory=memory) == "takeover", "the grace is over for all"


def test_while_redis_answers_nobody_whose_lease_is_over_is_waited_for() -> None:
    assert act(facts(lease=NOW), settled=NOW - 3000) == "takeover"
    assert act(facts(lease=NOW), settled=NOW - 2999) == "wait"
    assert act(facts(lease=NOW - 60_000), settled=NOW - 2999) == "wait", "and after an outage everybody is"


@pytest.mark.parametrize("owner", ["", "w1"])
def test_a_run_that_nobody_takes_over_ends_after_the_queue_timeout(owner: str) -> None:
    memory, lost = Memory(), facts(lease=NOW - 1, owner=owner)
    act(lost, memory=memory)
    limit = int(SETTINGS.queue_timeout_s * 1000)
    assert act(lost, oldest=None, now=NOW + limit - 1, memory=memory) == "takeover"
    assert act(lost, oldest=None, now=NOW + limit, memory=memory) == "lost"


def test_a_run_lost_long_ago_gets_its_chance_with_a_janitor_that_is_new() -> None:
    """Everything was down for an hour: workers are asked first. And a janitor that changes begins no new timeout."""
    memory, lost = Memory(), facts(lease=NOW - 3_600_000, owner="")
    assert act(lost, memory=memory) == "takeover"
    assert act(lost, now=NOW + PATIENCE_MS, memory=memory) == "takeover"
    assert act(lost, now=NOW + PATIENCE_MS + 1, memory=memory) == "lost"


def test_a_janitor_that_died_in_the_middle_of_giving_up_is_followed_by_one_that_does_it() -> None:
    assert act(facts(lease=NOW - 1, owner="", barren=BARREN_ATTEMPTS, losses=BARREN_ATTEMPTS)) == "bury"
    assert act(facts(lease=NOW - 1, owner="", barren=BARREN_ATTEMPTS - 1, losses=BARREN_ATTEMPTS)) == "takeover"


def test_what_others_finished_is_forgotten_in_time() -> None:
    memory = Memory()
    for number in range(100):
        key = keys.stream_key("acme", f"g_{number:016}")
        judge(key, facts(lease=1, owner=""), None, NOW, memory, SETTINGS, NOW)
    act(facts(lease=1, owner=""), now=NOW + FORGET_MS, memory=memory)
    memory.prune(NOW + FORGET_MS + 1)
    assert list(memory.notes) == [KEY]
    act(facts(lease=NOW + FORGET_MS + 500), now=NOW + FORGET_MS, memory=memory)
    assert not memory.notes, "what runs again needs no note"


def test_what_was_enqueued_is_not_enqueued_again_while_it_waits() -> None:
    memory = Memory()
    memory.note(KEY, 0, NOW).enqueued = NOW
    assert act(facts(lease=0, owner=""), oldest=NOW - 5, now=NOW + 1000, memory=memory) == "wait"
    assert act(facts(lease=0, owner=""), oldest=NOW, now=NOW + 1000, memory=memory) == "wait"
    assert act(facts(lease=0, owner=""), oldest=None, now=NOW + 1000, memory=memory) == "takeover"
    queued = facts(state="queued", owner="", created=NOW - 9000)
    assert act(queued, oldest=None, now=NOW + QUEUE_SLACK_MS, memory=memory) == "wait"
    assert act(queued, oldest=None, now=NOW + QUEUE_SLACK_MS + 1, memory=memory) == "enqueue"


def test_an_index_entry_without_a_stream_is_kept_for_its_accept() -> None:
    memory = Memory()
    assert act(None, memory=memory) == "wait"
    assert act(None, now=NOW + VANISHED_MS - 1, memory=memory) == "wait"
    assert act(None, now=NOW + VANISHED_MS, memory=memory) == "remove"
    memory.forget(KEY)
    assert act(None, now=NOW + VANISHED_MS, memory=memory) == "wait"


# -- against a real server -----------------------------------------------------------------------------------


class Scene:
    """A stream and a janitor whose clock the test moves, by moving the facts."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.janitor = self.another_janitor()
        self.redis: Any = broker.connections.control
        self.key = KEY

    def another_janitor(self, **settings: Any) -> Janitor:
        broker = self.broker
        chosen = BrokerSettings(**({"lease_grace_s": 0} | settings))
        return Janitor(broker.connections.control, broker.log, broker.lanes, broker.live, chosen)

    async def accept(self) -> None:
        self.key = await self.broker.accept(
            org="acme", user="alice", request_key="r1", body=Body([Message("user", "hi")]), options=Options(),
            now_ms=int(time.time() * 1000),
        )  # fmt: skip

    async def set(self, **values: object) -> None:
        await self.redis.hset(keys.meta(self.key), mapping={name: str(value) for name, value in values.items()})

    async def claim(self, mark: str = "m1") -> None:
        assert isinstance(
            await self.broker.log.claim(self.key, mark=mark, owner="w1", lease_ms=5000, ttl_ms=60_000), Claim
        )

    async def lose(self) -> None:
        """The worker is gone, and its lease over."""
        await self.set(lease=1)

    async def sweep(self, janitor: Janitor | None = None) -> None:
        for shard in range(keys.LIVE_SHARDS):  # every stream is due now
            for member in await self.redis.zrange(keys.live(shard), 0, -1):
                await self.redis.zadd(keys.live(shard), {member: 0})
        await (janitor or self.janitor).sweep()

    async def depth(self, lane: str) -> int:
        return (await self.broker.lanes.depths([lane]))[lane]

    async def done(self) -> dict[str, Any]:
        entries = await self.broker.log.read(self.key, 1, 100)
        assert [kind for kind, _ in entries].count("done") == 1
        assert entries[-1][0] == "done"
        data: dict[str, Any] = msgpack.unpackb(entries[-1][1])
        return data


@pytest.fixture
async def scene(broker: Broker) -> Scene:
    scene = Scene(broker)
    await scene.accept()
    return scene


async def test_a_request_in_its_lane_and_a_living_run_are_left_alone(scene: Scene) -> None:
    await scene.sweep()
    assert await scene.depth("standard") == 1
    await scene.claim()
    await scene.sweep()
    assert (await scene.depth("standard"), await scene.depth(TAKEOVER_LANE)) == (1, 0)
    assert await scene.broker.live.size() == 1


async def test_a_run_whose_lease_is_over_goes_to_the_takeover_lane_after_the_grace(scene: Scene) -> None:
    await scene.claim()
    await scene.lose()
    patient = scene.another_janitor(lease_grace_s=60)
    await scene.sweep(patient)
    await scene.sweep(patient)
    assert await scene.depth(TAKEOVER_LANE) == 0
    await scene.sweep()
    assert await scene.depth(TAKEOVER_LANE) == 1


async def test_two_janitors_at_once_are_harmless(scene: Scene) -> None:
    await scene.claim()
    await scene.lose()
    await scene.sweep()
    await scene.sweep(scene.another_janitor())
    assert await scene.depth(TAKEOVER_LANE) == 2
    await scene.claim("m2")
    refused = await scene.broker.log.claim(scene.key, mark="m3", owner="w3", lease_ms=5000, ttl_ms=60_000)
    assert not isinstance(refused, Claim), "the second ticket is dropped at the claim"


async def test_a_takeover_that_waits_is_not_enqueued_for_ever(scene: Scene) -> None:
    await scene.claim()
    await scene.lose()
    for _ in range(20):
        await scene.sweep()
    assert await scene.depth(TAKEOVER_LANE) <= 2


async def test_a_released_run_is_enqueued_again_if_its_ticket_was_lost(scene: Scene) -> None:
    await scene.claim()
    await scene.broker.log.release(scene.key, "m1")
    await scene.sweep()
    assert await scene.depth(TAKEOVER_LANE) == 1


async def test_a_request_that_is_in_no_lane_is_enqueued_again(scene: Scene) -> None:
    await scene.redis.delete(keys.lane("standard"))
    await scene.sweep()
    assert await scene.depth("standard") == 0, "its accept may be under way"
    await scene.set(created=int(time.time() * 1000) - QUEUE_SLACK_MS - 1000)
    await scene.sweep()
    assert await scene.depth("standard") == 1
    await scene.sweep()
    assert await scene.depth("standard") == 1


async def test_a_request_that_no_worker_took_in_time_ends_and_its_viewers_are_told(scene: Scene) -> None:
    reader = MailboxReader(scene.broker.connections, new_mailbox("h"), 20)
    await reader.open()
    await scene.broker.log.attach(scene.key, user="alice", may_read=False, mailbox=reader.name, demand=1)
    await scene.set(created=1)
    await scene.sweep()
    done = await scene.done()
    assert (done["status"], done["error"]["code"], done["error"]["retry"]) == ("failed", "overloaded", "after")
    assert done["error"]["after_ms"] > 0
    assert (done["text_bytes"], done["text_sha256"]) == (0, hashlib.sha256(b"").hexdigest())
    packets = await reader.read() or await reader.read()
    [packet] = packets
    assert isinstance(packet, HubPacket)
    [part] = packet.parts
    assert (packet.sender, part.key, part.first) == ("", scene.key, 2)
    assert part.entries == await scene.broker.log.read(scene.key, 2, 9)
    view = await scene.broker.log.attach(scene.key, user="alice", may_read=False, mailbox="", demand=0)
    assert view.runs.at(2) == part.mark, "told under the mark that the log has"
    await scene.sweep()
    assert await scene.broker.live.size() == 0
    await reader.close()


async def test_a_generation_lost_again_and_again_without_content_is_given_up(scene: Scene) -> None:
    for number in range(BARREN_ATTEMPTS):
        await scene.claim(f"m{number}")
        await scene.lose()
        await scene.sweep()
        if number < BARREN_ATTEMPTS - 1:
            assert await scene.depth(TAKEOVER_LANE) >= 1
            await scene.redis.delete(keys.lane(TAKEOVER_LANE))
    done = await scene.done()
    assert (done["status"], done["error"]["code"]) == ("failed", "worker_lost")
    [letter] = await Letters(scene.redis).all()
    assert (letter.key, letter.why, letter.user, letter.model) == (scene.key, "worker_lost", "alice", "standard")
    assert letter.attempts == BARREN_ATTEMPTS
    kept = await scene.redis.hget(keys.meta(scene.key), "request")
    assert msgpack.unpackb(kept)["messages"], "the request stays as long as the stream: it may be asked again"


async def test_a_janitor_that_dies_after_its_letter_leaves_one_letter_and_one_end(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.claim()
    await scene.set(lease=1, barren=BARREN_ATTEMPTS - 1, losses=BARREN_ATTEMPTS - 1)

    class Died(BaseException):
        pass

    async def die(*args: object, **kwargs: object) -> None:
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(scene.broker.log, "append", die)
        await scene.sweep()
    await scene.set(lease=1)
    await scene.sweep(scene.another_janitor())
    assert (await scene.done())["error"]["code"] == "worker_lost"
    assert await scene.depth(TAKEOVER_LANE) == 0, "what was given up is not run once more"
    [letter] = await Letters(scene.redis).all()
    assert letter.key == scene.key


async def test_a_janitor_whose_turn_is_over_forgets_what_it_knew(scene: Scene) -> None:
    await scene.claim()
    await scene.lose()
    await scene.sweep()
    assert scene.janitor._memory.notes
    await scene.redis.set(keys.janitor(), "another")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        running = group.create_task(scene.janitor.run())
        await eventually(lambda: not scene.janitor._memory.notes)
        running.cancel()


async def test_content_in_between_buys_more_attempts_but_not_for_ever(scene: Scene) -> None:
    for number in range(LOST_ATTEMPTS):
        assert "done" not in [kind for kind, _ in await scene.broker.log.read(scene.key, 1, 100)], number
        await scene.claim(f"m{number}")
        top = len(await scene.broker.log.read(scene.key, 1, 100))
        opening = [("started", b"\x80"), ("reset", b"\x80")]
        await scene.broker.log.append(scene.key, f"m{number}", top + 1, opening, shown="r")
        await scene.broker.log.append(scene.key, f"m{number}", top + 3, [("text", b"blue")], shown="c")
        await scene.lose()
        await scene.sweep()
        await scene.redis.delete(keys.lane(TAKEOVER_LANE))
    done = await scene.done()
    assert (done["text_bytes"], done["text_sha256"]) == (4, hashlib.sha256(b"blue").hexdigest()), "the fold is kept"


async def test_a_worker_that_comes_back_before_the_end_is_written_wins(scene: Scene) -> None:
    await scene.claim()
    await scene.set(lease=int(time.time() * 1000) + 60_000, created=1, state="queued")
    await scene.sweep()
    assert [kind for kind, _ in await scene.broker.log.read(scene.key, 1, 9)] == ["queued"], "the claim was refused"
    assert await scene.broker.live.size() == 1, "it runs, and is still looked after"


async def test_what_is_done_or_vanished_leaves_the_index(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitors, "VANISHED_MS", 0)
    await scene.broker.live.add(keys.stream_key("acme", "g_aaaaaaaaaaaaaaaa"), 0)
    await scene.broker.log.cancel(scene.key, user="alice", may_cancel=False, done=b"d", ttl_ms=9000)
    assert await scene.broker.live.size() == 2
    await scene.sweep()
    assert await scene.broker.live.size() == 0


async def test_one_janitor_has_the_turn_until_it_stops(scene: Scene) -> None:
    other = scene.another_janitor()
    assert await scene.janitor._has_turn()
    assert not await other._has_turn()
    assert await scene.janitor._has_turn()
    redis: Redis = scene.redis
    await redis.delete(keys.janitor())
    assert await other._has_turn()
    assert not await scene.janitor._has_turn()


@pytest.mark.parametrize("is_released", [False, True])
async def test_what_was_cancelled_and_lost_ends_cancelled_without_another_worker(
    scene: Scene, is_released: bool
) -> None:
    await scene.claim()
    await scene.broker.log.append(scene.key, "m1", 2, [("text", b"blue")], shown="c")
    await scene.broker.log.cancel(scene.key, user="alice", may_cancel=False, done=b"d", ttl_ms=9000)
    if is_released:
        await scene.broker.log.release(scene.key, "m1")
    else:
        await scene.lose()
    await scene.sweep()
    done = await scene.done()
    assert (done["status"], done["stop_reason"], done["text_bytes"]) == ("cancelled", "cancelled", 4)
    assert await scene.depth(TAKEOVER_LANE) == 0


async def test_a_cancel_that_comes_while_an_answer_is_given_up_is_honoured(scene: Scene) -> None:
    """The facts were read before it; the claim, which ends the answer, sees it."""
    await scene.claim()
    await scene.broker.log.cancel(scene.key, user="alice", may_cancel=False, done=b"d", ttl_ms=9000)
    await scene.lose()
    verdict = Verdict("lost")
    await scene.janitor._act(scene.key, verdict, TAKEOVER_LANE, int(time.time() * 1000))
    assert (await scene.done())["status"] == "cancelled"


async def test_an_end_that_redis_lost_is_written_again(scene: Scene) -> None:
    """A failover loses `done` after the janitor took the stream out of the index: nothing else points to it."""
    await scene.claim()
    held = {name: await scene.redis.dump(name) for name in (keys.meta(scene.key), keys.log(scene.key))}
    await scene.broker.log.append(scene.key, "m1", 2, [("done", b"d")], done_ttl_ms=60_000)
    await scene.sweep()
    assert await scene.broker.live.size() == 0
    for name, value in held.items():
        await scene.redis.restore(name, 60_000, value, replace=True)
    await scene.lose()
    for _ in range(10):
        await scene.sweep()
    assert await scene.depth(TAKEOVER_LANE) > 0
