"""What a call costs: an operator's price, else the library's own figure to the millionth, else unknown and never 0."""

from __future__ import annotations

import pytest
from genai_prices import Usage as Priced
from genai_prices import calc_price

from workers import catalog
from workers.catalog import Price
from workers.pricing import cost_nanos, is_loaded, load
from workers.providers import Usage

CHEAP = Price(input=1.0, output=4.0, cached=0.1, cache_write=1.25)


#: The tiers' models whose price the library knows.
KNOWN = [
    name
    for tier in catalog.load(None).tiers.values()
    for name in tier.models
    if cost_nanos(*name.split("/"), Usage(1000, 1000), None) is not None
]


def test_most_of_the_tiers_models_have_a_price() -> None:
    assert len(KNOWN) >= 5


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize(
    "usage", [Usage(1000, 100), Usage(1_000_000, 3, 900_000), Usage(5000, 800, 1000, 2000), Usage(1, 1)]
)
def test_a_model_of_the_tiers_costs_what_the_library_says(name: str, usage: Usage) -> None:
    provider, _, model = name.partition("/")
    priced = Priced(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    expected = float(calc_price(priced, model_ref=model, provider_id=provider).total_price)
    cost = cost_nanos(provider, model, usage, None)
    assert cost is not None and expected > 0
    assert cost == pytest.approx(expected * 1e9, rel=0.001)


def test_an_operator_s_price_comes_first_and_parts_without_one_cost_as_any_input() -> None:
    usage = Usage(1_000_000, 500_000, 200_000, 100_000)
    assert cost_nanos("anthropic", "claude-haiku-5-5", usage, CHEAP) == 1000 * (700_000 + 20_000 + 125_000 + 2_000_000)
    assert cost_nanos("own", "llama", usage, Price(input=1.0, output=4.0)) == 3_000_000_000
    assert cost_nanos("own", "llama", Usage(10, 10), Price(input=0, output=0)) == 0


@pytest.mark.parametrize(("provider", "model"), [("anthropic", "claude-of-next-year"), ("nobody", "llama"), ("", "")])
def test_an_unknown_model_has_no_price_but_nothing_costs_nothing(provider: str, model: str) -> None:
    assert cost_nanos(provider, model, Usage(10, 10), None) is None
    assert cost_nanos(provider, model, Usage(), None) == 0


def test_what_asks_nobody_is_free() -> None:
    assert cost_nanos("scripted", "story", Usage(10, 10), None) == 0
    assert cost_nanos("fallback", "rules", Usage(), None) == 0


def test_parts_that_are_larger_than_their_total_do_not_lose_the_price() -> None:
    assert cost_nanos("anthropic", "claude-sonnet-4-5", Usage(10, 0, 30, 30), None) is not None


def test_prices_are_loaded_when_somebody_says_so() -> None:
    load()
    assert is_loaded()
