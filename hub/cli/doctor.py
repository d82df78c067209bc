"""`headrace doctor`: what is wrong on this machine, and what to do."""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hub.broker.embedded import OLDEST_VERSION, NoRedis, RedisDied, resolve
from hub.cli.failure import Failure, one_line
from hub.cli.keys import catalog, catalog_file, providers
from hub.cli.settings import wrong_settings
from workers.catalog import Catalog, WrongCatalog, load

Verdict = Literal["ok", "warn", "fail"]
_STYLES: dict[Verdict, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_OLDEST_PYTHON = (3, 11)
_REDIS_S = 2.0
#: A viewer costs its hub one open file, an answer costs its worker one.
_FILES_FEW, _FILES_MANY = 256, 4096
#: Tokens and leases compare clocks.
_SKEW_S = 2.0


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, how it is, what was found, what to do about it."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine(port: int) -> int:
    """Print the report; 1 if anything fails."""
    checks = list(checkup(os.environ, port))
    console = Console(highlight=False)
    console.print(report(checks))
    failed = sum(check.verdict == "fail" for check in checks)
    warned = sum(check.verdict == "warn" for check in checks)
    if failed:
        console.print(f"[bold red]{failed} to mend[/], {warned} to look at.")
    elif warned:
        console.print(f"[green]Ready to run[/], {warned} to look at.")
    else:
        console.print("[green]All good.[/]")
    return 1 if failed else 0


def report(checks: list[Check]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        words = Text(check.found)
        if check.advice:
            words.append(f"\n→ {check.advice}", "dim" if check.verdict == "ok" else "")
        table.add_row(Text(check.verdict, _STYLES[check.verdict]), Text(check.name, "bold"), words)
    return table


def checkup(environ: Mapping[str, str], port: int) -> Iterator[Check]:
    """Everything, in the order in which it matters."""
    yield check_python()
    yield check_settings(wrong_settings())
    yield from check_redis(environ)
    yield from check_providers(environ)
    yield check_secret(environ)
    yield check_port(port)
    yield check_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield check_speed()


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    found = f"{'.'.join(map(str, version))}, {sys.executable}"
    if version < _OLDEST_PYTHON:
        return Check("Python", "fail", found, "Headrace needs 3.11 or newer: PYTHON=python3.12 scripts/setup")
    return Check("Python", "ok", found)


def check_settings(wrong: list[str]) -> Check:
    if wrong:
        return Check("settings", "fail", "\n".join(wrong), "mend or unset: docs/configuration.md has them all")
    return Check("settings", "ok", "every HEADRACE_ variable can be used")


def check_redis(environ: Mapping[str, str]) -> Iterator[Check]:
    """Connect to, or start, what `headrace dev` would use, and ask it."""
    from redis import RedisError

    try:
        with resolve(environ) as server:
            client = _client(server.url)
            try:
                info: Any = client.info()
                settings = {name: _setting(client, name) for name in ("maxmemory-policy", "maxmemory", "appendonly")}
                clock: Any = client.time()
            finally:
                client.close()
            yield judge_version(info, server.description)
            yield judge_policy(settings["maxmemory-policy"], settings["maxmemory"])
            yield judge_persistence(settings["appendonly"], bool(environ.get("HEADRACE_REDIS_URL")))
            yield judge_clock(time.time(), clock[0] + clock[1] / 1e6)
    except (NoRedis, RedisDied) as error:
        yield Check("Redis", "fail", "no usable server", str(error))
    except (RedisError, OSError, ValueError) as error:
        yield Check(
            "Redis", "fail", f"HEADRACE_REDIS_URL does not answer ({type(error).__name__})",
            "check that it runs, its host, port and password; or unset the variable to use a private one",
        )  # fmt: skip


def _client(url: str) -> Any:
    """Of the server that the address names, or of the primary that its sentinels name."""
    from redis import Redis, sentinel

    from hub.broker.address import parse_address

    address = parse_address(url)
    timeouts: Any = {"socket_timeout": _REDIS_S, "socket_connect_timeout": _REDIS_S}
    if not address.sentinels:
        return Redis.from_url(url, **timeouts)
    timeouts["ssl"] = address.is_tls
    untyped: Any = sentinel
    sentinels = untyped.Sentinel(list(address.sentinels), sentinel_kwargs=address.sentinel_options | timeouts)
    return sentinels.master_for(address.service, **address.options, **timeouts)


def _setting(client: Any, name: str) -> str | None:
    """A setting of the server; None where it does not tell, as many hosted ones."""
    from redis import RedisError

    try:
        value = client.config_get(name).get(name)
    except RedisError:
        return None
    return None if value is None else str(value)


def judge_version(info: Mapping[str, Any], description: str) -> Check:
    product = "Valkey" if info.get("valkey_version") else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version") or "0")
    numbers = tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
    found = description if version in description else f"{product} {version}, {description}"
    if numbers < OLDEST_VERSION[:2]:
        return Check("Redis", "fail", found, "Headrace needs Redis 6.2 or newer, or any Valkey")
    return Check("Redis", "ok", found)


def judge_policy(policy: str | None, maxmemory: str | None) -> Check:
    if policy is None:
        return Check("eviction", "warn", "the server does not tell", "see that maxmemory-policy is noeviction")
    if policy == "noeviction":
        return Check("eviction", "ok", "maxmemory-policy noeviction")
    advice = "CONFIG SET maxmemory-policy noeviction: a full Redis must refuse new work, not drop answers"
    return Check("eviction", "warn" if maxmemory == "0" else "fail", f"maxmemory-policy {policy}", advice)


def judge_persistence(appendonly: str | None, is_own: bool) -> Check:
    if not is_own:
        return Check("persistence", "ok", "none: a private server for development, empty at every start")
    if appendonly is None:
        return Check("persistence", "warn", "the server does not tell", "see that appendonly is yes")
    if appendonly == "yes":
        return Check("persistence", "ok", "appendonly yes")
    return Check("persistence", "warn", "appendonly no", "CONFIG SET appendonly yes, or a restart loses every answer")


def judge_clock(ours: float, theirs: float) -> Check:
    """Both in Unix seconds."""
    skew = abs(ours - theirs)
    if skew > _SKEW_S:
        advice = "set both by NTP: tokens and waiting times are compared across machines"
        return Check("clock", "warn", f"{skew:.1f} s apart from Redis", advice)
    return Check("clock", "ok", "in step with Redis")


def check_providers(environ: Mapping[str, str]) -> Iterator[Check]:
    """As a worker started here would find them."""
    path = catalog_file(environ)
    try:
        known = catalog(environ)
    except WrongCatalog as error:
        yield Check("catalog", "fail", str(error), "mend it: no worker starts with it")
        return
    own = [name for name in known.providers if name not in load(None).providers]
    found = f"{path}, with {', '.join(own) or 'no provider'} of its own" if path else "the shipped one"
    yield Check("catalog", "ok", found)
    yield check_keys(environ, known)
    yield from check_base_urls(environ, known)


def check_keys(environ: Mapping[str, str], known: Catalog) -> Check:
    """Names of variables, never what they hold. A provider that somebody added is meant to be asked."""
    access = providers(environ, known)
    missing = [each for each in access if not each.has_key]
    if len(missing) == len(access):
        names = " or ".join(each.variables[0] for each in missing)
        advice = f"set {names} for the worker; until then a labelled fallback answers"
        return Check("provider keys", "warn", "none", advice)
    advice = "; ".join(f"{each.advice} for {each.provider}" for each in missing)
    verdict: Verdict = "ok" if all(each.is_shipped for each in missing) else "warn"
    return Check("provider keys", verdict, ", ".join(str(each) for each in access), advice)


def check_base_urls(environ: Mapping[str, str], known: Catalog) -> Iterator[Check]:
    for variable in dict.fromkeys(entry.base_url_variable for entry in known.providers.values()):
        if variable is None:
            continue
        value = environ.get(variable)
        if not value:
            continue
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if usable:  # the host only: an address may hold a password
            yield Check("base URL", "ok", f"{variable}: {parts.scheme}://{parts.hostname}")
        else:
            yield Check("base URL", "fail", f"{variable} is no address", "it looks like https://host, or unset it")


def check_secret(environ: Mapping[str, str]) -> Check:
    from hub.auth import SECRET_BYTES

    size = len(environ.get("HEADRACE_JWT_SECRET", "").encode())
    if size >= SECRET_BYTES:
        return Check("JWT secret", "ok", f"HEADRACE_JWT_SECRET, {size} bytes")
    make = "export HEADRACE_JWT_SECRET=$(openssl rand -hex 32)"
    if size:
        return Check("JWT secret", "fail", f"HEADRACE_JWT_SECRET has {size} bytes, hubs want {SECRET_BYTES}", make)
    if environ.get("HEADRACE_AUTH") == "none":
        return Check("JWT secret", "ok", "HEADRACE_AUTH=none: this machine only, everybody is one user")
    return Check("JWT secret", "warn", "HEADRACE_JWT_SECRET is not set: fine for `headrace dev`", f"else {make}")


def check_port(port: int) -> Check:
    import asyncio

    from hub.cli import stack

    try:
        stack.check_port("127.0.0.1", port)
    except Failure as failure:
        if asyncio.run(stack.is_ready("127.0.0.1", port)):
            return Check(f"port {port}", "ok", "a hub answers there already")
        what, _, advice = one_line(failure).partition(": ")
        return Check(f"port {port}", "warn", what, advice)
    return Check(f"port {port}", "ok", "free")


def check_files(limit: int) -> Check:
    """`limit` is the soft limit of open files."""
    if limit == resource.RLIM_INFINITY or limit >= _FILES_MANY:
        return Check("open files", "ok", "unlimited" if limit == resource.RLIM_INFINITY else str(limit))
    advice = f"one for each viewer: ulimit -n {_FILES_MANY}, or LimitNOFILE= in its systemd unit"
    return Check("open files", "fail" if limit < _FILES_FEW else "warn", f"{limit} a process", advice)


def check_speed() -> Check:
    missing = [name for name in ("uvloop", "hiredis") if importlib.util.find_spec(name) is None]
    if missing:
        return Check(
            "speed", "warn", f"without {' and '.join(missing)}", "everything costs more CPU: run scripts/setup"
        )
    return Check("speed", "ok", "uvloop and hiredis")
