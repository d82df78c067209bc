"""How long a failure before the first token costs: from the question to the first token of the next provider."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import headrace
from bench.figures import OTHERS, Line
from bench.latency import percentile
from bench.process import BenchError
from bench.stack import Setup, Stack, Usage
from tests.faults.ports import deaf_port, free_port

FORMATS = ("anthropic", "openai")
#: By fault: the model that fails so, `{n}` another one each time. Breakers are by model: none is to be left alone.
FAULTS = {
    "nothing fails": "{format}/fake-tokens=2-rate=0",
    "dead port": "dead-{format}/model-{n}",
    "500": "{format}/fake-status=500-tokens={n}",
    "503": "{format}/fake-status=503-tokens={n}",
    "529": "{format}/fake-status=529-tokens={n}",
    "error as the stream's first event": "{format}/fake-fault=error-tokens={n}",
    "blackhole": "hole-{format}/model-{n}",
}
NONE, BLACKHOLE = "nothing fails", "blackhole"
#: Blackholes are asked side by side, each so long after the one before.
_STEP_S = 0.05
_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Failover:
    answers: int = 20
    """Of each fault and each format."""

    @property
    def title(self) -> str:
        return f"failover before the first token: question → first token of the next provider, {self.answers} each"

    def lines(self) -> list[Line]:
        lines = []
        for fault in FAULTS:
            for format_ in FORMATS:
                for share in ("p50", "p99"):
                    limit = None if fault == NONE else 6000.0 if fault == BLACKHOLE else 300.0
                    floor = "" if fault == NONE else _figure(NONE, format_, share)
                    what = f"{fault} ({format_}), {share}"
                    lines.append(Line(what, _figure(fault, format_, share), "ms", at_most=limit, floor=floor))
        return [*lines, OTHERS]

    async def run(self, setup: Setup) -> dict[str, float]:
        """Raises BenchError."""
        with deaf_port() as hole, tempfile.TemporaryDirectory(prefix="headrace-bench-") as home:
            config = Path(home) / "headrace.toml"
            config.write_text(_providers("dead", free_port()) + _providers("hole", hole))
            environ = {"HEADRACE_CONFIG": str(config), "HEADRACE_PROVIDERS": _names()}
            async with Stack(setup, fake=True, environ=environ) as stack:
                return await self._measure(setup, stack)

    async def _measure(self, setup: Setup, stack: Stack) -> dict[str, float]:
        figures: dict[str, float] = {}
        async with headrace.connect(f"ws://127.0.0.1:{stack.ports[0]}", encoding="json") as client:
            for format_ in FORMATS:  # SDKs are loaded, connections are open
                for _ in range(5):
                    await _first_token(client, FAULTS[NONE], format_, 2)
            before = await stack.usage()
            for fault, model in FAULTS.items():
                setup.say(f"{fault}: {self.answers} answers of each format")
                for format_ in FORMATS:
                    taken = sorted(await self._take(client, model, format_, side_by_side=fault == BLACKHOLE))
                    figures[_figure(fault, format_, "p50")] = percentile(taken, 0.5)
                    figures[_figure(fault, format_, "p99")] = percentile(taken, 0.99)
            used: Usage = before.until(await stack.usage())
            stack.check()
        return {**figures, "others_pct": used.others_pct}

    async def _take(self, client: headrace.Client, model: str, format_: str, *, side_by_side: bool) -> list[int]:
        numbers = range(2, self.answers + 2)
        if not side_by_side:
            return [await _first_token(client, model, format_, number) for number in numbers]

        async def late(number: int) -> int:
            await asyncio.sleep(number * _STEP_S)
            return await _first_token(client, model, format_, number)

        return list(await asyncio.gather(*map(late, numbers)))


async def _first_token(client: headrace.Client, model: str, format_: str, number: int) -> int:
    """Nanoseconds. The next in line speaks the other format."""
    other = FORMATS[format_ == FORMATS[0]]
    named = model.format(format=format_, n=number)
    began = time.monotonic_ns()
    try:
        async with asyncio.timeout(_DEADLINE_S):
            generation = client.generate("?", model=named, fallbacks=[f"{other}/fake-tokens=2-rate=0"])
            async for event in generation:
                if isinstance(event, headrace.Text):
                    taken = time.monotonic_ns() - began
                    await generation.done()
                    return taken
    except (TimeoutError, headrace.HeadraceError) as error:
        raise BenchError(f"{named}: no first token ({error or 'in time'})") from error
    raise BenchError(f"{named}: no first token ({generation.error or generation.status})")


def _figure(fault: str, format_: str, share: str) -> str:
    return f"{fault}_{format_}_{share}"


def _names() -> str:
    return ",".join([*FORMATS, *[f"{place}-{format_}" for place in ("dead", "hole") for format_ in FORMATS]])


def _providers(place: str, port: int) -> str:
    return "".join(
        f'[providers.{place}-{format_}]\nformat = "{format_}"\n'
        f'base_url = "http://127.0.0.1:{port}{"/v1" if format_ == "openai" else ""}"\n'
        for format_ in FORMATS
    )
