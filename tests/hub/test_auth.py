"""Tokens: who is talking, and what a hub needs to know it."""

from __future__ import annotations

import base64
import hmac
import json
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


# -- the matrix: whatever a token may be, one of three answers -----------------------------------------------


def encoded(value: Any) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).rstrip(b"=")


def forged(header: Any, claims: Any, secret: str | bytes = SECRET) -> str:
    """Signed with HMAC-SHA256 and `secret`, whatever its header says."""
    key = secret.encode() if isinstance(secret, str) else secret
    signing = encoded(header) + b"." + encoded(claims)
    signature = base64.urlsafe_b64encode(hmac.digest(key, signing, "sha256")).rstrip(b"=")
    return (signing + b"." + signature).decode()


def claims(**changes: Any) -> dict[str, Any]:
    """Good ones, but for `changes`; None leaves one out."""
    said = {"sub": "alice", "exp": time.time() + 3600, "aud": "headrace", "iss": "https://id.example"} | changes
    return {name: value for name, value in said.items() if value is not None}


HEADER = {"alg": "HS256", "typ": "JWT"}
PUBLIC_KEY = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"

GOOD = {
    "plain": forged(HEADER, claims()),
    "no type": forged({"alg": "HS256"}, claims()),
    "an access token by RFC 9068": forged({"alg": "HS256", "typ": "at+jwt"}, claims()),
    "several audiences": forged(HEADER, claims(aud=["other", "headrace"])),
    "issued by a clock that is ahead": forged(HEADER, claims(iat=time.time() + 30, nbf=time.time() + 30)),
    "a key id that we have no use for": forged(HEADER | {"kid": "7"}, claims()),
    "a key id that is a path": forged(HEADER | {"kid": "../../dev/null"}, claims()),
    "a key id that is SQL": forged(HEADER | {"kid": "' UNION SELECT 'x"}, claims()),
    "a place to fetch keys from": forged(HEADER | {"jku": "https://evil.example"}, claims()),
    "unknown claims": forged(HEADER, claims(admin=True, roles=["root"])),
}  # fmt: skip
EXPIRED = {
    "expired": forged(HEADER, claims(exp=time.time() - 600)),
    "expired just now": forged(HEADER, claims(exp=time.time() - 1)),
    "expired in 1970": forged(HEADER, claims(exp=1)),
}
BAD = {
    "no algorithm": forged({"alg": "none"}, claims()).rsplit(".", 1)[0] + ".",
    "no algorithm, with a signature": forged({"alg": "none"}, claims()),
    "no algorithm, in capitals": forged({"alg": "NONE", "typ": "JWT"}, claims()),
    "an absent algorithm": forged({"typ": "JWT"}, claims()),
    "an algorithm that is a list": forged({"alg": ["HS256"]}, claims()),
    "a public-key algorithm over our secret": forged({"alg": "RS256", "typ": "JWT"}, claims()),
    "a public key as the secret": forged(HEADER, claims(), PUBLIC_KEY),
    "another hash": forged({"alg": "HS512", "typ": "JWT"}, claims()),
    "another secret": forged(HEADER, claims(), "another secret that is long enough for it"),
    "an empty secret": forged(HEADER, claims(), b"\0"),
    "a key that it brings along": forged(
        HEADER | {"jwk": {"kty": "oct", "k": "AAAA"}, "kid": "/dev/null"}, claims(), b"\0\0\0"
    ),
    "a critical extension": forged(HEADER | {"crit": ["exp"], "exp": 1}, claims()),
    "claims that were changed": ".".join(
        [*GOOD["plain"].split(".")[:1], encoded(claims(sub="mallory")).decode(), GOOD["plain"].split(".")[2]]
    ),
    "a token for a logout": forged({"alg": "HS256", "typ": "logout+jwt"}, claims()),
    "a proof of possession": forged({"alg": "HS256", "typ": "dpop+jwt"}, claims()),
    "a type that is no text": forged({"alg": "HS256", "typ": 5}, claims()),
    "another audience": forged(HEADER, claims(aud="somebody else")),
    "no audience": forged(HEADER, claims(aud=None)),
    "an audience that is a number": forged(HEADER, claims(aud=5)),
    "another issuer": forged(HEADER, claims(iss="https://evil.example")),
    "no issuer": forged(HEADER, claims(iss=None)),
    "not yet valid": forged(HEADER, claims(nbf=time.time() + 600)),
    "not yet issued": forged(HEADER, claims(iat=time.time() + 600)),
    "no expiry": forged(HEADER, claims(exp=None)),
    "an expiry that is no number": forged(HEADER, claims(exp="soon")),
    "an expiry that is a list": forged(HEADER, claims(exp=[2])),
    "an endless expiry": forged(
        HEADER, '{"sub": "alice", "aud": "headrace", "iss": "https://id.example", "exp": 1e999}'
    ),
    "an expiry of a thousand digits": forged(HEADER, '{"sub": "alice", "exp": ' + "9" * 5000 + "}"),
    "no user": forged(HEADER, claims(sub=None)),
    "an empty user": forged(HEADER, claims(sub="")),
    "a user of 129 characters": forged(HEADER, claims(sub="x" * 129)),
    "a user that is a number": forged(HEADER, claims(sub=7)),
    "a user with a line break": forged(HEADER, claims(sub="alice\nERROR forged=line")),
    "a user with an escape": forged(HEADER, claims(sub="\x1b[2Jalice")),
    "a user with half a surrogate": forged(HEADER, claims(sub="\ud800")),
    "an organisation that is a map": forged(HEADER, claims(org={"$ne": ""})),
    "an organisation with a NUL": forged(HEADER, claims(org="acme\0")),
    "a scope that is a list": forged(HEADER, claims(scope=["streams:read"])),
    "claims that are a list": forged(HEADER, "[1]"),
    "claims that are nested too deep": forged(HEADER, '{"a":' * 20_000),
    "four parts": GOOD["plain"] + ".x",
    "an encrypted one": "a.b.c.d.e",
}


def exacting() -> Authenticator:
    return authenticator(jwt_audience="headrace", jwt_issuer="https://id.example")


@pytest.mark.parametrize("name", GOOD)
def test_a_genuine_token_is_taken_and_its_header_chooses_nothing(name: str) -> None:
    assert exacting().identify(GOOD[name]).user == "alice"


@pytest.mark.parametrize("name", EXPIRED)
def test_a_genuine_token_whose_time_is_over_is_to_be_renewed(name: str) -> None:
    with pytest.raises(TokenExpired):
        exacting().identify(EXPIRED[name])


@pytest.mark.parametrize("name", BAD)
def test_any_other_token_is_none(name: str) -> None:
    with pytest.raises(TokenInvalid):
        exacting().identify(BAD[name])


def test_audience_and_issuer_are_not_looked_at_unless_they_are_set() -> None:
    for said in (claims(aud="any"), claims(aud=None), claims(iss="any"), claims(iss=None)):
        assert authenticator().identify(forged(HEADER, said)).user == "alice"
