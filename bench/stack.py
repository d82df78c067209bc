"""Everything that is measured: a Redis of its own, hubs, workers, and a fake provider where one is asked for."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from bench.process import BenchError, Process, cpu_s, machine_cpu_s
from hub.broker.embedded import AppendOnly, EmbeddedRedis
from tests.faults.ports import free_port

#: A process has this long to come up.
START_DEADLINE_S = 30.0
_POLL_S = 0.05


@dataclass
class Setup:
    """What all measurements of one invocation share."""

    encoding: str = "json"
    appendonly: AppendOnly | None = None
    say: Callable[[str], None] = lambda text: None
    """Tell the person who waits what happens now."""


@dataclass(frozen=True)
class Usage:
    """CPU seconds used so far, by process name. `load` is this process, which plays the clients."""

    at: float
    seconds: Mapping[str, float]
    scripts: int
    """Script calls that Redis answered."""
    machine: float
    """CPU seconds that the whole machine used."""

    def until(self, later: Usage) -> Usage:
        used = {name: seconds - self.seconds[name] for name, seconds in later.seconds.items()}
        return Usage(later.at - self.at, used, later.scripts - self.scripts, later.machine - self.machine)

    @property
    def others_pct(self) -> float:
        """What else ran on this machine, its neighbours included, in % of a core: beside it figures mean little."""
        return 100 * (self.machine - sum(self.seconds.values())) / self.at

    def of(self, prefix: str) -> float:
        """CPU seconds of all processes of a kind."""
        return sum(seconds for name, seconds in self.seconds.items() if name.startswith(prefix))


@dataclass
class Stack:
    """Use as `async with`. At the end everything is killed: there is nothing in it worth keeping."""

    setup: Setup
    hubs: int = 1
    workers: int = 1
    fake: bool = False
    environ: dict[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    processes: dict[str, Process] = field(default_factory=dict)

    async def __aenter__(self) -> Stack:
        self._home = tempfile.TemporaryDirectory(prefix="headrace-bench-")
        try:
            async with asyncio.timeout(2 * START_DEADLINE_S):
                await self._start()
        except BaseException as error:
            await self.__aexit__()
            if isinstance(error, TimeoutError):
                raise BenchError("hubs and workers did not come up") from error
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
        if hasattr(self, "redis"):
            await self.redis.aclose()
            await asyncio.to_thread(self._server.stop)
        self._home.cleanup()

    async def _start(self) -> None:
        self.setup.say("starting Redis, hub and worker")
        self._server = EmbeddedRedis(appendonly=self.setup.appendonly)
        await asyncio.to_thread(self._server.start)
        self.redis: Redis = Redis.from_url(self._server.url)
        environ = {
            "HEADRACE_REDIS_URL": self._server.url,
            "HEADRACE_AUTH": "none",
            "HEADRACE_WORKER_CONCURRENCY": "20000",
            "HEADRACE_QUEUE_TIMEOUT_S": "1800",
            "HEADRACE_LEDGER": "off",
        }
        if self.fake:
            environ |= await self._start_fake()
        environ |= self.environ
        for number in range(self.hubs):
            port = free_port()
            self.ports.append(port)
            self._run(f"hub {number}", ["hub", "--host", "127.0.0.1", "--port", str(port)], environ)
        for number in range(self.workers):
            self._run(f"worker {number}", ["workers"], environ)
        for number, port in enumerate(self.ports):
            await self._ready(self.processes[f"hub {number}"], port)

    def _run(self, name: str, arguments: list[str], environ: Mapping[str, str]) -> Process:
        log = Path(self._home.name) / f"{name.replace(' ', '-')}.log"
        process = self.processes[name] = Process(name, arguments, log, environ)
        return process

    async def _start_fake(self) -> dict[str, str]:
        fake, urls = await start_fake(Path(self._home.name) / "provider.log")
        self.processes["provider"] = fake
        return {
            "ANTHROPIC_BASE_URL": urls["anthropic"],
            "ANTHROPIC_API_KEY": "sk-ant-bench",
            "OPENAI_BASE_URL": urls["openai"],
            "OPENAI_API_KEY": "sk-bench",
        }

    async def _ready(self, process: Process, port: int) -> None:
        while True:
            process.check()
            try:
                if (await get(port, "/readyz")).startswith("HTTP/1.1 200 "):
                    return
            except OSError:
                pass
            await asyncio.sleep(_POLL_S)

    # -- what is measured of it

    def check(self) -> None:
        """Raises BenchError if any process has ended by itself."""
        for process in self.processes.values():
            process.check()

    async def usage(self) -> Usage:
        statistics: Any = await self.redis.info("commandstats")
        seconds = {name: cpu_s(process.pid) for name, process in self.processes.items()}
        seconds["redis"] = cpu_s(self._server.pid)
        seconds["load"] = time.process_time()
        scripts = sum(statistics.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))
        return Usage(time.monotonic(), seconds, scripts, machine_cpu_s())

    async def counts(self) -> dict[str, float]:
        """The hubs' counters, without their `headrace_` and `_total`, summed over those that live."""
        sums: dict[str, float] = {}
        for number, port in enumerate(self.ports):
            if f"hub {number}" not in self.processes:
                continue
            for line in (await get(port, "/metrics")).splitlines():
                name, _, value = line.rpartition(" ")
                if name.startswith("headrace_") and "{" not in name:
                    name = name.removeprefix("headrace_").removesuffix("_total")
                    sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    async def redis_version(self) -> str:
        facts: Any = await self.redis.info("server")
        product = "Valkey" if "valkey_version" in facts else "Redis"
        return f"{product} {facts.get('valkey_version') or facts['redis_version']}"

    def kill(self, name: str) -> None:
        """SIGKILL, as a crash would. Its counters and CPU are gone with it."""
        self.processes.pop(name).kill()


async def start_fake(log: Path) -> tuple[Process, dict[str, str]]:
    """A fake provider as a process, for the caller to kill, and its base URLs by format."""
    fake = Process("the fake provider", ["tests.fakes", "--port", "0"], log, {})
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            while not fake.log().endswith("\n"):
                fake.check()
                await asyncio.sleep(_POLL_S)
    except BaseException:
        fake.kill()
        raise
    ready: dict[str, Any] = json.loads(fake.log().splitlines()[0])
    return fake, {name: str(url) for name, url in ready.items() if name != "port"}


async def get(port: int, path: str) -> str:
    """The answer to one HTTP request, head and body. Raises OSError, TimeoutError."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
            return (await reader.read()).decode()
        finally:
            writer.close()
