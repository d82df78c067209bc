"""Which providers answer: what the catalog and the keys allow, what a request's `model` means, one object each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from headrace.protocol.body import Body
from workers.catalog import GENERATOR, AfterContent, Catalog, ModelEntry, ProviderEntry, TierEntry, WrongCatalog, load
from workers.chain import Candidate
from workers.hedge import HedgeAfter
from workers.providers import Provider
from workers.providers.anthropic import AnthropicProvider
from workers.providers.fallback import MODEL as FALLBACK_MODEL
from workers.providers.fallback import FallbackProvider
from workers.providers.generator import GeneratorProvider
from workers.providers.openai import OpenAIProvider
from workers.providers.responses import ResponsesProvider
from workers.providers.scripted import ScriptedProvider
from workers.providers.sdk import REQUESTS, SdkProvider

_SHIPPED: Final = load(None)

#: Why an answer comes from `fallback`: `source.reason`.
NO_PROVIDER_KEY: Final = "no_provider_key"
PROVIDERS_FAILED: Final = "providers_failed"

_KINDS: Final[dict[str, type[SdkProvider]]] = {
    "anthropic": AnthropicProvider,
    "openai": OpenAIProvider,
    "responses": ResponsesProvider,
}
_OWN: Final = ("fallback", "scripted")
_FALLBACK: Final = Candidate("fallback", FALLBACK_MODEL)


class UnknownModel(ValueError):
    """`model` names nothing that could ever answer here. The text says what could."""


class Route(msgspec.Struct, frozen=True):
    """Who may answer a request, best first, and what is done when one of them fails."""

    candidates: tuple[Candidate, ...]
    after_content: tuple[AfterContent, ...]
    falls_back: bool = False
    """A tier was asked for: when all have failed before any content, the rules answer."""
    reason: str | None = None
    hedge_after_s: HedgeAfter | None = None
    """After how many seconds of silence the second is asked beside the first."""


class Providers:
    """The providers of one process. Objects are made when first asked for and belong to one event loop."""

    def __init__(
        self,
        available: frozenset[str],
        *,
        catalog: Catalog = _SHIPPED,
        environ: Mapping[str, str] | None = None,
        requests: int = REQUESTS,
        made: Mapping[str, Provider] | None = None,
    ) -> None:
        """`made` are objects to use as they are, by name, instead of this module's; closed with the others.

        `environ` tells the accounts apart; requests are made with the process's own environment.
        `requests` bounds the requests at a time to each provider whose entry names no bound. Raises WrongCatalog.
        """
        self.available = available | frozenset(made or ())
        self.catalog = catalog
        self._environ = os.environ if environ is None else environ
        self._requests = requests
        self._made: dict[str, Provider] = dict(made or {})
        own = self._made.get(GENERATOR)
        self._generators = own.models if isinstance(own, GeneratorProvider) else []
        self._check_tiers()
        self._own: dict[str, Callable[[], Provider]] = {"fallback": FallbackProvider, "scripted": ScriptedProvider}

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str],
        *,
        scripted: bool = True,
        requests: int = REQUESTS,
        catalog: Catalog = _SHIPPED,
        made: Mapping[str, Provider] | None = None,
    ) -> Providers:
        """What the keys in `environ` allow; a provider that needs none is always available. Raises WrongCatalog."""
        keyed = {name for name, entry in catalog.providers.items() if entry.has_key(environ)}
        own = set(_OWN) if scripted else {"fallback"}
        return cls(frozenset(keyed | own), catalog=catalog, environ=environ, requests=requests, made=made)

    def _check_tiers(self) -> None:
        """A worker that has generators has all that its tiers name. Raises WrongCatalog."""
        there = {f"{GENERATOR}/{name}" for name in self._generators}
        for tier, entry in self.catalog.tiers.items() if there else ():
            for model in entry.models:
                if model.startswith(f"{GENERATOR}/") and model not in there:
                    registered = ", ".join(self._generators)
                    raise WrongCatalog(f"tiers.{tier}.models: “{model}” is none of HEADRACE_GENERATORS: {registered}")

    # -- what a request means

    def route(self, body: Body) -> Route:
        """Who may answer `body`, by its `model`, `provider` and `fallbacks`. Pure. Raises UnknownModel.

        A preferred provider comes first where it is among those that may answer. Where no key is there for any of
        them, `fallback` answers and the reason says so.
        """
        tier = self.catalog.tier(body.model)
        wanted = self._named(body.model)
        if body.provider is not None:
            wanted.sort(key=lambda candidate: candidate.provider != body.provider)  # stable
        falls_back = tier is not None
        if body.fallbacks:
            wanted = next(([first] for first in wanted if first.provider in self.available), [])
            for name in body.fallbacks:
                wanted += self._named(name)
                falls_back = falls_back or self.catalog.tier(name) is not None
        candidates = tuple(dict.fromkeys(each for each in wanted if each.provider in self.available))
        tier = tier or TierEntry(("-",))
        policy = tier.after_content
        if not candidates:
            return Route((_FALLBACK,), policy, reason=NO_PROVIDER_KEY)
        return Route(candidates, policy, falls_back, hedge_after_s=tier.hedge_after_s)

    def _named(self, model: str) -> list[Candidate]:
        """The candidates that `model` names, with a key or without. Raises UnknownModel."""
        tier = self.catalog.tier(model)
        if tier is not None:
            return [self._candidate(*name.split("/", 1)) for name in tier.models]
        name, slash, concrete = model.partition("/")
        if not slash:
            named = f"“{model}” is no model here" if model else "no model was named"
            raise UnknownModel(f"{named}: {self._ways()}")
        if name == "fallback":
            return [_FALLBACK]
        if name not in self._names():
            raise UnknownModel(f"there is no provider “{name}”: {self._ways()}")
        if not concrete:
            raise UnknownModel(f"“{model}” names no model: {self._ways()}")
        if name == "scripted" and name not in self.available:
            raise UnknownModel(f"scripted models are turned off on this worker: {self._ways()}")
        if name == GENERATOR and concrete not in self._generators:
            there = ", ".join(self._generators) or "none, see HEADRACE_GENERATORS"
            raise UnknownModel(f"there is no generator “{concrete}” on this worker; it has: {there}")
        return [self._candidate(name, concrete)]

    def _candidate(self, provider: str, model: str) -> Candidate:
        return Candidate(provider, model, self.catalog.model(f"{provider}/{model}").context)

    def _names(self) -> list[str]:
        return [*self.catalog.providers, *_OWN, GENERATOR]

    def _ways(self) -> str:
        tiers = ", ".join([*self.catalog.tiers, *self.catalog.complexity])
        return f"write provider/model with one of {', '.join(self._names())}, or one of {tiers}"

    # -- those who answer

    def get(self, name: str) -> Provider:
        """The provider called `name`, always the same object. Raises KeyError for one that is not available."""
        if name not in self.available:
            raise KeyError(name)
        if name not in self._made:
            own = self._own.get(name)
            self._made[name] = own() if own else self._make(name, self.catalog.providers[name])
        return self._made[name]

    def _make(self, name: str, entry: ProviderEntry) -> Provider:
        kind = _KINDS[entry.format]
        models = {
            model.removeprefix(f"{name}/"): can
            for model, can in self.catalog.models.items()
            if model.startswith(f"{name}/")
        }
        return kind(name, entry, requests=entry.requests or self._requests, models=models)

    def model(self, candidate: Candidate) -> ModelEntry:
        """What a model can, as it is asked here."""
        can = self.catalog.model(candidate.name)
        entry = self.catalog.providers.get(candidate.provider)
        if entry is not None and entry.format == "responses":  # it has no word for stop sequences
            return msgspec.structs.replace(can, stop=False)
        return can

    def models(self) -> Iterator[str]:
        """What may be asked for by name and has a key: tiers and complexities, then `provider/model`, each once."""
        yield from (*self.catalog.tiers, *self.catalog.complexity)
        of_tiers = [name for tier in self.catalog.tiers.values() for name in tier.models]
        listed = dict.fromkeys([*self.catalog.models, *of_tiers])
        yield from (name for name in listed if name.partition("/")[0] in self.available)
        yield from (name for each in self._generators if (name := f"{GENERATOR}/{each}") not in listed)

    @property
    def keyless(self) -> list[str]:
        """Providers of the catalog that lack a key."""
        return [name for name in self.catalog.providers if name not in self.available]

    def credential(self, name: str) -> str | None:
        """Tells one provider's accounts apart without telling the key; None for one that has none of its own."""
        entry = self.catalog.providers.get(name)
        if entry is None:
            return None
        environ = self._environ
        key = next((environ[variable] for variable in entry.key if environ.get(variable)), "")
        address = environ.get(entry.base_url_variable or "") or entry.base_url or ""
        return hashlib.sha256(f"{address}\n{key}".encode()).hexdigest()[:12]

    async def warm(self) -> None:
        """Import the SDKs of the providers with a key, off the event loop, so that no answer waits a second for it.

        Raises ProviderError if one cannot be set up.
        """
        for name in self.catalog.providers:
            if name in self.available:
                provider = self.get(name)
                if isinstance(provider, SdkProvider):
                    await provider.warm()

    async def close(self) -> None:
        """Close every provider that was made. Running streams must have ended."""
        while self._made:
            _, provider = self._made.popitem()
            await provider.close()
