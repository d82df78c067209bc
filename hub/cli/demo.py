"""`headrace demo`: one answer, two viewers, a cut line and a killed hub."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any

from rich.console import Console

import headrace
from hub.broker.embedded import AppendOnly, EmbeddedRedis, NoRedis, RedisDied, find_binary
from hub.cli.children import Child
from hub.cli.failure import Failure, one_line
from hub.cli.keys import key_variables
from hub.cli.stack import Stack, environment
from hub.cli.stage import Stage, verdict
from hub.cli.viewer import Viewer

#: Deterministic, needs no key, takes some eight seconds.
MODEL = "scripted/story"
PROMPT = "Tell me the story of the river."
#: Seconds after the first word.
CUT_AT_S, KILL_AT_S = 2.2, 4.4
#: All of it is over by then, or something is broken.
DEADLINE_S = 60.0
_HOST = "127.0.0.1"


def show() -> int:
    """Run it on screen; 0 if nothing was lost or doubled, else 1. Raises Failure when it cannot be shown."""
    return perform(lambda redis, console: Demo(redis, console).run(), f"the demo was not over after {DEADLINE_S:g} s")


def perform(
    play: Callable[[EmbeddedRedis, Console], Coroutine[Any, Any, int]], late: str, appendonly: AppendOnly | None = None
) -> int:
    """Play over a Redis of its own; the status it ends with. `late` is what a TimeoutError means. Raises Failure."""
    console = Console(highlight=False)
    try:
        with EmbeddedRedis(find_binary(os.environ), appendonly=appendonly) as redis:
            return asyncio.run(play(redis, console))
    except (NoRedis, RedisDied) as error:
        raise Failure(one_line(error)) from None
    except headrace.HeadraceError as error:
        raise Failure(f"the demo broke off: {one_line(error)}") from None
    except TimeoutError:
        raise Failure(f"{late}: is this machine very busy? `headrace doctor` may know") from None


def surroundings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without anything that is meant for a real installation."""
    foreign = key_variables()
    kept = {name: value for name, value in environ.items() if name not in foreign and not name.startswith("HEADRACE_")}
    return {**kept, "HEADRACE_LEDGER": "off", "HEADRACE_CONFIG": os.devnull}


class Demo:
    """Everything that runs, and the order of events."""

    def __init__(self, redis: EmbeddedRedis, console: Console) -> None:
        self._redis = redis
        self._console = console
        self._stage = Stage(console)
        self._stack = Stack(environment(surroundings(os.environ), redis.url), lambda child, line: None)

    async def run(self) -> int:
        async with asyncio.timeout(DEADLINE_S), AsyncExitStack() as cleanup:
            cleanup.push_async_callback(self._stack.stop)
            with self._stage as stage:
                stage.say(f"starting two hubs and a worker over {self._redis.binary}")
                hubs, addresses = await self._start()
                others = dict(reversed(addresses.items()))
                ada = await cleanup.enter_async_context(Viewer("Ada", addresses, self._tell))
                ben = await cleanup.enter_async_context(Viewer("Ben", others, self._tell))
                stage.viewers = (ada, ben)
                await self._play(ada, ben, hubs[ada.switch.hub])
            return self._judge(ada, ben)

    async def _start(self) -> tuple[dict[str, Child], dict[str, tuple[str, int]]]:
        hubs = await self._stack.start_hubs(_HOST, "hub A", "hub B")
        await self._stack.start_worker("worker")
        await self._stack.until_ready(hubs)
        return {hub.name: hub for hub in hubs}, {hub.name: address for hub, address in hubs.items()}

    async def _play(self, ada: Viewer, ben: Viewer, doomed: Child) -> None:
        stage = self._stage
        stream = await ada.ask(PROMPT, MODEL)
        stage.say(f"Ada asks on {ada.switch.hub} for {MODEL}: stream {stream}", "bold")
        ben.join(stream)
        stage.say(f"Ben joins on {ben.switch.hub}, another process", "bold")
        watching = [asyncio.create_task(viewer.watch()) for viewer in (ada, ben)]
        try:
            await ada.spoken.wait()
            await asyncio.sleep(CUT_AT_S)
            stage.say(f"✂ Ada's connection is cut, at entry {ada.witness.last}", "bold yellow")
            ada.switch.cut()
            await asyncio.sleep(KILL_AT_S - CUT_AT_S)
            stage.say(f"✖ {doomed.name} is killed with SIGKILL, Ada at entry {ada.witness.last}", "bold red")
            await doomed.kill()
            await asyncio.gather(*watching)
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        stage.say("the answer is complete for both", "bold green")

    def _judge(self, ada: Viewer, ben: Viewer) -> int:
        """Print the figures; 0 if all is as promised. A demonstration in which nothing broke proves nothing."""
        viewers = (ada, ben)
        digest = ada.witness.digest
        self._console.print(verdict(viewers, digest))
        whole = bool(digest) and all(
            viewer.sha256 == digest == viewer.witness.digest and viewer.witness.is_clean for viewer in viewers
        )
        tested = ada.witness.resumes >= 2 and ada.switch.hub == ben.switch.hub
        if whole and tested and ada.witness.last == ben.witness.last:
            self._console.print(
                f"[bold green]Nothing lost, nothing doubled[/], in {self._stage.seconds:.0f} s: "
                "a cut line and a dead hub cost one viewer two reconnects, and the other nothing."
            )
            return 0
        reason = "not both breaks were met" if whole else "the figures in red are not as promised"
        self._console.print(f"[bold red]Not as promised[/]: {reason}. Please report this.")
        return 1

    def _tell(self, text: str) -> None:
        self._stage.say(text, "green")
