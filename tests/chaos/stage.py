"""Everything that is hurt in a run: Redis, hubs, workers, a provider, and a fault proxy on every link between them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from bench.process import cpu_s
from tests.chaos.front import Front, is_ready
from tests.chaos.plan import Plan
from tests.chaos.process import Process, until
from tests.chaos.redis_setup import RedisSetup, make_redis
from tests.faults.ports import free_port
from tests.faults.proxy import FaultProxy

ROOT = Path(__file__).parents[2]
SECRET = "a secret of the chaos run, longer than 32 bytes"
#: What processes import, copied at the start: editing while a run lasts changes nothing about it.
PACKAGES = {"hub": "hub", "workers": "workers", "clients/python/headrace": "headrace", "tests": "tests"}
#: Half of the viewers come through a fault proxy, the others directly.
SETTINGS = {
    "HEADRACE_JWT_SECRET": SECRET,
    "HEADRACE_PROVIDERS": "scripted,anthropic,openai,fallback",
    "HEADRACE_DRAIN_S": "2",
    "HEADRACE_LEDGER": "off",
    "HEADRACE_DRAIN_TIMEOUT_S": "6",
    "ANTHROPIC_API_KEY": "sk-ant-chaos",
    "OPENAI_API_KEY": "sk-chaos",
    "PYTHONUNBUFFERED": "1",
}


class Stage:
    """Use as `async with`. All that it started ends with it."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.directory = directory
        self.redis: RedisSetup = make_redis(plan.redis, directory)
        self.hubs: list[Process] = []
        self.workers: list[Process] = []
        self.ports: list[int] = []
        self.viewer_links: list[FaultProxy] = []
        self.hub_links: list[FaultProxy] = []
        self.worker_links: list[FaultProxy] = []
        self.provider: Process
        self.provider_link: FaultProxy
        self.front: Front
        self._stack = AsyncExitStack()
        self._ready: dict[Process, Callable[[], object]] = {}

    @property
    def processes(self) -> list[Process]:
        return [*self.hubs, *self.workers, self.provider]

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        code = self.directory / "code"
        for source, name in PACKAGES.items():
            await asyncio.to_thread(_copy, ROOT / source, code / name)
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and not name.startswith(("HEADRACE_", "ANTHROPIC_", "OPENAI_"))
        }
        if binary := os.environ.get("HEADRACE_REDIS_BIN"):
            environ["HEADRACE_REDIS_BIN"] = binary
        retention_s = int(self.plan.seconds + self.plan.settle_s + 1200)
        self.environ = environ | SETTINGS | {"PYTHONPATH": str(code), "HEADRACE_RETENTION_S": str(retention_s)}
        self._stack.push_async_callback(asyncio.to_thread, self.redis.stop)
        await asyncio.to_thread(self.redis.start)
        await self._start_provider()
        dice = self.plan.dice("proxies")
        for number in range(self.plan.hubs):
            await self._add_hub(number, dice)
        for number in range(self.plan.workers):
            await self._add_worker(number, dice)
        self.front = Front(dict(enumerate(self.ports)), self.plan.seed)
        await self._stack.enter_async_context(self.front)
        watching = asyncio.create_task(self.front.watch())
        self._stack.callback(watching.cancel)
        for process in [*self.hubs, *self.workers]:
            await self.run(process)

    def cpu_s(self) -> float:
        """CPU seconds that this process, those that it started and those that have ended used so far."""
        living = sum(cpu_s(process.pid) for process in self.processes if process.status() is None)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return living + time.process_time() + ended.ru_utime + ended.ru_stime + self.redis.cpu_s()

    async def run(self, process: Process) -> None:
        """Start it and wait until it is ready. Raises DidNotStart."""
        process.start()
        await self.ready(process)

    async def ready(self, process: Process) -> None:
        await until(process, self._ready[process])
        process.state = "up"

    def _add(self, name: str, arguments: list[str], environ: dict[str, str]) -> Process:
        process = Process(name, arguments, self.directory, {**self.environ, **environ})
        self._stack.push_async_callback(process.kill)
        return process

    async def _start_provider(self) -> None:
        self.provider = provider = self._add("provider", ["tests.chaos.provider"], {})
        self._ready[provider] = lambda: provider.said().endswith("\n")
        await self.run(provider)
        port = json.loads(provider.said().splitlines()[0])["port"]
        self.provider_link = await self._link(f"127.0.0.1:{port}", self.plan.dice("provider link"))
        base = f"http://127.0.0.1:{self.provider_link.port}"
        self.environ |= {"ANTHROPIC_BASE_URL": base, "OPENAI_BASE_URL": f"{base}/v1"}

    async def _link(self, target: str, dice: random.Random) -> FaultProxy:
        return await self._stack.enter_async_context(FaultProxy(target, seed=dice.randrange(2**32)))

    async def _redis_url(self, links: list[FaultProxy], dice: random.Random) -> str:
        """Where one process finds Redis: through a link of its own, where that is possible."""
        if self.redis.target is None:
            return self.redis.url
        link = await self._link(self.redis.target, dice)
        links.append(link)
        return f"redis://127.0.0.1:{link.port}"

    async def _add_hub(self, number: int, dice: random.Random) -> None:
        port = free_port()
        url = await self._redis_url(self.hub_links, dice)
        hub = self._add(
            f"hub-{number}", ["hub", "--host", "127.0.0.1", "--port", str(port)], {"HEADRACE_REDIS_URL": url}
        )
        self._ready[hub] = lambda: is_ready(port)
        self.hubs.append(hub)
        self.ports.append(port)
        self.viewer_links.append(await self._link(f"127.0.0.1:{port}", dice))

    async def _add_worker(self, number: int, dice: random.Random) -> None:
        url = await self._redis_url(self.worker_links, dice)
        worker = self._add(f"worker-{number}", ["workers"], {"HEADRACE_REDIS_URL": url})
        self._ready[worker] = lambda: " ready, " in worker.said()
        self.workers.append(worker)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
