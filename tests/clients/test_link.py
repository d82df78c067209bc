"""Connecting, losing connections and coming back: close codes, tokens, silence (docs/protocol.md §2, §8)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from http import HTTPStatus

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

import headrace
from headrace.endpoint import hub_url
from tests.clients.core_driver import accepted
from tests.clients.log_hub import LogHub
from tests.clients.model_hub import Log
from tests.clients.scripted_hub import Peer, Script, ScriptedHub


async def idle(peer: Peer) -> None:
    await peer.welcome()
    await peer.until_closed()


def closing(code: int, reason: str = "") -> Script:
    """A hub that welcomes, takes one request, and closes instead of answering."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.expect("generate")
        await peer.close(code, reason)

    return script


def serving(*pieces: str) -> Script:
    return LogHub(Log.of_text(*pieces)).script()


# The address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://127.0.0.1:8080", "ws://127.0.0.1:8080/v1/ws"),
        ("http://hub:1/", "ws://hub:1/v1/ws"),
        ("https://hub.example", "wss://hub.example/v1/ws"),
        ("wss://hub.example/inside/v1/ws", "wss://hub.example/inside/v1/ws"),
        ("ws://[::1]:80", "ws://[::1]:80/v1/ws"),
    ],
)
def test_an_address_is_completed(url: str, expected: str) -> None:
    assert hub_url(url) == expected


@pytest.mark.parametrize(
    "url", ["localhost:8080", "ftp://hub", "ws://", "ws://hub:0", "ws://hub:99999", "ws://u:p@hub", ""]
)
def test_a_bad_address_says_what_is_wrong_with_it(url: str) -> None:
    with pytest.raises(headrace.ConnectionFailed, match="address"):
        headrace.connect(url)


# The first connection


async def test_a_hub_that_is_not_there_says_what_to_check() -> None:
    async with ScriptedHub(idle) as hub:
        url = hub.url
    with pytest.raises(headrace.ConnectionFailed, match=r"within 0\.2 s.*Check that the hub is running"):
        async with headrace.connect(url, connect_timeout=0.2):
            pass


async def test_a_hub_that_starts_a_little_later_is_found() -> None:
    async with ScriptedHub(idle) as hub:
        port = int(hub.url.rsplit(":", 1)[1])
    refused = asyncio.Event()
    attempts = 0

    def token() -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            refused.set()
        return "t"

    async def welcome(socket: ServerConnection) -> None:
        await idle(Peer(socket, 0))

    client = headrace.connect(f"ws://127.0.0.1:{port}", token)
    entering = asyncio.create_task(client.__aenter__())
    await refused.wait()
    async with serve(welcome, "127.0.0.1", port, subprotocols=["headrace.v1.json"]):  # type: ignore[list-item]
        await entering
        assert client.state == "online"
        await client.aclose()


@pytest.mark.parametrize(("status", "said"), [(404, "HTTP 404"), (302, "HTTP 302"), (503, "HTTP 503")])
async def test_a_server_that_is_no_hub_is_named_and_redirects_are_not_followed(status: int, said: str) -> None:
    def answer(socket: ServerConnection, request: Request) -> Response:
        response = socket.respond(HTTPStatus(status), "no")
        response.headers["Location"] = "ws://127.0.0.1:1/elsewhere"
        return response

    async def unreached(socket: ServerConnection) -> None:
        raise AssertionError("no WebSocket is opened")

    async with serve(unreached, "127.0.0.1", 0, process_request=answer) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(headrace.ConnectionFailed, match=said):
            async with headrace.connect(f"http://127.0.0.1:{port}", connect_timeout=0.3):
                pass


async def test_a_server_that_speaks_no_msgpack_is_named() -> None:
    async def unreached(socket: ServerConnection) -> None:
        await socket.wait_closed()

    async with serve(unreached, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(headrace.ConnectionFailed, match="does not speak headrace.v1.msgpack"):
            async with headrace.connect(f"ws://127.0.0.1:{port}", encoding="msgpack", connect_timeout=0.3):
                pass


async def test_a_client_is_used_inside_its_async_with_and_once() -> None:
    async with ScriptedHub(idle) as hub:
        client = headrace.connect(hub.url)
        with pytest.raises(headrace.ConnectionFailed, match="async with"):
            client.generate("x")
        await client.aclose()
        async with client:
            pass
        with pytest.raises(headrace.ConnectionFailed, match="once"):
            async with client:
                pass


# Coming back


@pytest.mark.parametrize(
    "code", [1000, 1001, 1006, 1011, 1012, 3000, 4000, 4001, 4099, 4100, 4101, 4102, 4103, 4104, 4105, 4199, 4300, 4999]
)
async def test_a_lost_connection_comes_back_and_asks_again_with_the_same_key(code: int) -> None:
    async def lose(peer: Peer) -> None:
        await peer.welcome()
        await peer.expect("generate")
        if code == 1006:
            peer.cut()
        else:
            await peer.close(code)

    async with ScriptedHub(lose, serving("back")) as hub, headrace.connect(hub.url) as client:
        assert await client.generate("x").text() == "back"
        requests = [message[0]["request"] for peer in hub.peers for message in peer.messages if "request" in message[0]]
        assert len(requests) == 2 and requests[0] == requests[1]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (4003, headrace.ConnectionReplaced),
        (4400, headrace.ProtocolViolation),
        (4401, headrace.AuthenticationFailed),
        (4403, headrace.AuthenticationFailed),
        (4499, headrace.ProtocolViolation),
    ],
)
async def test_some_closes_are_final(code: int, expected: type[headrace.HeadraceError]) -> None:
    async with ScriptedHub(closing(code, "so it is")) as hub, headrace.connect(hub.url) as client:
        with pytest.raises(expected, match=f"{code}: so it is"):
            await client.generate("x").text()
        assert (client.state, len(hub.peers)) == ("closed", 1)
        with pytest.raises(expected):
            client.generate("y")


async def test_a_final_close_of_the_first_connection_raises_at_once() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.expect("hello")
        await peer.close(4401, "forged")

    async with ScriptedHub(refuse) as hub:
        with pytest.raises(headrace.AuthenticationFailed, match="forged"):
            async with headrace.connect(hub.url, "wrong", connect_timeout=30):
                pass


async def test_what_a_draining_hub_asks_for_is_waited_for() -> None:
    left_at = 0.0

    async def drain(peer: Peer) -> None:
        nonlocal left_at
        await peer.welcome()
        await peer.expect("generate")
        await peer.send({"type": "drain", "after_ms": 300})
        left_at = time.monotonic()
        await peer.close(4000)

    async with ScriptedHub(drain, serving("back")) as hub, headrace.connect(hub.url) as client:
        assert await client.generate("x").text() == "back"
        assert time.monotonic() - left_at >= 0.29


async def test_of_two_hubs_the_other_one_is_tried_at_once() -> None:
    log = Log.of_text("a", "b", "c")
    async with ScriptedHub(LogHub(log).script(cut_after=3)) as first, ScriptedHub(LogHub(log).script()) as second:
        async with headrace.connect([first.url, second.url]) as client:
            generation = client.generate("x")
            assert await generation.text() == "abc"
        assert (len(first.peers), len(second.peers), generation.reconnects) == (1, 1, 1)


async def test_a_hub_that_is_gone_is_passed_over_for_the_other_one() -> None:
    async with ScriptedHub(idle) as gone:
        address = gone.url
    async with ScriptedHub(closing(4000), serving("back")) as hub:
        async with headrace.connect([address, hub.url]) as client:
            assert await client.generate("x").text() == "back"
        assert len(hub.peers) == 2


async def test_all_hubs_are_named_when_none_is_there() -> None:
    async with ScriptedHub(idle) as gone:
        url = gone.url
    with pytest.raises(headrace.ConnectionFailed, match=r"ws://.* or ws://localhost:1/v1/ws"):
        async with headrace.connect([url, "ws://localhost:1"], connect_timeout=0.2):
            pass
    with pytest.raises(headrace.ConnectionFailed, match="at least one hub"):
        headrace.connect([])


@pytest.mark.parametrize("wrong", [{"offset": -1}, {"offset": 2**53}, {"mark": "m" * 65}, {"window": -1}])
async def test_an_answer_that_no_hub_gives_is_survived(wrong: dict[str, object]) -> None:
    async def mislead(peer: Peer) -> None:
        await peer.welcome()
        asked = await peer.expect("generate")
        await peer.send(accepted(asked["id"]) | wrong)
        await peer.until_closed()

    async with ScriptedHub(mislead, serving("sense")) as hub, headrace.connect(hub.url) as client:
        assert await client.generate("x").text() == "sense"


async def test_the_state_is_told_at_every_change_and_a_bad_listener_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with ScriptedHub(closing(4000), serving("back")) as hub:
        client = headrace.connect(hub.url)
        assert client.state == "connecting"
        states: list[str] = []
        client.on_state(states.append)

        def stumble(state: headrace.State) -> None:
            raise RuntimeError("stumbled")

        stop = client.on_state(stumble)
        async with client:
            stop()
            await client.generate("x").text()
        assert states == ["online", "reconnecting", "online", "closed"]
        assert "stumbled" in caplog.text


async def test_messages_that_make_no_sense_are_survived_a_few_times_and_then_reported() -> None:
    async def babble(peer: Peer) -> None:
        await peer.welcome()
        await peer.expect("generate")
        await peer.socket.send("[[]]")
        await peer.until_closed()

    async with ScriptedHub(babble, babble, serving("sense")) as hub, headrace.connect(hub.url) as client:
        assert await client.generate("x").text() == "sense"
    async with ScriptedHub(babble) as hub, headrace.connect(hub.url) as client:
        with pytest.raises(headrace.ProtocolViolation, match="no sense"):
            await client.generate("x").text()
        assert len(hub.peers) == 3


# Silence

#: With this heartbeat a client takes 0.15 s of silence for death: heartbeat + 10 s.
SHORT_HEARTBEAT_MS = -9850


async def test_a_silent_hub_is_left() -> None:
    async def freeze(peer: Peer) -> None:
        await peer.welcome(heartbeat_ms=SHORT_HEARTBEAT_MS)
        await peer.until_closed()

    async with ScriptedHub(freeze, serving("alive")) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        assert await generation.text() == "alive"
        assert len(hub.peers) == 2


async def test_pings_alone_are_a_sign_of_life() -> None:
    log = Log.of_text("alive")

    async def ping(peer: Peer) -> None:
        await peer.welcome(heartbeat_ms=SHORT_HEARTBEAT_MS)
        asked = await peer.expect("generate")
        for _ in range(8):
            await asyncio.wait_for(await peer.socket.ping(), 1)
            await asyncio.sleep(0.05)  # the time that passes is what is tested
        await peer.send(accepted(asked["id"]), *(log.frame(offset, offset) for offset in (1, 2, 3)))
        await peer.until_closed()

    async with ScriptedHub(ping) as hub, headrace.connect(hub.url) as client:
        assert await client.generate("x").text() == "alive"
        assert len(hub.peers) == 1


# Tokens


class Tokens:
    """Fresh tokens, numbered."""

    def __init__(self) -> None:
        self._numbers: Iterator[int] = iter(range(1, 100))

    def __call__(self) -> str:
        return f"token-{next(self._numbers)}"


async def test_an_expired_token_is_replaced_by_a_fresh_one() -> None:
    async def expire(peer: Peer) -> None:
        await peer.welcome()
        await peer.expect("generate")
        await peer.close(4200)

    tokens = Tokens()

    async def fresh() -> str:
        return tokens()

    async with ScriptedHub(expire, serving("back")) as hub, headrace.connect(hub.url, fresh) as client:
        assert await client.generate("x").text() == "back"
        assert [peer.messages[0][0]["token"] for peer in hub.peers] == ["token-1", "token-2"]


async def test_an_expired_token_without_a_fresh_one_is_final() -> None:
    async with ScriptedHub(closing(4200)) as hub, headrace.connect(hub.url, "old") as client:
        with pytest.raises(headrace.AuthenticationFailed, match="not valid any more"):
            await client.generate("x").text()


async def test_fresh_tokens_that_are_refused_again_and_again_are_not_tried_for_ever() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.expect("hello")
        await peer.close(4201, "revoked")

    async with ScriptedHub(refuse) as hub:
        with pytest.raises(headrace.AuthenticationFailed, match="revoked"):
            async with headrace.connect(hub.url, Tokens(), connect_timeout=30):
                pass
        assert len(hub.peers) == 3


async def test_a_token_is_renewed_in_band_within_the_grace() -> None:
    log = Log.of_text("same connection")

    async def remind(peer: Peer) -> None:
        await peer.welcome()
        asked = await peer.expect("generate")
        await peer.send({"type": "error", "code": "token_expired", "message": "30 s left", "retry": "reauth"})
        refresh = await peer.expect("refresh")
        assert refresh["token"] == "token-2"
        await peer.send({"type": "ok", "id": refresh["id"]}, accepted(asked["id"]))
        await peer.send(*(log.frame(offset, offset) for offset in (1, 2, 3)))
        await peer.until_closed()

    async with ScriptedHub(remind) as hub, headrace.connect(hub.url, Tokens()) as client:
        assert await client.generate("x").text() == "same connection"
        assert len(hub.peers) == 1


async def test_a_request_refused_for_its_token_is_asked_again_with_a_fresh_one() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.welcome()
        id = (await peer.expect("generate"))["id"]
        await peer.send({"type": "error", "id": id, "code": "token_expired", "message": "late", "retry": "reauth"})
        await peer.until_closed()

    async with ScriptedHub(refuse, serving("back")) as hub, headrace.connect(hub.url, Tokens()) as client:
        assert await client.generate("x").text() == "back"
        assert hub.peers[1].messages[0][0]["token"] == "token-2"


async def test_a_token_function_that_fails_once_is_called_again() -> None:
    calls = 0

    def token() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("the token service is away")
        return "fresh"

    async with ScriptedHub(serving("ok")) as hub, headrace.connect(hub.url, token) as client:
        assert await client.generate("x").text() == "ok"


# Ownership


async def test_nothing_runs_on_after_the_client_is_closed() -> None:
    async with ScriptedHub(serving("x")) as hub:
        before = asyncio.all_tasks()
        async with headrace.connect(hub.url) as client:
            ours = {task for task in asyncio.all_tasks() - before if "Link._guard" in repr(task)}
            await client.generate("x").text()
        assert len(ours) == 2
        assert all(task.done() for task in ours)
