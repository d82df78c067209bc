"""The catalog: which providers there are, what their models can, and what a tier means. Data, not code.

Headrace's own catalog is `catalog.toml` beside this file. A `headrace.toml` is laid over it table by table and key
by key, so that a file of three lines is enough to add a provider. Pure but for `load`, which reads the file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

Format = Literal["anthropic", "openai", "responses"]
#: What may be done when a provider fails after its first content (protocol §5); each falls to the one behind it.
AfterContent = Literal["splice", "continue", "restart", "error"]

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]
_Dollars = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
_T = TypeVar("_T")

#: What is read where a worker is started.
HERE: Final = Path("headrace.toml")
#: The provider of an operator's own code; its models are registered by HEADRACE_GENERATORS.
GENERATOR: Final = "generator"
#: Providers that no entry describes.
BUILT_IN: Final = ("fallback", "scripted", GENERATOR)
_OWN: Final = Path(__file__).with_name("catalog.toml")
_TABLE = re.compile(r"^\s*\[\[?\s*(?P<name>[^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_NAME = r"(?:[\w-]+|\"[^\"]*\"|'[^']*')"
_KEY = re.compile(rf"^\s*(?P<key>{_NAME}(?:\s*\.\s*{_NAME})*)\s*=")


class WrongCatalog(ValueError):
    """A `headrace.toml` that cannot be used. The text names file, line and key, and what would be right."""


class Clocks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a provider may take, in seconds. Each has its own code in `done` or in a failover's notice."""

    connect_s: _Seconds = 5.0
    """TCP and TLS."""
    headers_s: _Seconds = 10.0
    """From the request to the response's headers, connecting included."""
    first_content_s: _Seconds = 20.0
    """From the headers to the first content; other events extend it up to `idle_content_s`."""
    idle_s: _Seconds = 30.0
    """Without any byte."""
    idle_content_s: _Seconds = 120.0
    """Without content, whatever pings say."""
    total_s: _Seconds = 1800.0


class ProviderEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One place that answers. `key` names environment variables, the first that is set counts; none: no key needed."""

    format: Format
    base_url: str | None = None
    base_url_variable: str | None = None
    key: tuple[str, ...] = ()
    requests: Annotated[int, msgspec.Meta(ge=1, le=2000)] | None = None
    """Requests at a time from one worker; None: as many as it runs generations."""
    clocks: Clocks = Clocks()
    background: bool = False
    """Format `responses`: the provider writes on without a reader, so that an answer outlives its worker."""

    def has_key(self, environ: Mapping[str, str]) -> bool:
        return not self.key or any(environ.get(name) for name in self.key)


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars for a million tokens."""

    input: _Dollars
    output: _Dollars
    cached: _Dollars | None = None
    cache_write: _Dollars | None = None


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model can. What it cannot is left out of a request, and said so (`notice parameter_dropped`)."""

    context: _Positive | None = None
    """Tokens of prompt and answer; None: unknown."""
    max_output: _Positive | None = None
    prefill: bool | None = None
    """Goes on from an answer that was begun for it; None: as its format knows the model."""
    thinking: bool = False
    """Thinks before it answers, and is asked to show it where the format has words for that."""
    sampling: bool = True
    tools: bool = True
    forced_tools: bool = True
    stop: bool = True
    """Takes stop sequences."""
    schema: bool = True
    """Structured output by the provider itself; otherwise it is asked for in words."""
    price: Price | None = None


class TierEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who answers, in this order. `after_content`: what is tried, in this order, when one fails in mid-answer.

    The default never shows text that no model wrote: an equal beginning goes on, anything else starts over with a
    `reset`.
    """

    models: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    after_content: Annotated[tuple[AfterContent, ...], msgspec.Meta(min_length=1)] = ("splice", "restart")
    hedge_after_s: Annotated[float, msgspec.Meta(gt=0, le=60)] | Literal["p95"] | None = None
    """Ask the second too once the first has been silent for so long; None: never."""


class Catalog(msgspec.Struct, frozen=True):
    """Checked: every model of a tier has a provider, every complexity has a tier."""

    providers: dict[str, ProviderEntry]
    models: dict[str, ModelEntry]
    tiers: dict[str, TierEntry]
    complexity: dict[str, str]

    def model(self, name: str) -> ModelEntry:
        """What `provider/model` can; of a model that is not listed, what its format allows."""
        return self.models.get(name) or ModelEntry()

    def tier(self, name: str) -> TierEntry | None:
        """The tier called `name`, or that a complexity called `name` maps to."""
        return self.tiers.get(self.complexity.get(name, name))


def find(config: Path | None) -> Path | None:
    """The file to load: `config` if it names one (`HEADRACE_CONFIG`), else `headrace.toml` here, else None."""
    if config is not None and config != Path():  # set to nothing is not set
        return config
    return HERE if HERE.exists() else None


def load(path: Path | None) -> Catalog:
    """The catalog with the file at `path` laid over it. Raises WrongCatalog, also for a file that cannot be read."""
    own = tomllib.loads(_OWN.read_text())
    if path is None:
        return parse(own, _Source("catalog.toml", ""))
    try:
        text = path.read_text()
        theirs = tomllib.loads(text)
    except OSError as error:
        raise WrongCatalog(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise WrongCatalog(f"{path}: is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise WrongCatalog(f"{path}: {_lower(str(error))}") from None
    return parse(_lay_over(own, theirs), _Source(str(path), text))


def parse(tables: dict[str, Any], source: _Source | None = None) -> Catalog:
    """Check tables as TOML gives them. Raises WrongCatalog."""
    source = source or _Source("headrace.toml", "")
    known = ("providers", "models", "tiers", "complexity")
    for name, table in tables.items():
        if name not in known:
            raise source.wrong((name,), f"is not known here; write one of {', '.join(known)}")
        if not isinstance(table, dict):
            raise source.wrong((name,), "must be a table")
    catalog = Catalog(
        dict(_entries(tables, "providers", ProviderEntry, source)),
        dict(_entries(tables, "models", ModelEntry, source)),
        dict(_entries(tables, "tiers", TierEntry, source)),
        dict(tables.get("complexity", {})),
    )
    _check_names(catalog, source)
    return catalog


def _entries(tables: dict[str, Any], name: str, kind: type[_T], source: _Source) -> Iterator[tuple[str, _T]]:
    for key, table in tables.get(name, {}).items():
        try:
            yield key, msgspec.convert(table, kind)
        except msgspec.ValidationError as error:
            text, path = _split(error)
            raise source.wrong((name, key, *path), text) from None


def _check_names(catalog: Catalog, source: _Source) -> None:
    for name in catalog.providers:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", name) or name in BUILT_IN:
            raise source.wrong(("providers", name), "is no name for a provider: a–z, 0–9, _ and -, not a built-in one")
    for name, provider in catalog.providers.items():
        if provider.base_url is not None and not _is_address(provider.base_url):
            raise source.wrong(("providers", name, "base_url"), "must begin with http:// or https:// and a host")
        if provider.background and provider.format != "responses":
            raise source.wrong(("providers", name, "background"), 'needs format = "responses"')
    for name in catalog.models:
        if name.partition("/")[0] not in (*catalog.providers, GENERATOR):
            raise source.wrong(("models", name), f"names no provider; write provider/model with {_of(catalog)}")
    for tier, entry in catalog.tiers.items():
        for model in entry.models:
            if not model.partition("/")[2] or model.partition("/")[0] not in (*catalog.providers, GENERATOR):
                raise source.wrong(("tiers", tier, "models"), f"“{model}” is not provider/model with {_of(catalog)}")
        modes = entry.after_content
        if len(set(modes)) < len(modes) or modes[-1] not in ("restart", "error"):
            raise source.wrong(("tiers", tier, "after_content"), "names each way once, and ends with restart or error")
    for complexity, target in catalog.complexity.items():
        if not isinstance(target, str) or target not in catalog.tiers:
            raise source.wrong(("complexity", complexity), f"must name a tier: {', '.join(catalog.tiers)}")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        return False


def _of(catalog: Catalog) -> str:
    return "one of " + ", ".join(catalog.providers)


def _lay_over(own: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    laid = dict(own)
    for key, value in theirs.items():
        former = laid.get(key)
        both = isinstance(former, dict) and isinstance(value, dict)
        laid[key] = _lay_over(former, value) if both else value  # type: ignore[arg-type]
    return laid


def _split(error: msgspec.ValidationError) -> tuple[str, list[str]]:
    """msgspec's message without its path, and the keys of that path (`$.clocks.idle_s`)."""
    text, _, path = str(error).partition(" - at `$")
    keys = re.findall(r"[A-Za-z_][\w-]*", path.rstrip("`"))
    unknown = re.search(r"unknown field `([^`]+)`", text)
    if unknown:
        return "is no such key", [*keys, unknown[1]]
    missing = re.search(r"missing required field `([^`]+)`", text)
    return (f"`{missing[1]}` is missing", keys) if missing else (_lower(text), keys)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


class _Source:
    """Where a key stands in a file, found by reading it line by line: TOML's parser does not tell."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._lines = text.splitlines()

    def wrong(self, path: Sequence[str], text: str) -> WrongCatalog:
        line = self._line(path)
        where = self._name if line is None else f"{self._name}:{line}"
        return WrongCatalog(f"{where}: {'.'.join(_quoted(key) for key in path)} {text}")

    def _line(self, path: Sequence[str]) -> int | None:
        """The line of the longest beginning of `path` that the file spells out."""
        found, length = None, 0
        table: list[str] = []
        for number, line in enumerate(self._lines, 1):
            header, key = _TABLE.match(line), _KEY.match(line)
            if header:
                table = _names(header["name"])
                here = table
            elif key:
                here = [*table, *_names(key["key"])]
            else:
                continue
            if len(here) > length and here == list(path[: len(here)]):
                found, length = number, len(here)
        return found


def _names(dotted: str) -> list[str]:
    return [name.strip("\"' ") for name in re.findall(r'"[^"]*"|\'[^\']*\'|[^.\s]+', dotted)]


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key) else f'"{key}"'
