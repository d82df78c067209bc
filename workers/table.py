"""What this worker runs: the generations it claimed, those it is claiming, and what hubs say about them.

No I/O: what goes out is left with the routing, and the appender is told.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from hub.broker.keys import StreamKey
from hub.broker.mailbox import Wish, WorkerPacket
from workers.routing import Routing
from workers.run import Run


class Claiming(msgspec.Struct):
    """A generation whose claim is under way, and what hubs said meanwhile."""

    watchers: dict[str, int] = {}
    announced: set[str] = set()
    on_abandon: str = ""
    is_cancelled: bool = False


class Table:
    """One per worker. A generation is entered before it is claimed, so that no announcement can miss it."""

    def __init__(self, routing: Routing, *, mark: Callable[[Run], None], wake: Callable[[], None]) -> None:
        self.routing = routing
        self.runs: dict[StreamKey, Run] = {}
        self._claiming: dict[StreamKey, Claiming] = {}
        self._mark = mark
        self._wake = wake

    def __contains__(self, key: object) -> bool:
        return key in self.runs or key in self._claiming

    # -- a generation comes and goes

    def begin_claim(self, key: StreamKey) -> None:
        self._claiming[key] = Claiming()

    def refuse_claim(self, key: StreamKey) -> None:
        """The claim was not granted: whoever announced itself asks for the owner again."""
        claiming = self._claiming.pop(key, None)
        if claiming is not None:
            for hub in claiming.watchers:
                self.routing.disown(key, hub)
            self._wake()

    def enter(self, run: Run, registered: dict[str, int], now: float) -> None:
        """The claim was granted: watchers are those it found registered, and those that spoke meanwhile."""
        claiming = self._claiming.pop(run.key, None) or Claiming()
        self.runs[run.key] = run
        for hub, demand in (registered | claiming.watchers).items():
            self.routing.watch(run.key, hub, demand, now)
        for hub in claiming.announced:
            self.routing.answer(run.key, run.mark, hub, run.generation.logged)
        if claiming.on_abandon:
            run.generation.attendance.override(claiming.on_abandon)
        if claiming.is_cancelled:
            run.generation.cancel()
        self._attend(run, now)
        self.tick(run, now)

    def remove(self, run: Run) -> None:
        """Announcements for it are answered "not mine" from now on."""
        if self.runs.get(run.key) is run:
            del self.runs[run.key]
            self.routing.forget(run.key)

    # -- hubs

    def receive(self, packet: WorkerPacket, now: float) -> None:
        """Take what a hub says. Answers are computed and watchers changed in one go: nothing falls between."""
        for wish in packet.wishes:
            run = self.runs.get(wish.key)
            if run is not None:
                self._obey(run, packet.sender, wish, now)
            elif (claiming := self._claiming.get(wish.key)) is not None:
                _remember(claiming, packet.sender, wish)
            elif not wish.leave:
                self.routing.disown(wish.key, packet.sender)
        if self.routing.has_news:
            self._wake()

    def hub_gone(self, hub: str, now: float) -> None:
        """A hub's mailbox does not exist any more: nobody waits there."""
        for key in self.routing.drop_hub(hub):
            run = self.runs.get(key)
            if run is not None:
                self._attend(run, now)
                self.changed(run)

    def reconcile(self, run: Run, registered: dict[str, int], asked_at: float, now: float) -> None:
        """Take over the interest that Redis holds."""
        for hub in self.routing.reconcile(run.key, registered, asked_at):
            self.routing.answer(run.key, run.mark, hub, run.generation.logged)
        self._attend(run, now)
        if self.routing.has_news:
            self._wake()

    # -- time and ends

    def tick(self, run: Run, now: float) -> None:
        run.generation.tick(now)
        self.changed(run)

    def changed(self, run: Run) -> None:
        """A generation changed outside of the appender: append what it has now, wake or stop its reader."""
        if run.generation.has_batch:
            self._mark(run)
        run.poke()

    def _obey(self, run: Run, hub: str, wish: Wish, now: float) -> None:
        routing, generation = self.routing, run.generation
        if wish.on_abandon:
            generation.attendance.override(wish.on_abandon)
        if wish.cancel:
            generation.cancel()
        if wish.leave:
            routing.leave(run.key, hub)
        else:
            is_new = not routing.watches(run.key, hub)
            if not is_new or wish.announce or wish.demand > 0:
                routing.watch(run.key, hub, wish.demand, now)
            if wish.announce or (is_new and wish.demand > 0):
                routing.answer(run.key, run.mark, hub, generation.logged)
        self._attend(run, now)
        self.changed(run)

    def _attend(self, run: Run, now: float) -> None:
        routing = self.routing
        run.generation.attend(routing.demand(run.key), routing.is_watched(run.key), now)


def _remember(claiming: Claiming, hub: str, wish: Wish) -> None:
    claiming.is_cancelled |= wish.cancel
    claiming.on_abandon = wish.on_abandon or claiming.on_abandon
    if wish.leave:
        claiming.watchers.pop(hub, None)
        claiming.announced.discard(hub)
    elif wish.announce or wish.demand > 0 or hub in claiming.watchers:
        claiming.watchers[hub] = wish.demand
        if wish.announce:
            claiming.announced.add(hub)
