"""`python -m bench …`: measure, compare with what is to be reached, print it."""

from __future__ import annotations

import json
import resource
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import typer
import uvloop
from rich.console import Console

from bench import machine
from bench.failover import Failover
from bench.fanout import Fanout
from bench.figures import Line, Row, fill, markdown, table
from bench.idle import Idle
from bench.process import BenchError
from bench.reader import Reader
from bench.relay import Relay
from bench.resume import Resume
from bench.snapshots import Snapshots
from bench.stack import Setup, Stack
from bench.stalled import Stalled
from hub.broker.embedded import NoRedis, RedisDied

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Measure Headrace on this machine: hub, worker, Redis and the load, all on the same cores.",
    pretty_exceptions_enable=False,
)
console = Console()

Runs = Annotated[int, typer.Option(min=1, help="Take the median of so many runs.")]
Encoding = Annotated[Literal["json", "msgpack"], typer.Option(help="Encoding between hub and viewers.")]
Fsync = Annotated[Literal["off", "everysec", "always"], typer.Option(help="Redis' append-only file.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write figures of all runs to this file.")]
Seconds = Annotated[float, typer.Option(min=1, help="How long to measure in each run.")]


class Bench(Protocol):
    """One measurement."""

    @property
    def title(self) -> str: ...
    def lines(self) -> list[Line]: ...
    async def run(self, setup: Setup) -> dict[str, float]: ...


class Session:
    """The measurements of one command, with what they have in common."""

    def __init__(self, runs: int, encoding: str, fsync: str, file: Path | None) -> None:
        self._runs = runs
        self._file = file
        appendonly: Any = None if fsync == "off" else fsync
        self._setup = Setup(encoding, appendonly, lambda text: None)
        self.facts = machine.facts(_run(_redis_version(self._setup)), encoding, fsync)
        self.results: list[tuple[Bench, list[dict[str, float]], list[Row]]] = []
        self.failures: dict[str, str] = {}

    def measure(self, bench: Bench) -> None:
        """Run, print the table, remember it for the file. What cannot be measured is said, and told by `close`."""
        runs = []
        for number in range(1, self._runs + 1):
            prefix = f"{bench.title} · run {number} of {self._runs}"
            with console.status(prefix, refresh_per_second=2) as status:
                self._setup.say = lambda text, prefix=prefix: (  # type: ignore[misc]
                    status.update(f"{prefix} · {text}") if console.is_terminal else console.print(f"  {text}")
                )
                try:
                    runs.append(_run(bench.run(self._setup)))
                except BenchError as error:
                    self.failures[bench.title] = str(error)
                    console.print(f"{bench.title}: not measured. {error}", style="red", markup=False, highlight=False)
                    self.write()
                    return
        rows = [fill(line, runs) for line in bench.lines()]
        self.results.append((bench, runs, rows))
        console.print(table(bench.title, rows))
        self.write()

    def close(self) -> None:
        """Exits with 1 if anything could not be measured."""
        if self.failures:
            raise typer.Exit(1)

    def write(self) -> None:
        if self._file is None:
            return
        measured = [
            {"title": bench.title, "runs": runs, "rows": [vars(row) for row in rows]}
            for bench, runs, rows in self.results
        ]
        document = {"facts": self.facts, "measured": measured, "not_measured": self.failures}
        self._file.write_text(json.dumps(document, indent=1) + "\n")

    def markdown(self) -> str:
        facts = "\n".join(f"- {name}: {value}" for name, value in self.facts.items())
        tables = "\n".join(markdown(bench.title, rows) for bench, _, rows in self.results)
        failed = "".join(
            f"\nNot measured: {title}: {error.splitlines()[0]}\n" for title, error in self.failures.items()
        )
        return f"{facts}\n- medians of {self._runs} runs, lowest and highest in brackets\n\n{tables}{failed}"


def _measure(session: Session, bench: Bench) -> None:
    session.measure(bench)
    session.close()


async def _redis_version(setup: Setup) -> str:
    async with Stack(setup, hubs=0, workers=0) as stack:
        return await stack.redis_version()


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return uvloop.run(work)


@app.command()
def relay(
    streams: int = 1000, rate: float = 20, seconds: Seconds = 10, runs: Runs = 3,
    encoding: Encoding = "json", appendfsync: Fsync = "off", file: Json = None,
) -> None:  # fmt: skip
    """Many streams, one viewer each. Targets stand for 1000 × 20, 200 × 20 and 1000 × 40."""
    _measure(Session(runs, encoding, appendfsync, file), Relay(streams, rate, seconds))


@app.command()
def sdk(
    streams: int = 200, rate: float = 25, seconds: Seconds = 10, runs: Runs = 3,
    encoding: Encoding = "json", appendfsync: Fsync = "off", file: Json = None,
) -> None:  # fmt: skip
    """The same through the providers' SDKs over HTTP, from a fake provider: half Anthropic, half OpenAI."""
    _measure(Session(runs, encoding, appendfsync, file), Relay(streams, rate, seconds, sdk=True))


@app.command()
def reader(
    streams: int = 200, rate: float = 50, seconds: Seconds = 5, runs: Runs = 3, file: Json = None,
) -> None:  # fmt: skip
    """Reading providers' streams: our adapters, raw aiohttp + orjson, the SDKs' own iterators. No hub, no worker."""
    _measure(Session(runs, "json", "off", file), Reader(streams, rate, seconds))


@app.command()
def fanout(
    viewers: int = 1000, rate: float = 50, seconds: Seconds = 10, runs: Runs = 3,
    encoding: Encoding = "json", appendfsync: Fsync = "off", file: Json = None,
) -> None:  # fmt: skip
    """One stream to many viewers, beside a plain loop of `send`."""
    _measure(Session(runs, encoding, appendfsync, file), Fanout(viewers, rate, seconds))


@app.command()
def idle(
    connections: int = 5000, seconds: Seconds = 20, queued: bool = False, runs: Runs = 3,
    encoding: Encoding = "json", appendfsync: Fsync = "off", file: Json = None,
) -> None:  # fmt: skip
    """Connections attached to silent streams: memory each, and what the reconcile pass costs."""
    _measure(Session(runs, encoding, appendfsync, file), Idle(connections, seconds, queued))


@app.command()
def resume(
    viewers: int = 1000, streams: int = 1000, rate: float = 5, runs: Runs = 3,
    encoding: Encoding = "json", appendfsync: Fsync = "off", file: Json = None,
) -> None:  # fmt: skip
    """Kill a hub under its viewers; all resume on another at once, and every final text is checked."""
    _measure(Session(runs, encoding, appendfsync, file), Resume(viewers, min(streams, viewers), rate))


@app.command()
def stalled(
    viewers: int = 1000, rate: float = 20, seconds: Seconds = 8, rounds: int = 3, runs: Runs = 1,
    encoding: Encoding = "json", appendfsync: Fsync = "off", file: Json = None,
) -> None:  # fmt: skip
    """Viewers that do not read and do not ack, beside others of the same stream: A/B/A/B."""
    _measure(Session(runs, encoding, appendfsync, file), Stalled(viewers, rate, seconds, rounds))


@app.command()
def failover(
    answers: Annotated[int, typer.Option(min=1, help="Of each fault and each format.")] = 20, runs: Runs = 1,
    encoding: Encoding = "json", appendfsync: Fsync = "off", file: Json = None,
) -> None:  # fmt: skip
    """Providers that fail before the first token: how long until the next one's."""
    _measure(Session(runs, encoding, appendfsync, file), Failover(answers))


@app.command()
def snapshots(
    kib: Annotated[int, typer.Option(min=1, help="Of the document.")] = 72,
    piece: Annotated[int, typer.Option(min=1, help="Characters that arrive at a time.")] = 4,
    runs: Runs = 3, file: Json = None,
) -> None:  # fmt: skip
    """A JSON document seen while it arrives: what the client's snapshots of it cost. No hub, no worker."""
    _measure(Session(runs, "json", "off", file), Snapshots(kib, piece))


@app.command(name="all")
def everything(
    output: Annotated[Path | None, typer.Option(help="Write Markdown for RESULTS.md to this file.")] = None,
    runs: Runs = 3, encoding: Encoding = "json", appendfsync: Fsync = "off", file: Json = None,
) -> None:  # fmt: skip
    """Every row of the table in RESULTS.md; some 15 minutes with three runs."""
    session = Session(runs, encoding, appendfsync, file)
    benches: Sequence[Bench] = [
        Relay(), Relay(200, 20), Relay(1000, 40), Relay(200, 25, sdk=True), Reader(),
        Fanout(), Idle(), Resume(), Stalled(), Snapshots(),
    ]  # fmt: skip
    for bench in benches:
        session.measure(bench)
        if output is not None:
            output.write_text(session.markdown())
    if output is None:
        print(session.markdown())
    session.close()


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # children inherit it
    try:
        app(prog_name="python -m bench")
    except (BenchError, NoRedis, RedisDied, OSError) as error:
        console.print(f"bench: {error}", style="red", highlight=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
