"""A hub or two and a few workers on this machine, started together and waited for."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

from hub.cli.children import Child
from hub.cli.failure import Failure
from hub.cli.logline import words

#: Everything is up within this time, in seconds, also on a machine that imports slowly.
START_S = 30.0
_POLL_S = 0.05

OnLine = Callable[[Child, str], None]


def environment(environ: Mapping[str, str], redis_url: str) -> dict[str, str]:
    """What hubs and workers of one machine get: that Redis, no tokens where there is no secret, quick endings."""
    made = {"HEADRACE_DRAIN_S": "0.2", "HEADRACE_DRAIN_TIMEOUT_S": "1", **environ, "HEADRACE_REDIS_URL": redis_url}
    if not environ.get("HEADRACE_JWT_SECRET"):
        made.pop("HEADRACE_JWT_SECRET", None)  # set to nothing is not set
        made["HEADRACE_AUTH"] = "none"
    return made


def check_port(host: str, port: int) -> None:
    """Raises Failure when nothing can listen there, saying why, and which port is free."""
    try:
        _try(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Failure(
                f"port {port} is taken: stop what uses it, or take a free one: --port {free(host, port)}"
            ) from None
        if error.errno == errno.EACCES:
            raise Failure(f"port {port} needs root: use one above 1023, as in --port 8080") from None
        raise Failure(f"nothing can listen on {host}: {error.strerror or error}; try --host 127.0.0.1") from None


def free(host: str, port: int) -> int:
    """The next port after `port` that nobody uses; some free one if the next hundred are taken."""
    for candidate in range(port + 1, min(port + 100, 65536)):
        with suppress(OSError):
            return _try(host, candidate)
    return any_port(host)


def any_port(host: str) -> int:
    """Some port that nobody uses."""
    return _try(host, 0)


def _try(host: str, port: int) -> int:
    """Bind as the hub would; the port. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen()
        bound: int = probe.getsockname()[1]
        return bound


class Stack:
    """Hubs and workers over one Redis. `start` returns when all are ready; `stop` ends all, in order."""

    def __init__(self, environ: Mapping[str, str], on_line: OnLine) -> None:
        self._environ = environ
        self._on_line = on_line
        self._ready: dict[Child, asyncio.Event] = {}
        self._last_words: dict[Child, str] = {}

    @property
    def children(self) -> list[Child]:
        return list(self._ready)

    async def start_hub(self, name: str, host: str, port: int) -> Child:
        """Start one hub; ready when its /readyz says so."""
        hub = Child(name, "hub", ["--host", host, "--port", str(port)], self._environ)
        await self._start(hub)
        return hub

    async def start_hubs(self, host: str, *names: str) -> dict[Child, tuple[str, int]]:
        """Start hubs on ports that nobody uses; each with its address."""
        ports: set[int] = set()
        while len(ports) < len(names):
            ports.add(any_port(host))
        return {await self.start_hub(name, host, port): (host, port) for name, port in zip(names, ports, strict=True)}

    async def start_worker(self, name: str) -> Child:
        """Start one worker; ready when its log says so: it has no port to ask."""
        worker = Child(name, "workers", [], self._environ)
        await self._start(worker)
        return worker

    async def until_ready(self, hubs: Mapping[Child, tuple[str, int]]) -> None:
        """Wait for every child. Raises Failure with a child's last words if it ends, or when time is over."""
        asking = [asyncio.create_task(self._ask(hub, *address)) for hub, address in hubs.items()]
        try:
            async with asyncio.timeout(START_S):
                for child, ready in self._ready.items():
                    await self._first(child, ready)
        except TimeoutError:
            waiting = ", ".join(child.name for child, ready in self._ready.items() if not ready.is_set())
            raise Failure(
                f"{waiting} did not get ready within {START_S:g} s: is Redis reachable? Ask `headrace doctor`"
            ) from None
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def replace(self, child: Child, address: tuple[str, int] | None) -> Child:
        """Start another in the place of a child that ended, a hub at its address; returns when that one is ready.

        Raises Failure as `until_ready` does.
        """
        del self._ready[child]
        async with asyncio.timeout(START_S):
            if address is None:
                successor = await self.start_worker(child.name)
                await self._first(successor, self._ready[successor])
            else:
                successor = await self.start_hub(child.name, *address)
                while not self._ready[successor].is_set() and not successor.ended.is_set():
                    if await is_ready(*address):
                        self._ready[successor].set()
                    await asyncio.sleep(_POLL_S)
        return successor

    async def first_to_end(self) -> Child:
        """Wait until any child ends; that one."""
        waits = {asyncio.ensure_future(child.ended.wait()): child for child in self._ready}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return waits[done.pop()]

    def last_words(self, child: Child) -> str:
        """What its last line said."""
        return words(self._last_words.get(child, "nothing was said"))

    async def stop(self) -> None:
        await asyncio.gather(*(child.stop() for child in self._ready))

    async def _start(self, child: Child) -> None:
        self._ready[child] = asyncio.Event()
        await child.start(lambda line: self._heard(child, line))

    def _heard(self, child: Child, line: str) -> None:
        self._last_words[child] = line
        if child.name.startswith("worker") and " ready, " in line:
            self._ready[child].set()
        self._on_line(child, line)

    async def _first(self, child: Child, ready: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (ready, child.ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if child.ended.is_set():
            raise Failure(f"the {child.name} ended at its start (status {child.status}): {self.last_words(child)}")

    async def _ask(self, hub: Child, host: str, port: int) -> None:
        while not self._ready[hub].is_set():
            if await is_ready(host, port):
                self._ready[hub].set()
            await asyncio.sleep(_POLL_S)


async def is_ready(host: str, port: int) -> bool:
    """Whether the hub there answers /readyz with 200. Never raises for one that is not there."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    writer = None
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(local, port)
            writer.write(f"GET /readyz HTTP/1.1\r\nHost: {local}\r\nConnection: close\r\n\r\n".encode())
            return b" 200 " in await reader.readline()
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.close()
