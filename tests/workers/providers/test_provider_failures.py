from __future__ import annotations

from email.utils import formatdate

import pytest

from workers.providers.failures import AFTER_MS_MAX, Account, Failure, provider_failure, retry_after_ms

ACCOUNT = Account("acme", "ACME_API_KEY", "ACME_BASE_URL")
NOW = 1_795_000_000.0


@pytest.mark.parametrize(
    ("headers", "after_ms"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3000),
        ({"retry-after": "0.5"}, 500),
        ({"retry-after-ms": "250", "retry-after": "3"}, 250),
        ({"retry-after": formatdate(NOW + 20, usegmt=True)}, 20_000),
        ({"retry-after": formatdate(NOW - 20, usegmt=True)}, 0),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "86400"}, AFTER_MS_MAX),
        ({"retry-after": "inf"}, AFTER_MS_MAX),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Fri, 99 Foo 2026 00:00:00 GMT"}, None),
        ({"retry-after-ms": ""}, None),
    ],
)
def test_the_wait_a_provider_asks_for_is_read_and_bounded(headers: dict[str, str], after_ms: int | None) -> None:
    assert retry_after_ms(headers, NOW) == after_ms


@pytest.mark.parametrize(
    ("status", "kinds", "message", "code", "retry"),
    [
        (429, set(), "", "provider_rate_limited", "after"),
        (429, {"insufficient_quota"}, "", "provider_error", "no"),
        (429, {"rate_limit_error", "enforced_spend_limit_reached"}, "", "provider_error", "no"),
        (402, {"billing_error"}, "", "provider_error", "no"),
        (529, {"overloaded_error"}, "", "provider_overloaded", "backoff"),
        (503, set(), "", "provider_overloaded", "backoff"),
        (500, {"api_error"}, "", "provider_error", "backoff"),
        (502, set(), "", "provider_error", "backoff"),
        (504, {"timeout_error"}, "", "provider_timeout", "backoff"),
        (408, set(), "", "provider_timeout", "backoff"),
        (413, {"request_too_large"}, "", "context_length_exceeded", "no"),
        (400, {"context_length_exceeded"}, "", "context_length_exceeded", "no"),
        (400, {"invalid_request_error"}, "prompt is too long: 9 tokens > 8 maximum", "context_length_exceeded", "no"),
        (400, {"content_filter"}, "", "content_blocked", "no"),
        (400, {"invalid_request_error"}, "Output blocked by content filtering policy", "content_blocked", "no"),
        (400, {"invalid_request_error"}, "temperature: range: 0..1", "provider_error", "no"),
        (401, {"authentication_error"}, "", "provider_error", "no"),
        (403, {"permission_error"}, "", "provider_error", "no"),
        (404, {"not_found_error"}, "", "provider_error", "no"),
    ],
)
def test_every_refusal_has_its_code_and_its_retry_rule(
    status: int, kinds: set[str], message: str, code: str, retry: str
) -> None:
    error = provider_failure(ACCOUNT, Failure(status, frozenset(kinds), message), NOW)
    assert (error.code, error.retry) == (code, retry)
    assert error.message.startswith(f"acme answered {status}")
    assert not message or message not in error.message


@pytest.mark.parametrize(("status", "hint"), [(401, "ACME_API_KEY"), (403, "ACME_API_KEY"), (404, "ACME_BASE_URL")])
def test_what_an_operator_can_mend_is_named(status: int, hint: str) -> None:
    assert hint in provider_failure(ACCOUNT, Failure(status, frozenset()), NOW).message


@pytest.mark.parametrize(
    ("status", "kinds", "refused"),
    [
        (400, {"invalid_request_error"}, True), (413, {"request_too_large"}, True), (401, set(), False),
        (404, set(), False), (429, set(), False), (500, set(), False), (0, set(), False),
    ],
)  # fmt: skip
def test_only_what_another_request_may_mend_is_refused(status: int, kinds: set[str], refused: bool) -> None:
    assert provider_failure(ACCOUNT, Failure(status, frozenset(kinds)), NOW).refused is refused
