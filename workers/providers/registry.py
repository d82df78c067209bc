"""Which provider answers: what is configured, what a request's `model` means, one object per provider and process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from workers.providers import Provider
from workers.providers.anthropic import AnthropicProvider
from workers.providers.fallback import MODEL as FALLBACK_MODEL
from workers.providers.fallback import FallbackProvider
from workers.providers.openai import OpenAIProvider
from workers.providers.scripted import ScriptedProvider
from workers.providers.sdk import REQUESTS

Tier = Literal["fast", "standard", "premium"]

#: The models of each tier, by provider; of these providers the first with a key answers.
TIER_MODELS: Final[dict[str, dict[Tier, str]]] = {
    "anthropic": {"fast": "claude-haiku-5-5", "standard": "claude-sonnet-5-5", "premium": "claude-opus-5-5"},
    "openai": {"fast": "gpt-6-luna", "standard": "gpt-6.1-terra", "premium": "gpt-6.2-sol"},
}

#: What may be asked for in a tier's place: how hard the task is (protocol §3).
TIERS: Final[dict[str, Tier]] = {
    "fast": "fast",
    "standard": "standard",
    "premium": "premium",
    "simple": "fast",
    "medium": "standard",
    "complex": "premium",
}

#: Any of these variables, not empty, makes a provider available.
KEY_VARIABLES: Final[dict[str, tuple[str, ...]]] = {
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    "openai": ("OPENAI_API_KEY",),
}

#: Why an answer comes from `fallback`: `source.reason`.
NO_PROVIDER_KEY: Final = "no_provider_key"

_PROVIDERS: Final = ("anthropic", "openai", "fallback", "scripted")


class UnknownModel(ValueError):
    """`model` names nothing that could ever answer here. The text says what could."""


@dataclass(frozen=True)
class Choice:
    """Who answers: the name of a provider, the model as that provider calls it, the tier if one was asked for."""

    provider: str
    model: str
    tier: Tier | None = None
    reason: str | None = None


class Providers:
    """The providers of one process. Objects are made when first asked for and belong to one event loop."""

    def __init__(
        self,
        available: frozenset[str],
        *,
        requests: int = REQUESTS,
        made: Mapping[str, Provider] | None = None,
    ) -> None:
        """`made` are objects to use as they are, by name, instead of this module's; closed with the others."""
        self.available = available | frozenset(made or ())
        self._made: dict[str, Provider] = dict(made or {})
        self._makers: dict[str, Callable[[], Provider]] = {
            "anthropic": lambda: AnthropicProvider(requests=requests),
            "openai": lambda: OpenAIProvider(requests=requests),
            "fallback": FallbackProvider,
            "scripted": ScriptedProvider,
        }

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, scripted: bool = True, requests: int = REQUESTS) -> Providers:
        """What the keys in `environ` allow. The SDKs read the same variables, from the process's environment.

        `requests` bounds the requests at a time to each provider; above `sdk.POOL_CONNECTIONS` makes no sense.
        """
        keyed = {name for name, variables in KEY_VARIABLES.items() if any(environ.get(key) for key in variables)}
        own = {"fallback", "scripted"} if scripted else {"fallback"}
        return cls(frozenset(keyed | own), requests=requests)

    def resolve(self, model: str, prefer: str | None = None) -> Choice:
        """What `model` means: `provider/model`, a tier or a complexity. Pure. Raises UnknownModel.

        `prefer` names the provider to use for a tier if it has a key. Where a key is missing, the choice is
        `fallback` and its reason says so.
        """
        tier = TIERS.get(model)
        if tier is not None:
            return self._resolve_tier(tier, prefer)
        name, slash, concrete = model.partition("/")
        if not slash:
            raise UnknownModel(self._help(model))
        if name not in _PROVIDERS:
            raise UnknownModel(f"there is no provider “{name}”: {_ways()}")
        if name == "fallback":
            return Choice("fallback", FALLBACK_MODEL)
        if not concrete:
            raise UnknownModel(f"“{model}” names no model: {_ways()}")
        if name not in self.available:
            if name == "scripted":
                raise UnknownModel(f"scripted models are turned off on this worker: {_ways()}")
            return Choice("fallback", FALLBACK_MODEL, reason=NO_PROVIDER_KEY)
        return Choice(name, concrete)

    def _resolve_tier(self, tier: Tier, prefer: str | None) -> Choice:
        order = sorted(TIER_MODELS, key=lambda name: name != prefer)  # stable: the preferred one first
        for name in order:
            if name in self.available:
                return Choice(name, TIER_MODELS[name][tier], tier)
        return Choice("fallback", FALLBACK_MODEL, tier, NO_PROVIDER_KEY)

    def _help(self, model: str) -> str:
        return f"“{model}” is no model here: {_ways()}" if model else f"no model was named: {_ways()}"

    def get(self, name: str) -> Provider:
        """The provider called `name`, always the same object. Raises KeyError for one that is not available."""
        if name not in self.available:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    async def warm(self) -> None:
        """Import the SDKs of the providers with a key, off the event loop, so that no answer waits a second for it.

        Raises ProviderError if one cannot be set up.
        """
        for name in KEY_VARIABLES:
            if name in self.available:
                provider = self.get(name)
                if isinstance(provider, AnthropicProvider | OpenAIProvider):
                    await provider.warm()

    async def close(self) -> None:
        """Close every provider that was made. Running streams must have ended."""
        while self._made:
            _, provider = self._made.popitem()
            await provider.close()


def _ways() -> str:
    return f"write provider/model with one of {', '.join(_PROVIDERS)}, or one of {', '.join(TIERS)}"
