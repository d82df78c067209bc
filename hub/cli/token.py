"""`headrace token`: a token for a user, signed with the hub's secret."""

from __future__ import annotations

import os
import time

from hub.cli.failure import Failure

#: What the hub takes for a name (docs/protocol.md §2); longer ones it refuses.
NAME_CHARACTERS = 128


def make(user: str, org: str | None, scope: str, ttl_s: int) -> str:
    """A token signed with HEADRACE_JWT_SECRET. Raises Failure without a usable secret, or for a name no hub takes."""
    from hub.auth import SECRET_BYTES, issue

    secret = os.environ.get("HEADRACE_JWT_SECRET", "")
    if not secret:
        raise Failure(
            "HEADRACE_JWT_SECRET is not set: set it to the secret of the hub "
            "(a new one: export HEADRACE_JWT_SECRET=$(openssl rand -hex 32))"
        )
    if len(secret.encode()) < SECRET_BYTES:
        raise Failure(
            f"HEADRACE_JWT_SECRET has {len(secret.encode())} bytes and no hub takes less than {SECRET_BYTES}: "
            "set a longer one (openssl rand -hex 32)"
        )
    for name, value in (("--user", user), ("--org", org)):
        if value is not None and not 0 < len(value) <= NAME_CHARACTERS:
            raise Failure(f"{name} has {len(value)} characters: a hub takes 1 to {NAME_CHARACTERS}")
    return issue(secret, user=user, org=org, scope=scope, now=time.time(), ttl_s=ttl_s)
