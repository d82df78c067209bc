"""The fake itself: as strict as what it stands for, and usable as a process."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aiohttp
import pytest

from tests.fakes import FakeProvider, completions, messages

KEYED = {"authorization": "Bearer k", "anthropic-version": "2026-10-21"}
ASK = {"model": "fake-tokens=2-rate=0", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
BEGUN = {"role": "assistant", "content": "x"}


async def post(url: str, body: Any, headers: dict[str, str] = KEYED) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as response:
        return response.status, await response.text()


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({}, 400, "max_tokens: Field required"),
        ({"max_tokens": 0}, 400, "max_tokens: must be greater"),
        ({"max_tokens": 1, "n": 2}, 400, "n: Extra inputs are not permitted"),
        ({"max_tokens": 1, "messages": []}, 400, "at least one message"),
        ({"max_tokens": 1, "messages": [{"role": "system", "content": "x"}]}, 400, "Unexpected role"),
        ({"max_tokens": 1, "messages": [{"role": "user", "content": ""}]}, 400, "non-empty content"),
        ({"max_tokens": 1, "messages": [BEGUN]}, 400, "prefill"),
        ({"max_tokens": 1, "model": "claude-opus-4-5", "messages": [BEGUN | {"content": "x "}]}, 400, "whitespace"),
        ({"max_tokens": 1, "model": "claude-opus-4-5", "messages": [BEGUN]}, 200, "message_stop"),
        ({"max_tokens": 1, "model": "gpt-6"}, 404, "model: gpt-6"),
        ({"max_tokens": 1, "model": "claude-opus-5-5", "temperature": 1}, 400, "temperature"),
        ({"max_tokens": 1}, 200, "message_stop"),
    ],
)
async def test_messages_are_checked(fake: FakeProvider, change: dict[str, Any], status: int, told: str) -> None:
    answer = await post(fake.base_url_anthropic + "/v1/messages", {**ASK, **change})
    assert answer[0] == status
    assert told in answer[1]


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"seeds": 2}, 400, "Unrecognized request argument supplied: seeds"),
        ({"model": ""}, 400, "must provide a model"),
        ({"model": "claude"}, 404, "model_not_found"),
        ({"model": "gpt-6-sol", "max_tokens": 5}, 400, "unsupported_parameter"),
        ({"messages": []}, 400, "empty_array"),
        ({"messages": [{"role": "bot", "content": "x"}]}, 400, "invalid_value"),
        ({"stream_options": {"verbose": True}}, 400, "unknown_parameter"),
        ({"temperature": 3}, 400, "temperature"),
        ({}, 200, "[DONE]"),
    ],
)
async def test_completions_are_checked(fake: FakeProvider, change: dict[str, Any], status: int, told: str) -> None:
    answer = await post(fake.base_url_openai + "/chat/completions", {**ASK, **change})
    assert answer[0] == status
    assert told in answer[1]


@pytest.mark.parametrize(("headers", "told"), [({}, "401"), ({"authorization": "Bearer invalid"}, "401")])
async def test_both_want_a_key(fake: FakeProvider, headers: dict[str, str], told: str) -> None:
    for url in (fake.base_url_anthropic + "/v1/messages", fake.base_url_openai + "/chat/completions"):
        assert (await post(url, ASK, headers))[0] == int(told)


async def test_anthropic_wants_its_version_header(fake: FakeProvider) -> None:
    status, text = await post(fake.base_url_anthropic + "/v1/messages", ASK, {"x-api-key": "k"})
    assert (status, "anthropic-version" in text) == (400, True)


async def test_another_path_is_not_found(fake: FakeProvider) -> None:
    assert (await post(fake.base_url_anthropic + "/v1/other", ASK))[0] == 404


def test_the_fake_knows_every_field_that_the_sdks_can_send() -> None:
    from anthropic.types.message_create_params import MessageCreateParamsStreaming
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

    sampling = {"temperature", "top_p", "top_k"}  # the API takes them for older models, the SDK no longer does
    in_headers = {"user_profile_id", "workspace_id"}
    assert _all_fields(MessageCreateParamsStreaming) - in_headers == messages.FIELDS - sampling
    assert _all_fields(CompletionCreateParamsStreaming) == completions.FIELDS


def _all_fields(params: Any) -> set[str]:
    return set(params.__required_keys__ | params.__optional_keys__)


async def test_it_runs_as_a_process_and_answers_by_model_name() -> None:
    command = [sys.executable, "-m", "tests.fakes", "--port", "0"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        ready = json.loads(await process.stdout.readline())
        assert ready["port"] > 0
        model = {"model": "fake-tokens=3-rate=0-stamp=1"}
        status, text = await post(ready["openai"] + "/chat/completions", {**ASK, **model})
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        pieces = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
        stamps = [int(piece) for piece in pieces if piece]
        assert (status, len(stamps), stamps) == (200, 3, sorted(stamps))
    finally:
        process.terminate()
        assert await process.wait() == 0
