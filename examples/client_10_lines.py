"""Ask a question and print the answer as it comes. Lost connections are resumed without a word about it.

Run a hub first (`scripts/dev`), then: python examples/client_10_lines.py
"""

import asyncio
import os

import headrace

URL = os.environ.get("HEADRACE_URL", "ws://127.0.0.1:8080")


async def main() -> None:
    async with headrace.connect(URL, os.environ.get("HEADRACE_TOKEN")) as client:
        async for event in client.generate("Why is the sky blue?"):
            if isinstance(event, headrace.Text):
                print(event.text, end="", flush=True)
        print()


if __name__ == "__main__":
    asyncio.run(main())
