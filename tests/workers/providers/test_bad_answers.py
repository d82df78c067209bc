"""Answers that no provider should give, read with the real SDKs: endless lines, packed bodies, cut ones, pages."""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
import tracemalloc
from collections.abc import Iterator
from itertools import count

import pytest

from headrace.protocol.body import Body
from tests.fakes import FakeProvider, Script
from tests.fakes.completions import CompletionsFormat
from tests.fakes.messages import MessagesFormat
from tests.fakes.responses import ResponsesFormat
from tests.installation import eventually
from tests.workers.providers.conftest import MODELS
from tests.workers.providers.test_sdk_providers import ask, failure, text_of
from workers.providers import Event, ProviderError
from workers.providers.sdk import SdkProvider
from workers.providers.sse import EVENT_BYTES

MB = 1024 * 1024


def format_of(provider: SdkProvider, script: Script) -> MessagesFormat | CompletionsFormat | ResponsesFormat:
    """The provider's format as the fake writes it."""
    asked = {"model": MODELS[provider.name]}
    match provider._entry.format:
        case "anthropic":
            return MessagesFormat(script, asked)
        case "openai":
            return CompletionsFormat(script, asked)
    return ResponsesFormat(script, asked)


def packed(provider: SdkProvider, script: Script) -> bytes:
    """A whole stream, compressed."""
    form = format_of(provider, script)
    return gzip.compress(b"".join([*form.opening(), *map(form.token, script.pieces()), *form.closing()]))


def sent(content: bytes) -> Script:
    return Script(raw_body=("text/event-stream", content), headers={"content-encoding": "gzip"})


# -- one line without an end

#: One line in pieces of this many bytes, and how many of them there are.
PIECE, PIECES = 100_000, 500


class OneLine(Script):
    """One token, then a line of 50 MB: made piece by piece, and all of it in one line."""

    def pieces(self) -> Iterator[str]:
        yield "before "
        object.__setattr__(self, "newline", b" ")
        piece = "x" * PIECE
        for _ in range(PIECES):
            yield piece


async def test_a_line_without_an_end_ends_its_own_answer_at_a_bound_and_no_other(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    """The fake's own memory is part of the measure, and small: it writes no more than is read."""
    is_over = False

    class Lasting(Script):
        def pieces(self) -> Iterator[str]:
            for number in count():
                if is_over:
                    return
                yield f"{number} "

    await ask(provider, body)  # everything is imported and connected
    fake.queue.append(Lasting(gap_s=0.001))
    other = asyncio.create_task(ask(provider, body))
    await eventually(lambda: len(fake.records) == 2 and fake.last.tokens > 0, "the other answer")
    lasting, before = fake.last, fake.last.tokens
    fake.queue.append(OneLine())
    events: list[Event] = []
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(ProviderError) as caught:
            async for batch in provider.stream(MODELS[provider.name], body):
                events += batch
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        is_over = True
    broken = fake.last
    assert (caught.value.code, caught.value.fault) == ("provider_error", "malformed")
    assert "xxxx" not in caught.value.message
    assert text_of(events) == "before "
    await asyncio.wait_for(broken.gone.wait(), 5)
    assert broken.tokens * PIECE < EVENT_BYTES + 16 * MB, "it was read on"
    assert peak < EVENT_BYTES + 16 * MB
    assert lasting.tokens > before, "the other answer was to go on meanwhile"
    whole = text_of(await other)
    assert whole == "".join(f"{number} " for number in range(lasting.tokens))


# -- packed


async def test_an_answer_that_is_packed_against_our_wish_is_read_in_every_format(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    fake.queue.append(sent(packed(provider, Script(texts=["so ", "grüße ", "👋"]))))
    assert text_of(await ask(provider, body)) == "so grüße 👋"
    assert fake.last.headers["accept-encoding"] == "identity"


async def test_a_packed_answer_that_is_cut_off_is_a_failed_one(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    whole = packed(provider, Script(tokens=2000))
    fake.queue.append(sent(whole[: len(whole) // 2]))
    error = await failure(provider, body)
    assert (error.code, error.retry, error.fault) == ("provider_error", "backoff", "truncated")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_what_claims_to_be_packed_and_is_not_is_the_provider_s_failure(
    provider: SdkProvider, fake: FakeProvider, body: Body, encoding: str
) -> None:
    plain = ("text/event-stream", b"data: not packed\n\n")
    fake.queue.append(Script(raw_body=plain, headers={"content-encoding": encoding}))
    error = await failure(provider, body)
    assert (error.code, error.retry, error.fault) == ("provider_error", "backoff", "malformed")


async def test_a_line_without_an_end_that_is_packed_is_not_unpacked_whole(
    provider: SdkProvider, fake: FakeProvider, body: Body
) -> None:
    await ask(provider, body)
    fake.queue.append(sent(gzip.compress(b"data: " + b"x" * 50 * MB)))
    tracemalloc.start()
    try:
        error = await failure(provider, body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.fault == "malformed"
    assert peak < EVENT_BYTES + 16 * MB


# -- cut inside a character


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("ended", [False, True])
async def test_half_a_character_at_the_end_is_a_failed_answer_with_the_text_before_it(
    provider: SdkProvider, fake: FakeProvider, body: Body, kept: int, ended: bool
) -> None:
    """The stream ends inside the last event; or that event is whole but for its character."""
    form = format_of(provider, Script())
    stream = b"".join([*form.opening(), form.token("before ")])
    character = "👋".encode()
    head, tail = form.token("?").split(b"?")
    stream += head + character[:kept] + (tail if ended else b"")
    fake.queue.append(Script(raw_body=("text/event-stream", stream)))
    events: list[Event] = []
    with pytest.raises(ProviderError) as caught:
        async for batch in provider.stream(MODELS[provider.name], body):
            events += batch
    assert text_of(events) == "before "
    assert (caught.value.code, caught.value.retry) == ("provider_error", "backoff")
    assert caught.value.fault == ("malformed" if ended else "truncated")
    assert "before" not in caught.value.message and "\ufffd" not in caught.value.message


# -- pages

#: What nobody is to read in an error, in a page whose words are not to sort it either.
MARK = "page-that-must-not-be-quoted"
PAGE = f"<html><title>{MARK}</title><body>".encode() + f"<p>{MARK} prompt is too long</p>\n".encode() * 120_000


@pytest.mark.parametrize(
    ("status", "code", "retry"),
    [
        (400, "provider_error", "no"),
        (403, "provider_error", "no"),
        (404, "provider_error", "no"),
        (413, "context_length_exceeded", "no"),
        (429, "provider_rate_limited", "after"),
        (500, "provider_error", "backoff"),
        (502, "provider_error", "backoff"),
        (503, "provider_overloaded", "backoff"),
        (504, "provider_timeout", "backoff"),
    ],
)
async def test_a_gateways_page_of_megabytes_is_a_typed_error_that_quotes_none_of_it(
    provider: SdkProvider,
    fake: FakeProvider,
    body: Body,
    caplog: pytest.LogCaptureFixture,
    status: int,
    code: str,
    retry: str,
) -> None:
    assert len(PAGE) > 5_000_000
    caplog.set_level(logging.DEBUG)
    fake.queue.append(Script(status=status, raw_body=("text/html; charset=utf-8", PAGE)))
    error = await failure(provider, body)
    assert not fake.last.finished, "most of it is not even read"
    assert (error.code, error.retry) == (code, retry)
    assert str(status) in error.message and provider.name in error.message
    assert len(error.message) < 300
    for said in (error.message, str(error), repr(error), caplog.text):
        assert MARK not in said and "<p>" not in said
    assert error.__cause__ is None and error.__suppress_context__
    assert text_of(await ask(provider, body)) == "0000 0001 0002 ", "the next answer is not touched"
