"""The Redis of a chaos run, in each way that it may be run: with an append-only file, without, with Sentinel.

Everything here blocks: the caller uses a thread.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Protocol

import redis

from bench.process import cpu_s
from hub.broker.embedded import AppendOnly, EmbeddedRedis
from tests.chaos.plan import Redis
from tests.faults.sentinel import SentinelSetup


class RedisSetup(Protocol):
    """A Redis that can be hurt."""

    #: Whether `restart` may lose what was acknowledged.
    loses_writes: bool

    def start(self) -> None: ...
    def stop(self) -> None: ...

    @property
    def url(self) -> str:
        """For HEADRACE_REDIS_URL, and for the orchestrator's own look."""

    @property
    def direct_url(self) -> str:
        """Of the server that serves now, for a plain client."""

    @property
    def target(self) -> str | None:
        """`host:port` for a fault proxy; None where processes must find the server by themselves."""

    def restart(self, seconds: float, dice: random.Random) -> str:
        """Crash, stay away for so long, come back. Says what was done."""

    def cpu_s(self) -> float: ...
    def flush(self) -> None: ...
    def pause(self, seconds: float) -> None: ...


class SingleRedis:
    """One server. `everysec` loses up to a second at each crash: the machine's power is cut, not only the process."""

    def __init__(self, directory: Path, appendonly: AppendOnly | None) -> None:
        self._directory = directory
        self._appendonly = appendonly
        self.loses_writes = appendonly != "always"
        if appendonly:
            directory.mkdir()
        self._server = EmbeddedRedis(port=0, appendonly=appendonly, directory=directory if appendonly else None)

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        return self._server.tcp_url

    @property
    def direct_url(self) -> str:
        return self.url

    @property
    def target(self) -> str | None:
        return f"127.0.0.1:{self._server.port}"

    def restart(self, seconds: float, dice: random.Random) -> str:
        before = self._file_bytes()
        if self._appendonly == "everysec":
            time.sleep(1.0)
        self._server.kill()
        said = "killed"
        if self._appendonly == "everysec":
            said += f", the last {self._truncate(before, dice)} bytes of its file were not on the disk"
        time.sleep(seconds)
        self._server.start()
        return said

    def _incremental(self) -> Path | None:
        files = sorted(self._directory.glob("appendonlydir/*.incr.aof"), key=lambda file: file.stat().st_mtime)
        return files[-1] if files else None

    def _file_bytes(self) -> int:
        file = self._incremental() if self._appendonly else None
        return file.stat().st_size if file is not None else 0

    def _truncate(self, before: int, dice: random.Random) -> int:
        """Cut off what was written within the last second, or a part of it, as `appendfsync everysec` allows."""
        share = dice.random()
        file = self._incremental()
        if file is None:
            return 0
        now = file.stat().st_size
        if now < before:
            return 0  # it was rewritten meanwhile
        keep = now - int((now - before) * share)
        os.truncate(file, keep)
        return now - keep

    def cpu_s(self) -> float:
        return _cpu_s(self._server)

    def flush(self) -> None:
        with redis.Redis.from_url(self.url, socket_timeout=5) as client:
            client.flushall()

    def pause(self, seconds: float) -> None:
        os.kill(self._server.pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(self._server.pid, signal.SIGCONT)


class SentinelRedis:
    """One primary, one replica, three sentinels. Every other failover loses what the replica did not get."""

    loses_writes = True
    target: str | None = None

    def __init__(self) -> None:
        self._setup = SentinelSetup()

    def start(self) -> None:
        self._setup.__enter__()

    def stop(self) -> None:
        self._setup.stop()

    @property
    def url(self) -> str:
        return self._setup.url

    @property
    def direct_url(self) -> str:
        return self._setup.primary().tcp_url

    def restart(self, seconds: float, dice: random.Random) -> str:
        loses = dice.random() < 0.5
        if loses:
            self._setup.lose_writes()
            time.sleep(dice.uniform(0.1, 1.0))
        self._setup.kill_primary()
        self._setup.wait_for_failover()
        time.sleep(seconds)
        self._setup.restart_former()
        return "failover, the last writes lost" if loses else "failover"

    def cpu_s(self) -> float:
        return _cpu_s(self._setup.primary()) + _cpu_s(self._setup.replica())

    def flush(self) -> None:
        raise NotImplementedError("only a Redis that keeps nothing is flushed")

    def pause(self, seconds: float) -> None:
        server = self._setup.primary()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            time.sleep(min(seconds, 0.7))  # shorter than what the sentinels take for dead
        finally:
            os.kill(server.pid, signal.SIGCONT)


def _cpu_s(server: EmbeddedRedis) -> float:
    try:
        return cpu_s(server.pid)
    except (RuntimeError, OSError):  # it is down just now
        return 0.0


def make_redis(mode: Redis, directory: Path) -> RedisSetup:
    if mode == "sentinel":
        return SentinelRedis()
    return SingleRedis(directory / "redis", None if mode == "none" else mode)
