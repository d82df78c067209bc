from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from workers.providers import Event, Stop, Text, Usage
from workers.providers.fallback import TOPIC_CHARS, WHAT_TO_DO, FallbackProvider, pieces, reply


async def test_the_reply_is_streamed_in_pieces_and_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.providers.fallback.PIECE_S", 0)
    body = Body(messages=[Message("user", "Hello there")])
    lists = [events async for events in FallbackProvider().stream("rules", body)]
    events: list[Event] = [event for batch in lists for event in batch]
    assert "".join(event.text for event in events if isinstance(event, Text)) == reply("Hello there")
    assert len(lists) > 20
    assert events[-2:] == [Usage(), Stop("stop")]
    assert FallbackProvider.mode == "fallback"


@given(st.text())
def test_every_reply_says_that_no_model_wrote_it_and_what_to_set(prompt: str) -> None:
    assert reply(prompt).endswith(WHAT_TO_DO)
    assert "ANTHROPIC_API_KEY" in WHAT_TO_DO
    assert len(reply(prompt)) < len(WHAT_TO_DO) + TOPIC_CHARS + 200


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [
        ("hi!", "Hello!"),
        ("Guess what", "I received your message (“Guess what”)"),
        ("history of Rome", "I received your message (“history of Rome”)"),
        ("Who are you?", "I am the fallback"),
        ("help", "Happy to help"),
        ("thanks a lot", "You are welcome"),
    ],
)
def test_the_rules(prompt: str, opening: str) -> None:
    assert reply(prompt).startswith(opening)


@given(st.text())
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text
