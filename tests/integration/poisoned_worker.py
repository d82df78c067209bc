"""`python -m tests.integration.poisoned_worker`: a worker that the model `scripted/poison` kills, half a second in."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator

from headrace.protocol.body import Body
from hub.broker import lanes
from hub.broker.broker import Broker
from workers import intake
from workers.providers import Event
from workers.providers.registry import Providers
from workers.providers.scripted import ScriptedProvider
from workers.settings import WorkerSettings
from workers.worker import Worker

#: Tickets of dead workers are taken over at once, not after ten seconds.
lanes.STRANDED_MS = 300
intake.STRANDED_EVERY_S = 0.3


class Poisoned(ScriptedProvider):
    async def stream(self, model: str, body: Body, kept: str = "") -> AsyncGenerator[list[Event], None]:
        if model == "poison":
            await asyncio.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        async for events in super().stream(model, body, kept):
            yield events


async def main() -> None:
    settings = WorkerSettings()
    assert settings.redis_url
    broker = Broker.connect(settings.redis_url, settings)
    await Worker(settings, broker, Providers(frozenset({"fallback"}), made={"scripted": Poisoned()})).run()


if __name__ == "__main__":
    asyncio.run(main())
