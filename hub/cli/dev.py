"""`headrace dev`: Redis, a hub and workers on this machine, and what they say."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hub.broker.embedded import NoRedis, RedisDied, RedisServer, resolve
from hub.cli.children import Child
from hub.cli.commands import LOCAL
from hub.cli.failure import Failure, one_line
from hub.cli.feed import Feed
from hub.cli.keys import catalog, providers
from hub.cli.logline import render
from hub.cli.settings import check_settings
from hub.cli.stack import Stack, any_port, check_port, environment
from workers.catalog import WrongCatalog

_REDIS_S = 3.0
_COLOURS = {"hub": "cyan", "worker": "magenta", "answer": "green"}
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def develop(host: str, port: int, workers: int) -> None:
    """Run everything until a signal. Raises Failure when it cannot start, or when a part of it ends."""
    check_settings()
    check_port(host, port)
    try:
        catalog(os.environ)
    except WrongCatalog as error:
        raise Failure(str(error)) from None
    try:
        with resolve(os.environ) as redis:
            if os.environ.get("HEADRACE_REDIS_URL"):
                check_redis(redis)
            asyncio.run(_Dev(redis, host, port, workers).run())
    except (NoRedis, RedisDied) as error:
        raise Failure(one_line(error)) from None


def check_redis(server: RedisServer) -> None:
    """Raises Failure if nobody answers there: hub and worker would wait for it, and for ever."""
    from redis import Redis, RedisError

    client = Redis.from_url(server.url, socket_timeout=_REDIS_S, socket_connect_timeout=_REDIS_S)
    try:
        client.ping()
    except (RedisError, OSError) as error:
        raise Failure(
            f"no Redis answers at {server.description}: {type(error).__name__}; start it, mend the address, "
            "or unset HEADRACE_REDIS_URL to use a private one"
        ) from None
    finally:
        client.close()


class _Dev:
    def __init__(self, redis: RedisServer, host: str, port: int, workers: int) -> None:
        self._redis = redis
        self._host = host
        self._port = port or any_port(host)
        self._workers = workers
        self._environ = environment(os.environ, redis.url)
        self._console = Console(highlight=False)
        self._stack = Stack(self._environ, self._heard)

    async def run(self) -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stopping.set)
        self._console.print(f"[dim]starting on {self._redis.description} …[/]", soft_wrap=True)
        working = asyncio.create_task(self._work())
        waiting = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
            if stopping.is_set():
                self._console.print("\n[dim]ending the hub and its workers …[/]")
        finally:
            waiting.cancel()
            working.cancel()
            await asyncio.gather(working, waiting, return_exceptions=True)
            await self._stack.stop()
        if not stopping.is_set():
            working.result()

    async def _work(self) -> None:
        """Start all, say so, then show what happens until a child ends, which raises Failure."""
        hub = await self._stack.start_hub("hub", self._host, self._port)
        for number in range(1, self._workers + 1):
            await self._stack.start_worker("worker" if self._workers == 1 else f"worker {number}")
        await self._stack.until_ready({hub: (self._host, self._port)})
        self._console.print(welcome(self._host, self._port, self._redis.description, self._workers, self._environ))
        self._console.print(next_steps(self._host, self._port, self._environ, this_command()), soft_wrap=True)
        async with asyncio.TaskGroup() as tasks:
            feed = tasks.create_task(Feed(self._redis.url, self._show_answer).run())
            ended = await self._stack.first_to_end()
            feed.cancel()
        raise Failure(f"the {ended.name} ended (status {ended.status}): {self._stack.last_words(ended)}")

    def _heard(self, child: Child, line: str) -> None:
        self._show(child.name, line)

    def _show_answer(self, line: str) -> None:
        self._show("answer", line)

    def _show(self, name: str, line: str) -> None:
        colour = _COLOURS[name.partition(" ")[0]]
        self._console.print(render(name, colour, line, time.strftime("%H:%M:%S")), soft_wrap=True)


def this_command() -> str:
    """How this program is called from here: by its name if that is enough, else by its path."""
    program = Path(sys.argv[0])
    if program.name != "headrace":
        return f"{_from_here(Path(sys.executable))} -m hub.cli"
    found = shutil.which("headrace")
    if found is not None and Path(found).resolve() == program.resolve():
        return "headrace"
    return _from_here(program)


def _from_here(path: Path) -> str:
    """The shorter of the absolute path and the one from the current directory."""
    absolute = path if path.is_absolute() else Path.cwd() / path
    relative = os.path.relpath(absolute)
    return min((relative, str(absolute)), key=len)


def welcome(host: str, port: int, redis: str, workers: int, environ: Mapping[str, str]) -> Panel:
    """Where everything is."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("hub", Text(f"{address(host, port)}/v1/ws", "bold cyan"))
    facts.add_row("redis", Text(redis))
    facts.add_row("workers", str(workers))
    facts.add_row("providers", _providers(environ))
    facts.add_row("access", _access(environ))
    return Panel(facts, title="[bold]Headrace is ready[/]", title_align="left", border_style="green", padding=(1, 2))


def next_steps(host: str, port: int, environ: Mapping[str, str], command: str) -> Text:
    """What to type next: outside of any frame, so that it can be copied."""
    options = "" if address(host, port) == LOCAL else f" --url {address(host, port)}"
    if environ.get("HEADRACE_AUTH") != "none":
        options += f' --token "$({command} token --user alice)"'
    return Text.assemble(
        "\n  Next, in another terminal:\n\n",
        ("    # talk to a model\n", "dim"),
        (f"    {command} chat{options}\n\n", "bold green"),
        ("    # watch an answer survive a killed hub\n", "dim"),
        (f"    {command} demo\n\n", "bold green"),
        ("  Ctrl-C here ends all of it. What happens, while it happens:\n", "dim"),
    )


def address(host: str, port: int) -> str:
    """Where a client on this machine finds the hub."""
    host = _WILDCARDS.get(host, host)
    return f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"


def _providers(environ: Mapping[str, str]) -> Text:
    text = Text()
    for access in providers(environ, catalog(environ)):
        if access.has_key:
            text.append("✓ ", "green")
            text.append(f"{access}\n")
        else:
            text.append("· ", "yellow")
            text.append(f"{access}; {access.advice} and start again\n", "dim")
    text.append("✓ ", "green")
    text.append("fallback and scripted, which need none")
    return text


def _access(environ: Mapping[str, str]) -> Text:
    if environ.get("HEADRACE_AUTH") == "none":
        return Text("everybody on this machine, without a token (HEADRACE_JWT_SECRET is not set)")
    return Text("with a token (HEADRACE_JWT_SECRET is set)")
