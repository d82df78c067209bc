"""What tokens cost: an operator's own price first, then the prices of `genai-prices`, otherwise unknown.

An unknown price is None and never 0: a bill that is too low is noticed too late.
"""

from __future__ import annotations

import contextlib
import threading
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Protocol

import structlog

from workers.catalog import Price

log_ = structlog.get_logger(__name__)

#: They ask nobody, so they cost nothing.
FREE = frozenset({"fallback", "scripted"})
_loaded = threading.Event()


class Counted(Protocol):
    """Tokens: a provider's report, or a row of usage. Input is the grand total, cached parts included."""

    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def cache_write_tokens(self) -> int: ...


def is_loaded() -> bool:
    """Whether the library's prices are there: then a price takes 0.1 ms, and otherwise the time to import them."""
    return _loaded.is_set()


def load() -> None:
    """Load the library's prices, which takes up to a second: not on the event loop."""
    import genai_prices

    usage = genai_prices.Usage(input_tokens=1, output_tokens=1)
    with contextlib.suppress(LookupError):  # the first look-up builds the tables
        genai_prices.calc_price(usage, model_ref="claude-sonnet-4-5", provider_id="anthropic")
    _loaded.set()


def needs_library(provider: str, own: Price | None) -> bool:
    return own is None and provider not in FREE


def cost_nanos(provider: str, model: str, usage: Counted, own: Price | None) -> int | None:
    """Billionths of a US dollar for one call; None: the price is not known. Loads the library if it must."""
    if own is not None:
        return _own(own, usage)
    if provider in FREE or not (usage.input_tokens or usage.output_tokens):
        return 0
    from genai_prices import Usage as Priced
    from genai_prices import calc_price

    # Parts of a total that does not hold them (a provider's slip) are an error there.
    cached = min(usage.cached_tokens, usage.input_tokens)
    parts: dict[str, Any] = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": cached or None,
        "cache_write_tokens": min(usage.cache_write_tokens, usage.input_tokens - cached) or None,
    }
    try:
        return _nanos(calc_price(Priced(**parts), model_ref=model, provider_id=provider).total_price)
    except LookupError:
        return None
    except Exception as error:  # another's table of prices is not worth an answer
        log_.warning("no price could be calculated", provider=provider, model=model, error=type(error).__name__)
        return None


def _own(price: Price, usage: Counted) -> int:
    """A part without a price of its own costs as much as any input."""
    plain = max(0, usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens)
    parts = (
        (plain, price.input),
        (usage.cached_tokens, price.input if price.cached is None else price.cached),
        (usage.cache_write_tokens, price.input if price.cache_write is None else price.cache_write),
        (usage.output_tokens, price.output),
    )
    return _nanos(sum((Decimal(tokens) * Decimal(str(dollars)) for tokens, dollars in parts), Decimal()) / 1_000_000)


def _nanos(dollars: Decimal) -> int:
    return int((dollars * 1_000_000_000).quantize(Decimal(1), ROUND_HALF_UP))
