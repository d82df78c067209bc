"""Let the model call a function of this program. Nothing is asked twice when the connection breaks.

Run a hub first (`scripts/dev`), then: python examples/tools_10_lines.py
Without a provider's key: HEADRACE_MODEL=scripted/tool=weather python examples/tools_10_lines.py
"""

import asyncio
import os

import headrace

URL = os.environ.get("HEADRACE_URL", "ws://127.0.0.1:8080")
MODEL = os.environ.get("HEADRACE_MODEL", "standard")


def weather(city: str, days: int = 1) -> dict[str, object]:
    """Forecast for a city."""
    return {"city": city, "days": days, "sky": "blue", "celsius": -4}


async def main() -> None:
    async with headrace.connect(URL, os.environ.get("HEADRACE_TOKEN")) as client:
        async for event in client.run("Do I need a coat in Oslo?", tools=[weather], model=MODEL):
            if isinstance(event, headrace.Text):
                print(event.text, end="", flush=True)
            elif isinstance(event, headrace.ToolResult):
                print(f"[{event.output}]")
        print()


if __name__ == "__main__":
    asyncio.run(main())
