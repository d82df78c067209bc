"""`headrace dev`: it answers, it says what happens, and it leaves nothing running, however it ends."""

from __future__ import annotations

import os
import signal
import time
from urllib.parse import urlsplit

import pytest
from redis import Redis

import headrace
from headrace import Done
from hub.broker.embedded import EmbeddedRedis
from hub.cli.stack import is_ready
from tests.cli.command import development, environment, marked, needs_proc, running, until

SECRET = "0123456789abcdef" * 2
pytestmark = needs_proc


def is_hub(command: str) -> bool:
    return " -m hub " in command and "lifeline" not in command


async def answer(url: str, token: str | None = None) -> Done:
    async with headrace.connect(url, token) as client:
        return await client.generate("hello", model="scripted/tokens=5,rate=0").done()


async def test_it_answers_a_client_and_shows_the_answer_begin_and_end() -> None:
    with development("dev-answers") as (dev, url):
        assert "Valkey" in dev.output or "Redis" in dev.output
        assert "ANTHROPIC_API_KEY" in dev.output
        assert "chat --url " + url in dev.output
        assert await is_ready("127.0.0.1", urlsplit(url).port or 0)
        done = await answer(url)
        assert done.status == "completed"
        dev.wait_for("asked for scripted/tokens=5,rate=0")
        assert "5 tokens" in dev.wait_for("completed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_of_it_within_seconds(number: signal.Signals) -> None:
    mark = f"dev-{number.name}"
    with development(mark, "--workers", "2") as (dev, _):
        assert len(marked(mark)) >= 5  # itself, Redis, a hub, two workers
        began = time.monotonic()
        dev.signal_group(number)
        assert dev.finish(within_s=10) == 0
        assert time.monotonic() - began < 8
        assert marked(mark) == {}
        assert "Traceback" not in dev.output


def test_a_second_signal_changes_nothing_about_that() -> None:
    with development("dev-twice") as (dev, _):
        dev.signal_group(signal.SIGINT)
        dev.signal_group(signal.SIGINT)
        assert dev.finish(within_s=10) == 0
        assert marked("dev-twice") == {}
        assert "Traceback" not in dev.output


def test_its_children_end_even_when_it_is_killed() -> None:
    with development("dev-killed") as (dev, _):
        assert len(marked("dev-killed")) >= 4
        dev.process.kill()
        dev.finish()
        until(lambda: not marked("dev-killed"), "hub, worker and Redis end with it", within_s=10)


def test_a_signal_at_its_start_leaves_nothing_either() -> None:
    with running("dev", "--port", "0", environ=environment(TEST_MARK="dev-early")) as dev:
        dev.wait_for("starting on")
        dev.signal_group(signal.SIGINT)
        assert dev.finish(within_s=10) == 0
        assert marked("dev-early") == {}


def test_a_part_that_ends_is_named_and_ends_the_rest() -> None:
    with development("dev-part") as (dev, _):
        (hub,) = [pid for pid, command in marked("dev-part").items() if is_hub(command)]
        os.kill(hub, signal.SIGKILL)
        assert dev.finish(within_s=10) == 1
        assert "the hub ended (status -9)" in dev.output
        assert "Traceback" not in dev.output
        assert marked("dev-part") == {}


def test_a_wrong_setting_ends_it_with_what_the_hub_said() -> None:
    settings = environment(TEST_MARK="dev-wrong", HEADRACE_AUTH="none")
    with running("dev", "--port", "0", "--host", "0.0.0.0", environ=settings) as dev:
        assert dev.finish(within_s=20) == 1
        assert "loopback only" in dev.output
        assert "Traceback" not in dev.output
        assert marked("dev-wrong") == {}


async def test_with_a_secret_it_wants_tokens_and_says_how_to_get_one() -> None:
    with development("dev-secret", HEADRACE_JWT_SECRET=SECRET) as (dev, url):
        assert "token --user" in dev.output
        assert SECRET not in dev.output
        with pytest.raises(headrace.AuthenticationFailed):
            await answer(url)


async def test_it_uses_the_redis_that_it_is_given_and_does_not_show_its_password() -> None:
    with EmbeddedRedis(port=0) as redis, Redis.from_url(redis.url) as client:
        client.config_set("requirepass", "hunter2")
        given = redis.tcp_url.replace("redis://", "redis://:hunter2@")
        with development("dev-given", HEADRACE_REDIS_URL=given) as (dev, url):
            assert f"127.0.0.1:{redis.port}" in dev.output
            assert "hunter2" not in dev.output
            assert (await answer(url)).status == "completed"
            assert not [command for command in marked("dev-given").values() if "valkey-server" in command]
