"""What tokens cost: an operator's own price first, then the prices of `genai-prices`, otherwise unknown.

An unknown price is None and never 0: a bill that is too low is noticed too late.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import structlog

from workers.catalog import Price
from workers.providers import Usage

log_ = structlog.get_logger(__name__)


def cost_micros(provider: str, model: str, usage: Usage, own: Price | None) -> int | None:
    """Millionths of a US dollar for one call. The first call imports the prices: about a second, so not on the loop."""
    if own is not None:
        return _own(own, usage)
    from genai_prices import Usage as Priced
    from genai_prices import calc_price

    priced = Priced(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens or None,
        cache_write_tokens=usage.cache_write_tokens or None,
    )
    try:
        return _micros(calc_price(priced, model_ref=model, provider_id=provider).total_price)
    except LookupError:
        return None
    except Exception as error:  # another's table of prices is not worth an answer
        log_.warning("no price could be calculated", provider=provider, model=model, error=type(error).__name__)
        return None


def _own(price: Price, usage: Usage) -> int:
    """A part without a price of its own costs as much as any input."""
    plain = max(0, usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens)
    parts = (
        (plain, price.input),
        (usage.cached_tokens, price.input if price.cached is None else price.cached),
        (usage.cache_write_tokens, price.input if price.cache_write is None else price.cache_write),
        (usage.output_tokens, price.output),
    )
    return _micros(sum((Decimal(tokens) * Decimal(str(dollars)) for tokens, dollars in parts), Decimal()) / 1_000_000)


def _micros(dollars: Decimal) -> int:
    return int((dollars * 1_000_000).quantize(Decimal(1), ROUND_HALF_UP))
