"""The fake providers of a chaos run, as a process: `python -m tests.chaos.provider`. Prints its addresses as JSON.

What a request gets follows from its prompt, so that another worker's attempt meets the same trouble at the same
token, but for troubles that are over after the first time (`once`).
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

import uvloop

from tests.fakes import FakeProvider, Script
from tests.fakes.messages import last_prompt

_FAULTS = {"cut": "cut", "reset": "reset", "error": "error", "end": "end", "drop": "drop", "hang": "stall"}


class ChaosProvider(FakeProvider):
    def script_for(self, body: dict[str, Any]) -> Script:
        words = dict(word.partition("=")[::2] for word in last_prompt(body["messages"]).split()[1:])
        trouble = words.get("trouble", "none")
        rate = float(words.get("rate", 20))
        fault: Any = _FAULTS.get(trouble)
        return Script(
            tokens=int(words.get("tokens", 100)),
            gap_s=1 / rate,
            stamp=True,
            first_s=3.0 if trouble == "pause" else 0.05,
            fault=fault,
            fault_after=int(words.get("after", 0)) if fault else 0,
        )


async def serve() -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with ChaosProvider(keep_times=False) as fake:
        sys.stdout.write(json.dumps({"port": fake.port}) + "\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(serve())
