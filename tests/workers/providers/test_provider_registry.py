from __future__ import annotations

import itertools
import logging

import pytest

from workers.providers.anthropic import AnthropicProvider
from workers.providers.fallback import FallbackProvider
from workers.providers.registry import TIER_MODELS, TIERS, Choice, Providers, UnknownModel

BOTH = {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "o"}
ONLY_ANTHROPIC = {"ANTHROPIC_AUTH_TOKEN": "a"}
ONLY_OPENAI = {"OPENAI_API_KEY": "o", "ANTHROPIC_API_KEY": ""}
FALLBACK = Choice("fallback", "rules", reason="no_provider_key")


@pytest.mark.parametrize(
    ("environ", "model", "choice"),
    [
        (BOTH, "anthropic/claude-opus-5", Choice("anthropic", "claude-opus-5")),
        (BOTH, "openai/gpt-9-of-the-future", Choice("openai", "gpt-9-of-the-future")),
        (BOTH, "openai/org/team/model:7b", Choice("openai", "org/team/model:7b")),
        ({}, "scripted/tokens=5,rate=0", Choice("scripted", "tokens=5,rate=0")),
        ({}, "fallback/rules", Choice("fallback", "rules")),
        (BOTH, "fallback/anything", Choice("fallback", "rules")),
        (BOTH, "standard", Choice("anthropic", TIER_MODELS["anthropic"]["standard"], "standard")),
        (ONLY_ANTHROPIC, "fast", Choice("anthropic", TIER_MODELS["anthropic"]["fast"], "fast")),
        (ONLY_OPENAI, "premium", Choice("openai", TIER_MODELS["openai"]["premium"], "premium")),
        (ONLY_OPENAI, "simple", Choice("openai", TIER_MODELS["openai"]["fast"], "fast")),
        (ONLY_OPENAI, "medium", Choice("openai", TIER_MODELS["openai"]["standard"], "standard")),
        (ONLY_OPENAI, "complex", Choice("openai", TIER_MODELS["openai"]["premium"], "premium")),
        ({}, "standard", Choice("fallback", "rules", "standard", "no_provider_key")),
        ({}, "complex", Choice("fallback", "rules", "premium", "no_provider_key")),
        ({}, "anthropic/claude-opus-5", FALLBACK),
        (ONLY_ANTHROPIC, "openai/gpt-6-sol", FALLBACK),
        (ONLY_OPENAI, "anthropic/claude-opus-5", FALLBACK),
    ],
)
def test_a_model_is_resolved(environ: dict[str, str], model: str, choice: Choice) -> None:
    assert Providers.from_env(environ).resolve(model) == choice


def test_a_preferred_provider_comes_first_where_it_has_a_key() -> None:
    assert Providers.from_env(BOTH).resolve("fast", prefer="openai").provider == "openai"
    assert Providers.from_env(ONLY_ANTHROPIC).resolve("fast", prefer="openai").provider == "anthropic"
    assert Providers.from_env(BOTH).resolve("fast", prefer="unheard-of").provider == "anthropic"


@pytest.mark.parametrize("model", ["", "gpt-6", "Standard", "acme/model", "/model", "anthropic/", "scripted/", "/"])
def test_a_name_that_means_nothing_is_refused_with_what_would(model: str) -> None:
    with pytest.raises(UnknownModel, match=r"write provider/model with one of anthropic, .*standard"):
        Providers.from_env(BOTH).resolve(model)


def test_scripted_models_can_be_turned_off() -> None:
    providers = Providers.from_env(BOTH, scripted=False)
    with pytest.raises(UnknownModel, match="turned off"):
        providers.resolve("scripted/story")
    with pytest.raises(KeyError):
        providers.get("scripted")


def test_every_tier_has_a_model_with_every_provider() -> None:
    for models, tier in itertools.product(TIER_MODELS.values(), TIERS.values()):
        assert models[tier]


def test_the_models_of_the_tiers_are_known_to_the_sdks() -> None:
    from typing import get_args

    import anthropic.types.model as anthropic_model
    import openai.types as openai_types

    known = {name for part in get_args(anthropic_model.Model) for name in get_args(part)}
    assert set(TIER_MODELS["anthropic"].values()) <= known
    assert set(TIER_MODELS["openai"].values()) <= set(get_args(openai_types.ChatModel))


async def test_a_provider_is_made_once() -> None:
    providers = Providers.from_env(BOTH)
    assert isinstance(providers.get("anthropic"), AnthropicProvider)
    assert providers.get("anthropic") is providers.get("anthropic")
    await providers.close()


async def test_a_provider_that_is_brought_along_is_used_and_closed_with_the_others() -> None:
    class Closing(FallbackProvider):
        closed = False

        async def close(self) -> None:
            self.closed = True

    brought = Closing()
    providers = Providers(frozenset({"fallback"}), made={"scripted": brought})
    assert providers.available == {"fallback", "scripted"} and providers.get("scripted") is brought
    assert providers.resolve("scripted/any").provider == "scripted"
    await providers.close()
    assert brought.closed


async def test_warming_imports_the_sdks_and_closing_ends_their_clients(environment: None) -> None:
    providers = Providers.from_env(BOTH)
    await providers.warm()
    assert logging.getLogger("anthropic").level == logging.INFO
    assert logging.getLogger("openai").level == logging.INFO
    client = providers.get("openai")._client  # type: ignore[attr-defined]
    await providers.close()
    assert client.is_closed()
