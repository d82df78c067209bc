"""`headrace dead`: what was given up is listed, shown and asked again; a prompt only for who says so."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from typing import Any

import pytest

from headrace.protocol.body import Body, Options
from headrace.protocol.frames import Message
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.janitor import BARREN_ATTEMPTS
from hub.broker.keys import StreamKey
from hub.broker.letters import Letters
from hub.broker.log import Claim
from tests.broker.test_janitor import Scene
from tests.cli.command import environment, run
from tests.cli.test_commands import said_one_line

SECRET_PROMPT = "What does Mallory earn?"
MODEL = "scripted/tokens=3,rate=0"


class Graveyard:
    """A Redis with answers that its janitor gave up."""

    def __init__(self, broker: Broker, url: str) -> None:
        self.broker = broker
        self.redis: Any = broker.connections.control
        self.url = url
        self.letters = Letters(broker.connections.control)

    async def give_up(self, request: str, user: str = "alice") -> str:
        """A stream whose workers were lost once too often."""
        scene = Scene(self.broker)
        scene.key = await self.broker.accept(
            org="acme", user=user, request_key=request, body=Body([Message("user", SECRET_PROMPT)], model=MODEL),
            options=Options(), now_ms=int(time.time() * 1000),
        )  # fmt: skip
        for number in range(BARREN_ATTEMPTS):
            await scene.claim(f"m{number}")
            await scene.lose()
        await scene.sweep()
        assert (await scene.done())["error"]["code"] == "worker_lost"
        return keys.stream_of(scene.key)

    async def dead(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`headrace dead` with these arguments. It never shows the prompt unasked, and no traceback."""
        environ = environment(HEADRACE_REDIS_URL=self.url)
        done = await asyncio.to_thread(run, "dead", *arguments, environ=environ)
        assert (SECRET_PROMPT in done.stdout + done.stderr) == ("--with-prompt" in arguments)
        assert "Traceback" not in done.stderr
        return done

    async def new_streams(self, *old: str) -> list[StreamKey]:
        metas = [keys.key_of_meta(name.decode()) for name in await self.redis.keys(keys.ALL_METAS)]
        return [key for key in metas if keys.stream_of(key) not in old]


@pytest.fixture
async def graveyard(broker: Broker, redis_url: str) -> Graveyard:
    return Graveyard(broker, redis_url)


async def test_nothing_given_up_is_said(graveyard: Graveyard) -> None:
    for arguments in (["list"], ["retry", "--all"]):
        done = await graveyard.dead(*arguments)
        assert (done.returncode, done.stdout.count("\n")) == (0, 1)
        assert "no dead letters" in done.stdout
    assert json.loads((await graveyard.dead("list", "--json")).stdout) == []


async def test_the_list_has_a_line_for_each_newest_first(graveyard: Graveyard) -> None:
    first = await graveyard.give_up("r1")
    second = await graveyard.give_up("r2", user="bob")
    listed = (await graveyard.dead("list")).stdout.splitlines()
    assert "given up" in listed[0] and "attempts" in listed[0]
    for line, stream, user in ((listed[1], second, "bob"), (listed[2], first, "alice")):
        for word in (stream, "acme", user, MODEL, str(BARREN_ATTEMPTS), "worker_lost"):
            assert word in line
    assert "2 dead letters" in listed[3]
    [newest, _] = json.loads((await graveyard.dead("list", "--json")).stdout)
    assert (newest["stream"], newest["user"], newest["attempts"]) == (second, "bob", BARREN_ATTEMPTS)


async def test_one_is_shown_with_its_error_and_its_prompt_only_when_asked_for(graveyard: Graveyard) -> None:
    stream = await graveyard.give_up("r1")
    shown = (await graveyard.dead("show", stream)).stdout
    for word in (stream, "acme", "alice", MODEL, "worker_lost: this answer's workers were lost repeatedly"):
        assert word in shown
    facts = json.loads((await graveyard.dead("show", stream, "--json")).stdout)
    assert facts["prompt_bytes"] == len(SECRET_PROMPT)
    assert 3000 < facts["can_be_retried_for_s"] <= 3600
    assert (facts["state"], facts["workers_lost"], facts["entries"]) == ("done", BARREN_ATTEMPTS, 2)
    facts = json.loads((await graveyard.dead("show", stream, "--json", "--with-prompt")).stdout)
    assert facts["request"]["messages"] == [{"role": "user", "content": SECRET_PROMPT}]


async def test_a_retry_is_a_new_stream_of_the_same_user_with_the_same_request(graveyard: Graveyard) -> None:
    stream = await graveyard.give_up("r1")
    done = await graveyard.dead("retry", stream)
    assert done.returncode == 0, done.stderr
    [key] = await graveyard.new_streams(stream)
    assert done.stdout == f"{stream} → {keys.stream_of(key)}\n"
    claim = await graveyard.broker.log.claim(key, mark="m9", owner="w9", lease_ms=5000, ttl_ms=60_000)
    assert isinstance(claim, Claim)
    assert (claim.attempt, claim.user) == (1, "alice")
    assert SECRET_PROMPT.encode() in claim.request
    assert b"continue" in claim.options, "it is not abandoned for want of viewers"
    assert keys.org_of(key) == "acme"
    assert (await graveyard.broker.lanes.depths(["standard"]))["standard"] >= 1
    assert await graveyard.redis.zscore(keys.user_streams("acme", "alice"), keys.stream_of(key)) is not None
    assert await graveyard.letters.all() == [], "it is taken care of"


async def test_a_retry_that_was_broken_off_asks_once(graveyard: Graveyard) -> None:
    stream = await graveyard.give_up("r1")
    [letter] = await graveyard.letters.all()
    first = (await graveyard.dead("retry", stream, "--json")).stdout
    await graveyard.letters.bury(letter.key, letter.why, user="alice", model=MODEL, attempts=3)
    assert (await graveyard.dead("retry", stream, "--json")).stdout == first
    assert len(await graveyard.new_streams(stream)) == 1


async def test_all_are_asked_again_but_those_that_cannot_be(graveyard: Graveyard) -> None:
    kept, expired = await graveyard.give_up("r1"), await graveyard.give_up("r2")
    await graveyard.redis.delete(keys.meta(keys.stream_key("acme", expired)))
    done = await graveyard.dead("retry", "--all")
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{kept} → g_")
    assert second == f"{expired}: it expired with its request; its user has to ask again"
    [left] = await graveyard.letters.all()
    assert keys.stream_of(left.key) == expired
    shown = json.loads((await graveyard.dead("show", expired, "--json")).stdout)
    assert (shown["state"], shown["can_be_retried_for_s"], shown["error"]) == ("expired", 0, None)


async def test_what_cannot_be_done_is_one_line(graveyard: Graveyard) -> None:
    stream = await graveyard.give_up("r1")
    await graveyard.redis.hdel(keys.meta(keys.stream_key("acme", stream)), "request")
    for arguments, hint in (
        (["show", "g_aaaaaaaaaaaaaaaa"], "headrace dead list"),
        (["retry", "g_aaaaaaaaaaaaaaaa"], "headrace dead list"),
        (["retry", stream], "its user has to ask again"),
    ):
        done = await graveyard.dead(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert said_one_line(done.stderr) and hint in done.stderr


@pytest.mark.parametrize(
    ("arguments", "settings", "status", "hint"),
    [
        (["list"], {}, 1, "HEADRACE_REDIS_URL is not set"),
        (["list"], {"HEADRACE_REDIS_URL": "redis://u:pw@127.0.0.1:1"}, 1, "headrace doctor"),
        (["list"], {"HEADRACE_REDIS_URL": "ftp://u:pw@x"}, 1, "redis://"),
        (["list"], {"HEADRACE_REDIS_URL": "redis://x", "HEADRACE_LEASE_S": "soon"}, 1, "HEADRACE_LEASE_S"),
        (["show"], {}, 2, "STREAM"),
        (["retry"], {}, 2, "--all"),
        (["retry", "g_x", "--all"], {}, 2, "--all"),
        (["lsit"], {}, 2, "list"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    arguments: list[str], settings: dict[str, str], status: int, hint: str
) -> None:
    done = run("dead", *arguments, environ=environment(**settings))
    assert (done.returncode, done.stdout) == (status, "")
    assert said_one_line(done.stderr), done.stderr
    assert hint in done.stderr
    assert "pw" not in done.stderr


@pytest.mark.parametrize("command", [[], ["list"], ["show"], ["retry"]])
def test_the_help_of_each_has_examples(command: list[str]) -> None:
    shown = run("dead", *command, "--help")
    assert shown.returncode == 0
    assert " ".join(["headrace dead", *command]) in shown.stdout.partition("Examples")[2]
