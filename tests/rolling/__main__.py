"""`python -m tests.rolling --viewers 2000`: a rolling restart of two hubs under live viewers, and what it cost them."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

from hub.broker.embedded import EmbeddedRedis
from tests.installation import running_worker, token
from tests.rolling.crowd import percentile
from tests.rolling.roll import Asker, roll, start_hubs

#: Everything takes less than this, or the run failed.
STEP_S = 120.0


class Audience:
    """One child process of viewers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, **order: Any) -> Audience:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.rolling.audience",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24,
        )  # fmt: skip
        audience = cls(process)
        await audience._tell(json.dumps(order))
        return audience

    async def live(self) -> None:
        """Until all its viewers are live."""
        await self._tell("live")
        await self._line()

    async def end(self) -> dict[str, Any]:
        """What its viewers saw, once all streams are done."""
        await self._tell("end")
        figures: dict[str, Any] = json.loads(await self._line())
        return figures

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        async with asyncio.timeout(STEP_S):
            line = await self._process.stdout.readline()
        assert line, "a process of viewers ended"
        return line


async def rolling_restart(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures of each process of viewers."""
    began = time.monotonic()

    def say(text: str) -> None:
        _print(f"{time.monotonic() - began:6.1f} s  {text}")

    with EmbeddedRedis() as redis:
        async with running_worker(redis.url, worker_concurrency=options.generations):
            hubs = await start_hubs(redis.url, 2, options.drain)
            audiences: list[Audience] = []
            try:
                asker = await Asker.join(hubs[0])
                await asker.ask(options.generations, options.rate)
                say(f"{options.generations} generations at {options.rate:g} tokens/s")
                for _ in range(options.processes):
                    audiences.append(
                        await Audience.start(
                            ports=[hub.port for hub in hubs],
                            token=token(ttl_s=3600),
                            streams=asker.streams,
                            viewers=options.viewers // options.processes,
                        )
                    )
                await asyncio.gather(*[audience.live() for audience in audiences])
                say(f"{options.viewers} viewers are live on two hubs")

                async def settled(number: int) -> None:
                    say(f"hub {number} was restarted")
                    await asyncio.gather(*[audience.live() for audience in audiences])
                    say("all viewers are live")

                await roll(redis.url, hubs, options.drain, settled)
                await asker.end(hubs[1])
                figures = await asyncio.gather(*[audience.end() for audience in audiences])
                say("all streams are done")
                return figures
            finally:
                for audience in audiences:
                    await audience.kill()
                for hub in hubs:
                    hub.kill()


def report(parts: list[dict[str, Any]]) -> bool:
    """Print the figures; False if a promise was broken."""
    names = ("viewers", "lost", "doubled", "mismatches", "restarts")
    total = {name: sum(part[name] for part in parts) for name in names}
    reconnects = [count for part in parts for count in part["reconnects"]]
    absences = [absence for part in parts for absence in part["absences"]]
    codes: Counter[str] = sum((Counter(part["codes"]) for part in parts), Counter())
    errors: Counter[str] = sum((Counter(part["errors"]) for part in parts), Counter())
    for name, value in total.items():
        _print(f"{name:<32}{value:>10}")
    _print(f"{'reconnects, most of one viewer':<32}{max(reconnects):>10}")
    _print(f"{'reconnects, all':<32}{sum(reconnects):>10}")
    _print(f"{'closed → live, p50':<32}{percentile(absences, 0.5):>8.2f} s")
    _print(f"{'closed → live, p99':<32}{percentile(absences, 0.99):>8.2f} s")
    _print(f"{'close codes':<32}{dict(codes)}")
    _print(f"{'errors':<32}{dict(errors)}")
    broken = total["lost"] + total["doubled"] + total["mismatches"] + total["restarts"] + sum(errors.values())
    return not broken and max(reconnects) <= 2


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.rolling", description=__doc__)
    parser.add_argument("--viewers", type=int, default=2000)
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--rate", type=float, default=2.0, help="tokens a second of each generation")
    parser.add_argument("--drain", type=float, default=10.0, help="HEADRACE_DRAIN_S of the hubs")
    parser.add_argument("--processes", type=int, default=2, help="processes that the viewers are spread over")
    options = parser.parse_args()
    sys.exit(0 if report(asyncio.run(rolling_restart(options))) else 1)


if __name__ == "__main__":
    main()
