"""What no well-behaved client sends, and what a slow or silent one costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headrace.protocol.entries import TEXT_BYTES, Reset, encode_data
from headrace.protocol.frames import Delta
from hub.attachment import Attachment
from hub.broker.broker import Broker
from hub.completions.viewer import WINDOW, Viewer
from tests.conftest import StartHub
from tests.hub.raw import Raw
from tests.installation import RunningHub, eventually, token
from tests.integration.handwork import HandWorker
from tests.wire import DEADLINE_S
from workers.worker import Worker

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello?"}]


def request(
    body: bytes, *headers: str, key: str | None = None, kind: str = "application/json", length: int | None = None
) -> bytes:
    lines = [
        f"POST {PATH} HTTP/1.1", "Host: hub", f"Authorization: Bearer {token() if key is None else key}",
        f"Content-Type: {kind}", f"Content-Length: {len(body) if length is None else length}", *headers,
    ]  # fmt: skip
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def asked(model: str, **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": HELLO, **fields}).encode()


async def answer(port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request that is sent as it is; the hub ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(DEADLINE_S):
            writer.write(data)
            await writer.drain()
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    status, *lines = head.decode().split("\r\n")
    return (
        int(status.split()[1]),
        {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)},
        body,
    )


def error_of(body: bytes) -> dict[str, Any]:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return dict(error)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (request(b"{"), 400, "invalid_request"),
        (request(b""), 400, "invalid_request"),
        (request(asked("fast"), key=""), 401, "invalid_api_key"),
        (request(asked("fast", pad="x" * 900_000), key="nonsense"), 401, "invalid_api_key"),
        (request(asked("fast"), kind="text/plain"), 415, "invalid_request"),
        (request(asked("fast", n=2)), 400, "unsupported"),
        (request(asked("fast"), f"Idempotency-Key: {'k' * 129}"), 400, "invalid_request"),
        (request(asked("fast", pad="x" * 300_000)), 413, "too_large"),
        (request(asked("fast", messages=[{"role": "user", "content": "x" * 140_000}])), 400, "prompt_too_long"),
    ],
    ids=["no JSON", "empty", "no key", "large, no key", "not said to be JSON", "n", "long key", "large", "long prompt"],
)  # fmt: skip
async def test_a_bad_request_is_answered_in_openais_format(
    hub: RunningHub, data: bytes, status: int, code: str
) -> None:
    got, headers, body = await answer(hub.port, data)
    assert (got, error_of(body)["code"]) == (status, code)
    assert headers["content-type"] == "application/json" and headers["x-should-retry"] == "false"
    assert headers["connection"] == "close"
    assert not hub.node.connections


async def test_a_body_may_come_in_pieces(hub: RunningHub, worker: Worker) -> None:
    body = asked("scripted/tokens=2,rate=0", metadata={"pad": "x" * 200_000})
    head = request(b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    pieces = [body[start : start + 50_000] for start in range(0, len(body), 50_000)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    status, _, answered = await answer(hub.port, head + chunks)
    assert (status, json.loads(answered)["choices"][0]["message"]["content"]) == (200, "0000 0001 ")


async def test_a_body_without_end_is_cut_off(start_hub: StartHub) -> None:
    hub = await start_hub(message_bytes=1024, header_timeout_s=0.5)
    status, _, body = await answer(hub.port, request(b"x" * 10_000, length=10**9))
    assert (status, error_of(body)["code"]) == (413, "too_large")
    raw = await Raw.connect(hub.port)
    await raw.send(request(b"x", length=1000))  # and nothing more
    await raw.rest()
    raw.close()
    await eventually(lambda: not hub.node.connections, "the end of what never came whole")


async def test_a_hub_has_no_more_responses_than_connections(start_hub: StartHub, worker: Worker) -> None:
    hub = await start_hub(connections=1)
    wire = await hub.join()
    status, headers, body = await answer(hub.port, request(asked("scripted/tokens=1,rate=0")))
    assert (status, error_of(body)["code"], headers["retry-after"]) == (503, "overloaded", "1")
    await wire.close()
    await eventually(lambda: not hub.node.connections)
    status, *_ = await answer(hub.port, request(asked("scripted/tokens=1,rate=0")))
    assert status == 200


async def test_a_response_is_no_guest_that_has_to_make_room(start_hub: StartHub, worker: Worker) -> None:
    hub = await start_hub(unauthenticated=1)
    reading = asyncio.create_task(answer(hub.port, request(asked("scripted/tokens=10,rate=20"))))
    await eventually(lambda: len(hub.node.connections) == 1)
    guests = [await Raw.connect(hub.port) for _ in range(3)]
    status, *_ = await reading
    assert status == 200
    for guest in guests:
        guest.close()


async def test_silence_is_filled_with_empty_deltas(
    hub: RunningHub, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.completions.face.KEEP_ALIVE_S", 0.1)
    model = "scripted/tokens=2,rate=0,think_ms=500"
    status, headers, body = await answer(hub.port, request(asked(model, stream=True), "Connection: close"))
    assert status == 200 and headers["cache-control"] == "no-cache, no-transform"
    lines = [line for line in body.decode().split("\r\n") if line.startswith("data: {")]
    deltas = [json.loads(line.split("\n\n")[0][6:])["choices"][0]["delta"] for line in lines]
    first = next(index for index, delta in enumerate(deltas) if delta)
    assert first >= 2 and deltas[first] == {"role": "assistant", "content": "0000 0001 "}
    for line in body.decode().split("\n"):
        assert not line.startswith((":", "id:", "event:", "retry:"))


@asynccontextmanager
async def unread(hub: RunningHub) -> AsyncIterator[Attachment]:
    """A client that asks for a long answer and reads nothing of it, as the hub sees it when it ran out of window."""
    raw = await Raw.connect(hub.port, receive_buffer=4096)
    try:
        await raw.send(request(asked("scripted/size=2000,tokens=2000,rate=0", stream=True)))
        await eventually(lambda: any(tail.attachments for tail in hub.node.relay.tails.values()), "attaching")
        [tail] = hub.node.relay.tails.values()
        [attachment] = tail.attachments
        await eventually(lambda: attachment.is_stalled, "running out of window")
        yield attachment
    finally:
        raw.close()


async def test_a_client_that_reads_nothing_holds_up_its_own_answer_and_costs_a_window(
    hub: RunningHub, worker: Worker
) -> None:
    async with unread(hub) as attachment:
        viewer: Any = attachment.endpoint
        assert isinstance(viewer, Viewer)
        assert attachment.sent - attachment.acked <= WINDOW
        assert sum(len(frame.text) for frame in viewer._frames if isinstance(frame, Delta)) <= WINDOW * TEXT_BYTES
        status, *_ = await answer(hub.port, request(asked("scripted/tokens=1,rate=0")))
        assert status == 200
    await eventually(lambda: not hub.node.connections, "leaving")


async def test_a_client_that_reads_nothing_is_not_waited_for_at_the_end(
    hub: RunningHub, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.completions.face.LAST_WORDS_S", 0.1)
    monkeypatch.setattr("hub.completions.viewer.CLOSING_S", 0.1)
    async with unread(hub):
        await hub.node.drain()
        await eventually(lambda: not hub.server.server_state.connections, "the end of the connection")


@pytest.mark.parametrize("streams", [True, False])
async def test_an_answer_that_begins_again_is_an_error_where_it_was_shown_and_whole_where_it_was_not(
    hub: RunningHub, broker: Broker, streams: bool
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    writer.write(request(asked("scripted/story", stream=streams)))
    await eventually(lambda: any(tail.attachments for tail in hub.node.relay.tails.values()), "attaching")
    [tail] = hub.node.relay.tails.values()
    hand = HandWorker(broker, tail.stream)
    await hand.claim()
    await hand.text("wrong")
    async with asyncio.timeout(DEADLINE_S):
        if streams:
            await reader.readuntil(b"wrong")
        await hand.write(("reset", encode_data(Reset("worker_lost"))))
        await hand.text("right")
        await hand.done()
        rest = await reader.read()
    writer.close()
    if streams:
        assert b"answer_restarted" in rest and b"[DONE]" not in rest and b"right" not in rest
    else:
        assert json.loads(rest.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"] == "right"


async def test_nothing_of_a_request_is_logged(
    start_hub: StartHub, worker: Worker, logs: pytest.LogCaptureFixture
) -> None:
    hub = await start_hub()
    secret = "the prompt that nobody may see"
    for model in ("scripted/tokens=1,rate=0", "scripted/fail_after=0", "nobody/x"):
        await answer(hub.port, request(asked(model, messages=[{"role": "user", "content": secret}])))
    await answer(hub.port, request(secret.encode()))
    assert secret not in logs.text and token()[:20] not in logs.text
