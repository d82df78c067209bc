"""Streams of others do not exist: every verb, for every stranger, gets the same bytes for a stream that is somebody
else's, that expired, and that never was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
import redis

from hub.broker.embedded import EmbeddedRedis
from tests.installation import RunningHub, question, running_hub, running_worker
from tests.wire import JSON, MSGPACK, Map, Wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANARY = "canary-of-alice"
ABSENT = "g_aaaaaaaaaaaaaaaa"


@dataclass
class Streams:
    """Alice's, of the organisation acme: one under way, one done, one expired; and one that never was."""

    hub: RunningHub
    marks: dict[str, str] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def streams(redis_server: EmbeddedRedis) -> AsyncIterator[Streams]:
    url = redis_server.url + "?db=5"
    async with running_hub(url, frames_per_second=10_000) as hub, running_worker(url):
        made = Streams(hub)
        alice = await hub.join("alice", org="acme")
        for name, model in (
            ("running", "scripted/tokens=100000,rate=1"), ("done", "scripted/echo=1,rate=0"),
            ("expired", "scripted/echo=1,rate=0"),
        ):  # fmt: skip
            options: Map = {"on_abandon": "continue"} if name == "running" else {}
            await alice.send(question(f"request {name}", model=model, content=CANARY, window=None, **options))
            accepted = await alice.expect("accepted")
            made.named[name], made.marks[name] = accepted["stream"], accepted["mark"]
            await (alice.until("live") if name == "running" else alice.until("entry", kind="done"))
        with redis.Redis.from_url(url) as client:
            gone = list(client.scan_iter(match=f"*{made.named['expired']}*"))
            assert client.delete(*gone) > 0
        made.named["absent"], made.marks["absent"] = ABSENT, "none"
        yield made


#: Who asks: user, organisation, scope.
STRANGERS: dict[str, tuple[str, str | None, str]] = {
    "of another organisation": ("mallory", "evil", ""),
    "of none": ("mallory", None, ""),
    "of the same name elsewhere": ("alice", "evil", ""),
    "of the same name and no organisation": ("alice", None, ""),
    "with every scope, elsewhere": ("mallory", "evil", "streams:read streams:cancel"),
    "a colleague without a scope": ("bob", "acme", ""),
    "a colleague with scopes that mean nothing": ("bob", "acme", "streams streams:* streams:readx admin"),
    "one whose organisation looks like theirs": ("mallory", "acme:g_", ""),
}

#: Every verb that names a stream, with every option that takes another way through the hub.
VERBS: dict[str, Map] = {
    "attach": {"type": "attach"},
    "attach, from a cursor": {"type": "attach", "after": {"offset": 1, "mark": "MARK"}},
    "attach, from a cursor above the top": {"type": "attach", "after": {"offset": 2**53 - 1, "mark": "MARK"}},
    "attach, from now": {"type": "attach", "after": "now"},
    "attach, paused": {"type": "attach", "window": 0},
    "attach, without acks": {"type": "attach", "window": None},
    "attach, paced": {"type": "attach", "pace_ms": 5000},
    "cancel": {"type": "cancel"},
    "detach": {"type": "detach"},
    "detach, to go on": {"type": "detach", "on_abandon": "continue"},
    "detach, to be cancelled": {"type": "detach", "on_abandon": "cancel"},
    "ack": {"type": "ack", "offset": 1},
    "ack, far ahead": {"type": "ack", "offset": 2**53 - 1, "window": 5},
    "retry": question("retry", id=1, retry_of={"stream": "STREAM", "retry_token": "t"}),
    "session": question("session", id=1, session="STREAM"),
}


async def answers(wire: Wire, verb: Map, stream: str, mark: str) -> bytes:
    """All bytes that come of it, the stream's name taken out."""
    frame: Any = _filled(verb, stream, mark)
    if frame["type"] != "generate":
        frame["stream"] = stream
        if frame["type"] != "ack":
            frame["id"] = 1
    await wire.send(frame, {"type": "ping", "id": "end"})
    said = b""
    is_over = False
    while not is_over:
        message = await wire.socket.recv()
        raw = message.encode() if isinstance(message, str) else message
        is_over = b"end" in raw and b"pong" in raw
        said += b"" if is_over else raw
    if (
        frame["type"] in ("attach", "cancel", "generate") or "on_abandon" in frame
    ):  # these are answered when they are ready
        while not said:
            message = await wire.socket.recv()
            said += message.encode() if isinstance(message, str) else message
    return said.replace(stream.encode(), b"STREAM")


def _filled(value: Any, stream: str, mark: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, stream, mark) for key, item in value.items()}
    return {"STREAM": stream, "MARK": mark}.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK], ids=["json", "msgpack"])
@pytest.mark.parametrize("stranger", STRANGERS)
async def test_a_stranger_gets_the_same_bytes_for_every_stream(
    streams: Streams, stranger: str, subprotocol: str
) -> None:
    user, org, scope = STRANGERS[stranger]
    wire = await streams.hub.join(user, org=org, scope=scope, subprotocol=subprotocol)
    for name, verb in VERBS.items():
        said = {
            which: await answers(wire, verb, stream, streams.marks[which]) for which, stream in streams.named.items()
        }
        assert len(set(said.values())) == 1, (name, said)
        assert CANARY.encode() not in said["done"]
        if verb["type"] in ("attach", "cancel") or "on_abandon" in verb:
            assert b"not_found" in said["absent"], (name, said)
    await wire.send({"type": "list", "id": 1})
    assert (await wire.expect("streams", id=1))["streams"] == []


async def test_the_owner_of_an_expired_stream_gets_what_anybody_gets_for_an_absent_one(streams: Streams) -> None:
    wire = await streams.hub.join("alice", org="acme")
    for name, verb in VERBS.items():
        said = [await answers(wire, verb, streams.named[which], "m") for which in ("expired", "absent")]
        assert said[0] == said[1], name


async def test_a_scope_opens_what_it_says_and_no_more(streams: Streams) -> None:
    running, done = streams.named["running"], streams.named["done"]
    reader = await streams.hub.join("reader", org="acme", scope="streams:read")
    for verb in ("cancel", "detach, to go on", "detach, to be cancelled"):
        said = {stream: await answers(reader, VERBS[verb], stream, "m") for stream in (running, done, ABSENT)}
        assert len(set(said.values())) == 1 and b"not_found" in said[ABSENT]
    await reader.send({"type": "attach", "id": 1, "stream": done, "window": None})
    await reader.expect("attached", id=1)
    await reader.until("entry", kind="done")
    canceller = await streams.hub.join("canceller", org="acme", scope="streams:cancel")
    said = {stream: await answers(canceller, VERBS["attach"], stream, "m") for stream in (running, done, ABSENT)}
    assert len(set(said.values())) == 1 and b"not_found" in said[ABSENT]


async def test_a_request_key_is_its_user_s_own(streams: Streams) -> None:
    """The same key from somebody else is another request: no stream, no conflict, no `gone` betrays the first."""
    for user, org in (("bob", "acme"), ("alice", "evil"), ("mallory", None)):
        wire = await streams.hub.join(user, org=org)
        for name in ("running", "done", "expired"):
            await wire.send(question(f"request {name}", model="scripted/tokens=1,rate=0", content="another"))
            accepted = await wire.expect("accepted")
            assert accepted["stream"] not in streams.named.values()
            await wire.until("entry", kind="done")
