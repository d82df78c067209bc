"""Who is talking: JSON Web Tokens (RFC 7519), HS256. The token itself is never logged or kept."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import jwt

from hub.settings import HubSettings

#: Below this an HS256 secret can be guessed offline (RFC 7518 §3.2: as long as the hash).
SECRET_BYTES = 32
#: Clocks of the issuer and of a hub may differ by this: a token is not refused for having been issued "just now".
CLOCK_SKEW_S = 60.0
#: Users and organisations: no control characters, nothing that UTF-8 cannot hold.
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}")
#: What a token may say it is (RFC 8725 §3.11): one made for another purpose with the same secret is no key here.
TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified user. `org` is the tenant: the user itself where the token names none."""

    user: str
    org: str
    scopes: frozenset[str] = frozenset()
    expires_at: float | None = None
    """Unix time in seconds."""

    def may(self, scope: str) -> bool:
        return scope in self.scopes


class TokenExpired(Exception):
    """A token of ours whose time is over: renew it."""


class TokenInvalid(Exception):
    """Absent, malformed, forged, or without a user."""


class Unconfigured(Exception):
    """The hub must not start like this; the text says what to set."""


class Authenticator:
    """Verifies tokens with the settings' secret. `Unconfigured` if there is none and `auth` is not `none`."""

    def __init__(self, settings: HubSettings) -> None:
        self._open = settings.auth == "none"
        self._audience = settings.jwt_audience or None
        self._issuer = settings.jwt_issuer or None
        self._secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else ""
        if not self._open and len(self._secret.encode()) < SECRET_BYTES:
            raise Unconfigured(
                f"HEADRACE_JWT_SECRET must be set to at least {SECRET_BYTES} bytes "
                "(`openssl rand -hex 32` makes one), or HEADRACE_AUTH=none for a hub on loopback only"
            )

    @property
    def is_open(self) -> bool:
        """Everybody may come in: loopback only."""
        return self._open

    def identify(self, token: str | None) -> Identity:
        """Raises TokenExpired, TokenInvalid."""
        if self._open:
            return Identity("dev", "dev")
        if not token:
            raise TokenInvalid
        claims = self._claims(token)
        if not float(claims["exp"]) > time.time():
            raise TokenExpired
        user, org, scope = claims["sub"], claims.get("org"), claims.get("scope", "")
        if not _is_name(user) or not (org is None or _is_name(org)) or not isinstance(scope, str):
            raise TokenInvalid
        return Identity(user, org or user, frozenset(scope.split()), float(claims["exp"]))

    def _claims(self, token: str) -> dict[str, Any]:
        """What a genuine token says. Nothing in its header chooses a key or an algorithm."""
        try:
            decoded = jwt.decode_complete(
                token,
                self._secret,
                algorithms=["HS256"],
                audience=self._audience,
                issuer=self._issuer,
                leeway=CLOCK_SKEW_S,
                options={"require": ["exp", "sub"], "verify_aud": self._audience is not None},
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpired from None
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, RecursionError):
            raise TokenInvalid from None
        kind = decoded["header"].get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() not in TYPES:
            raise TokenInvalid
        claims: dict[str, Any] = decoded["payload"]
        return claims


def bearer(header: str) -> str | None:
    """The token in an `Authorization` header (RFC 6750 §2.1); None for any other scheme."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def issue(secret: str, *, user: str, org: str | None, scope: str, now: float, ttl_s: float) -> str:
    """A token for `user`, good for `ttl_s` seconds from `now`."""
    claims: dict[str, object] = {"sub": user, "iat": int(now), "exp": int(now + ttl_s)}
    if org:
        claims["org"] = org
    if scope:
        claims["scope"] = scope
    return jwt.encode(claims, secret, algorithm="HS256")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None
