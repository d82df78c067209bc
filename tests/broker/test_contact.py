"""What counts as a break in the contact with Redis."""

from __future__ import annotations

import pytest

from hub.broker.contact import Contact


def test_contact_lasts_since_the_first_answer() -> None:
    contact = Contact(1.5)
    for step in range(10):
        contact.heard(1_000_000 + step * 500, 50.0 + step * 0.5)
    assert contact.since_ms == 1_000_000


@pytest.mark.parametrize(
    ("redis_ms", "now", "breaks"),
    [
        (1_001_500, 51.5, False),
        (1_001_600, 51.6, True),  # nothing was heard for too long
        (1_002_100, 50.5, True),  # Redis' clock went ahead
        (998_900, 50.5, True),  # … and back
        (1_002_000, 50.5, False),
        (1_000_000, 51.5, False),
    ],
)
def test_a_long_silence_and_a_jump_of_the_clock_are_breaks(redis_ms: int, now: float, breaks: bool) -> None:
    contact = Contact(1.5)
    contact.heard(1_000_000, 50.0)
    contact.heard(redis_ms, now)
    assert contact.since_ms == (redis_ms if breaks else 1_000_000)


def test_an_answer_that_did_not_come_is_a_break() -> None:
    contact = Contact(1.5)
    contact.heard(1_000_000, 50.0)
    contact.lost()
    contact.heard(1_000_500, 50.5)
    assert contact.since_ms == 1_000_500
