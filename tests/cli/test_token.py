"""`headrace token`: what a hub accepts, and nothing else on standard output."""

from __future__ import annotations

import time

from hub.auth import Authenticator
from hub.settings import HubSettings
from tests.cli.command import environment, run

SECRET = "0123456789abcdef" * 2


def test_a_hub_with_the_same_secret_knows_who_it_is(monkeypatch) -> None:
    done = run(
        "token", "--user", "alice", "--org", "acme", "--scope", "read write", "--ttl", "60",
        environ=environment(HEADRACE_JWT_SECRET=SECRET),
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    monkeypatch.setenv("HEADRACE_JWT_SECRET", SECRET)
    monkeypatch.delenv("HEADRACE_AUTH", raising=False)
    identity = Authenticator(HubSettings()).identify(done.stdout.strip())
    assert (identity.user, identity.org, identity.scopes) == ("alice", "acme", {"read", "write"})
    assert identity.expires_at is not None
    assert 0 < identity.expires_at - time.time() <= 61
