"""Help, mistakes and failures: short, clear, and never a traceback."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hub.broker.embedded import EmbeddedRedis
from hub.cli.failure import one_line
from hub.cli.stack import is_ready
from tests.cli.command import environment, run, running, until

COMMANDS = ["dev", "hub", "worker", "chat", "demo", "token", "record", "replay", "usage", "doctor"]


def said_one_line(stderr: str) -> bool:
    return stderr.count("\n") == 1 and bool(stderr.strip()) and "Traceback" not in stderr


def test_help_lists_every_command_with_examples() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert "Examples" in shown.stdout
    for command in COMMANDS:
        assert f" {command} " in shown.stdout


def test_no_command_at_all_shows_the_help() -> None:
    assert "Examples" in run().stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_examples(command: str) -> None:
    shown = run(command, "--help")
    assert shown.returncode == 0
    assert "Examples" in shown.stdout
    assert f"headrace {command}" in shown.stdout.partition("Examples")[2]


def test_help_imports_nothing_heavy() -> None:
    heavy = ["redis", "starlette", "uvicorn", "websockets", "pydantic", "headrace", "prometheus_client", "asyncio"]
    code = f"import sys, hub.cli.commands as c; c.run(['--help']); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_there_at_once() -> None:
    def measure() -> float:
        began = time.monotonic()
        run("--help")
        return time.monotonic() - began

    assert min(measure() for _ in range(5)) < 0.5


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["chat", "--modle", "x"], "--model"),
        (["dev", "--port", "abc"], "--port"),
        (["dev", "--port", "70000"], "65535"),
        (["dev", "--workers", "0"], "--workers"),
        (["caht"], "chat"),
        (["token"], "--user"),
        (["record"], "STREAM"),
        (["replay", "nowhere.msgpack"], "nowhere.msgpack"),
        (["replay", "pyproject.toml", "--speed", "0"], "--speed"),
        (["worker", "--concurrency", "0"], "--concurrency"),
        (["demo", "extra"], "extra"),
        (["usage", "--by", "colour"], "model"),
    ],
)
def test_a_wrong_word_gets_one_line_that_names_it(arguments: list[str], hint: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said_one_line(done.stderr), done.stderr
    assert hint.lower() in done.stderr.lower()
    assert "--help" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "settings", "hints"),
    [
        (["dev", "--port", "0"], {"HEADRACE_REDIS_BIN": "/nowhere/redis"}, ["HEADRACE_REDIS_BIN", "6.2"]),
        (["demo"], {"HEADRACE_REDIS_BIN": "/nowhere/redis"}, ["HEADRACE_REDIS_BIN", "6.2"]),
        (["dev", "--port", "0"], {"HEADRACE_REDIS_URL": "ftp://x"}, ["HEADRACE_REDIS_URL", "redis://"]),
        (["dev", "--port", "0"], {"HEADRACE_REDIS_URL": "redis://u:pw@127.0.0.1:1"}, ["127.0.0.1:1", "unset"]),
        (["dev", "--port", "0"], {"HEADRACE_LEASE_S": "soon"}, ["HEADRACE_LEASE_S", "number"]),
        (["hub", "--port", "0"], {"HEADRACE_WINDOW": "-1"}, ["HEADRACE_WINDOW", "greater than"]),
        (["dev", "--host", "203.0.113.7"], {}, ["203.0.113.7", "127.0.0.1"]),
        (["chat", "--url", "ws://127.0.0.1:1"], {}, ["127.0.0.1:1", "headrace dev"]),
        (["chat", "--url", "telnet://x"], {}, ["ws://"]),
        (["record", "g_5Zk2mQ9xWb3TnL8r", "--url", "ws://127.0.0.1:1"], {}, ["127.0.0.1:1", "headrace dev"]),
        (["token", "--user", "alice"], {}, ["HEADRACE_JWT_SECRET", "openssl"]),
        (["token", "--user", "alice"], {"HEADRACE_JWT_SECRET": "short"}, ["5 bytes", "32"]),
        (["token", "--user", "a" * 129], {"HEADRACE_JWT_SECRET": "s" * 32}, ["--user", "128"]),
    ],
)
def test_a_failure_that_can_be_mended_is_one_line_that_says_how(
    arguments: list[str], settings: dict[str, str], hints: list[str], tmp_path: Path
) -> None:
    done = run(*arguments, environ=environment(**settings), cwd=tmp_path)
    assert done.returncode == 1
    assert said_one_line(done.stderr), done.stderr
    for hint in hints:
        assert hint in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_named_with_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("dev", "--port", str(port))
    assert done.returncode == 1
    assert said_one_line(done.stderr)
    assert f"port {port} is taken" in done.stderr
    offered = int(done.stderr.split("--port")[1].split()[0])
    with socket.create_server(("127.0.0.1", offered)):
        pass


def test_a_hub_ends_in_good_order_by_a_signal_to_its_command() -> None:
    with EmbeddedRedis() as redis:
        settings = environment(HEADRACE_AUTH="none", HEADRACE_REDIS_URL=redis.url, HEADRACE_DRAIN_S="0")
        with running("hub", "--port", "0", environ=settings) as hub:
            port = int(hub.wait_for("hub listens").split("/v1/ws")[0].rpartition(":")[2])
            until(lambda: asyncio.run(is_ready("127.0.0.1", port)), "it is ready")
            hub.process.terminate()
            assert hub.finish(within_s=10) == 0


def test_a_worker_ends_in_good_order_by_a_signal_to_its_command() -> None:
    with (
        EmbeddedRedis() as redis,
        running("worker", "--concurrency", "3", environ=environment(HEADRACE_REDIS_URL=redis.url)) as worker,
    ):
        assert "4 slots" in worker.wait_for("ready")
        worker.process.terminate()
        assert worker.finish(within_s=10) == 0


def test_a_hub_without_redis_says_so_and_ends() -> None:
    done = run("hub", "--port", "0", environ=environment(HEADRACE_AUTH="none"))
    assert done.returncode == 1
    assert "HEADRACE_REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_without_redis_says_so_and_ends() -> None:
    done = run("worker", "--concurrency", "3")
    assert done.returncode != 0
    assert "HEADRACE_REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_list_becomes_one_line() -> None:
    assert one_line("Do one:\n  - this\n  - that\n") == "Do one: this; that"
    assert one_line("It broke.\nMend it.") == "It broke. Mend it."


def test_a_version_is_told() -> None:
    assert run("--version").stdout.startswith("headrace 0.")
