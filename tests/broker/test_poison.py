"""One request that kills every worker it meets takes none of its neighbours into the dead letters.

Whole installations in simulated time: real judgements of the janitor, the claims of the script model (which
`test_scripts_model` holds against Redis), and workers that follow the rules of `workers/quarantine.py`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from hub.broker import keys
from hub.broker.janitor import BARREN_ATTEMPTS, LOST_ATTEMPTS, Memory, judge
from hub.broker.keys import StreamKey
from hub.broker.lanes import STRANDED_MS
from hub.broker.settings import BrokerSettings
from tests.broker.script_model import Meta, StreamModel
from workers.quarantine import GRAVE_LOSSES, WATCH_S, suspicion

TICK_MS = 500
#: Nobody waits for a worker this long here: what is looked at is who dies of whom.
BROKER = BrokerSettings(queue_timeout_s=100_000)
LEASE_MS = int(BROKER.lease_s * 1000)
END_MS = 3_600_000


@dataclass
class Request:
    """What one request does once it runs, in ms: when it first speaks (None: never), when it is done or kills."""

    key: StreamKey
    speaks_ms: int | None
    lasts_ms: int
    is_poison: bool = False
    model: StreamModel = field(default_factory=StreamModel)
    lease_ms: int = 0
    began_ms: int = 0
    has_spoken: bool = False
    is_buried: bool = False

    @property
    def meta(self) -> Meta:
        assert self.model.meta
        return self.model.meta

    def facts(self) -> dict[str, str]:
        meta = self.meta
        return {
            "state": meta.state.decode(), "owner": meta.owner, "lease": str(self.lease_ms), "created": "0",
            "losses": str(meta.losses), "barren": str(meta.barren), "lane": "standard",
            "cancel": "0",
        }  # fmt: skip


@dataclass
class Worker:
    name: str
    up_at: int = 0
    running: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    """Suspects in its hands, in order."""
    alone: Request | None = None
    """The suspect that is watched."""
    until_it_speaks: bool = False
    until_ms: int = 0


class Installation:
    def __init__(self, seed: int, requests: list[Request], *, watches: bool = True) -> None:
        self.random = random.Random(seed)
        self.requests = requests
        self.watches = watches
        self.workers = [Worker(f"w{number}") for number in range(self.random.randint(1, 3))]
        self.memory = Memory()
        self.looks: dict[StreamKey, int] = {}
        self.tickets: list[tuple[int, Request]] = []
        """When it can be taken, and of whom."""
        self.marks = 0
        for request in requests:
            request.model.create("m", b"", "alice", b"", b"", "standard", 1)
            self.tickets.append((self.random.randint(0, 3000), request))

    def run(self) -> None:
        """Until everything has ended."""
        for now in range(0, END_MS, TICK_MS):
            if all(request.meta.state == b"done" for request in self.requests):
                return
            self._work(now)
            self._sweep(now)
        raise AssertionError("something never ended")

    def _work(self, now: int) -> None:
        for worker in self.workers:
            if worker.up_at > now:
                continue
            self._take(worker, now)
            if worker.alone is not None and now >= worker.until_ms:
                worker.alone = None
            if worker.alone is None and worker.waiting:
                worker.alone = worker.waiting.pop(0)
                worker.until_it_speaks = suspicion(worker.alone.facts()) != "to its end"
                worker.until_ms = now + int(WATCH_S * 1000)
                self._claim(worker, worker.alone, now)
            for request in list(worker.running):
                self._live(worker, request, now)
                if worker.up_at > now:
                    break

    def _take(self, worker: Worker, now: int) -> None:
        for ticket in [ticket for ticket in self.tickets if ticket[0] <= now]:
            if self.random.random() < 0.5:
                continue  # another worker's, or later
            self.tickets.remove(ticket)
            request = ticket[1]
            if request in worker.waiting or request in worker.running:
                continue
            if self.watches and suspicion(request.facts()) != "none":
                worker.waiting.append(request)
            else:
                self._claim(worker, request, now)

    def _claim(self, worker: Worker, request: Request, now: int) -> None:
        self.marks += 1
        request.meta.is_leased = request.lease_ms > now
        reply = request.model.claim(f"m{self.marks}", worker.name, LEASE_MS, 1)
        if reply[0] == b"OK":
            request.lease_ms, request.began_ms, request.has_spoken = now + LEASE_MS, now, False
            worker.running.append(request)
        elif worker.alone is request:
            worker.alone = None

    def _live(self, worker: Worker, request: Request, now: int) -> None:
        request.lease_ms = now + LEASE_MS
        age = now - request.began_ms
        if request.speaks_ms is not None and age >= request.speaks_ms and not request.has_spoken:
            request.has_spoken = True
            self._append(request, b"text", "c")
            if worker.alone is request and worker.until_it_speaks:
                worker.alone = None
        if age < request.lasts_ms:
            return
        if request.is_poison:
            self._die(worker, now)
            return
        self._append(request, b"done", "", 1)
        worker.running.remove(request)
        if worker.alone is request:
            worker.alone = None

    def _append(self, request: Request, kind: bytes, shown: str, done_ttl: int = 0) -> None:
        first = len(request.model.log) + 1
        assert request.model.append(request.meta.mark, first, shown, 0, done_ttl, kind, b"")[0] == b"OK"

    def _die(self, worker: Worker, now: int) -> None:
        self.tickets += [(now + STRANDED_MS, request) for request in worker.waiting]
        worker.running, worker.waiting, worker.alone = [], [], None
        worker.up_at = now + self.random.randint(0, 20_000)

    def _sweep(self, now: int) -> None:
        for request in self.requests:
            if self.looks.get(request.key, 0) > now or request.meta.state == b"done":
                continue
            oldest = min((0 for _, other in self.tickets if other is request), default=None)
            if oldest is not None or any(request in worker.waiting for worker in self.workers):
                continue  # its ticket is in the lane, delivered or not
            verdict = judge(request.key, request.facts(), None, now, self.memory, BROKER, 0)
            assert verdict.act in ("wait", "takeover", "bury"), verdict
            if verdict.act == "takeover":
                self.tickets.append((now, request))
            elif verdict.act == "bury":
                request.is_buried = True
                request.meta.is_leased = False
                assert request.model.claim(f"j{now}", "", 0, 1)[0] == b"OK"
                self._append(request, b"done", "k", 1)
            self.looks[request.key] = verdict.look_ms or now


def some_requests(seed: int) -> list[Request]:
    """A poison and its neighbours: some speak at once, some think longer than the poison needs to kill."""
    chosen = random.Random(seed)
    poison = Request(
        keys.stream_key("acme", "poison"), chosen.choice([None, None, 0, 1000]), chosen.randint(1, 40) * 500, True
    )
    neighbours = []
    for number in range(chosen.randint(1, 12)):
        lasts = chosen.randint(1, 120) * 500
        neighbours.append(Request(keys.stream_key("acme", f"n{number}"), chosen.randint(0, lasts), lasts))
    return [poison, *neighbours]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_no_neighbour_of_a_poison_request_is_given_up(seed: int) -> None:
    poison, *neighbours = requests = some_requests(seed)
    Installation(seed, requests).run()
    assert poison.is_buried
    assert poison.meta.losses <= (BARREN_ATTEMPTS if poison.speaks_ms is None else LOST_ATTEMPTS)
    assert not [request.key for request in neighbours if request.is_buried]
    assert all(request.meta.losses <= GRAVE_LOSSES for request in neighbours)
    assert [kind for kind, _ in neighbours[0].model.log].count(b"done") == 1


def test_it_takes_the_rule_that_suspects_are_watched() -> None:
    """Without it, some of the same installations give neighbours up."""

    def drags(seed: int) -> bool:
        requests = some_requests(seed)
        Installation(seed, requests, watches=False).run()
        return any(request.is_buried for request in requests[1:])

    assert any(drags(seed) for seed in range(50))
