"""A real Sentinel set-up for tests: one primary, one replica, three sentinels, all of them processes of the test's.

    with SentinelSetup() as setup:
        … setup.url …
        setup.lose_writes()           # from here on the replica gets nothing
        former = setup.kill_primary()
        setup.wait_for_failover()     # the replica is the primary, without what it did not get
        setup.restart_former()        # … and the former one its replica

Everything blocks: from asyncio, call it in a thread. The sentinels are as quick as sentinels can be told to be: a
failover takes some two seconds from the kill.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from hub.broker.embedded import AppendOnly, Binary, EmbeddedRedis, find_binary
from hub.broker.lifeline import Lifeline
from tests.faults.ports import free_port

SERVICE = "headrace"
#: How long any of the waits below may take, in seconds. A failover that was voted down is tried again after six.
DEADLINE_S = 25.0
_POLL_S = 0.02


class SentinelSetup:
    """A context manager. What it started ends with it, and also with a process that is killed."""

    def __init__(
        self,
        *,
        appendonly: AppendOnly | None = "always",
        down_after_ms: int = 1000,
        arguments: tuple[str, ...] = (),
    ) -> None:
        """`arguments` are for both servers. A sentinel calls a server down that was silent for `down_after_ms`."""
        self.binary = find_binary(os.environ)
        self._down_after_ms = down_after_ms
        self._arguments = arguments
        self._servers = [EmbeddedRedis(self.binary, port=0, appendonly=appendonly) for _ in range(2)]
        self._sentinels: list[Sentinel] = []
        self._stopped: EmbeddedRedis | None = None
        self._former: EmbeddedRedis | None = None

    def __enter__(self) -> Self:
        first, second = self._servers
        try:
            first.arguments = self._arguments
            first.start()
            self._follow(second, first)
            self._start_sentinels(first, second)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._let_go()
        for sentinel in self._sentinels:
            sentinel.stop()
        for server in self._servers:
            server.stop()

    @property
    def url(self) -> str:
        """For HEADRACE_REDIS_URL."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in self._sentinels)}/{SERVICE}"

    @property
    def sentinels(self) -> list[Sentinel]:
        return list(self._sentinels)

    def primary(self) -> EmbeddedRedis:
        """The server that the newest configuration among the sentinels names."""
        answers = []
        for sentinel in self._sentinels:
            with contextlib.suppress(redis.RedisError, OSError):
                master: Any = sentinel.command("SENTINEL", "MASTER", SERVICE)
                facts = dict(zip(master[::2], master[1::2], strict=True)) if isinstance(master, list) else master
                answers.append((int(facts["config-epoch"]), int(facts["port"])))
        assert answers, "no sentinel answers"
        return self._by_port(max(answers)[1])

    def replica(self) -> EmbeddedRedis:
        """The server that is not the primary."""
        return self._other(self.primary())

    # -- faults

    def lose_writes(self) -> None:
        """From now on the replica gets nothing of what is written. Ends with `kill_primary`, or `deliver_writes`.

        The replica is stopped (SIGSTOP) and its link closed: what the primary would still send goes nowhere.
        """
        primary = self.primary()
        self._stopped = self._other(primary)
        os.kill(self._stopped.pid, signal.SIGSTOP)
        _command(primary, "CLIENT", "KILL", "TYPE", "replica")

    def deliver_writes(self) -> None:
        """The replica goes on and catches up."""
        replica = self._stopped
        self._let_go()
        if replica is not None:
            _wait(lambda: _is_in_sync(replica, self._other(replica)), "the replica did not catch up")

    def kill_primary(self) -> EmbeddedRedis:
        """End the primary with SIGKILL and let the replica go on; gives the one that was killed."""
        former = self.primary()
        former.kill()
        self._let_go()
        self._former = former
        return former

    def wait_for_failover(self) -> EmbeddedRedis:
        """Until every sentinel names the other server, and this takes writes. Gives it."""
        assert self._former is not None, "kill_primary() first"
        successor = self._other(self._former)

        def is_over() -> bool:
            named = {sentinel.named() for sentinel in self._sentinels}
            return named == {successor.port} and _role(successor) == "master"

        _wait(is_over, "there was no failover", self._logs)
        return successor

    def restart_former(self) -> None:
        """Start the server that was killed as a replica of the other one, and wait until it has caught up."""
        assert self._former is not None, "kill_primary() first"
        former, self._former = self._former, None
        self._follow(former, self._other(former))
        _wait(self._all_know_the_replica, "the sentinels do not know the replica", self._logs)

    # -- starting

    def _follow(self, replica: EmbeddedRedis, primary: EmbeddedRedis) -> None:
        address = ("--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
        replica.arguments = (*self._arguments, *address)
        replica.start()
        _wait(lambda: _is_in_sync(replica, primary), "the replica did not catch up")

    def _start_sentinels(self, primary: EmbeddedRedis, replica: EmbeddedRedis) -> None:
        ports = [free_port() for _ in range(3)]
        ids = [f"{number}" * 40 for number in range(1, 4)]
        for port, id_ in zip(ports, ids, strict=True):
            lines = [
                f"port {port}",
                "bind 127.0.0.1",
                f"sentinel myid {id_}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2",
                f"sentinel down-after-milliseconds {SERVICE} {self._down_after_ms}",
                f"sentinel failover-timeout {SERVICE} 3000",
                # Known from the beginning, so that nobody has to wait until they find each other.
                f"sentinel known-replica {SERVICE} 127.0.0.1 {replica.port}",
            ]
            lines += [
                f"sentinel known-sentinel {SERVICE} 127.0.0.1 {other} {name}"
                for other, name in zip(ports, ids, strict=True)
                if other != port
            ]
            self._sentinels.append(Sentinel(self.binary, port, lines))
        for sentinel in self._sentinels:
            _wait(sentinel.answers, "a sentinel did not start", self._logs)
            sentinel.hurry()
        _wait(self._have_a_quorum, "the sentinels did not find each other", self._logs)

    def _have_a_quorum(self) -> bool:
        return self._all_know_the_replica() and all(one.has_quorum() for one in self._sentinels)

    def _all_know_the_replica(self) -> bool:
        return all(sentinel.living_replicas() == 1 for sentinel in self._sentinels)

    # -- which is which

    def _by_port(self, port: int) -> EmbeddedRedis:
        return next(server for server in self._servers if server.port == port)

    def _other(self, server: EmbeddedRedis) -> EmbeddedRedis:
        return next(other for other in self._servers if other is not server)

    def _let_go(self) -> None:
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            with contextlib.suppress(RuntimeError, ProcessLookupError):
                os.kill(stopped.pid, signal.SIGCONT)

    def _logs(self) -> str:
        return "\n".join(sentinel.log() for sentinel in self._sentinels)


class Sentinel:
    """One sentinel: the same program as the server, told to be a sentinel. Starts with the object."""

    def __init__(self, binary: Binary, port: int, lines: list[str]) -> None:
        self.port = port
        self._home = Path(tempfile.mkdtemp(prefix="headrace-"))
        config = self._home / "sentinel.conf"
        config.write_text("\n".join([*lines, f"dir {self._home}"]) + "\n")  # it keeps its state in there
        self._log = self._home / "sentinel.log"
        self._lifeline = Lifeline([str(binary.path), str(config), "--sentinel"], output=self._log, remove=self._home)

    def command(self, *words: str) -> Any:
        with redis.Redis(port=self.port, protocol=2, socket_timeout=2, decode_responses=True) as client:
            client.response_callbacks.clear()
            return client.execute_command(*words)

    def answers(self) -> bool:
        try:
            return bool(self.command("PING"))
        except (redis.RedisError, OSError):
            return False

    def hurry(self) -> None:
        """Say and ask everything more often than the fixed periods, where this server can be told so."""
        with contextlib.suppress(redis.ResponseError):
            self.command("SENTINEL", "DEBUG", "INFO-PERIOD", "500", "PUBLISH-PERIOD", "500", "ASK-PERIOD", "200")

    def has_quorum(self) -> bool:
        try:
            return str(self.command("SENTINEL", "CKQUORUM", SERVICE)).startswith("OK")
        except (redis.RedisError, OSError):
            return False

    def named(self) -> int:
        """The port of the primary by this sentinel; 0 if it does not say."""
        try:
            return int(self.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
        except (redis.RedisError, OSError):
            return 0

    def living_replicas(self) -> int:
        try:
            rows = self.command("SENTINEL", "REPLICAS", SERVICE)
        except (redis.RedisError, OSError):
            return -1
        replicas = [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
        return sum(one["flags"] == "slave" and one["master-link-status"] == "ok" for one in replicas)

    def signal(self, number: signal.Signals) -> None:
        self._lifeline.process.send_signal(number)

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def stop(self) -> None:
        process = self._lifeline.process
        process.kill()
        process.wait()
        self._lifeline.release()
        shutil.rmtree(self._home, ignore_errors=True)


def _command(server: EmbeddedRedis, *words: str) -> Any:
    with redis.Redis.from_url(server.url, socket_timeout=2, decode_responses=True) as client:
        return client.execute_command(*words)


def _role(server: EmbeddedRedis) -> str:
    try:
        return str(_command(server, "ROLE")[0])
    except (redis.RedisError, OSError, RuntimeError):
        return ""


def _is_in_sync(replica: EmbeddedRedis, primary: EmbeddedRedis) -> bool:
    try:
        role = _command(replica, "ROLE")
        return bool(role[0] == "slave" and role[3] == "connected" and _command(primary, "ROLE")[2])
    except (redis.RedisError, OSError):
        return False


def _wait(condition: Callable[[], bool], complaint: str, logs: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{complaint} within {DEADLINE_S:g} s\n{logs()}"
        time.sleep(_POLL_S)
