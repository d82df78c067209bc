"""`python -m hub.broker`: status 0 if the Redis of HEADRACE_REDIS_URL answers, for health checks."""

from __future__ import annotations

import asyncio
import os
import sys

from pydantic import ValidationError

from hub.broker.broker import Broker
from hub.broker.settings import BrokerSettings, wrong_settings

_WITHIN_S = 3.0


def main() -> str | None:
    """What is wrong, or None."""
    url = os.environ.get("HEADRACE_REDIS_URL", "").strip()
    if not url:
        return "HEADRACE_REDIS_URL is not set"
    try:
        settings = BrokerSettings()
    except ValidationError as error:
        return "\n".join(wrong_settings(error))
    is_reachable = asyncio.run(_is_reachable(url, settings))
    return None if is_reachable else "Redis does not answer; is HEADRACE_REDIS_URL right?"


async def _is_reachable(url: str, settings: BrokerSettings) -> bool:
    broker = Broker.connect(url, settings)
    try:
        return await broker.is_reachable(_WITHIN_S)
    finally:
        await broker.close()


if __name__ == "__main__":
    sys.exit(main())
