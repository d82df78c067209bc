"""The balancer in front of the hubs: each new connection goes to the next hub that says it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from tests.faults.proxy import FaultProxy

_EVERY_S = 0.25
_ANSWER_S = 1.0


class Front(FaultProxy):
    """A fault proxy whose target is another hub each time. `watch` must run."""

    def __init__(self, hubs: Mapping[int, int], seed: int) -> None:
        """`hubs`: number → port."""
        self._hubs = dict(hubs)
        self._ready: list[int] = list(hubs.values())
        self._turn = 0
        super().__init__("", seed=seed)

    @property
    def target(self) -> str:
        self._turn += 1
        ports = self._ready or list(self._hubs.values())
        return f"{self.host}:{ports[self._turn % len(ports)]}"

    @target.setter
    def target(self, value: str) -> None:
        """Whoever connects is given the next hub, whatever is set."""

    async def watch(self) -> None:
        """Ask the hubs whether they are ready, until cancelled."""
        while True:
            ports = list(self._hubs.values())
            answers = await asyncio.gather(*(is_ready(port) for port in ports))
            self._ready = [port for port, ready in zip(ports, answers, strict=True) if ready]
            await asyncio.sleep(_EVERY_S)


async def is_ready(port: int) -> bool:
    """Whether the hub's /readyz says 200."""
    try:
        return (await get(port, "/readyz", _ANSWER_S)).startswith("HTTP/1.1 200 ")
    except (OSError, TimeoutError):
        return False


async def get(port: int, path: str, within_s: float = 5.0) -> str:
    """The answer to one HTTP request, head and body. Raises OSError, TimeoutError."""
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\n\r\n".encode())
            return (await reader.read()).decode()
        finally:
            writer.close()
