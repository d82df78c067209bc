"""`python -m workers`: one worker, until SIGTERM or SIGINT; the second one makes it leave at once."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

import structlog
from pydantic import ValidationError

from hub.broker import loop
from hub.broker.broker import Broker
from hub.broker.logging import configure_logging
from hub.broker.settings import wrong_settings
from workers import pricing
from workers.catalog import WrongCatalog, load
from workers.providers import ProviderError
from workers.providers.registry import Providers
from workers.providers.sdk import POOL_CONNECTIONS
from workers.settings import WorkerSettings
from workers.worker import Worker

log_ = structlog.get_logger(__name__)

#: One socket a generation, and some for Redis.
_FILES = 65_536
_STARTING_S = 2.0
_CATALOG = Path("headrace.toml")


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
    try:
        providers = _providers(settings)
    except WrongCatalog as error:
        print(f"workers: {error}", file=sys.stderr)  # noqa: T201
        return 2
    configure_logging()
    loop.run(_work(settings, settings.redis_url, providers))
    return 0


def _providers(settings: WorkerSettings) -> Providers:
    """What the catalog and the keys allow. Raises WrongCatalog."""
    path = settings.config or (_CATALOG if _CATALOG.exists() else None)
    requests = min(settings.worker_concurrency + 1, POOL_CONNECTIONS)
    return Providers.from_env(os.environ, requests=requests, catalog=load(path))


async def _work(settings: WorkerSettings, url: str, providers: Providers) -> None:
    _allow_sockets()
    loop.calm_collector()
    broker = Broker.connect(url, settings)
    worker = Worker(settings, broker, providers)
    running_loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running_loop.add_signal_handler(number, worker.stop)
    try:
        await _warm(providers)
        announcing = asyncio.create_task(_announce(worker, providers))
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


async def _announce(worker: Worker, providers: Providers) -> None:
    """One line when requests are taken; one before it if that has to wait."""
    try:
        async with asyncio.timeout(_STARTING_S):
            await worker.ready.wait()
    except TimeoutError:
        log_.warning("waiting for redis; is HEADRACE_REDIS_URL right?")
        await worker.ready.wait()
    names = ", ".join(sorted(providers.available, key=_spoken_order))
    log_.info(f"worker {worker.name} ready, {worker.places} slots, providers: {names}")


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
