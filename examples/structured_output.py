"""Ask for a value instead of text, watch it grow, and get it as an object of your own.

Run a hub first (`scripts/dev`), then: python examples/structured_output.py
With a provider's key for the worker: HEADRACE_MODEL=standard python examples/structured_output.py
"""

import asyncio
import os
from dataclasses import dataclass

import headrace

URL = os.environ.get("HEADRACE_URL", "ws://127.0.0.1:8080")
MODEL = os.environ.get("HEADRACE_MODEL", "scripted/json=1")  # needs no key, and makes something up


@dataclass
class Stop:
    place: str
    hours: float


@dataclass
class Journey:
    """A day on a river."""

    title: str
    stops: list[Stop]


async def main() -> None:
    async with headrace.connect(URL, os.environ.get("HEADRACE_TOKEN")) as client:
        generation = client.generate("Plan a day on the river Aare.", model=MODEL, schema=Journey)
        async for snapshot in generation.snapshots():
            print(snapshot)  # {}, {'title': 'A d'}, {'title': 'A day', 'stops': [{'place': 'Th'}]}, …
        try:
            journey: Journey = await generation.value()
        except headrace.InvalidOutput as error:
            print(f"{error}. The model wrote: {error.text}")
        else:
            print(f"{journey.title}: {', '.join(stop.place for stop in journey.stops)}")


if __name__ == "__main__":
    asyncio.run(main())
