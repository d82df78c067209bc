"""A process full of viewers, told by lines on its standard input what to do: see `Audience` in __main__."""

from __future__ import annotations

import asyncio
import json
import sys

from hub.broker.loop import run
from tests.rolling.crowd import Crowd


async def serve() -> None:
    loop = asyncio.get_running_loop()
    order = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    crowd = Crowd(order["ports"], order["token"])
    try:
        for number in range(order["viewers"]):
            crowd.join(order["streams"][number % len(order["streams"])])
            if number % 50 == 49:
                await asyncio.sleep(0.05)
        while word := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            if word == "live":
                await crowd.all_live()
                sys.stdout.write("live\n")
            elif word == "end":
                await crowd.all_done()
                sys.stdout.write(json.dumps(crowd.figures()) + "\n")
            sys.stdout.flush()
    finally:
        await crowd.leave()


if __name__ == "__main__":
    run(serve())
