"""deploy/nginx.conf in a real nginx, in front of two small WebSocket servers that stand in for hubs."""

from __future__ import annotations

import asyncio
import http
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/bin:/opt/homebrew/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx)")


class StandIn:
    """Answers like a hub at its door: says who it is and what reached it; 503 while it drains."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.drains = False
        self.forwarded = ""

    def door(self, connection: ServerConnection, request: Request) -> Response | None:
        self.forwarded = ", ".join(request.headers.get_all("X-Forwarded-For"))
        if self.drains:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "draining\n")
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "ok\n")
        return None

    async def talk(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        await connection.send(f"{self.name} {connection.request.headers.get('Authorization')}")
        async for message in connection:
            await connection.send(message)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Its port."""
        json = Subprotocol("headrace.v1.json")
        async with serve(self.talk, "127.0.0.1", 0, process_request=self.door, subprotocols=[json]) as server:
            port: int = next(iter(server.sockets)).getsockname()[1]
            yield port


def rendered(directory: Path, port: int, hubs: list[int]) -> Path:
    """The configuration, with this machine's addresses and a directory of its own; nothing else differs."""
    text = CONFIGURATION.read_text()
    changes = [
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("pid /tmp/nginx.pid;", f"pid {directory}/nginx.pid;"),
        *((f"server hub{i}:8080 resolve", f"server 127.0.0.1:{hub}") for i, hub in enumerate(hubs, 1)),
        ("worker_rlimit_nofile 65536;", "worker_rlimit_nofile 1024;"),
        ("worker_connections 32768;", "worker_connections 512;"),
        ("worker_processes auto;", "worker_processes 1;"),
    ]
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    folders = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{name}_temp_path {directory}/{name};" for name in folders)
    path = directory / "nginx.conf"
    path.write_text(text.replace("http {", "http { " + paths, 1))
    return path


@asynccontextmanager
async def in_front_of(directory: Path, *hubs: int) -> AsyncIterator[str]:
    """A running nginx; its address without a scheme."""
    assert NGINX is not None
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    configuration = rendered(directory, port, list(hubs))
    arguments = ("-p", str(directory), "-c", str(configuration), "-e", "stderr", "-g", "daemon off;")
    log = directory / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(NGINX, *arguments, stdout=output, stderr=output)
    try:
        async with asyncio.timeout(10):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    break
        assert process.returncode is None, log.read_text()
        yield f"127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def viewer(address: str, path: str = "/v1/ws", **headers: str) -> connect:
    return connect(
        f"ws://{address}{path}",
        subprotocols=[Subprotocol("headrace.v1.json")],
        additional_headers=headers,
        proxy=None,
    )


@asynccontextmanager
async def two_hubs(directory: Path) -> AsyncIterator[tuple[StandIn, StandIn, str]]:
    """Two stand-ins, and the address of the nginx in front of them."""
    a, b = StandIn("a"), StandIn("b")
    async with a.listening() as one, b.listening() as two, in_front_of(directory, one, two) as nginx:
        yield a, b, nginx


async def get(address: str, path: str) -> int:
    """The status of a plain GET."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    status = int((await reader.readline()).split()[1])
    await reader.read()
    writer.close()
    await writer.wait_closed()
    return status


async def test_nginx_accepts_the_configuration(tmp_path: Path) -> None:
    assert NGINX is not None
    path = rendered(tmp_path, 8080, [8081, 8082])
    arguments = ("-t", "-q", "-p", str(tmp_path), "-c", str(path), "-e", "stderr")
    process = await asyncio.create_subprocess_exec(NGINX, *arguments, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()


async def test_a_websocket_passes_with_its_subprotocol_and_its_token(tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer t", "X-Forwarded-For": "6.6.6.6"}
    async with two_hubs(tmp_path) as (a, b, nginx), viewer(nginx, **headers) as client:
        assert client.subprotocol == "headrace.v1.json"
        assert await client.recv() in ("a Bearer t", "b Bearer t")
        await client.send("through")
        assert await client.recv() == "through"
        assert a.forwarded + b.forwarded == "127.0.0.1", "a client cannot choose the address that is passed on"
    assert "Bearer" not in (tmp_path / "log").read_text()


async def test_viewers_spread_over_both_hubs(tmp_path: Path) -> None:
    async with two_hubs(tmp_path) as (_, _, nginx), viewer(nginx) as first, viewer(nginx) as second:
        assert {await first.recv(), await second.recv()} == {"a None", "b None"}


async def test_a_draining_hub_is_passed_over(tmp_path: Path) -> None:
    async with two_hubs(tmp_path) as (a, _, nginx):
        a.drains = True
        for _ in range(3):
            async with viewer(nginx) as client:
                assert await client.recv() == "b None"


async def test_a_dead_hub_is_passed_over(tmp_path: Path) -> None:
    b = StandIn("b")
    with socket.socket() as nobody:  # bound and not listening: connections are refused
        nobody.bind(("127.0.0.1", 0))
        async with b.listening() as two, in_front_of(tmp_path, nobody.getsockname()[1], two) as nginx:
            for _ in range(3):
                async with viewer(nginx) as client:
                    assert await client.recv() == "b None"


async def test_health_passes_and_metrics_do_not(tmp_path: Path) -> None:
    a = StandIn("a")
    async with a.listening() as one, in_front_of(tmp_path, one, one) as nginx:
        assert await get(nginx, "/healthz") == 200
        assert await get(nginx, "/metrics") == 404
        with pytest.raises(InvalidStatus, match="404"):
            await viewer(nginx, "/metrics")
        a.drains = True
        assert await get(nginx, "/healthz") == 503


def test_a_silent_viewer_is_kept_for_longer_than_a_heartbeat() -> None:
    timeouts = re.findall(r"proxy_(?:read|send)_timeout (\d+)s;", CONFIGURATION.read_text())
    assert [int(timeout) > 2 * 20 for timeout in timeouts] == [True, True]
    assert "proxy_buffering off;" in CONFIGURATION.read_text()
