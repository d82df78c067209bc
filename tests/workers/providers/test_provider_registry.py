from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from workers.catalog import load
from workers.providers.anthropic import AnthropicProvider
from workers.providers.fallback import FallbackProvider
from workers.providers.registry import Providers, UnknownModel

BOTH = {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "o"}
ONLY_ANTHROPIC = {"ANTHROPIC_AUTH_TOKEN": "a"}
ONLY_OPENAI = {"OPENAI_API_KEY": "o", "ANTHROPIC_API_KEY": ""}
SHIPPED = load(None)
FAST, STANDARD, PREMIUM = (SHIPPED.tiers[tier].models for tier in ("fast", "standard", "premium"))
NO_KEY = (["fallback/rules"], "no_provider_key")


def body(model: str, **fields: Any) -> Body:
    return Body([Message("user", "hi")], model=model, **fields)


def names(providers: Providers, model: str, **fields: Any) -> list[str]:
    return [candidate.name for candidate in providers.route(body(model, **fields)).candidates]


@pytest.mark.parametrize(
    ("environ", "model", "expected"),
    [
        (BOTH, "anthropic/claude-opus-5", (["anthropic/claude-opus-5"], None)),
        (BOTH, "openai/gpt-9-of-the-future", (["openai/gpt-9-of-the-future"], None)),
        (BOTH, "openai/org/team/model:7b", (["openai/org/team/model:7b"], None)),
        ({}, "scripted/tokens=5,rate=0", (["scripted/tokens=5,rate=0"], None)),
        ({}, "fallback/rules", (["fallback/rules"], None)),
        (BOTH, "fallback/anything", (["fallback/rules"], None)),
        (BOTH, "standard", (list(STANDARD), None)),
        (ONLY_ANTHROPIC, "fast", ([FAST[0]], None)),
        (ONLY_OPENAI, "premium", ([PREMIUM[1]], None)),
        (ONLY_OPENAI, "simple", ([FAST[1]], None)),
        (ONLY_OPENAI, "medium", ([STANDARD[1]], None)),
        (BOTH, "complex", (list(PREMIUM), None)),
        ({}, "standard", NO_KEY),
        ({}, "complex", NO_KEY),
        ({}, "anthropic/claude-opus-5", NO_KEY),
        (ONLY_ANTHROPIC, "openai/gpt-6-sol", NO_KEY),
        (ONLY_OPENAI, "anthropic/claude-opus-5", NO_KEY),
    ],
)
def test_a_model_is_a_list_of_candidates(environ: dict[str, str], model: str, expected: Any) -> None:
    route = Providers.from_env(environ).route(body(model))
    assert ([candidate.name for candidate in route.candidates], route.reason) == expected


def test_a_preferred_provider_comes_first_and_never_alone() -> None:
    both = Providers.from_env(BOTH)
    assert names(both, "fast", provider="openai") == [FAST[1], FAST[0]]
    assert names(both, "fast", provider="unheard-of") == list(FAST)
    assert names(Providers.from_env(ONLY_ANTHROPIC), "fast", provider="openai") == [FAST[0]]
    assert names(both, "anthropic/x", provider="openai") == ["anthropic/x"]


def test_a_request_s_own_fallbacks_take_the_place_of_the_tier_s() -> None:
    both = Providers.from_env(BOTH)
    assert names(both, "openai/a", fallbacks=["anthropic/b", "scripted/story"]) == [
        "openai/a", "anthropic/b", "scripted/story",
    ]  # fmt: skip
    assert names(both, "fast", fallbacks=["openai/a", FAST[0]]) == [FAST[0], "openai/a"]
    assert names(both, "openai/a", fallbacks=["fast"]) == ["openai/a", *FAST]
    assert names(Providers.from_env(ONLY_OPENAI), "anthropic/a", fallbacks=["openai/b"]) == ["openai/b"]
    assert names(both, "fast", provider="openai", fallbacks=["anthropic/b"]) == [FAST[1], "anthropic/b"]
    with pytest.raises(UnknownModel, match="acme"):
        names(both, "openai/a", fallbacks=["acme/b"])


def test_the_rules_answer_in_the_end_only_where_a_tier_was_asked_for() -> None:
    both = Providers.from_env(BOTH)
    assert both.route(body("fast")).falls_back
    assert both.route(body("openai/a", fallbacks=["fast"])).falls_back
    assert not both.route(body("openai/a")).falls_back
    assert not both.route(body("openai/a", fallbacks=["anthropic/b"])).falls_back


@pytest.mark.parametrize("model", ["", "gpt-6", "Standard", "acme/model", "/model", "anthropic/", "scripted/", "/"])
def test_a_name_that_means_nothing_is_refused_with_what_would(model: str) -> None:
    with pytest.raises(UnknownModel, match=r"write provider/model with one of anthropic, .*standard"):
        Providers.from_env(BOTH).route(body(model))


def test_scripted_models_can_be_turned_off() -> None:
    providers = Providers.from_env(BOTH, scripted=False)
    with pytest.raises(UnknownModel, match="turned off"):
        providers.route(body("scripted/story"))
    with pytest.raises(KeyError):
        providers.get("scripted")


def test_the_models_of_the_tiers_are_known_to_the_sdks() -> None:
    from typing import get_args

    import anthropic.types.model as anthropic_model
    import openai.types as openai_types

    known = {f"anthropic/{name}" for part in get_args(anthropic_model.Model) for name in get_args(part)}
    known |= {f"openai/{name}" for name in get_args(openai_types.ChatModel)}
    assert {*FAST, *STANDARD, *PREMIUM} <= known


LOCAL = """
    [providers.local]
    format = "openai"
    base_url = "http://127.0.0.1:9/v1"

    [providers.paid]
    format = "anthropic"
    base_url = "https://models.example"
    key = ["PAID_KEY"]
    requests = 7

    [tiers.fast]
    models = ["paid/small", "local/llama"]
"""


def test_a_provider_of_the_operator_s_own_needs_its_key_or_none(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text(LOCAL)
    catalog = load(tmp_path / "headrace.toml")
    assert names(Providers.from_env({}, catalog=catalog), "fast") == ["local/llama"]
    paid = Providers.from_env({"PAID_KEY": "k"}, catalog=catalog)
    assert names(paid, "fast") == ["paid/small", "local/llama"]
    assert (paid.get("paid").name, paid.get("local").name) == ("paid", "local")
    assert isinstance(paid.get("paid"), AnthropicProvider)
    assert {"fast", "simple", "local/llama"} <= set(paid.models())
    other = Providers.from_env({"PAID_KEY": "another"}, catalog=catalog)
    assert paid.credential("paid") != other.credential("paid")
    assert paid.credential("local") == other.credential("local") is not None
    assert paid.credential("fallback") is None


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
    assert names(providers, "scripted/any") == ["scripted/any"]
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
