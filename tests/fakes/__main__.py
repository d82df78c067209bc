"""`python -m tests.fakes`: the fake providers as a process.

Prints one line of JSON with the port and the base URLs, then serves until it gets SIGTERM or Ctrl-C. What is
answered follows from the model's name: `fake-tokens=200-rate=25-stamp=1`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys

from tests.fakes.server import FakeProvider


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with FakeProvider(port, keep_times=False) as fake:
        ready = {"port": fake.port, "anthropic": fake.base_url_anthropic, "openai": fake.base_url_openai}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
