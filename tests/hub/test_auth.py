"""Tokens: who is talking, and what a hub needs to know it."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest
from pydantic import SecretStr

from hub.auth import Authenticator, Identity, TokenExpired, TokenInvalid, Unconfigured, issue
from hub.settings import HubSettings
from tests.installation import SECRET


def authenticator(**settings: Any) -> Authenticator:
    return Authenticator(HubSettings(**({"jwt_secret": SecretStr(SECRET)} | settings)))


def test_what_is_issued_is_identified() -> None:
    token = issue(SECRET, user="alice", org="acme", scope="streams:read streams:cancel", now=time.time(), ttl_s=60)
    identity = authenticator().identify(token)
    assert (identity.user, identity.org) == ("alice", "acme")
    assert identity.may("streams:read") and identity.may("streams:cancel") and not identity.may("streams")
    assert identity.expires_at is not None and 50 < identity.expires_at - time.time() <= 60


def test_without_an_organisation_the_user_is_one() -> None:
    token = issue(SECRET, user="alice", org=None, scope="", now=time.time(), ttl_s=60)
    identity = authenticator().identify(token)
    assert (identity.org, identity.scopes) == ("alice", frozenset())


def test_an_expired_token_is_told_apart_from_a_forged_one() -> None:
    old = issue(SECRET, user="alice", org=None, scope="", now=time.time() - 100, ttl_s=60)
    with pytest.raises(TokenExpired):
        authenticator().identify(old)
    with pytest.raises(TokenInvalid):
        authenticator(jwt_secret=SecretStr("y" * 32)).identify(old)


@pytest.mark.parametrize("token", [None, "", "x", "a.b.c", "é", "\udc80", "x" * 8192, "." * 5000])
def test_nonsense_is_no_token(token: str | None) -> None:
    with pytest.raises(TokenInvalid):
        authenticator().identify(token)


def test_another_algorithm_is_not_taken() -> None:
    claims = {"sub": "alice", "exp": time.time() + 60}
    for token in (jwt.encode(claims, "", algorithm="none"), jwt.encode(claims, SECRET * 2, algorithm="HS512")):
        with pytest.raises(TokenInvalid):
            authenticator(jwt_secret=SecretStr(SECRET * 2)).identify(token)


@pytest.mark.parametrize("secret", [None, SecretStr(""), SecretStr("x" * 31)])
def test_without_a_long_secret_a_hub_does_not_start_and_says_what_to_do(secret: SecretStr | None) -> None:
    with pytest.raises(Unconfigured, match=r"HEADRACE_JWT_SECRET.*HEADRACE_AUTH=none"):
        authenticator(jwt_secret=secret)


def test_an_open_hub_knows_one_user() -> None:
    open_hub = Authenticator(HubSettings(auth="none"))
    assert open_hub.is_open
    assert open_hub.identify(None) == open_hub.identify("anything") == Identity("dev", "dev")
