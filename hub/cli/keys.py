"""Which providers have a key, as a worker that is started here sees it: names of variables, never their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.catalog import Catalog, find, load


@dataclass(frozen=True)
class Access:
    """How one provider is got at. `variables`: any of them holds its key; none: it needs no key."""

    provider: str
    variables: tuple[str, ...]
    found: str | None
    """The variable that holds one."""
    is_shipped: bool
    """One of those that Headrace knows by itself."""

    @property
    def has_key(self) -> bool:
        return self.found is not None or not self.variables

    def __str__(self) -> str:
        if not self.variables:
            return f"{self.provider} (needs no key)"
        return f"{self.provider} ({self.found})" if self.found else f"{self.provider}: no key"

    @property
    def advice(self) -> str:
        return f"set {self.variables[0]}"


def catalog_file(environ: Mapping[str, str]) -> Path | None:
    """The `headrace.toml` that counts here, if there is any."""
    config = environ.get("HEADRACE_CONFIG")
    return find(Path(config) if config else None)


def catalog(environ: Mapping[str, str]) -> Catalog:
    """What there is to ask. Raises WrongCatalog, which names the file, the line and the key."""
    return load(catalog_file(environ))


def providers(environ: Mapping[str, str], known: Catalog) -> list[Access]:
    """Each provider of the catalog, in its order."""
    shipped = load(None).providers
    return [
        Access(
            name,
            entry.key,
            next((variable for variable in entry.key if environ.get(variable)), None),
            name in shipped,
        )
        for name, entry in known.providers.items()
    ]


def key_variables() -> frozenset[str]:
    """Everything by which a provider that Headrace knows by itself would be got at."""
    entries = load(None).providers.values()
    addresses = {entry.base_url_variable for entry in entries if entry.base_url_variable}
    return frozenset({name for entry in entries for name in entry.key} | addresses)
