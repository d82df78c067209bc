"""What reading a provider's stream costs: our adapters, beside the floor and the packages' own iterators."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.figures import OTHERS, Line
from bench.process import BenchError, Process, cpu_s, machine_cpu_s
from bench.reading import WARM_S, WAYS
from bench.stack import START_DEADLINE_S, Setup, start_fake

FORMATS: Final = {"anthropic": "Anthropic", "openai": "OpenAI chat", "responses": "OpenAI responses"}
#: Ours may cost so much of the floor …
RATIO_AT_MOST: Final = 1.3
#: … and the packages' own iterators must cost so many times as much as ours.
TIMES_CHEAPER: Final = 3.0
#: A reader that cannot keep up is measured all the same; it has this long beside its streams' own time.
_PATIENCE_S: Final = 60.0


@dataclass(frozen=True)
class Reader:
    """Each way in a process of its own, one after the other, from one fake provider in another."""

    streams: int = 200
    rate: float = 50
    seconds: float = 5

    @property
    def title(self) -> str:
        return f"reader: {self.streams} streams × {self.rate:g} tokens/s of a fake provider, read and decoded"

    def lines(self) -> list[Line]:
        lines = []
        for kind, name in FORMATS.items():
            ours = f"ours_{kind}"
            lines += [
                Line(f"{name}: CPU a token; floor: aiohttp and orjson", ours, "µs",
                     floor=f"raw_{kind}", ratio_at_most=RATIO_AT_MOST),
                Line("… the package's own iterator", f"sdk_{kind}", "µs"),
                Line("… times as much as ours", f"times_{kind}", "×", at_least=TIMES_CHEAPER),
                Line("… its own iterator over aiohttp", f"sdk_aiohttp_{kind}", "µs"),
                Line("… tokens a read", f"batch_ours_{kind}", floor=f"batch_raw_{kind}"),
                Line("… its own iterator reads", f"kept_{kind}", "% of what is sent"),
            ]  # fmt: skip
        return [*lines, OTHERS]

    async def run(self, setup: Setup) -> dict[str, float]:
        figures: dict[str, float] = {}
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as home:
            fake, urls = await start_fake(Path(home) / "provider.log")
            try:
                began, machine, known = time.monotonic(), machine_cpu_s(), cpu_s(fake.pid)
                used = 0.0
                for kind, name in FORMATS.items():
                    for way in WAYS:
                        setup.say(f"{name}, {way}")
                        told = await self._read(home, way, kind, urls)
                        figures[f"{way}_{kind}"] = told["cpu_s"] / told["pieces"] * 1e6
                        used += told["cpu_whole_s"]
                        figures[f"batch_{way}_{kind}"] = told["pieces"] / told["reads"]
                        if way == "sdk":
                            sent = self.streams * self.rate * told["seconds"]
                            figures[f"kept_{kind}"] = min(100.0, 100 * told["pieces"] / sent)
                    figures[f"times_{kind}"] = figures[f"sdk_{kind}"] / figures[f"ours_{kind}"]
                fake.check()
                others = machine_cpu_s() - machine - used - (cpu_s(fake.pid) - known)
                figures["others_pct"] = 100 * others / (time.monotonic() - began)
            finally:
                fake.kill()
        return figures

    async def _read(self, home: str, way: str, kind: str, urls: dict[str, Any]) -> dict[str, float]:
        url = urls["anthropic" if kind == "anthropic" else "openai"]
        log = Path(home) / way / kind / "log"
        log.parent.mkdir(parents=True)
        arguments = ["bench.reading", way, kind, url, str(self.streams), str(self.rate), str(self.seconds)]
        process = Process(f"reading {kind} by {way}", arguments, log, {})
        try:
            async with asyncio.timeout(START_DEADLINE_S + WARM_S + self.seconds + _PATIENCE_S):
                while not (lines := [line for line in process.log().splitlines() if line.startswith("{")]):
                    process.check()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise BenchError(f"{process.name} did not come to an end.{process.log_tail()}") from None
        finally:
            process.kill()
        told: dict[str, float] = json.loads(lines[0])
        if not told["pieces"]:
            raise BenchError(f"{process.name} read nothing")
        return told
