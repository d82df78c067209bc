"""`python -m workers`: one worker, until SIGTERM or SIGINT; the second one makes it leave at once."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading
import time

import structlog
from pydantic import ValidationError

from hub.broker import loop
from hub.broker.broker import Broker
from hub.broker.logging import configure_logging
from hub.broker.settings import wrong_settings
from workers import pricing
from workers.catalog import GENERATOR, WrongCatalog, find, load
from workers.providers import Provider, ProviderError
from workers.providers.generator import GeneratorProvider
from workers.providers.registry import Providers
from workers.providers.sdk import POOL_CONNECTIONS
from workers.registration import WrongGenerators, parse
from workers.registration import load as load_generators
from workers.settings import WorkerSettings
from workers.tools.described import UnusableTools
from workers.tools.toolbox import Toolbox
from workers.worker import Worker

log_ = structlog.get_logger(__name__)

#: One socket a generation, and some for Redis.
_FILES = 65_536
_STARTING_S = 2.0
_THREADS_S = 2.0


def main() -> int:
    try:
        settings = WorkerSettings()
    except ValidationError as error:
        print(f"workers: {'; '.join(wrong_settings(error))}", file=sys.stderr)  # noqa: T201
        return 2
    if not settings.redis_url:
        print(  # noqa: T201
            "workers: HEADRACE_REDIS_URL is not set.\n"
            "Set it to the Redis that your hubs use, for example redis://127.0.0.1:6379/0,\n"
            "or run `headrace dev`, which starts a private Redis, a hub and a worker.",
            file=sys.stderr,
        )
        return 2
    _look_here()
    try:
        providers = _providers(settings)
        toolbox = Toolbox.load(settings.tools)
    except (WrongCatalog, WrongGenerators, UnusableTools) as error:
        print(f"workers: {error}", file=sys.stderr)  # noqa: T201
        return 2
    configure_logging()
    loop.run(_work(settings, settings.redis_url, providers, toolbox))
    _end_within(_THREADS_S, 0)
    return 0


def _end_within(seconds: float, status: int) -> None:
    """Threads that the code of tools and generators started, and that do not end, are not waited for at the exit."""

    def end() -> None:
        time.sleep(seconds)
        log_.warning("threads of tools or generators are left behind")
        os._exit(status)

    threading.Thread(target=end, name="exit", daemon=True).start()


def _look_here() -> None:
    """An operator's own tools and generators are found where the worker is started. Looked at last: a folder of the
    same name as a package that is installed, or as one of ours, takes no place of it.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def _providers(settings: WorkerSettings) -> Providers:
    """What the catalog, the keys and the registered generators allow. Raises WrongCatalog, WrongGenerators."""
    requests = min(settings.worker_concurrency + 1, POOL_CONNECTIONS)
    catalog = load(find(settings.config))
    generators = load_generators(parse(settings.generators))
    made: dict[str, Provider] = {}
    if generators:
        made[GENERATOR] = GeneratorProvider(generators, silence_s=settings.generator_silence_s)
    return Providers.from_env(os.environ, requests=requests, catalog=catalog, made=made)


async def _work(settings: WorkerSettings, url: str, providers: Providers, toolbox: Toolbox) -> None:
    _allow_sockets()
    broker = Broker.connect(url, settings)
    worker = Worker(settings, broker, providers, toolbox)
    running_loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running_loop.add_signal_handler(number, worker.stop)
    try:
        await _warm(providers)
        loop.calm_collector()
        announcing = asyncio.create_task(_announce(worker, providers, toolbox))
        try:
            await worker.run()
        finally:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)
    finally:
        await providers.close()
        await broker.close()
    log_.info(f"worker {worker.name} left")


async def _warm(providers: Providers) -> None:
    """Load SDKs and prices before requests come. A provider that cannot be set up fails its own answers, no others."""
    if providers.available - pricing.FREE:
        await asyncio.to_thread(pricing.load)
    try:
        await providers.warm()
    except ProviderError as error:
        log_.warning("a provider cannot be set up", reason=error.message)


async def _announce(worker: Worker, providers: Providers, toolbox: Toolbox) -> None:
    """One line when requests are taken; one before it if that has to wait."""
    try:
        async with asyncio.timeout(_STARTING_S):
            await worker.ready.wait()
    except TimeoutError:
        log_.warning("waiting for redis; is HEADRACE_REDIS_URL right?")
        await worker.ready.wait()
    names = ", ".join(sorted(providers.available, key=_spoken_order))
    tools = f", tools: {', '.join(toolbox.names)}" if toolbox.names else ""
    log_.info(f"worker {worker.name} ready, {worker.places} slots, providers: {names}{tools}")


def _spoken_order(name: str) -> tuple[bool, str]:
    return (name in ("scripted", "fallback"), name)


def _allow_sockets() -> None:
    """Raise the soft limit of open files: many systems start with 1,024, one socket short of a full worker."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
