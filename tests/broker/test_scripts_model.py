"""The scripts against a model, over random interleavings: claims, appends and their retries, cancels, expiries.

Every reply of Redis is compared with the model's, and after every step the keys themselves. On top of that, what no
interleaving may break is checked on what Redis holds, not on the model:

- a log is dense, and an entry that could be read never changes
- every entry stands in the run of the mark it was appended under; no mark comes back after another
- at most one `done`, nothing after it, and the state says `done` if and only if it is there
- only the newest attempt writes
- every key has an end, and what is finished keeps no interest
- what is not finished is owned under a lease, or the janitor acts on it within its time
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from headrace.protocol.cursor import MarkRuns
from hub.broker import keys
from hub.broker.janitor import FACTS, PATIENCE_MS, VANISHED_MS, Memory, judge
from hub.broker.log import SCRIPTS
from hub.broker.settings import BrokerSettings
from tests.broker.script_model import StreamModel

KEY = keys.stream_key("acme", "g_5Zk2mQ9xWb3TnL8r")
NAMES = {"meta": keys.meta(KEY), "log": keys.log(KEY), "interest": keys.interest(KEY)}
REQUEST = [keys.request("acme", "alice", "r1"), keys.user_streams("acme", "alice")]
BROKER = BrokerSettings()
LEASE_MS = 50_000
#: Times to live that tell which script set them, in ms. A step takes far less than what lies between them.
CREATED, CLAIMED, RENEWED, ENDED = 1_000_000, 3_000_000, 5_000_000, 700_000

who = st.sampled_from([("alice", 0), ("mallory", 0), ("operator", 1)])
pieces = st.lists(st.tuples(st.sampled_from([b"text", b"tool_input"]), st.binary(max_size=3)), min_size=1, max_size=3)
boxes = st.sampled_from(["h1", "h2"])


class Scripts(RuleBasedStateMachine):
    """One stream. `client` is a Redis that is empty but for it."""

    client: redis.Redis

    @initialize()
    def begin(self) -> None:
        self.client.flushdb()
        self.scripts: dict[str, Any] = {name: self.client.register_script(text) for name, text in SCRIPTS.items()}
        self.model = StreamModel()
        self.marks: list[str] = ["m0"]
        self.sent: list[tuple[str, int, list[tuple[bytes, bytes]]]] = []
        self.readable: list[tuple[bytes, bytes]] = []
        self.written_by: dict[int, str] = {}
        self.created = 0
        #: Redis lost the log and kept its meta: scripts and model still agree, but no promise is left to hold.
        self.is_torn = False
        self.run("create", f"m{self.created}", b"q", "alice", b"asked", b"how", "standard", CREATED)

    def run(self, name: str, *arguments: Any) -> Any:
        """Run a script in both; their replies are the same."""
        script_keys = REQUEST if name == "reserve" else [make(KEY) for make in keys.SCRIPT_KEYS[name]]
        reply = self.scripts[name](keys=script_keys, args=list(arguments))
        expected = getattr(self.model, name)(*arguments)
        if isinstance(reply, list):
            reply = [_pairs(item) if isinstance(item, list) else item for item in reply]
        assert reply == expected, f"{name}{arguments}: Redis says {reply}, the model {expected}"
        return reply

    # -- a life

    @rule()
    def create(self) -> None:
        self.created += 1
        self.is_torn &= self.model.meta is not None
        self.marks.append(f"c{self.created}")
        self.run("create", self.marks[-1], b"q", "alice", b"asked", b"how", "standard", CREATED)

    @rule(owner=st.sampled_from(["w1", "w2", ""]))
    def claim(self, owner: str) -> None:
        self.marks.append(f"m{len(self.marks)}")
        self.run("claim", self.marks[-1], owner, LEASE_MS, CLAIMED)

    @rule(owner=st.sampled_from(["w1", "w2"]))
    def take_over(self, owner: str) -> None:
        """The owner died; somebody else claims."""
        self.end_lease()
        self.claim(owner)

    @rule(data=st.data())
    def claim_again(self, data: st.DataObject) -> None:
        self.run("claim", data.draw(st.sampled_from(self.marks)), "w1", LEASE_MS, CLAIMED)

    @rule(entries=pieces, shown=st.sampled_from(["", "c", "r"]), lease=st.sampled_from([0, LEASE_MS]))
    def append(self, entries: list[tuple[bytes, bytes]], shown: str, lease: int) -> None:
        """What the owner of the newest attempt does."""
        mark = self.model.meta.mark if self.model.meta else self.marks[-1]
        self._append(mark, len(self.model.log) + 1, entries, shown=shown, lease=lease)

    @rule(entries=pieces, data=st.data(), distance=st.integers(-4, 3))
    def append_anywhere(self, entries: list[tuple[bytes, bytes]], data: st.DataObject, distance: int) -> None:
        first = max(1, len(self.model.log) + 1 + distance)
        self._append(data.draw(st.sampled_from(self.marks)), first, entries)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), more=st.booleans(), other=st.booleans())
    def append_again(self, data: st.DataObject, more: bool, other: bool) -> None:
        """A reply was lost: the same once more, with more behind it, or (which no worker does) with other bytes."""
        mark, first, entries = data.draw(st.sampled_from(self.sent))
        if other:
            entries = [(kind, b"other") for kind, _ in entries]
        self._append(mark, first, entries + ([(b"text", b"more")] if more and entries[-1][0] != b"done" else []))

    @rule(shown=st.sampled_from(["", "k"]), entries=st.one_of(st.just([]), pieces))
    def finish(self, shown: str, entries: list[tuple[bytes, bytes]]) -> None:
        mark = self.model.meta.mark if self.model.meta else self.marks[-1]
        self._append(mark, len(self.model.log) + 1, [*entries, (b"done", b"d")], shown=shown)

    def _append(
        self, mark: str, first: int, entries: list[tuple[bytes, bytes]], *, shown: str = "", lease: int = 0
    ) -> None:
        ttl = ENDED if entries[-1][0] == b"done" else 0
        top, newest = len(self.model.log), self.model.meta and self.model.meta.mark
        flat = [part for entry in entries for part in entry]
        reply = self.run("append", mark, first, shown, lease, ttl, *flat)
        self.sent.append((mark, first, entries))
        if reply[0] in (b"OK", b"DUP"):
            assert mark == newest, "only the newest attempt is told that its entries are in the log"
        for offset in range(top + 1, len(self.model.log) + 1):
            self.written_by[offset] = mark

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        self.run("renew", data.draw(st.sampled_from(self.marks)), "w1b", LEASE_MS, RENEWED)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.run("release", data.draw(st.sampled_from(self.marks)))

    @rule(data=st.data(), underway=st.sampled_from(["", "one", "other"]))
    def remember(self, data: st.DataObject, underway: str) -> None:
        self.run("remember", data.draw(st.sampled_from(self.marks)), underway)

    @rule(who=who)
    def cancel(self, who: tuple[str, int]) -> None:
        reply = self.run("cancel", *who, b"cancelled", ENDED)
        if reply[0] == b"ENDED":
            self.written_by[reply[1]] = reply[2].decode()

    @rule(who=who, mailbox=st.sampled_from(["", "h1", "h2"]), demand=st.sampled_from([0, 9, 2**53 - 1]))
    def attach(self, who: tuple[str, int], mailbox: str, demand: int) -> None:
        self.run("attach", *who, mailbox, demand, "" if demand == 9 else 256)

    @rule(mailbox=boxes)
    def leave(self, mailbox: str) -> None:
        self.run("leave", mailbox)

    @rule(who=who, wish=st.sampled_from(["cancel", "continue"]))
    def abandon(self, who: tuple[str, int], wish: str) -> None:
        self.run("abandon", *who, wish)

    @rule(stream=st.sampled_from(["g_1", "g_2"]), digest=st.sampled_from(["one", "other"]))
    def reserve(self, stream: str, digest: str) -> None:
        self.run("reserve", stream, digest, CREATED, 3)

    # -- time

    @rule()
    def end_lease(self) -> None:
        if self.model.meta and self.model.meta.is_leased:
            self.client.hset(NAMES["meta"], "lease", 1)
        self.model.lease_over()

    @rule(names=st.sampled_from([("meta", "log", "interest"), ("meta",), ("log",), ("interest",)]))
    def expire(self, names: tuple[str, ...]) -> None:
        self.client.delete(*[NAMES[name] for name in names])
        self.model.expire(*names)
        self.is_torn |= names == ("log",)

    # -- what holds after every step

    @invariant()
    def redis_holds_what_the_model_holds(self) -> None:
        pipeline = self.client.pipeline(transaction=False)
        pipeline.hgetall(NAMES["meta"])
        pipeline.xrange(NAMES["log"])
        pipeline.hgetall(NAMES["interest"])
        for name in NAMES.values():
            pipeline.pttl(name)
        meta, log, interest, *ttls = pipeline.execute()
        self._check_meta(meta)
        self._check_log(meta, log)
        assert interest == self.model._watchers()
        for name, left in zip(NAMES, ttls, strict=True):
            set_to = self.model.ttl.get(name)
            assert left == -2 if set_to is None else set_to - 100_000 < left <= set_to, f"{name} lives {left} ms"
        if meta and meta[b"state"] == b"done":
            assert not interest
        self._check_janitor(meta)

    def _check_meta(self, found: dict[bytes, bytes]) -> None:
        meta = self.model.meta
        if meta is None:
            assert found == {}
            return
        expected = {
            "state": meta.state.decode(), "mark": meta.mark, "runs": meta.runs_text.decode(), "attempt": meta.attempt,
            "losses": meta.losses, "barren": meta.barren, "owner": meta.owner, "cancel": meta.cancel,
            "shown": meta.shown, "user": meta.user, "options": meta.options.decode(), "lane": meta.lane,
        }  # fmt: skip
        told = {name.decode(): value.decode() for name, value in found.items()}
        lease, _ = int(told.pop("lease")), told.pop("created")
        assert (lease > time.time() * 1000) == meta.is_leased
        assert told.pop("request", None) == (None if meta.request is None else meta.request.decode())
        assert told.pop("abandon", None) == meta.abandon
        assert told.pop("underway", None) == meta.underway
        assert told == {name: str(value) for name, value in expected.items()}

    def _check_log(self, meta: dict[bytes, bytes], rows: list[Any]) -> None:
        assert [id_ for id_, _ in rows] == [b"%d-0" % offset for offset in range(1, len(rows) + 1)], "dense"
        log = [(fields[b"k"], fields[b"d"]) for _, fields in rows]
        assert log == self.model.log
        if len(log) < len(self.readable) or (len(log) == 1 and self.written_by.get(1) is None):
            self.readable, self.written_by = [], {}  # it expired, or was made anew: another history
        assert log[: len(self.readable)] == self.readable, "what could be read never changes"
        self.readable = log
        kinds = [kind for kind, _ in log]
        assert b"done" not in kinds[:-1] or self.is_torn
        if not meta or self.is_torn:
            return
        assert (meta[b"state"] == b"done") == (kinds[-1:] == [b"done"])
        runs = MarkRuns.parse(meta[b"runs"].decode())
        firsts, marks = zip(*runs, strict=True)
        assert list(firsts) == sorted(set(firsts)) and len(set(marks)) == len(marks), "no mark comes back"
        for offset, mark in self.written_by.items():
            assert offset > len(log) or runs.at(offset) == mark

    def _check_janitor(self, meta: dict[bytes, bytes]) -> None:
        """Look as the janitor would from now on, nobody doing anything: it acts within its time."""
        if not meta or meta[b"state"] == b"done":
            return
        facts = {name: meta[name.encode()].decode() for name in FACTS}
        memory, began = Memory(), int(time.time() * 1000)
        now = began
        while (verdict := judge(KEY, facts, None, now, memory, BROKER, began)).act == "wait":
            assert verdict.look_ms is not None and verdict.look_ms > now
            now = verdict.look_ms
            assert now - began < LEASE_MS + BROKER.lease_grace_s * 1000 + 10_000
        assert verdict.act in ("takeover", "enqueue", "bury", "cancelled")
        last = now + int(BROKER.queue_timeout_s * 1000) + PATIENCE_MS + VANISHED_MS
        end = [judge(KEY, facts, None, at, memory, BROKER, began).act for at in (now, last)][-1]
        assert end in ("overloaded", "lost", "bury", "cancelled"), "and ends it when nobody comes"

    def teardown(self) -> None:
        """Whatever happened: whoever claims it can end it, exactly once."""
        if not hasattr(self, "model") or self.model.meta is None:
            return
        self.end_lease()
        self.claim("w9")
        self.finish("", [])
        self.finish("", [])
        self.redis_holds_what_the_model_holds()
        assert self.is_torn or [kind for kind, _ in self.readable].count(b"done") == 1


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def check(url: str, examples: int, phases: Sequence[Phase] = tuple(Phase)) -> None:
    """Run so many random lives against an emptied Redis. Without the phase that shrinks, a failure comes sooner."""
    with redis.Redis.from_url(url) as client:
        machine = type("Scripts", (Scripts,), {"client": client})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples, stateful_step_count=30, phases=phases, deadline=None, database=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip


def test_redis_does_what_the_model_says_whatever_comes_when(redis_url: str) -> None:
    check(redis_url, examples=80)


def test_one_key_is_one_stream_whoever_asks_when(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        reserve = client.register_script(SCRIPTS["reserve"])
        told = {reserve(keys=REQUEST, args=[f"g_{number}", f"d{number}", 9000, 3]) for number in range(10)}
        assert told == {b"g_0 d0 0"}
        foreign = [keys.request("acme", "bob", "r1"), keys.user_streams("acme", "bob")]
        assert reserve(keys=foreign, args=["g_x", "d", 9000, 3]) == b"g_x d 0"
