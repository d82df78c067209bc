"""`python -m hub --host … --port …`: one hub process."""

from __future__ import annotations

import argparse
import ipaddress
import sys

import structlog
from pydantic import ValidationError

from hub.app import create_app
from hub.auth import Unconfigured
from hub.broker.broker import Broker
from hub.broker.logging import configure_logging
from hub.broker.loop import calm_collector, run
from hub.broker.settings import wrong_settings
from hub.server import HubServer, listen, make_config
from hub.settings import HubSettings


class Broken(Exception):
    """The hub ended because of a defect."""


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def serve(settings: HubSettings, host: str, port: int) -> None:
    """Serve until a signal ends it. Raises Unconfigured, Broken, OSError (the port is taken)."""
    if settings.redis_url is None:
        raise Unconfigured("HEADRACE_REDIS_URL is not set; `headrace dev` brings a Redis of its own")
    if settings.auth == "none" and not is_loopback(host):
        raise Unconfigured(f"HEADRACE_AUTH=none serves loopback only, not {host}; set HEADRACE_JWT_SECRET instead")
    broker = Broker.connect(settings.redis_url, settings)
    try:
        app = create_app(settings, broker)
        sock = listen(host, port)
        server = HubServer(make_config(app, settings), app.state.node)
        server.handle_signals()
        calm_collector()
        log = structlog.get_logger("hub")
        log.info("hub listens", url=f"ws://{host}:{sock.getsockname()[1]}/v1/ws", auth=settings.auth)
        if settings.auth == "none":
            log.warning("HEADRACE_AUTH=none: everybody on this machine is the user `dev`")
        await server.serve_until_exit(sock)
        if app.state.node.is_broken:
            raise Broken("a task of this hub failed, see the log; it is to be started again")
    finally:
        await broker.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="hub", description="Run one Headrace hub.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    configure_logging()
    try:
        settings = HubSettings()
    except ValidationError as error:
        sys.exit(f"hub: {'; '.join(wrong_settings(error))}")
    try:
        run(serve(settings, options.host, options.port))
    except (Unconfigured, Broken, OSError) as error:
        sys.exit(f"hub: {error}")


if __name__ == "__main__":
    main()
