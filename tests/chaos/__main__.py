"""`python -m tests.chaos --minutes 2 --seed 1`: break everything at random, and check that the promises held.

Hubs, workers, a Redis, a provider and a crowd of viewers run as processes, with a fault proxy on every link. They
are killed, paused, drained and cut off; afterwards a checker reads what every viewer saw, the logs of the streams
and of the processes, and what is left behind.

The same seed gives the same faults at the same times and the same choices of each viewer; how processes are
scheduled between them is the machine's. Exit status: 0 all promises held, 1 some were broken, 2 it could not run.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path

import uvloop
from rich.console import Console

from tests.chaos.plan import Plan
from tests.chaos.process import DidNotStart
from tests.chaos.run import Run


def parse(arguments: list[str] | None = None) -> tuple[Plan, Path | None]:
    default = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=default.minutes, help="how long faults strike")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--redis", choices=("always", "everysec", "none", "sentinel"), default=default.redis)
    for name in ("hubs", "workers", "viewers"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    for name, what in (
        ("hub-kill-s", "kills of a hub"), ("worker-kill-s", "kills of a worker"),
        ("redis-restart-s", "crashes of Redis"), ("network-s", "faults of the network"),
    ):  # fmt: skip
        field = name.replace("-", "_")
        parser.add_argument(
            f"--{name}", type=float, default=getattr(default, field), help=f"mean time between two {what}"
        )
    parser.add_argument("--settle-s", type=float, default=default.settle_s, help="time to come to an end afterwards")
    parser.add_argument("--keep", type=Path, help="leave logs and histories in this directory, which must not exist")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the outcome")
    options = vars(parser.parse_args(arguments))
    keep = options.pop("keep")
    return Plan(**options), keep


async def main(plan: Plan, directory: Path, console: Console) -> int:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        figures = await Run(plan, directory, console).run()
    except DidNotStart as error:
        console.print(str(error), style="red", markup=False)
        return 2
    except asyncio.CancelledError:
        console.print("\nended early; everything that was started is stopped")
        return 130
    return 0 if figures.is_clean else 1


def command() -> int:
    plan, keep = parse()
    console = Console()
    if keep is not None:
        if keep.exists():
            console.print(f"{keep} exists already: name a directory that does not", style="red")
            return 2
        keep.mkdir(parents=True)
        status = uvloop.run(main(plan, keep.resolve(), console))
        console.print(f"logs and histories: {keep}")
        return status
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as home:
        return uvloop.run(main(plan, Path(home), console))


if __name__ == "__main__":
    sys.exit(command())
