"""Real hubs and workers in the test's own process, on the test's own loop; and a hub as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import SecretStr

from hub.app import create_app
from hub.auth import issue
from hub.broker.broker import Broker
from hub.node import Node
from hub.server import HubServer, listen, make_config
from hub.settings import HubSettings
from tests.wire import DEADLINE_S, JSON, Map, Wire
from workers.providers.registry import Providers
from workers.settings import WorkerSettings
from workers.tools.toolbox import Toolbox
from workers.worker import Worker

#: A process has this long to start.
START_S = 30.0
SECRET = "a secret of the tests, with more than 32 bytes"


def token(user: str = "alice", *, org: str | None = None, scope: str = "", ttl_s: float = 600) -> str:
    return issue(SECRET, user=user, org=org, scope=scope, now=time.time(), ttl_s=ttl_s)


async def eventually(condition: Callable[[], bool | Awaitable[bool]], what: str = "it") -> None:
    """Wait until `condition` holds; AssertionError after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        holds = condition()
        if not isinstance(holds, bool):
            holds = await holds
        if holds:
            return
        assert time.monotonic() < deadline, f"{what} did not happen in time"
        await asyncio.sleep(0.005)


async def status_of(port: int, path: str) -> int | None:
    """The status of a plain HTTP request on loopback; None when nobody answers."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
    except OSError:
        return None
    return int(answer.split()[1]) if answer else None


class RunningHub:
    """A hub that serves on loopback."""

    def __init__(self, node: Node, server: HubServer, port: int) -> None:
        self.node = node
        self.server = server
        self.port = port
        self.url = f"ws://127.0.0.1:{port}/v1/ws"
        self._wires: list[Wire] = []

    async def connect(self, *, subprotocol: str | None = JSON, headers: dict[str, str] | None = None) -> Wire:
        """A connection that has said nothing yet. Closed with the hub."""
        wire = await Wire.open(self.url, subprotocol=subprotocol, headers=headers)
        self._wires.append(wire)
        return wire

    async def join(
        self, user: str = "alice", *, subprotocol: str | None = JSON, org: str | None = None, scope: str = "",
        **hello: Any,
    ) -> Wire:  # fmt: skip
        """A connection of this user, welcomed."""
        wire = await self.connect(subprotocol=subprotocol)
        await wire.send({"type": "hello", "token": token(user, org=org, scope=scope), **hello})
        await wire.expect("welcome", user=user)
        return wire

    async def hang_up(self) -> None:
        await asyncio.gather(*[wire.close() for wire in self._wires])


@asynccontextmanager
async def running_hub(redis_url: str, *, is_ready: bool = True, **settings: Any) -> AsyncIterator[RunningHub]:
    """A hub on a free port; `is_ready`: Redis answers, wait for the mailbox."""
    chosen: dict[str, Any] = {"jwt_secret": SecretStr(SECRET), "drain_s": 0.0, "providers": "scripted,fallback"}
    chosen |= settings | {"redis_url": redis_url}
    configured = HubSettings(**chosen)
    broker = Broker.connect(redis_url, configured)
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    app = create_app(configured, broker)
    server = HubServer(make_config(app, configured), app.state.node)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    hub = RunningHub(app.state.node, server, port)
    try:
        await server.startup(sockets=[sock])
        if is_ready:
            async with asyncio.timeout(DEADLINE_S):
                await hub.node.relay.ready.wait()
        yield hub
    finally:
        await hub.hang_up()
        await server.shutdown(sockets=[sock])
        await broker.close()


@asynccontextmanager
async def running_worker(
    redis_url: str, *, providers: Providers | None = None, **settings: Any
) -> AsyncIterator[Worker]:
    """A worker with the providers that need no key, or with those given."""
    configured = WorkerSettings(redis_url=redis_url, **({"drain_timeout_s": 0.0} | settings))
    broker = Broker.connect(redis_url, configured)
    providers = providers or Providers(frozenset({"scripted", "fallback"}))
    try:
        async with at_work(Worker(configured, broker, providers, Toolbox.load(configured.tools))) as worker:
            yield worker
    finally:
        await broker.close()


@asynccontextmanager
async def at_work(worker: Worker) -> AsyncIterator[Worker]:
    """From when it takes requests; at the end it hands back what it has not finished."""
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            await worker.ready.wait()
        yield worker
    finally:
        worker.stop()
        worker.stop()
        async with asyncio.timeout(DEADLINE_S):
            await running


class HubProcess:
    """A hub as operators run it."""

    def __init__(self, redis_url: str, *, port: int | None = None, **environ: str) -> None:
        """On `port`, or on a free one."""
        if port is None:
            sock = listen("127.0.0.1", 0)
            port = int(sock.getsockname()[1])
            sock.close()
        self.port = port
        self.url = f"ws://127.0.0.1:{self.port}/v1/ws"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hub", "--host", "127.0.0.1", "--port", str(self.port)],
            env={**os.environ, "HEADRACE_REDIS_URL": redis_url, "HEADRACE_JWT_SECRET": SECRET, **environ},
            stderr=subprocess.PIPE,
        )

    async def connect(self) -> Wire:
        """A first connection, as soon as it listens."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                return await Wire.open(self.url)
            except OSError:
                assert time.monotonic() < deadline and self._process.poll() is None, "the hub did not come up"
                await asyncio.sleep(0.02)

    async def ready(self) -> None:
        """Wait until it listens and has reached Redis. A process starts slowly on a machine that is busy."""
        deadline = time.monotonic() + START_S
        while await status_of(self.port, "/readyz") != 200:
            assert self._process.poll() is None, "the hub ended"
            assert time.monotonic() < deadline, "the hub did not come up"
            await asyncio.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self, within: float = DEADLINE_S) -> tuple[int, str]:
        """Its exit status and what it logged."""
        _, log = await asyncio.to_thread(self._process.communicate, timeout=within)
        return self._process.returncode, log.decode()

    def kill(self) -> None:
        with self._process:  # waits, and closes the pipe
            self._process.kill()


def question(request: str, *, model: str = "scripted/tokens=5,rate=0", **options: Any) -> Map:
    """A `generate` frame."""
    return {
        "type": "generate", "id": options.pop("id", request), "request": request,
        "messages": [{"role": "user", "content": options.pop("content", "Why is the sky blue?")}],
        "model": model, **options,
    }  # fmt: skip
