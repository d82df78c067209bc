"""What a provider's failure means to a viewer: facts of an HTTP answer or an in-band error → `ProviderError`.

Pure. A provider's own message is matched here for the few causes that have no code of their own, and goes no
further: messages of `ProviderError` are ours, since a provider's may quote the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from workers.chain import Fault
from workers.providers import ProviderError

#: The longest wait that is passed on. A provider may name hours; a viewer is not asked to wait them out unseen.
AFTER_MS_MAX = 600_000

_OVERLOADED_STATUSES = frozenset({409, 425, 503, 529})
_TIMEOUT_STATUSES = frozenset({408, 504})

_RATE_KINDS = frozenset({"rate_limit_error", "rate_limit_exceeded", "requests", "tokens"})
_OVERLOADED_KINDS = frozenset({"overloaded_error", "server_overloaded", "slow_down", "engine_overloaded"})
_TIMEOUT_KINDS = frozenset({"timeout_error"})
_MONEY_KINDS = frozenset(
    {
        "billing_error",
        "insufficient_quota",
        "billing_hard_limit_reached",
        "contract_spend_limit_reached",
        "enforced_spend_limit_reached",
        "linked_organization_spend_limit_reached",
    }
)
_CONTEXT_KINDS = frozenset({"context_length_exceeded", "request_too_large", "string_above_max_length"})
_BLOCKED_KINDS = frozenset({"content_filter", "content_policy_violation", "moderation_blocked", "invalid_prompt"})
_REQUEST_KINDS = frozenset({"invalid_request_error", "authentication_error", "permission_error", "not_found_error"})

_CONTEXT_PHRASES = ("prompt is too long", "exceed context limit", "maximum context length")
_BLOCKED_PHRASES = ("content filtering policy", "usage policies", "content management policy")


@dataclass(frozen=True)
class Account:
    """Which provider, and the variables by which an operator sets it up."""

    provider: str
    key_variable: str
    url_variable: str


@dataclass(frozen=True)
class Failure:
    """What a provider said when it refused. `kinds` are its type and code; `status` is 0 for an in-band error."""

    status: int
    kinds: frozenset[str]
    message: str = ""
    headers: Mapping[str, str] | None = None


def provider_failure(account: Account, failure: Failure, now: float) -> ProviderError:
    """The error to show for `failure`. `now` is Unix time: a `retry-after` may be a date."""
    name, status, kinds = account.provider, failure.status, failure.kinds
    answered = f"{name} answered {status}" if status else f"{name} broke off its answer"
    text = failure.message.lower()
    if kinds & _MONEY_KINDS or status == 402:
        message = f"{answered} (its quota or credit is used up): check the billing of the {name} account"
        return ProviderError("provider_error", message, fault="quota", retry="no")
    if status == 413 or kinds & _CONTEXT_KINDS or any(phrase in text for phrase in _CONTEXT_PHRASES):
        message = f"{answered} (the conversation is longer than the model takes): send fewer or shorter messages"
        return ProviderError("context_length_exceeded", message, refused=True)
    if kinds & _BLOCKED_KINDS or any(phrase in text for phrase in _BLOCKED_PHRASES):
        return ProviderError("content_blocked", f"{answered} (blocked by its content filter)")
    if status == 429 or kinds & _RATE_KINDS:
        after_ms = retry_after_ms(failure.headers or {}, now)
        return ProviderError("provider_rate_limited", f"{answered} (rate limited)", after_ms=after_ms)
    if status in _OVERLOADED_STATUSES or kinds & _OVERLOADED_KINDS:
        after_ms = retry_after_ms(failure.headers or {}, now)
        return ProviderError("provider_overloaded", f"{answered} (overloaded)", after_ms=after_ms)
    if status in _TIMEOUT_STATUSES or kinds & _TIMEOUT_KINDS:
        return ProviderError("provider_timeout", f"{answered} (it ran out of time)")
    return _other(account, answered, status, kinds)


def _other(account: Account, answered: str, status: int, kinds: frozenset[str]) -> ProviderError:
    """What trying again unchanged does not mend, and what is the provider's own fault."""
    refused = False
    fault: Fault = "absent"
    if status == 401 or "authentication_error" in kinds:
        message, fault = f"the key was not accepted): check {account.key_variable} on the worker", "credential"
    elif status == 403 or "permission_error" in kinds:
        message, fault = f"not allowed): check what the key in {account.key_variable} may use", "credential"
    elif status == 404 or kinds & {"not_found_error", "model_not_found"}:
        message = f"no such model or path): check the model's name, and {account.url_variable} if it is set"
    elif 300 <= status < 400:
        message = f"a redirect, which is not followed): check {account.url_variable} if it is set"
    elif status >= 500:  # only a 500 may be mended by asking once more; others are usually a gateway's
        fault = "server" if status == 500 else "unreachable"
        return ProviderError("provider_error", f"{answered} (its own failure)", fault=fault)
    elif status or kinds & _REQUEST_KINDS:
        message, fault = "it did not accept the request): check the model's name and the request's options", "request"
        refused = True
    else:
        return ProviderError("provider_error", f"{answered} with an error")
    return ProviderError("provider_error", f"{answered} ({message}", fault=fault, retry="no", refused=refused)


def retry_after_ms(headers: Mapping[str, str], now: float) -> int | None:
    """How long the provider asks to wait, 0 to `AFTER_MS_MAX`; None if it does not say or makes no sense."""
    try:
        if "retry-after-ms" in headers:
            wait_ms = float(headers["retry-after-ms"])
        elif "retry-after" in headers:
            wait_ms = _retry_after_s(headers["retry-after"], now) * 1000
        else:
            return None
        return int(min(max(wait_ms, 0.0), AFTER_MS_MAX)) if wait_ms == wait_ms else None
    except (ValueError, OverflowError):
        return None


def _retry_after_s(value: str, now: float) -> float:
    try:
        return float(value)
    except ValueError:
        return parsedate_to_datetime(value).timestamp() - now
