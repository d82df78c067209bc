"""Going on with an answer that was cut off: what each provider is asked, and what comes back (protocol §5)."""

from __future__ import annotations

import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from tests.fakes import FakeProvider, Script
from tests.workers.providers.test_sdk_providers import text_of
from workers.catalog import ModelEntry
from workers.providers import Event, Provider, ProviderError, Reasoning, Stop, Usage
from workers.providers.anthropic import AnthropicProvider
from workers.providers.continuation import GO_ON, continued
from workers.providers.fallback import FallbackProvider
from workers.providers.openai import OpenAIProvider
from workers.providers.scripted import STORY, ScriptedProvider
from workers.providers.sdk import SdkProvider

KEPT = "The sky is"
ASKED = Message("user", "Why?")


async def ask(provider: Provider, model: str, kept: str, body: Body | None = None) -> list[Event]:
    stream = provider.stream(model, body or Body(messages=[ASKED]), kept)
    return [event async for events in stream for event in events]


# -- in the words of a conversation


def test_a_model_that_takes_it_is_given_the_beginning_of_its_answer() -> None:
    body = continued(Body([ASKED], max_tokens=10), "x" * 12, "prefix")
    assert body.messages == [ASKED, Message("assistant", "x" * 12)]
    assert body.max_tokens == 7


def test_any_other_is_asked_to_write_the_rest() -> None:
    body = continued(Body([ASKED]), KEPT, "turn")
    assert body.messages == [ASKED, Message("assistant", KEPT), Message("user", GO_ON)]
    assert body.max_tokens is None


def test_a_request_that_began_the_answer_itself_has_one_turn_for_it() -> None:
    body = continued(Body([ASKED, Message("assistant", "Well: ")]), KEPT, "prefix")
    assert body.messages == [ASKED, Message("assistant", "Well: The sky is")]


def test_at_least_one_token_is_left() -> None:
    assert continued(Body([ASKED], max_tokens=5), "x" * 999, "turn").max_tokens == 1


# -- over HTTP, with the SDKs


@pytest.mark.parametrize(
    ("model", "continues"),
    [
        ("claude-haiku-4-5", "prefix"), ("claude-haiku-4-5-20251001", "prefix"), ("claude-opus-4-5", "prefix"),
        ("claude-opus-4-6", "turn"), ("claude-sonnet-5-5", "turn"), ("claude-opus-4-50", "turn"),
    ],
)  # fmt: skip
async def test_anthropic_is_given_the_beginning_where_the_model_takes_it(
    anthropic: SdkProvider, fake: FakeProvider, model: str, continues: str
) -> None:
    assert anthropic.continues(model) == continues
    fake.queue.append(Script(texts=[" blue."]))
    assert text_of(await ask(anthropic, model, KEPT)) == " blue."
    begun = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": KEPT}]
    further = [] if continues == "prefix" else [{"role": "user", "content": GO_ON}]
    assert fake.last.body["messages"] == begun + further


@pytest.mark.parametrize("kind", [AnthropicProvider, OpenAIProvider])
def test_a_catalog_says_whether_a_model_takes_its_own_beginning(kind: type[SdkProvider]) -> None:
    """In both directions: it knows better than the names of models."""
    models = {"claude-haiku-4-5": ModelEntry(prefill=False), "mine": ModelEntry(prefill=True)}
    provider = kind(models=models)
    assert provider.continues("claude-haiku-4-5") == "turn"
    assert provider.continues("mine") == "prefix"


async def test_openai_is_asked_to_write_the_rest(openai: SdkProvider, fake: FakeProvider) -> None:
    fake.queue.append(Script(texts=[" blue."]))
    assert text_of(await ask(openai, "gpt-6-luna", KEPT)) == " blue."
    assert fake.last.body["messages"] == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": KEPT},
        {"role": "user", "content": GO_ON},
    ]


async def test_a_refused_beginning_says_that_the_request_was_refused(
    anthropic: SdkProvider, fake: FakeProvider
) -> None:
    with pytest.raises(ProviderError) as caught:
        await ask(anthropic, "claude-haiku-4-5", KEPT + " ")  # the API takes no white space at the end
    assert caught.value.refused and fake.last.status == 400


# -- the scripted provider


@pytest.mark.parametrize("kept", ["0000 ", "0000 0001", "0000 0001 00", "0000 0001 0002 ", "00"])
async def test_the_script_goes_on_after_the_kept_text(kept: str) -> None:
    events = await ask(ScriptedProvider(), "tokens=3,rate=0,reasoning=2,tools=1", kept)
    assert kept + text_of(events) == "0000 0001 0002 "
    assert not any(isinstance(event, Reasoning) for event in events)
    assert events[-1] == Stop("tool")


async def test_the_story_and_an_echo_go_on_inside_of_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.providers.scripted.STORY_RATE", 0.0)
    assert text_of(await ask(ScriptedProvider(), "story", STORY[:777])) == STORY[777:]
    assert text_of(await ask(ScriptedProvider(), "echo=1,rate=0", "W")) == "hy?"


async def test_the_figures_of_a_script_count_from_the_answer_s_start() -> None:
    limited = Body(messages=[ASKED], max_tokens=4)
    events = await ask(ScriptedProvider(), "tokens=9,rate=0", "0000 0001", limited)
    assert text_of(events) == " 0002 0003 " and events[-2:] == [Usage(1, 3), Stop("length")]
    with pytest.raises(ProviderError, match="after 5 pieces"):
        await ask(ScriptedProvider(), "tokens=9,rate=0,fail_after=5", "0000 0001 ")
    assert text_of(await ask(ScriptedProvider(), "tokens=4,rate=0,fail_after=1,stall_after=1", "0000 0001 ")) == (
        "0002 0003 "
    )


async def test_stamps_go_on_by_their_number() -> None:
    assert len(text_of(await ask(ScriptedProvider(), "tokens=5,rate=0,stamp=1", "17 18 19")).split()) == 2


@pytest.mark.parametrize("kept", ["something else", "0000 0001 0002 0003 ", "0000 0001 0003"])
async def test_a_beginning_that_the_script_would_not_have_written_is_refused(kept: str) -> None:
    with pytest.raises(ProviderError, match="does not begin") as caught:
        await ask(ScriptedProvider(), "tokens=3,rate=0", kept)
    assert caught.value.refused and caught.value.retry == "no"


def test_the_responder_without_a_model_starts_over() -> None:
    assert FallbackProvider().continues("rules") == "no"
