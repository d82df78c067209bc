"""What `HEADRACE_REDIS_URL` may say: one server, or the sentinels that know which server is the primary.

    redis://[user[:password]@]host[:6379][/db]             rediss:// for TLS
    unix:///path/redis.sock[?db=0]
    redis+sentinel://[user[:password]@]host[:26379][,host[:26379]…]/service[/db]      rediss+sentinel:// for TLS

User and password are those of the Redis servers; sentinels that want some get them as `?sentinel_username=` and
`?sentinel_password=`. TLS is spoken to sentinels and servers alike, with `ssl_…` options in the query.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio.connection import parse_url

SENTINEL_PORT = 26379
_PLAIN = ("redis", "rediss", "unix")
_WATCHED = ("redis+sentinel", "rediss+sentinel")
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")
#: A host name or an IPv4 address, or an IPv6 address in brackets; then perhaps a port.
_HOST = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::(?P<port>\d{1,5}))?")
_PARTS = re.compile(
    r"(?P<scheme>[a-zA-Z+]+)://(?P<netloc>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#.*)?", re.DOTALL
)
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")


class WrongAddress(ValueError):
    """Why an address cannot be used, in one line that repeats nothing of it: it may hold a password."""


@dataclass(frozen=True)
class Address:
    """A checked address."""

    #: As it was given.
    url: str = field(repr=False)
    #: Without passwords, for a person.
    shown: str
    #: Host and port of each sentinel; none for the address of one server.
    sentinels: tuple[tuple[str, int], ...] = ()
    #: What the sentinels call the primary and its replicas.
    service: str = ""
    is_tls: bool = False
    #: For connections to Redis (credentials, database, TLS), and to the sentinels.
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)


def parse_address(url: str) -> Address:
    """Raises WrongAddress."""
    if url.partition("://")[0].lower() in _WATCHED:
        return _watched(url, _split(url))
    try:
        parts = urlsplit(url)
    except ValueError:
        raise WrongAddress("it is no URL; an IPv6 address stands in [brackets]") from None
    if parts.scheme not in _PLAIN:
        raise WrongAddress(f"it begins with none of {', '.join(f'{scheme}://' for scheme in (*_PLAIN, *_WATCHED))}")
    return _plain(url, parts)


def _split(url: str) -> SplitResult:
    """As RFC 3986, appendix B. Several hosts are no URL to newer versions of `urlsplit`, if one is in brackets."""
    found = _PARTS.fullmatch(url)
    if found is None:
        raise WrongAddress("it is no URL")
    return SplitResult(found["scheme"].lower(), found["netloc"], found["path"], found["query"] or "", "")


def _plain(url: str, parts: SplitResult) -> Address:
    try:
        _ = parts.port  # raises for "user:pa/ss@host": half of the password would pass for a port
        parse_url(url)
    except ValueError:
        raise WrongAddress(
            "host, port or an option of it cannot be read; special characters in a password are percent-encoded"
        ) from None
    if parts.scheme != "unix":
        _database(parts.path)
    elif not parts.path:
        raise WrongAddress("it names no socket: unix:///path/redis.sock")
    return Address(url, _shown(parts), is_tls=parts.scheme == "rediss")


def _watched(url: str, parts: SplitResult) -> Address:
    credentials, _, hosts = parts.netloc.rpartition("@")
    sentinels = tuple(_host(host) for host in hosts.split(","))
    service, _, database = parts.path.removeprefix("/").partition("/")
    if not _SERVICE.fullmatch(service):
        raise WrongAddress("it names no service after the sentinels: redis+sentinel://host:26379,host:26379/service")
    user, _, password = credentials.partition(":")
    options = {"username": unquote(user), "password": unquote(password), "db": _database(database)}
    is_tls = parts.scheme == "rediss+sentinel"
    sentinel_options, tls_options = _query(parts.query, is_tls)
    return Address(
        url,
        _shown(parts),
        sentinels,
        service,
        is_tls,
        {name: value for name, value in options.items() if value not in ("", 0)} | tls_options,
        sentinel_options | tls_options,
    )


def _host(text: str) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found["port"] or SENTINEL_PORT) if found else 0
    if found is None or not 0 < port < 65536:
        raise WrongAddress(
            "its sentinels cannot be read: host:26379,host:26379,host:26379; "
            "special characters in a password are percent-encoded"
        )
    return found["name"] or found["ipv6"], port


def _database(path: str) -> int:
    number = path.removeprefix("/")
    if number and not (number.isascii() and number.isdigit()):
        raise WrongAddress("what follows its last / is no number of a database")
    return int(number or 0)


def _query(text: str, is_tls: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options for sentinels only, and for TLS."""
    sentinel: dict[str, Any] = {}
    tls: dict[str, Any] = {}
    known = _SENTINEL_OPTIONS + (_TLS_OPTIONS if is_tls else ())
    try:
        pairs = parse_qsl(text, strict_parsing=True) if text else []
    except ValueError:
        pairs = [("", "")]
    for name, value in pairs:
        if name not in known:
            raise WrongAddress(f"after its ? stands something other than {', '.join(known)}")
        if name in _SENTINEL_OPTIONS:
            sentinel[name.removeprefix("sentinel_")] = value
        elif name == "ssl_check_hostname":
            if value.lower() not in ("true", "false"):
                raise WrongAddress("its ssl_check_hostname is neither true nor false")
            tls[name] = value.lower() == "true"
        else:
            tls[name] = value
    if tls.get("ssl_cert_reqs", "required") not in ("required", "optional", "none"):
        raise WrongAddress("its ssl_cert_reqs is none of required, optional, none")
    return sentinel, tls


def _shown(parts: SplitResult) -> str:
    credentials, at, address = parts.netloc.rpartition("@")
    shown = f"{credentials.partition(':')[0]}:***@{address}" if at else address
    return parts._replace(netloc=shown, query="", fragment="").geturl()  # a query may hold a password, too
