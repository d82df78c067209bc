"""Every command with its options and help, on one page. What a command does is imported when it runs.

Nothing heavy at the top: `headrace --help` must not cost more than showing it.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hub.cli.failure import Failure, one_line

#: Base of every "you typed this wrong" of typer. Its module has moved between versions; its place has not.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def examples(*pairs: tuple[str, str]) -> str:
    """The end of a command's help: what to type, and what for, as a shell takes it."""
    lines = [f"  [cyan]{command}[/]" + (f"  [dim]# {meaning}[/]" if meaning else "") for command, meaning in pairs]
    return "\n\n".join(["[bold]Examples[/]", *lines])


app = typer.Typer(
    name="headrace",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A realtime hub for model output: answers stream to every viewer and survive whatever breaks.",
    epilog=examples(
        ("headrace dev", "Redis, a hub and a worker on this machine"),
        ("headrace chat", "talk to it, from another terminal"),
        ("headrace demo", "watch an answer survive a cut line and a killed hub"),
    ),
)

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")]
Url = Annotated[str, typer.Option(envvar="HEADRACE_URL", help="Where the hub listens.")]
Token = Annotated[
    str, typer.Option(envvar="HEADRACE_TOKEN", show_default=False, help="Token, as `headrace token` prints it.")
]
LOCAL = "ws://127.0.0.1:8080"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"headrace {version('headrace-hub')}")
        raise typer.Exit


@app.callback()
def headrace(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


@app.command(
    epilog=examples(
        ("headrace dev", "everything, on port 8080"),
        ("headrace dev --port 8081 --workers 2", "elsewhere"),
        ("HEADRACE_REDIS_URL=redis://127.0.0.1 headrace dev", "your own Redis"),
    )
)
def dev(
    host: Host = "127.0.0.1",
    port: Port = 8080,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Worker processes.")] = 1,
) -> None:
    """Start Redis, a hub and a worker on this machine.

    Shows what happens while it happens. Ctrl-C ends all of it.
    """
    from hub.cli.dev import develop

    develop(host, port, workers)


@app.command(
    epilog=examples(
        ("headrace hub --port 8081", "needs HEADRACE_REDIS_URL and HEADRACE_JWT_SECRET"),
        ("HEADRACE_AUTH=none headrace hub", "no tokens, for this machine only"),
    )
)
def hub(host: Host = "127.0.0.1", port: Port = 8080) -> None:
    """Run one hub.

    SIGTERM sends its viewers to the other hubs, then ends it.
    """
    from hub.cli.settings import check_settings

    check_settings()
    become("hub", "--host", host, "--port", str(port))


@app.command(
    epilog=examples(
        ("headrace worker", "needs HEADRACE_REDIS_URL, and a provider's key for real answers"),
        ("headrace worker --concurrency 200", "at most 200 answers at a time"),
    )
)
def worker(
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1, max=20_000, envvar="HEADRACE_WORKER_CONCURRENCY", help="Answers at a time.", show_default="1000"
        ),
    ] = None,
) -> None:
    """Run one worker.

    SIGTERM lets it finish, or hand over, what it runs.
    """
    if concurrency is not None:
        os.environ["HEADRACE_WORKER_CONCURRENCY"] = str(concurrency)
    become("workers")


def become(module: str, *arguments: str) -> None:
    """Turn into `python -m module`: signals, output and exit status are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])


@app.command(
    epilog=examples(
        ("headrace chat", "with the hub of `headrace dev`"),
        ("headrace chat --model scripted/story", "a long answer that needs no key"),
        ("headrace chat --system 'Be brief.'", "told to the model first"),
        ("headrace chat --tool weather --tool search", "tools that the workers have"),
        ("echo 'Why is the sky blue?' | headrace chat", "one prompt a line, for scripts"),
    )
)
def chat(
    url: Url = LOCAL,
    token: Token = "",
    model: Annotated[str, typer.Option(help="fast, standard, premium, or provider/model.")] = "standard",
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    tool: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A tool of the workers that the model may use; repeatable.")
    ] = None,
) -> None:
    """Talk to a model in this terminal.

    Ctrl-C cancels the answer, not the program; Ctrl-D leaves.
    """
    from hub.cli.chat import converse

    raise typer.Exit(converse(url, token, model, system, tool or []))


@app.command(
    epilog=examples(
        ("headrace demo", "nothing needs to run; takes some 12 seconds"),
        ("headrace demo --chaos", "a minute of kills and cuts, two dozen viewers"),
    )
)
def demo(
    chaos: Annotated[bool, typer.Option("--chaos", help="Break something every two seconds.")] = False,
    seconds: Annotated[float, typer.Option(min=4, max=3600, help="How long, with --chaos.")] = 60,
) -> None:
    """Watch an answer survive a cut line and a killed hub.

    Two hubs, one worker, one answer, two viewers. Cuts a viewer's connection, kills the hub it is on, and shows
    that nothing was lost or doubled. With --chaos, hubs, workers and Redis are killed all the time.
    """
    if chaos:
        from hub.cli.chaos import show as show_chaos

        raise typer.Exit(show_chaos(seconds))
    from hub.cli.demo import show

    raise typer.Exit(show())


@app.command(
    epilog=examples(
        ("headrace token --user alice", "uses HEADRACE_JWT_SECRET"),
        ('HEADRACE_TOKEN="$(headrace token --user alice)" headrace chat', ""),
    )
)
def token(
    user: Annotated[str, typer.Option(help="Who it is for.")],
    org: Annotated[str | None, typer.Option(help="Organisation; streams are shared inside it.")] = None,
    scope: Annotated[str, typer.Option(help="Scopes, separated by spaces.")] = "",
    ttl: Annotated[int, typer.Option(min=1, max=315_360_000, help="Good for this many seconds.")] = 3600,
) -> None:
    """Print a token for a user.

    Prints nothing else, so that "$(headrace token …)" works.
    """
    from hub.cli.token import make

    typer.echo(make(user, org, scope, ttl))


@app.command(
    epilog=examples(
        ("headrace record g_5Zk2mQ9xWb3TnL8r", "chat shows the id"),
        ("headrace record g_5Zk2mQ9xWb3TnL8r --out bug.msgpack", "for a report"),
    )
)
def record(
    stream: Annotated[str, typer.Argument(help="The stream's id.")],
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="STREAM.msgpack")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
    url: Url = LOCAL,
    token: Token = "",
) -> None:
    """Write a stream's entries to a file.

    From the first entry to `done` or Ctrl-C. The file holds the answer's text, and nothing of the prompt.
    """
    from hub.cli.record import record_stream

    raise typer.Exit(record_stream(stream, out, force, url, token))


@app.command(
    epilog=examples(
        ("headrace replay bug.msgpack", "as fast as it was"),
        ("headrace replay bug.msgpack --speed 4", "four times as fast"),
        ("headrace replay bug.msgpack --instant", "all of it now"),
    )
)
def replay(
    file: Annotated[Path, typer.Argument(help="What `headrace record` wrote.", exists=True, dir_okay=False)],
    speed: Annotated[float, typer.Option(min=0.01, max=1000, help="2 is twice as fast.")] = 1.0,
    instant: Annotated[bool, typer.Option("--instant", help="Do not wait between entries.")] = False,
) -> None:
    """Play a recording back, and check it.

    The text must have the digest that the recorded `done` names.
    """
    from hub.cli.replay import play

    raise typer.Exit(play(file, None if instant else speed))


class By(StrEnum):
    """What to add up by."""

    user = "user"
    org = "org"
    model = "model"
    day = "day"


Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command(
    epilog=examples(
        ("headrace usage", "the last 30 days, by model"),
        ("headrace usage --by user --since 7d", "the most expensive first"),
        ("headrace usage --by day --since 2026-11-01 --org acme", ""),
        ("headrace usage --by org --json | jq 'map(.cost_nanos) | add'", "in billionths of a dollar"),
    )
)
def usage(
    by: Annotated[By, typer.Option(help="What to add up by.")] = By.model,
    since: Annotated[str, typer.Option(help="24h, 7d, or a date like 2026-11-01 (UTC).")] = "30d",
    org: Annotated[str | None, typer.Option(help="Of this organisation only.")] = None,
    user: Annotated[str | None, typer.Option(help="Of this user only.")] = None,
    as_json: Json = False,
) -> None:
    """Show what was used and what it cost.

    Reads the ledger that the hubs write: HEADRACE_LEDGER, or the file they use when it is not set. Every call of a
    provider counts, also those that failed, were cancelled, or were lost with their worker.
    """
    from hub.cli.usage import show

    raise typer.Exit(show(by.value, since, org, user, as_json=as_json))


@app.command(epilog=examples(("headrace doctor", "before the first start, and when something is odd")))
def doctor(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that the hub is to use.")] = 8080,
) -> None:
    """Say what is wrong on this machine, and what to do.

    Looks at Python, Redis, provider keys, ports, limits.
    """
    from hub.cli.doctor import examine

    raise typer.Exit(examine(port))


dead = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Look at answers that were given up, and ask them again.\n\n"
    "A request whose workers were lost three times without a word, or six times in all, is given up and becomes a "
    "dead letter. Needs HEADRACE_REDIS_URL. The newest 1000 letters are kept.",
    epilog=examples(
        ("headrace dead list", "newest first"),
        ("headrace dead show g_5Zk2mQ9xWb3TnL8r", "what is known of one"),
        ("headrace dead retry g_5Zk2mQ9xWb3TnL8r", "once what killed its workers is mended"),
    ),
)
app.add_typer(dead, name="dead")
DeadStream = Annotated[str, typer.Argument(metavar="STREAM", help="The stream's id.")]


@dead.command(
    "list", epilog=examples(("headrace dead list", ""), ("headrace dead list --json | jq -r '.[].stream'", ""))
)
def list_dead(as_json: Json = False) -> None:
    """Show all dead letters, newest first: when, whose, how often tried, why. No prompts."""
    from hub.cli.dead import list_letters

    raise typer.Exit(list_letters(as_json=as_json))


@dead.command("show", epilog=examples(("headrace dead show g_5Zk2mQ9xWb3TnL8r", "")))
def show_dead(
    stream: DeadStream,
    with_prompt: Annotated[bool, typer.Option("--with-prompt", help="Show what the user asked, too.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is known of one dead letter.

    The prompt is a user's: it is shown only when asked for, while it is kept.
    """
    from hub.cli.dead import show_letter

    raise typer.Exit(show_letter(stream, with_prompt=with_prompt, as_json=as_json))


@dead.command(
    "retry",
    epilog=examples(
        ("headrace dead retry g_5Zk2mQ9xWb3TnL8r", "prints the new stream's id"), ("headrace dead retry --all", "")
    ),
)
def retry_dead(
    stream: Annotated[str | None, typer.Argument(metavar="[STREAM]", help="The stream's id.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    as_json: Json = False,
) -> None:
    """Ask again what was given up.

    The old stream has ended and stays so. The same request runs as a new stream of the same user, who finds it in
    their list of streams; nobody has to watch it. Works while the old stream is kept (retention), and asks once
    however often it is repeated. What was asked again leaves the list.
    """
    if every == (stream is not None):
        raise typer.BadParameter("name one STREAM, or say --all")
    from hub.cli.dead import retry_letters

    raise typer.Exit(retry_letters(stream, as_json=as_json))


def run(arguments: list[str]) -> int:
    """Run one command line; its exit status. Whatever a person can mend is one line on standard error."""
    try:
        status = typer.main.get_command(app).main(arguments, prog_name="headrace", standalone_mode=False)
    except UsageError as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "headrace"
        message = one_line(error.format_message())  # type: ignore[attr-defined]
        if not message:  # no command at all: its help was shown
            return 2
        print(f"{path}: {message} ({path} --help)", file=sys.stderr)
        return 2
    except Failure as failure:
        print(f"headrace: {failure}", file=sys.stderr)
        return 1
    except typer.Abort:
        return 130
    return status if isinstance(status, int) else 0
