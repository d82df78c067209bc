"""One hub process: what its connections share."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from operator import itemgetter
from typing import TYPE_CHECKING

import structlog

from headrace.protocol.codes import CloseCode
from headrace.protocol.frames import Drain, StatusFrame
from hub import health
from hub.admission import Choices
from hub.auth import Authenticator
from hub.broker.broker import Broker
from hub.broker.health import ProviderBoard
from hub.fleet import Fleet
from hub.metrics import Counts
from hub.prefetch import Prefetches
from hub.reconcile import Reconciler
from hub.relay import Relay
from hub.settings import HubSettings

if TYPE_CHECKING:
    from hub.endpoint import Endpoint


#: A drain closes what is due this often, in seconds, and so many at once at most.
SLICE_S = 0.05
SLICE = 100
#: Requests that met no Redis are told of again after this long without one, in seconds.
QUIET_S = 10.0


class Node:
    """`run` must be running while connections are served."""

    def __init__(self, settings: HubSettings, broker: Broker) -> None:
        self.settings = settings
        self.broker = broker
        self.auth = Authenticator(settings)
        self.prefetches = Prefetches(broker)
        self.counts = Counts()
        self.relay = Relay(broker, self.counts, settings.window)
        self.relay.on_degraded = self._tell_degraded
        board = ProviderBoard(broker.connections.control)
        self.fleet = Fleet(board, _names(settings.providers), is_open=self.auth.is_open)
        self.origins = _names(settings.allowed_origins)
        self.connections: set[Endpoint] = set()
        self.is_draining = False
        #: One of the hub's own tasks failed: the process ends, and says so by its exit status.
        self.is_broken = False
        self._missed_redis_at = float("-inf")
        self._devices: dict[tuple[str, str, str], Endpoint] = {}
        #: Looks at sockets for signs of life; set by the server.
        self.check_life: Callable[[float], None] = lambda now: None
        self.now: Callable[[], float] = time.monotonic
        self.counts.gauges["headrace_connections"] = ("Open connections.", lambda: len(self.connections))
        self.counts.gauges["headrace_workers"] = ("Workers that report.", lambda: self.fleet.last_seen.workers)
        self.counts.provider_levels = lambda: health.levels(self.fleet.last_seen)
        self.counts.gauges["headrace_watched_streams"] = ("Streams watched.", lambda: len(self.relay.tails))

    async def run(self) -> None:
        """The hub's own tasks, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.relay.run())
            tasks.create_task(Reconciler(self.relay).run())
            tasks.create_task(self.broker.janitor.run())
            tasks.create_task(self.fleet.run())
            tasks.create_task(self._watch_clock())

    @property
    def choices(self) -> Choices:
        """What a request's `model` may be, as of now."""
        return self.fleet.choices

    def missed_redis(self, error: BaseException) -> None:
        """A request met no Redis. One line an outage, not one a request."""
        now = self.now()
        if now - self._missed_redis_at > QUIET_S:
            structlog.get_logger(__name__).warning("requests meet no Redis", error=type(error).__name__)
        self._missed_redis_at = now

    def connect(self, endpoint: Endpoint) -> None:
        self.connections.add(endpoint)

    @staticmethod
    def new_connection_id() -> str:
        return f"c_{secrets.token_urlsafe(9)}"

    def welcome(self, endpoint: Endpoint) -> None:
        """A connection said who it is: the same device's older one goes (protocol §2)."""
        if endpoint.device is None or endpoint.identity is None:
            return
        name = (endpoint.identity.org, endpoint.identity.user, endpoint.device)
        former = self._devices.get(name)
        self._devices[name] = endpoint
        if former is not None:
            former.close(CloseCode.REPLACED, "replaced by the same device")

    def forget(self, endpoint: Endpoint) -> None:
        self.connections.discard(endpoint)
        if endpoint.device is not None and endpoint.identity is not None:
            name = (endpoint.identity.org, endpoint.identity.user, endpoint.device)
            if self._devices.get(name) is endpoint:
                del self._devices[name]

    async def drain(self) -> None:
        """Send everybody to another hub: told first, then closed in slices, spread over `drain_s` by chance.

        From the first moment on the hub is not ready and takes no new connection. Takes no longer than `drain_s`
        and what closing costs.
        """
        self.is_draining = True
        began, window = self.now(), self.settings.drain_s
        planned = sorted(((random.random() * window, endpoint) for endpoint in self.connections), key=itemgetter(0))
        for number, (delay, endpoint) in enumerate(planned, 1):
            endpoint.send(Drain(int(delay * 1000)))
            if number % SLICE == 0:
                await asyncio.sleep(0)  # the streams go on meanwhile
        for number, (delay, endpoint) in enumerate(planned, 1):
            pause = began + delay - self.now()
            if pause > 0:
                await asyncio.sleep(max(pause, SLICE_S))
            elif number % SLICE == 0:
                await asyncio.sleep(0)
            endpoint.close(CloseCode.DRAIN, "drain")

    def _tell_degraded(self) -> None:
        for endpoint in self.connections:
            if endpoint.attachments and endpoint.is_writable:
                endpoint.send(StatusFrame("degraded", after_ms=1000))

    async def _watch_clock(self) -> None:
        """Once a second: `hello` and token deadlines, pings and signs of life."""
        while True:
            await asyncio.sleep(1)
            now, unix_now = self.now(), time.time()
            for endpoint in list(self.connections):
                endpoint.check_clock(now, unix_now)
            self.check_life(now)


def _names(text: str) -> frozenset[str]:
    """The items of a comma-separated setting."""
    return frozenset(name.strip() for name in text.split(",") if name.strip())
