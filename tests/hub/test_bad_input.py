"""What a client must not say, through a real socket: each gets its error or close code, and the hub goes on.

`tests/vectors/invalid.json` holds the frames; here are they, and what only a socket can do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jwt
import msgpack
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from hub.broker.embedded import EmbeddedRedis
from tests.installation import SECRET, RunningHub, question, running_hub, token
from tests.protocol.test_vectors import vectors
from tests.wire import JSON, MSGPACK, Closed, Wire

pytestmark = pytest.mark.asyncio(loop_scope="module")
BOTH = pytest.mark.parametrize("subprotocol", [JSON, MSGPACK], ids=["json", "msgpack"])

PROMPT = "the prompt that no log line may hold"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(redis_server: EmbeddedRedis) -> AsyncIterator[RunningHub]:
    """One hub for all of this: that it survives every one of them is what is tested."""
    async with running_hub(redis_server.url + "?db=1", frames_per_second=50_000) as hub:
        yield hub


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def hub_goes_on(hub: RunningHub, logs: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """After each test another connection still works, and the log holds no traceback, prompt or token."""
    yield
    other = await hub.join("bystander")
    await other.send({"type": "ping", "id": 1}, {"type": "list", "id": 2})
    await other.expect("pong", id=1)
    await other.expect("streams", id=2)
    await hub.hang_up()
    for record in logs.records:
        line = record.getMessage()
        assert record.exc_info is None and "Traceback" not in line, line
        assert record.levelno < logging.ERROR, line
        assert "forged" not in line and "\x1b" not in line, line
        assert PROMPT not in line and "eyJ" not in line and SECRET not in line, line


@pytest.fixture
def wire_of(hub: RunningHub) -> Iterator[Any]:
    async def join(subprotocol: str, **options: Any) -> Wire:
        return await hub.join(subprotocol=subprotocol, **options)

    yield join


async def refused(wire: Wire, code: str, **fields: Any) -> None:
    """The next frame is this error, and the connection stays."""
    error = await wire.expect("error", code=code, **fields)
    assert len(json.dumps(error)) < 1000
    await wire.send({"type": "ping", "id": "still here"})
    await wire.expect("pong", id="still here")


# -- every frame of the vectors ------------------------------------------------------------------------------


INVALID = [
    pytest.param(subprotocol, case, id=f"{case['name']}-{name}")
    for case in vectors("invalid.json")
    for name, subprotocol in (("json", JSON), ("msgpack", MSGPACK))
    if case[name] is not None
]


@pytest.mark.parametrize(("subprotocol", "case"), INVALID)
async def test_a_wrong_message_gets_its_error_or_its_close(
    hub: RunningHub, subprotocol: str, case: dict[str, Any]
) -> None:
    message = case["json"] if subprotocol == JSON else bytes.fromhex(case["msgpack"])
    first = case.get("first", False)
    wire = await (hub.connect(subprotocol=subprotocol) if first else hub.join(subprotocol=subprotocol))
    await wire.send_raw(message)
    if "close" in case:
        assert await wire.close_code() == case["close"]
    else:
        await refused(wire, case["error"], id=case.get("id"), stream=case.get("stream"))


# -- encodings -----------------------------------------------------------------------------------------------


async def test_a_binary_message_on_a_json_connection_closes(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send_raw(json.dumps({"type": "ping"}).encode())
    assert await wire.close_code() == 4400


async def test_a_text_message_on_a_msgpack_connection_closes(hub: RunningHub) -> None:
    wire = await hub.join(subprotocol=MSGPACK)
    await wire.send_raw(json.dumps({"type": "ping"}))
    assert await wire.close_code() == 4400


async def test_no_subprotocol_means_json(hub: RunningHub) -> None:
    wire = await hub.join(subprotocol=None)
    assert wire.socket.subprotocol is None
    await wire.send({"type": "ping"})
    assert await wire.next() == {"type": "pong"}


async def test_only_unknown_subprotocols_are_http_400(hub: RunningHub) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await Wire.open(hub.url, subprotocol="headrace.v9.json")
    assert refusal.value.response.status_code == 400


async def test_a_foreign_origin_is_http_403_and_the_own_is_not(hub: RunningHub) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await Wire.open(hub.url, headers={"Origin": "https://evil.example"})
    assert refusal.value.response.status_code == 403
    own = await hub.connect(headers={"Origin": f"http://127.0.0.1:{hub.port}"})
    await own.send({"type": "hello", "token": token()})
    await own.expect("welcome")


async def test_text_that_is_not_utf8_is_cut_off(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.socket.send(b'{"type":"ping","id":"\xff"}', text=True)
    assert await wire.close_code() == 1007


async def test_a_hundred_thousand_levels_close(hub: RunningHub) -> None:
    for subprotocol, message in (
        (JSON, "[" * 100_000),
        (JSON, '{"type":"ping","x":' + "[" * 100_000 + "]" * 100_000 + "}"),
        (JSON, '{"a":' * 40_000),
        (MSGPACK, b"\x91" * 100_000),
        (MSGPACK, b"\x81\xa1a" * 80_000),
        (MSGPACK, b"\x82\xa4type\xa4ping\xa1x" + b"\x91" * 100_000 + b"\xc0"),
    ):
        wire = await hub.join(subprotocol=subprotocol)
        await wire.send_raw(message)
        assert await wire.close_code() == 4400


@BOTH
async def test_an_unknown_field_is_ignored_whatever_it_holds(hub: RunningHub, subprotocol: str) -> None:
    wire = await hub.join(subprotocol=subprotocol)
    extra = msgpack.ExtType(5, b"x") if subprotocol == MSGPACK else {"deep": [1, [2]]}
    await wire.send({"type": "ping", "id": 1, "colour": extra})
    await wire.expect("pong", id=1)


# -- sizes ---------------------------------------------------------------------------------------------------


@BOTH
async def test_a_batch_of_5000_is_refused_as_a_whole(hub: RunningHub, subprotocol: str) -> None:
    wire = await hub.join(subprotocol=subprotocol)
    await wire.batch(*[{"type": "ping", "id": n} for n in range(5000)])
    await refused(wire, "too_large")


@BOTH
async def test_a_message_of_message_bytes_is_read_and_one_byte_more_is_not(hub: RunningHub, subprotocol: str) -> None:
    wire = await hub.join(subprotocol=subprotocol)
    limit = hub.node.settings.message_bytes
    padding = "x" * limit
    while (message := wire.encode({"type": "ping", "id": 1, "x": padding})) and len(message) > limit:
        padding = padding[: limit - len(message)]
    assert len(message) == limit
    await wire.send_raw(message)
    await wire.expect("pong", id=1)
    await wire.send_raw(wire.encode({"type": "ping", "id": 1, "x": padding + "x"}))
    await refused(wire, "too_large")


async def test_a_message_above_four_times_that_is_cut_off(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send_raw("x" * (4 * hub.node.settings.message_bytes + 1))
    assert await wire.close_code() == 1009


async def test_a_message_in_too_many_fragments_is_flooding(hub: RunningHub) -> None:
    wire = await hub.join()

    async def drip() -> AsyncIterator[str]:
        for _ in range(200):
            yield "x"

    with pytest.raises(Exception, match="4103"):
        await wire.socket.send(drip())
        await wire.next()
    assert await wire.close_code() == 4103


async def test_a_message_in_a_few_fragments_is_one_message(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.socket.send(['{"type":', '"ping",', '"id":1}'])
    await wire.expect("pong", id=1)


@BOTH
async def test_a_request_key_of_60_kb_is_refused(hub: RunningHub, subprotocol: str) -> None:
    wire = await hub.join(subprotocol=subprotocol)
    await wire.send(question("r" * 60_000, id=1))
    await refused(wire, "invalid_request", id=1)


@BOTH
async def test_a_prompt_above_its_limit_is_too_long(hub: RunningHub, subprotocol: str) -> None:
    wire = await hub.join(subprotocol=subprotocol)
    limit = hub.node.settings.prompt_bytes
    await wire.send(question("r", content="é" * (limit // 2) + "x"))
    await refused(wire, "prompt_too_long", id="r")


@BOTH
async def test_what_an_error_quotes_is_cut(hub: RunningHub, subprotocol: str) -> None:
    wire = await hub.join(subprotocol=subprotocol)
    await wire.send({**question("r"), "messages": [{"role": "z" * 100_000, "content": "x"}]})
    await refused(wire, "invalid_request", id="r")


# -- hello and tokens ----------------------------------------------------------------------------------------


async def test_whatever_is_said_before_hello_closes_and_is_not_obeyed(hub: RunningHub) -> None:
    for frame in (
        {"type": "ping"},
        {"type": "list", "id": 1},
        question("r"),
        {"type": "zzz"},
        {"type": "hello", "token": 5},
    ):
        wire = await hub.connect()
        await wire.send(frame)
        assert await wire.close_code() == 4400


async def test_what_follows_hello_in_the_same_message_is_obeyed(hub: RunningHub) -> None:
    wire = await hub.connect()
    await wire.batch({"type": "hello", "token": token()}, {"type": "ping", "id": 1})
    await wire.expect("welcome", user="alice")
    await wire.expect("pong", id=1)


async def test_what_follows_a_refused_hello_is_not(hub: RunningHub) -> None:
    wire = await hub.connect()
    await wire.batch({"type": "hello", "token": "forged"}, {"type": "ping", "id": 1})
    assert await wire.close_code() == 4401


async def test_a_second_hello_closes(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send({"type": "hello", "token": token()})
    assert await wire.close_code() == 4400


def signed(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    return jwt.encode({"sub": "alice", "exp": time.time() + 600} | claims, secret, algorithm=algorithm)


@pytest.mark.parametrize(
    "bad",
    [
        None, "", "forged", "a.b.c", "é" * 100, "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.",
        signed(secret="another secret of more than thirty-two bytes"), signed(algorithm="HS512", secret=SECRET * 2),
        signed(sub=""), signed(sub="x" * 129), signed(org=5), signed(org=""), signed(scope=["a"]),
        jwt.encode({"exp": time.time() + 600}, SECRET), jwt.encode({"sub": "alice"}, SECRET),
        signed(nbf=time.time() + 600),
    ],
    ids=["absent", "empty", "no token", "three parts", "not ascii", "unsigned", "forged", "another algorithm",
         "empty user", "long user", "org is a number", "empty org", "scope is a list", "no user", "no expiry",
         "not yet valid"],
)  # fmt: skip
async def test_an_absent_malformed_or_forged_token_closes_4401(hub: RunningHub, bad: str | None) -> None:
    wire = await hub.connect()
    await wire.send({"type": "hello"} if bad is None else {"type": "hello", "token": bad})
    assert await wire.close_code() == 4401


async def test_an_expired_token_is_told_and_closes_4200(hub: RunningHub) -> None:
    wire = await hub.connect()
    await wire.send({"type": "hello", "token": token(ttl_s=-10)})
    await wire.expect("error", code="token_expired", retry="reauth")
    assert await wire.close_code() == 4200


async def test_a_token_may_come_in_the_header_and_hello_s_own_wins(hub: RunningHub) -> None:
    wire = await hub.connect(headers={"Authorization": f"Bearer {token('bob')}"})
    await wire.send({"type": "hello"})
    await wire.expect("welcome", user="bob")
    wire = await hub.connect(headers={"Authorization": f"Bearer {token('bob')}"})
    await wire.send({"type": "hello", "token": token("carol")})
    await wire.expect("welcome", user="carol")


async def test_a_token_in_the_query_string_is_no_token(hub: RunningHub) -> None:
    wire = await Wire.open(f"{hub.url}?token={token()}&access_token={token()}")
    await wire.send({"type": "hello"})
    assert await wire.close_code() == 4401


# -- streams -------------------------------------------------------------------------------------------------


NAMES = ["g_aaaaaaaaaaaaaaaa", "s_aaaaaaaaaaaaaaaa", "g_x", "*", "g_aaaaaaaaaaaaaaa}", "x" * 64, "g_..", "日本"]


@BOTH
@pytest.mark.parametrize("stream", NAMES)
async def test_an_unknown_stream_is_not_found(hub: RunningHub, subprotocol: str, stream: str) -> None:
    wire = await hub.join(subprotocol=subprotocol)
    for frame in (
        {"type": "attach", "id": 1, "stream": stream},
        {"type": "attach", "id": 1, "stream": stream, "after": {"offset": 9, "mark": "m"}},
        {"type": "cancel", "id": 1, "stream": stream},
        {"type": "detach", "id": 1, "stream": stream, "on_abandon": "continue"},
    ):
        await wire.send(frame)
        await refused(wire, "not_found", id=1, stream=stream)


async def test_detaching_and_acking_what_is_not_attached_is_nothing(hub: RunningHub) -> None:
    wire = await hub.join()
    await wire.send(
        {"type": "detach", "stream": "g_aaaaaaaaaaaaaaaa"},
        {"type": "ack", "stream": "g_aaaaaaaaaaaaaaaa", "offset": 2**53 - 1},
        {"type": "detach", "id": 1, "stream": "g_aaaaaaaaaaaaaaaa"},
    )
    await wire.expect("ok", id=1)


@BOTH
async def test_a_foreign_stream_is_answered_byte_for_byte_like_an_absent_one(hub: RunningHub, subprotocol: str) -> None:
    alice = await hub.join("alice", org="acme")
    await alice.send(question(f"foreign {subprotocol}", attach=False, content=PROMPT))
    foreign = (await alice.expect("accepted"))["stream"]
    absent = foreign[:-4] + ("aaaa" if not foreign.endswith("aaaa") else "bbbb")
    for org in (None, "acme"):  # another organisation, and a colleague without a scope
        mallory = await hub.join("mallory", org=org, subprotocol=subprotocol)
        for frame in (
            {"type": "attach", "id": 1},
            {"type": "attach", "id": 1, "after": "now"},
            {"type": "cancel", "id": 1},
            {"type": "detach", "id": 1, "on_abandon": "cancel"},
        ):
            answers = []
            for stream in (foreign, absent):
                await mallory.send({**frame, "stream": stream})
                answer = await mallory.socket.recv()
                raw = answer.encode() if isinstance(answer, str) else answer
                answers.append(raw.replace(stream.encode(), b"STREAM"))
            assert answers[0] == answers[1]
            assert b"not_found" in answers[0]


@BOTH
async def test_an_ack_past_the_end_is_told_and_closes_nothing(hub: RunningHub, subprotocol: str) -> None:
    wire = await hub.join(subprotocol=subprotocol)
    await wire.send(question(f"past {subprotocol}", content=PROMPT))
    stream = (await wire.expect("accepted"))["stream"]
    await wire.until("live")
    await wire.send({"type": "ack", "stream": stream, "offset": 2})
    await refused(wire, "bad_ack", stream=stream, retry="no")
    await wire.send({"type": "ack", "stream": stream, "offset": 1}, {"type": "ping", "id": 3})
    await wire.expect("pong", id=3)


@BOTH
async def test_a_cursor_from_another_history_begins_again_and_is_no_error(hub: RunningHub, subprotocol: str) -> None:
    wire = await hub.join(subprotocol=subprotocol)
    await wire.send(question(f"history {subprotocol}", attach=False))
    accepted = await wire.expect("accepted")
    for after in ({"offset": 1, "mark": "another"}, {"offset": 2, "mark": accepted["mark"]}, {"offset": 2**53 - 1}):
        await wire.send({"type": "attach", "id": 1, "stream": accepted["stream"], "after": after})
        await wire.expect("attached", id=1, resumed=False, offset=0, mark=accepted["mark"])
        await wire.expect("entry", offset=1)
        await wire.expect("live")


@BOTH
async def test_fields_of_later_versions_are_refused_and_not_ignored(hub: RunningHub, subprotocol: str) -> None:
    wire = await hub.join(subprotocol=subprotocol)
    for field in (
        {"session": "s_aaaaaaaaaaaaaaaa"}, {"prefetch": True},
        {"notify": True},
    ):  # fmt: skip
        await wire.send(question("r", **field))
        await refused(wire, "unsupported", id="r")


@BOTH
@pytest.mark.parametrize("model", ["gpt", "/", "openai/", "/x", "nobody/x", "Standard", " standard"])
async def test_an_unknown_model_is_told(hub: RunningHub, subprotocol: str, model: str) -> None:
    wire = await hub.join(subprotocol=subprotocol)
    await wire.send(question("r", model=model))
    await refused(wire, "unknown_model", id="r")


@BOTH
async def test_a_window_beyond_the_limit_is_clamped(hub: RunningHub, subprotocol: str) -> None:
    wire = await hub.join(subprotocol=subprotocol)
    await wire.send(question(f"clamp {subprotocol}", window=2**53 - 1))
    await wire.expect("accepted", window=hub.node.settings.window)


# -- payloads made to hurt -----------------------------------------------------------------------------------

HURTFUL_JSON = {
    "a number of 100,000 digits": '{"type":"ping","id":' + "9" * 100_000 + "}",
    "an exponent beyond all bounds": '{"type":"ack","stream":"g","offset":1e999}',
    "NaN": '{"type":"ack","stream":"g","offset":NaN}',
    "infinity": '{"type":"attach","id":1,"stream":"g","window":-Infinity}',
    "half a surrogate in an id": '{"type":"list","id":"\\ud800"}',
    "half a surrogate as a stream": '{"type":"attach","id":1,"stream":"\\udfff"}',
    "half a surrogate in a request": json.dumps(question("\ud83d", id=1)),
    "half a surrogate in a prompt": json.dumps(question("r", id=1, content="\ud83d")),
    "half a surrogate in a device": '{"type":"hello","device":"\\ud800"}',
    "a NUL as a stream": '{"type":"cancel","id":1,"stream":"\\u0000"}',
    "a line break and a log line as a stream": '{"type":"attach","id":1,"stream":"x\\r\\nERROR forged=1"}',
    "an escape sequence as an id": '{"type":"attach","id":"\\u001b[2J","stream":"g_x"}',
    "a log line as a type": '{"type":"x\\r\\n[error] forged"}',
    "the same key twice": '{"type":"ping","type":"cancel","id":1,"id":2,"stream":"g_x"}',
    "ten thousand keys": '{"type":"ping",' + ",".join(f'"k{n}":0' for n in range(10_000)) + "}",
    "a key of 100,000 characters": '{"type":"ping","' + "k" * 100_000 + '":0}',
    "a byte order mark": '\ufeff{"type":"ping"}',
    "two values": '{"type":"ping"}{"type":"ping"}',
    "no end": '{"type":"ping"',
    "a comment": '{"type":"ping"/**/}',
    "tools a thousand levels deep": '{"type":"generate","id":1,"request":"r","messages":[],"tools":'
    + "[" * 1000 + "]" * 1000 + "}",
    "metadata ten thousand levels deep": '{"type":"generate","id":1,"request":"r","messages":[],"metadata":'
    + '{"a":' * 10_000 + "1" + "}" * 10_000 + "}",
}  # fmt: skip
HURTFUL_MSGPACK = {
    "an array of four billion": b"\xdd\xff\xff\xff\xff",
    "a map of four billion": b"\xdf\xff\xff\xff\xff",
    "a text of four billion bytes": b"\xdb\xff\xff\xff\xff",
    "a binary of four billion bytes": b"\x82\xa4type\xa4ping\xa2id\xc6\xff\xff\xff\xff",
    "an extension of four billion bytes": b"\xc9\xff\xff\xff\xff\x01",
    "four billion messages": b"\x82\xa4type\xa8generate\xa8messages\xdd\xff\xff\xff\xff",
    "a byte that means nothing": b"\xc1",
    "text that is not UTF-8": b"\x82\xa4type\xa4ping\xa2id\xa2\xff\xfe",
    "a key that is a map": b"\x81\x80\x01",
    "a key that is not a text": b"\x82\xa4type\xa4ping\x01\x02",
    "NaN for a window": b"\x84\xa4type\xa6attach\xa2id\x01\xa6stream\xa1g\xa6window\xcb\x7f\xf8" + bytes(6),
    "a time stamp": b"\x82\xa4type\xa4ping\xa2id\xd6\xff\x00\x00\x00\x00",
    "2^64 - 1 for an offset": b"\x83\xa4type\xa3ack\xa6stream\xa1g\xa6offset\xcf" + b"\xff" * 8,
    "two values": b"\x81\xa4type\xa4ping\x81\xa4type\xa4ping",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", [*HURTFUL_JSON, *HURTFUL_MSGPACK])
async def test_a_payload_made_to_hurt_is_one_answer_or_one_close(hub: RunningHub, name: str) -> None:
    message = HURTFUL_JSON.get(name, HURTFUL_MSGPACK.get(name, b""))
    wire = await hub.join(subprotocol=JSON if isinstance(message, str) else MSGPACK)
    await wire.send_raw(message)
    await wire.send({"type": "ping", "id": "still here"})
    try:
        said = await wire.next()
        while said.get("id") != "still here" and said["type"] in ("error", "pong", "streams"):
            assert said["type"] != "error" or said["code"] != "internal", said
            said = await wire.next()
        assert said == {"type": "pong", "id": "still here"}
    except Closed as closed:
        assert closed.code in (4400, 1007)


# -- what an operator's port sees all day --------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 64, b"GET /v1/ws HTTP/1.1\r\n\r\n", b"\r\n\r\n",
     b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"*1\r\n$4\r\nPING\r\n"],
    ids=["tls", "zeroes", "no upgrade", "blank", "half an upgrade", "redis"],
)  # fmt: skip
async def test_what_is_no_upgrade_gets_no_further(hub: RunningHub, said: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    writer.write(said)
    writer.write_eof()
    async with asyncio.timeout(5):
        answer = await reader.read()
    assert b" 101 " not in answer
    writer.close()


async def test_a_broken_frame_of_the_websocket_layer_closes_1002(hub: RunningHub) -> None:
    async with connect(hub.url, proxy=None, compression=None) as socket:
        socket.transport.write(b"\x83\x80\x00\x00\x00\x00")  # a reserved opcode
        await socket.wait_closed()
        assert socket.close_code == 1002


async def test_a_client_that_vanishes_in_the_middle_of_a_request_leaves_nothing(hub: RunningHub) -> None:
    for _ in range(20):
        wire = await hub.join()
        await wire.send(question("vanish", content=PROMPT), {"type": "list", "id": 1})
        wire.abort()
    other = await hub.join("somebody else")
    await other.ping()
    async with asyncio.timeout(5):
        while len(hub.node.connections) > 1:
            await other.ping()
    left = [attachment for tail in hub.node.relay.tails.values() for attachment in tail.attachments]
    assert left == []
