"""A rolling restart: one hub after the other ends with SIGTERM and comes back on its port, under viewers that stay."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from tests.installation import HubProcess, question, token
from tests.wire import Wire


async def start_hubs(redis_url: str, count: int, drain_s: float, ports: list[int] | None = None) -> list[HubProcess]:
    """Hubs that are ready."""
    hubs = [
        HubProcess(
            redis_url,
            port=ports[number] if ports else None,
            HEADRACE_DRAIN_S=str(drain_s),
            HEADRACE_PROVIDERS="scripted",
            HEADRACE_FRAMES_PER_SECOND="2000",
        )
        for number in range(count)
    ]
    try:
        await asyncio.gather(*[hub.ready() for hub in hubs])
    except BaseException:
        for hub in hubs:
            hub.kill()
        raise
    return hubs


class Asker:
    """Starts generations that only its cancel ends, and watches none."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.streams: list[str] = []

    @classmethod
    async def join(cls, hub: HubProcess) -> Asker:
        wire = await hub.connect()
        await wire.send({"type": "hello", "token": token()})
        await wire.until("welcome")
        return cls(wire)

    async def ask(self, count: int, rate: float) -> None:
        for number in range(count):
            await self._wire.send(question(f"r{number}", model=f"scripted/tokens=100000,rate={rate:g}", attach=False))
            self.streams.append((await self._wire.until("accepted"))[-1]["stream"])

    async def end(self, hub: HubProcess) -> None:
        """Cancel all of them, on a hub that is there."""
        await self._wire.close()
        streams, self.streams = self.streams, []
        self._wire = (await Asker.join(hub))._wire
        for stream in streams:
            await self._wire.send({"type": "cancel", "id": stream, "stream": stream})
            await self._wire.until("ok", id=stream)
        await self._wire.close()


async def roll(
    redis_url: str, hubs: list[HubProcess], drain_s: float, settled: Callable[[int], Awaitable[None]]
) -> list[str]:
    """Restart all of `hubs`, in place; `settled` is awaited after each. What they logged comes back."""
    logs = []
    for number, hub in enumerate(hubs):
        hub.signal(signal.SIGTERM)
        status, log = await hub.ended(drain_s + 10)
        assert status == 0, log
        logs.append(log)
        [hubs[number]] = await start_hubs(redis_url, 1, drain_s, [hub.port])
        await settled(number)
    return logs
