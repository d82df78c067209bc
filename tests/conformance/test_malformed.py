"""Malformed WebSocket frames at the hub's true endpoint: each fails with its close code, before `hello` and after."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from hub.broker.embedded import EmbeddedRedis
from tests.hub.raw import BINARY, CLOSE, CONT, PING, PONG, TEXT, Raw, frame, upgrade
from tests.installation import RunningHub, running_hub, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: What is sent, and the close code that must come of it.
MALFORMED = {
    "a reserved bit": (frame(TEXT, b"{}", rsv=4), 1002),
    "a compressed frame, though compression was refused": (frame(TEXT, b"\xaaV*\xa9,H\x05\x00", rsv=4), 1002),
    "another reserved bit": (frame(TEXT, b"{}", rsv=2), 1002),
    "a reserved bit in a ping": (frame(PING, rsv=1), 1002),
    "a reserved data opcode": (frame(3, b"x"), 1002),
    "a reserved control opcode": (frame(11), 1002),
    "no mask": (frame(TEXT, b"{}", masked=False), 1002),
    "a ping without a mask": (frame(PING, masked=False), 1002),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "a pong of 126 bytes": (frame(PONG, b"x" * 126), 1002),
    "a close of 126 bytes": (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "a ping in fragments": (frame(PING, fin=False), 1002),
    "a close in fragments": (frame(CLOSE, fin=False), 1002),
    "a continuation of nothing": (frame(CONT, b"{}"), 1002),
    "a second first fragment": (frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), 1002),
    "a close of one byte": (frame(CLOSE, b"\x03"), 1002),
    "a close with a code that must not be sent": (frame(CLOSE, b"\x03\xed"), 1002),
    "a close with a reason that is not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "text that is not UTF-8": (frame(TEXT, b'"\xff"'), 1007),
    "text that ends within a character": (frame(TEXT, '"é'.encode()[:-1]), 1007),
    "text with a surrogate": (frame(TEXT, b'"\xed\xa0\x80"'), 1007),
    "text that is not UTF-8 once its fragments are joined": (
        frame(TEXT, b'"\xc3', fin=False) + frame(CONT, b'\x28"'), 1007,
    ),
    "a length of 2^62": (frame(BINARY, size=2**62), 1009),
    "a length with its highest bit set": (frame(BINARY, size=2**63), 1009),
    "a length of one byte too many": (frame(TEXT, size=4 * 262_144 + 1), 1009),
    "fragments that add up to too much": (
        frame(TEXT, b"x" * 262_144, fin=False) + 3 * frame(CONT, b"x" * 262_144, fin=False) + frame(CONT, b"x"), 1009,
    ),
    "skipped fragments that add up to too much": (
        frame(TEXT, b"x" * 600_000, fin=False) + frame(CONT, b"x" * 600_000), 1009,
    ),
    "65 fragments": (frame(TEXT, b"{", fin=False) + 64 * frame(CONT, b" ", fin=False), 4103),
    "65 fragments of nothing": (frame(TEXT, fin=False) + 64 * frame(CONT, fin=False), 4103),
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(redis_server: EmbeddedRedis) -> AsyncIterator[RunningHub]:
    async with running_hub(redis_server.url + "?db=2") as hub:
        yield hub


@pytest.mark.parametrize("is_greeted", [False, True], ids=["before hello", "after hello"])
@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_frame_fails_the_connection_with_its_code(
    hub: RunningHub, name: str, is_greeted: bool
) -> None:
    data, code = MALFORMED[name]
    raw = await (Raw.join(hub.port, token()) if is_greeted else Raw.open(hub.port))
    await raw.send(data)
    assert await raw.close_code() == code
    assert await raw.rest() == b""  # and nothing follows the close
    raw.close()


async def test_what_is_legal_but_rare_is_taken(hub: RunningHub) -> None:
    raw = await Raw.join(hub.port, token())
    await raw.send(
        frame(TEXT, b'{"type":', fin=False) + frame(PING, b"amid") + frame(CONT, fin=False)
        + frame(PONG, b"unasked") + frame(CONT, b'"ping","id":1}')
    )  # fmt: skip
    assert await raw.frame() == (PONG, b"amid")
    assert await raw.hear() == {"type": "pong", "id": 1}
    await raw.send(frame(TEXT, b'{"type":"ping"', fin=False))
    await raw.send(62 * frame(CONT, b" ", fin=False) + frame(CONT, b',"id":2}'))  # 64 fragments in all
    assert await raw.hear() == {"type": "pong", "id": 2}
    for byte in frame(TEXT, b'{"type":"ping","id":3}'):
        await raw.send(bytes([byte]))
    assert await raw.hear() == {"type": "pong", "id": 3}
    raw.close()


async def test_a_close_between_two_fragments_is_answered_like_any_other(hub: RunningHub) -> None:
    raw = await Raw.join(hub.port, token())
    await raw.send(frame(TEXT, b"{", fin=False) + frame(CLOSE, b"\x03\xe8"))
    assert await raw.close_code() == 1000
    raw.close()


@pytest.mark.parametrize("wrong", [b'{"type":"hello"}', b"nonsense", b"\xff"], ids=["4400", "no JSON", "no UTF-8"])
async def test_a_wrong_message_and_a_close_in_one_packet_end_like_a_close(
    hub: RunningHub, wrong: bytes, logs: pytest.LogCaptureFixture
) -> None:
    raw = await Raw.join(hub.port, token())
    await raw.send(frame(TEXT, wrong) + frame(CLOSE, b"\x03\xe8") + frame(PING))
    assert await raw.close_code() == 1000
    raw.close()
    assert [record.getMessage() for record in logs.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_compression_is_refused_and_so_is_a_bomb(hub: RunningHub) -> None:
    raw = await Raw.connect(hub.port)
    await raw.send(upgrade(headers=("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",)))
    status, head = await raw.head()
    assert status == 101 and "extensions" not in head.lower()
    await raw.send(frame(BINARY, b"\x00" * 9_700, rsv=4))  # never inflated: the bit alone is the error
    assert await raw.close_code() == 1002
    raw.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (upgrade().replace(b"Sec-WebSocket-Key", b"X-Key"), 400),
        (upgrade().replace(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 8"), 400),
        (upgrade(headers=("Sec-WebSocket-Key: c2Vjb25k",)), 400),
        (upgrade(headers=(f"Cookie: {'x' * 9000}",)), 431),
        (upgrade(headers=tuple(f"X-{n}: 1" for n in range(200))), 431),
        (upgrade(path="/v1/ws?" + "x" * 9000), 414),
        (upgrade(path="/elsewhere"), 403),
    ],
    ids=["no key", "another version", "two keys", "a long header", "many headers", "a long path", "another path"],
)
async def test_an_upgrade_that_cannot_be_is_told_why_and_ends(hub: RunningHub, request_: bytes, status: int) -> None:
    raw = await Raw.connect(hub.port)
    await raw.send(request_)
    assert (await raw.head())[0] == status
    await raw.rest()
    raw.close()


async def test_a_client_that_does_not_wait_for_the_upgrade_is_cut_off_or_not_heard(hub: RunningHub) -> None:
    raw = await Raw.connect(hub.port)
    await raw.send(upgrade() + frame(PING) * 1000)
    status, _ = await raw.head()
    assert status == 101
    await raw.say({"type": "hello", "token": token()})
    assert (await raw.hear())["type"] == "welcome"
    raw.close()
