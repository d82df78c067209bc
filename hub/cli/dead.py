"""`headrace dead`: generations that were given up. What they were, and asking again. Prompts only on request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.protocol.body import Body, Options
from headrace.protocol.entries import decode_data
from hub.broker import keys
from hub.broker.accept import RequestConflict, RequestGone
from hub.broker.broker import Broker
from hub.broker.connections import Unreachable
from hub.broker.letters import KEPT, Letter, Letters
from hub.broker.settings import BrokerSettings
from hub.cli.failure import Failure
from hub.cli.settings import check_settings

_T = TypeVar("_T")
#: Redis answers within this time, or the command says that it does not.
_PATIENCE_S = 10.0
_EXAMPLE_URL = "redis://127.0.0.1:6379/0"


def list_letters(*, as_json: bool) -> int:
    """Print all letters, newest first."""
    letters = _with_redis(lambda broker: _letters(broker).all())
    if as_json:
        _print_json([_summary(letter) for letter in letters])
    elif not letters:
        print("no dead letters: nothing was given up")
    else:
        console = Console(highlight=False)
        console.print(_table(letters))
        console.print(f"[dim]{_count(len(letters))}; the newest {KEPT} are kept. headrace dead show STREAM[/]")
    return 0


def show_letter(stream: str, *, with_prompt: bool, as_json: bool) -> int:
    """Print what is known of one letter."""
    facts = _with_redis(lambda broker: _examine(broker, stream, with_prompt))
    if as_json:
        _print_json(facts)
        return 0
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        text = json.dumps(value, ensure_ascii=False, indent=2) if isinstance(value, dict) else str(value)
        table.add_row(Text(name.replace("_", " "), "bold"), Text("–" if value is None else text))
    Console(highlight=False).print(table)
    return 0


def retry_letters(stream: str | None, *, as_json: bool) -> int:
    """Ask again: one stream, or all with `stream` None. 1 if any could not be."""
    outcomes = _with_redis(lambda broker: _retry(broker, stream))
    if as_json:
        _print_json([{"stream": outcome.stream, "new": outcome.new, "error": outcome.error} for outcome in outcomes])
    elif not outcomes:
        print("no dead letters: nothing to ask again")
    else:
        for outcome in outcomes:
            print(f"{outcome.stream} → {outcome.new}" if outcome.new else f"{outcome.stream}: {outcome.error}")
    return int(any(outcome.error for outcome in outcomes))


@dataclass(frozen=True)
class Outcome:
    """Of one retry: the new stream, or why there is none."""

    stream: str
    new: str | None = None
    error: str | None = None


async def _retry(broker: Broker, stream: str | None) -> list[Outcome]:
    if stream is not None:
        outcome = await _retry_one(broker, await _find(broker, stream))
        if outcome.error:
            raise Failure(f"{outcome.stream} cannot be asked again: {outcome.error}")
        return [outcome]
    return [await _retry_one(broker, letter) for letter in reversed(await _letters(broker).all())]


async def _retry_one(broker: Broker, letter: Letter) -> Outcome:
    """A new generation of the same user with the same request. Asked twice, also at once, it is one and the same."""
    stream = keys.stream_of(letter.key)
    redis: Any = broker.connections.control
    state, user, request, options = await redis.hmget(keys.meta(letter.key), "state", "user", "request", "options")
    if state is None:
        return Outcome(stream, error="it expired with its request; its user has to ask again")
    if state != b"done":
        return Outcome(stream, error="it is not over: a worker came back and has it; nothing to do")
    if request is None:
        return Outcome(stream, error="its request was not kept; its user has to ask again")
    try:
        body, how = msgspec.msgpack.decode(request, type=Body), msgspec.msgpack.decode(options, type=Options)
    except msgspec.MsgspecError:
        return Outcome(stream, error="its request cannot be read by this version")
    how.on_abandon = "continue"  # nobody watches it yet
    seconds, _ = await redis.time()
    try:
        key = await broker.accept(
            org=keys.org_of(letter.key), user=user.decode(), request_key=f"dead:{stream}", body=body, options=how,
            now_ms=seconds * 1000,
        )  # fmt: skip
    except RequestGone:
        return Outcome(stream, error="it was asked again before, and that answer has expired")
    except RequestConflict:
        return Outcome(stream, error="its user has used the key of this retry for something else")
    await _letters(broker).remove(letter.key)
    return Outcome(stream, new=keys.stream_of(key))


async def _examine(broker: Broker, stream: str, with_prompt: bool) -> dict[str, Any]:
    letter = await _find(broker, stream)
    redis: Any = broker.connections.control
    names = ("state", "request", "created", "losses")
    state, request, created, losses = await redis.hmget(keys.meta(letter.key), *names)
    left_ms = await redis.pttl(keys.meta(letter.key))
    facts: dict[str, Any] = _summary(letter) | {
        "asked": _when(int(created)) if created else None,
        "workers_lost": int(losses) if losses else None,
        "state": state.decode() if state else "expired",
        "can_be_retried_for_s": left_ms // 1000 if request is not None and left_ms > 0 else 0,
        "prompt_bytes": None,
    }
    facts |= await _last_entry(broker, letter)
    if request is not None:
        try:
            body = msgspec.msgpack.decode(request, type=Body)
        except msgspec.MsgspecError:
            return facts
        facts["prompt_bytes"] = body.prompt_bytes
        if with_prompt:
            facts["request"] = msgspec.to_builtins(body)
    return facts


async def _last_entry(broker: Broker, letter: Letter) -> dict[str, Any]:
    """How the log ends: how many entries, how much visible text, and the error that its viewers were told."""
    [standing] = await broker.log.standings([letter.key])
    if standing is None or not standing.top:
        return {"entries": None, "text_bytes": None, "error": None}
    [(kind, data)] = await broker.log.read(letter.key, standing.top, 1)
    end = decode_data(kind, data) if kind == "done" else {}
    error = end.get("error") or {}
    told = f"{error['code']}: {error['message']}" if error else None
    return {"entries": standing.top, "text_bytes": end.get("text_bytes"), "error": told}


async def _find(broker: Broker, stream: str) -> Letter:
    for letter in await _letters(broker).all():
        if keys.stream_of(letter.key) == stream:
            return letter
    raise Failure(f"there is no dead letter {stream}: `headrace dead list` shows those there are")


def _letters(broker: Broker) -> Letters:
    return Letters(broker.connections.control)


def _summary(letter: Letter) -> dict[str, Any]:
    return {
        "given_up": _when(letter.at_ms), "stream": keys.stream_of(letter.key), "org": keys.org_of(letter.key),
        "user": letter.user, "model": letter.model, "attempts": letter.attempts, "why": letter.why,
    }  # fmt: skip


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _table(letters: list[Letter]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("given up", "stream", "org", "user", "model", "attempts", "why"):
        table.add_column(name, no_wrap=name == "stream", overflow="fold")
    for letter in letters:
        table.add_row(*[Text(str(value)) for value in _summary(letter).values()])
    return table


def _count(number: int) -> str:
    return "1 dead letter" if number == 1 else f"{number} dead letters"


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _with_redis(work: Callable[[Broker], Awaitable[_T]]) -> _T:
    """Do `work` with the Redis of the hubs. Raises Failure when it is not named or does not answer."""
    check_settings()
    settings = BrokerSettings()
    url = settings.redis_url
    if not url:
        raise Failure(
            f"HEADRACE_REDIS_URL is not set: dead letters lie in the Redis of your hubs, as in {_EXAMPLE_URL} "
            "(that of `headrace dev` is private)"
        )

    async def run() -> _T:
        try:
            broker = Broker.connect(url, settings)
        except ValueError:
            raise Failure(f"HEADRACE_REDIS_URL is no address: it looks like {_EXAMPLE_URL}") from None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await work(broker)
        finally:
            await broker.close()

    try:
        return asyncio.run(run())
    except (*Unreachable, TimeoutError) as error:
        raise Failure(
            f"HEADRACE_REDIS_URL does not answer ({type(error).__name__}): is Redis up? Ask `headrace doctor`"
        ) from None
