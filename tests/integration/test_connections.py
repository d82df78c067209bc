"""What a connection lives through: devices, tokens that end, silence, too many of them (protocol §2, §8)."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import warnings

import pytest
from websockets.exceptions import InvalidStatus

from headrace.protocol.frames import Attach, Cancel
from hub.broker.broker import Broker
from tests.conftest import StartHub
from tests.installation import RunningHub, eventually, question, token
from tests.integration.handwork import HandWorker
from tests.wire import MSGPACK


async def fetch(hub: RunningHub, path: str) -> tuple[int, str]:
    """Status and body of a plain HTTP request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(10):
        answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("subprotocol", [None, MSGPACK], ids=["json", "msgpack"])
async def test_a_welcome_tells_the_limits(hub: RunningHub, subprotocol: str | None) -> None:
    wire = await hub.connect(subprotocol=subprotocol)
    await wire.send({"type": "hello", "token": token(), "client": "test/1"})
    welcome = await wire.expect("welcome", user="alice", heartbeat_ms=20_000)
    assert welcome["connection"].startswith("c_")
    assert welcome["limits"] == {
        "message_bytes": 262_144, "prompt_bytes": 131_072, "window": 4096, "attachments": 64, "frames_per_second": 400,
    }  # fmt: skip


async def test_compression_is_not_negotiated(hub: RunningHub) -> None:
    wire = await hub.join()
    assert wire.socket.protocol.extensions == []


async def test_the_same_device_replaces_its_older_connection_and_nobody_else_s(hub: RunningHub) -> None:
    old = await hub.join("alice", device="phone")
    others = [
        await hub.join("alice", device="tablet"), await hub.join("bob", device="phone"), await hub.join("alice"),
        await hub.join("alice", org="acme", device="phone"),
    ]  # fmt: skip
    new = await hub.join("alice", device="phone")
    assert await old.close_code() == 4003
    for wire in [new, *others]:
        assert await wire.ping() == []
    newest = await hub.join("alice", device="phone")
    assert await new.close_code() == 4003
    assert await newest.ping() == []


async def test_a_connection_without_hello_is_closed_in_time(start_hub: StartHub) -> None:
    hub = await start_hub(hello_timeout_s=0.2)
    silent, greeted = await hub.connect(), await hub.join()
    assert await silent.close_code() == 4105
    assert await greeted.ping() == []


async def test_one_connection_too_many_is_sent_elsewhere(start_hub: StartHub) -> None:
    hub = await start_hub(connections=2)
    first = await hub.join()
    await hub.join()
    third = await hub.connect()
    assert await third.close_code() == 4101
    assert await first.ping() == []


async def test_a_flood_is_cut_off(start_hub: StartHub) -> None:
    hub = await start_hub(frames_per_second=50)
    wire, other = await hub.join(), await hub.join()
    for _ in range(5):
        await wire.batch(*[{"type": "ping"}] * 40)
    assert await wire.close_code() == 4103
    assert await other.ping() == []


async def test_a_peer_that_shows_no_sign_of_life_is_dropped_and_a_quiet_one_is_not(start_hub: StartHub) -> None:
    hub = await start_hub(heartbeat_s=1.1)
    dead, quiet = await hub.join(), await hub.join()
    dead.socket.transport.pause_reading()  # neither reads nor answers pings
    began = time.monotonic()
    while len(hub.node.connections) == 2:
        await asyncio.sleep(0.01)
        assert time.monotonic() - began < 10
    assert await quiet.ping() == []
    dead.socket.transport.resume_reading()
    assert await dead.close_code() in (4102, 1006)


# -- tokens --------------------------------------------------------------------------------------------------


async def test_a_refresh_is_answered_and_a_wrong_one_changes_nothing(hub: RunningHub) -> None:
    wire = await hub.join("alice", org="acme")
    for bad, code in (
        (token("bob", org="acme"), "forbidden"), (token("alice"), "forbidden"), ("forged", "unauthenticated"),
        (token("alice", org="acme", ttl_s=-60), "token_expired"),
    ):  # fmt: skip
        await wire.send({"type": "refresh", "id": 1, "token": bad})
        await wire.expect("error", id=1, code=code)
    await wire.send({"type": "refresh", "id": 2, "token": token("alice", org="acme")})
    await wire.expect("ok", id=2)
    assert await wire.ping() == []


async def test_a_refresh_checks_every_attachment_again(hub: RunningHub) -> None:
    alice = await hub.join("alice", org="acme")
    await alice.send(question("r1"))
    stream = (await alice.expect("accepted"))["stream"]
    reader = await hub.join("reader", org="acme", scope="streams:read")
    await reader.send(question("r2"))
    own = (await reader.expect("accepted"))["stream"]
    await reader.until("live")
    await reader.send({"type": "attach", "id": 1, "stream": stream})
    await reader.until("live")
    await reader.send({"type": "refresh", "id": 2, "token": token("reader", org="acme")})
    await reader.expect("error", code="not_found", stream=stream, id=None)
    await reader.expect("ok", id=2)
    await reader.send({"type": "ack", "stream": own, "offset": 9})
    await reader.expect("error", code="bad_ack", stream=own)  # its own is still attached
    assert sum(len(tail.attachments) for tail in hub.node.relay.tails.values()) == 2


async def test_an_expired_token_is_told_and_closes_after_the_grace(start_hub: StartHub) -> None:
    hub = await start_hub(token_grace_s=0.1)
    wire = await hub.connect()
    await wire.send({"type": "hello", "token": token(ttl_s=1.5)})
    await wire.expect("welcome")
    await wire.expect("error", code="token_expired", retry="reauth")
    assert await wire.close_code() == 4200


async def test_a_refresh_in_the_grace_saves_the_connection(start_hub: StartHub, broker: Broker) -> None:
    hub = await start_hub(token_grace_s=60)
    wire = await hub.connect()
    await wire.send({"type": "hello", "token": token(ttl_s=1.5)}, question("r1"))
    await wire.expect("welcome")
    accepted = await wire.expect("accepted")
    await wire.until("error", code="token_expired")
    worker = HandWorker(broker, accepted["stream"])
    await worker.claim()
    await wire.expect("entry", kind="started")  # the stream goes on meanwhile
    await wire.send({"type": "refresh", "id": 1, "token": token()})
    await wire.expect("ok", id=1)
    [endpoint] = hub.node.connections
    endpoint.check_clock(hub.node.now() + 120, time.time())
    assert await wire.ping() == []


# -- plain HTTP ----------------------------------------------------------------------------------------------


async def test_a_hub_tells_that_it_is_alive_ready_and_what_it_counted(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send(question("r1"))
    await wire.until("live")
    assert await fetch(hub, "/healthz") == (200, '{"status":"alive"}')
    status, body = await fetch(hub, "/readyz")
    assert (status, json.loads(body)) == (200, {"status": "ready"})
    status, body = await fetch(hub, "/metrics")
    counted = dict(line.rsplit(" ", 1) for line in body.splitlines() if line and not line.startswith("#"))
    assert status == 200
    assert float(counted["headrace_connections"]) == 1
    assert float(counted["headrace_watched_streams"]) == 1
    assert float(counted["headrace_deliveries_total"]) == 1
    assert float(counted["headrace_repairs_total"]) == 0
    assert (await fetch(hub, "/nothing"))[0] == 404


async def test_a_drained_hub_is_not_ready_and_takes_nobody(hub: RunningHub) -> None:
    wire = await hub.join()
    await hub.node.drain()
    await wire.expect("drain", after_ms=0)
    assert await wire.close_code() == 4000
    assert await fetch(hub, "/readyz") == (503, '{"status":"draining"}')
    with pytest.raises(InvalidStatus) as refused:  # a proxy takes it to another hub, and no client notices
        await hub.connect()
    assert refused.value.response.status_code == 503


async def test_a_connection_that_is_lost_with_verbs_just_begun_leaves_none_of_them_unawaited(hub: RunningHub) -> None:
    wire = await hub.join()
    [endpoint] = hub.node.connections
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        endpoint._obey(Attach(1, "g_5Zk2mQ9xWb3TnL8r"))
        endpoint._obey(Cancel(2, "g_5Zk2mQ9xWb3TnL8r"))
        endpoint.closed()
        await eventually(lambda: not endpoint._tasks)
        gc.collect()
    assert not [warning for warning in told if issubclass(warning.category, RuntimeWarning)]
    await wire.close()
