"""Floods, bombs and trickles against a hub process: each ends with its code or status, costs less than 1 MB for each
connection, and a viewer beside it gets its whole answer in time.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import pytest_asyncio

from hub.broker.embedded import EmbeddedRedis
from tests.hub.raw import BINARY, CONT, PING, PONG, TEXT, Raw, frame, upgrade
from tests.installation import HubProcess, question, running_hub, running_worker, token
from tests.wire import Wire, text_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
#: Connections that flood side by side.
AT_ONCE = 4
#: A viewer beside a flood sees an entry every 50 ms; it never waits longer than this for the next.
LONGEST_GAP_S = 1.5
HEADER_TIMEOUT_S = 1.0
TOKENS = 15


class MeasuredHub(HubProcess):
    @property
    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(redis_server: EmbeddedRedis) -> AsyncIterator[MeasuredHub]:
    """One hub for all of this, and a worker behind it. Its log must hold no error at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 10_000)), hard))
    url = redis_server.url + "?db=3"
    process = MeasuredHub(
        url,
        HEADRACE_PROVIDERS="scripted",
        HEADRACE_HEADER_TIMEOUT_S=str(HEADER_TIMEOUT_S),
        HEADRACE_HELLO_TIMEOUT_S="4",
    )
    try:
        async with running_worker(url):
            await (await process.connect()).close()
            await watch(process, "warm-up")
            yield process
    finally:
        process._process.terminate()
        status, log = await process.ended()
        process.kill()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert status == 0
    assert "Traceback" not in log and '"error"' not in log and "[error" not in log, log[-2000:]


async def watch(hub: HubProcess, request: str) -> float:
    """A viewer that behaves: the longest time it waited for a frame of its answer, which was whole."""
    wire = await Wire.open(hub.url)
    await wire.send({"type": "hello", "token": token("bystander")})
    await wire.expect("welcome")
    await wire.send(question(f"{request} {time.monotonic()}", model=f"scripted/tokens={TOKENS},rate=20", window=None))
    frames, longest = [], 0.0
    while not (frames and frames[-1]["type"] == "entry" and frames[-1]["kind"] == "done"):
        began = time.monotonic()
        frames.append(await wire.next())
        longest = max(longest, time.monotonic() - began)
    assert frames[-1]["data"]["text_bytes"] == len(text_of(frames).encode())
    await wire.close()
    return longest


@asynccontextmanager
async def others_unaffected(hub: MeasuredHub, connections: int, at_most: int = MIB) -> AsyncIterator[None]:
    """What happens inside costs the hub less than `at_most` bytes for each connection, and a viewer nothing."""
    before = hub.resident_bytes
    peak = before
    watching = asyncio.create_task(watch(hub, "flood"))

    async def measure() -> None:
        nonlocal peak
        while True:
            peak = max(peak, hub.resident_bytes)
            await asyncio.sleep(0.02)

    measuring = asyncio.create_task(measure())
    try:
        yield
        longest = await watching
    finally:
        for task in (measuring, watching):
            task.cancel()
        await asyncio.gather(measuring, watching, return_exceptions=True)
    assert (peak - before) / connections < at_most, f"{(peak - before) / connections / 1024:.0f} KiB a connection"
    assert longest < LONGEST_GAP_S, f"a viewer waited {longest:.1f} s"


async def side_by_side(attack: Callable[[], Awaitable[None]], connections: int = AT_ONCE) -> None:
    async with asyncio.timeout(30):
        await asyncio.gather(*[attack() for _ in range(connections)])


# -- frames --------------------------------------------------------------------------------------------------

#: What is sent over and over, after what, and the code that must come of it.
FLOODS = {
    "fragments of nothing": (frame(TEXT, fin=False), frame(CONT, fin=False) * 5000, 4103),
    "fragments of one byte": (frame(TEXT, b" ", fin=False), frame(CONT, b" ", fin=False) * 5000, 4103),
    "messages of nothing": (b"", frame(TEXT) * 5000, 4400),
    "binary messages of nothing": (b"", frame(BINARY) * 5000, 4400),
    "empty batches": (b"", frame(TEXT, b"[]") * 5000, 4103),
    "pings without a word": (b"", frame(PING) * 5000, 4103),
    "pings as large as they may be": (b"", frame(PING, b"x" * 125) * 500, 4103),
    "pongs that nobody asked for": (b"", frame(PONG, b"x") * 5000, 4103),
    "pings between fragments": (frame(TEXT, b"[", fin=False), frame(PING) * 5000, 4103),
    "two fragments each": (b"", (frame(TEXT, b"[", fin=False) + frame(CONT, b"]")) * 3000, 4103),
    "small frames that are wrong": (b"", frame(TEXT, b'{"type":"?"}') * 3000, 4103),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_of_frames_is_cut_off(hub: MeasuredHub, name: str) -> None:
    first, flood, code = FLOODS[name]

    async def attack() -> None:
        raw = await Raw.join(hub.port, token("mallory"))
        await raw.send(first)
        flooding = asyncio.create_task(raw.flood(flood))
        assert await raw.close_code() == code
        await raw.rest()
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        raw.close()

    async with others_unaffected(hub, AT_ONCE):
        await side_by_side(attack)


async def test_pings_whose_pongs_nobody_reads_cost_no_memory(hub: MeasuredHub) -> None:
    async def attack() -> None:
        raw = await Raw.open(hub.port, receive_buffer=2048)
        await raw.flood(frame(PING, b"x" * 125) * 500, seconds=1)
        raw.close()

    async with others_unaffected(hub, AT_ONCE):
        await side_by_side(attack)


async def test_messages_that_are_too_large_are_answered_and_not_kept(hub: MeasuredHub) -> None:
    async def attack() -> None:
        raw = await Raw.join(hub.port, token("mallory"))
        for _ in range(10):
            await raw.send(frame(TEXT, b"x" * (MIB - 1)))
            assert (await raw.hear())["code"] == "too_large"
        await raw.say({"type": "ping", "id": 1})
        assert await raw.hear() == {"type": "pong", "id": 1}
        raw.close()

    async with others_unaffected(hub, AT_ONCE):
        await side_by_side(attack)


async def test_a_message_in_many_large_fragments_is_answered_and_not_kept(hub: MeasuredHub) -> None:
    raw = await Raw.join(hub.port, token("mallory"))
    await raw.send(frame(TEXT, b"x" * 200_000, fin=False) + frame(CONT, b"x" * 200_000))
    assert (await raw.hear())["code"] == "too_large"
    await raw.send(frame(TEXT, b"x" * 500_000, fin=False) + frame(CONT))
    assert (await raw.hear())["code"] == "too_large"
    await raw.say({"type": "ping", "id": 1})
    assert await raw.hear() == {"type": "pong", "id": 1}
    raw.close()


async def test_messages_that_never_end_cost_less_than_a_message_each(hub: MeasuredHub) -> None:
    """Sizes that are kept, that are passed over, and fragments of both: all of it but its last byte."""
    beginnings = [
        frame(TEXT, b"x" * 262_143, size=262_144),
        frame(TEXT, b"x" * (MIB - 1), size=MIB),
        frame(TEXT, b"x" * 250_000, fin=False) + frame(CONT, b"x" * 250_000, fin=False) * 3,
    ]

    async def attack() -> None:
        raws = [await Raw.open(hub.port) for _ in range(len(beginnings))]
        for raw, beginning in zip(raws, beginnings, strict=True):
            await raw.send(beginning)
        await asyncio.sleep(0.5)  # measured while they are held
        for raw in raws:
            raw.close()

    async with others_unaffected(hub, AT_ONCE * len(beginnings), at_most=MIB // 2):
        await side_by_side(attack)


# -- before there is a WebSocket -----------------------------------------------------------------------------


async def test_silent_connections_and_half_heads_end_in_time(hub: MeasuredHub) -> None:
    began = time.monotonic()

    async def silent() -> None:
        raw = await Raw.connect(hub.port)
        assert await raw.rest() == b""
        raw.close()

    async def half() -> None:
        raw = await Raw.connect(hub.port)
        await raw.send(upgrade()[:-2])
        assert (await raw.head())[0] == 408
        raw.close()

    async def drip() -> None:
        raw = await Raw.connect(hub.port)
        ended = asyncio.create_task(raw.head())
        for byte in upgrade(headers=("X-Slow: " + "x" * 500,)):
            if ended.done():
                break
            try:
                await raw.send(bytes([byte]))
            except ConnectionError:
                break
            await asyncio.sleep(0.1)
        assert (await ended)[0] == 408
        raw.close()

    async with others_unaffected(hub, 150):
        await asyncio.gather(*[attack() for attack in (silent, half, drip) for _ in range(50)])
    assert HEADER_TIMEOUT_S * 0.9 < time.monotonic() - began < HEADER_TIMEOUT_S + 5


async def test_a_head_without_end_is_refused(hub: MeasuredHub) -> None:
    async def attack() -> None:
        raw = await Raw.connect(hub.port)
        await raw.send(b"GET /v1/ws HTTP/1.1\r\nHost: hub\r\n")
        flooding = asyncio.create_task(raw.flood(b"a: b\r\n" * 2000))
        with suppress(ConnectionError):  # the reset that unread bytes cause may overtake the answer
            assert (await raw.head())[0] == 431
        await flooding
        raw.close()

    async with others_unaffected(hub, AT_ONCE):
        await side_by_side(attack)
    raw = await Raw.connect(hub.port)
    await raw.send(b"GET /healthz HTTP/1.1\r\nHost: hub\r\n" + b"a: b\r\n" * 5460)
    assert (await raw.head())[0] == 431
    raw.close()


async def test_requests_in_a_pipeline_get_one_answer(hub: MeasuredHub) -> None:
    async def attack() -> None:
        raw = await Raw.connect(hub.port)
        await raw.flood(b"GET /readyz HTTP/1.1\r\nHost: hub\r\n\r\n" * 3000, seconds=1)
        assert (await raw.rest()).count(b"HTTP/1.1 ") <= 1
        raw.close()

    async with others_unaffected(hub, AT_ONCE):
        await side_by_side(attack)


@pytest.mark.parametrize(
    "head",
    [b"POST /healthz HTTP/1.1\r\nHost: hub\r\nContent-Length: 1000000000\r\n\r\n",
     b"POST /metrics HTTP/1.1\r\nHost: hub\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFF\r\n"],
    ids=["length", "chunks"],
)  # fmt: skip
async def test_a_body_is_not_read(hub: MeasuredHub, head: bytes) -> None:
    async def attack() -> None:
        raw = await Raw.connect(hub.port)
        await raw.send(head)
        assert (await raw.head())[0] == 405
        await raw.flood(b"x" * 100_000)
        await raw.rest()
        raw.close()

    async with others_unaffected(hub, AT_ONCE):
        await side_by_side(attack)


async def test_a_connection_is_kept_for_another_request_but_not_for_ever(hub: MeasuredHub) -> None:
    raw = await Raw.connect(hub.port)
    for _ in range(3):
        await raw.send(b"GET /healthz HTTP/1.1\r\nHost: hub\r\n\r\n")
        assert (await raw.head())[0] == 200
        assert b"alive" in await raw._exactly(18)
    await raw.send(b"GET /hea")  # the next request never ends
    assert (await raw.head())[0] == 408
    raw.close()


# -- who has not said who it is ------------------------------------------------------------------------------


async def test_two_thousand_silent_sockets_push_out_only_each_other(hub: MeasuredHub) -> None:
    descriptors = hub.descriptors
    raws: list[Raw] = []
    began = time.monotonic()
    async with others_unaffected(hub, 2000):
        for _ in range(20):
            raws += await asyncio.gather(*[Raw.open(hub.port) for _ in range(100)])
        real = await Raw.join(hub.port, token("alice"))
    before = hub.resident_bytes
    codes = [raws[0].close_code(), raws[1000].close_code(), raws[1499].close_code(), raws[-1].close_code()]
    assert await asyncio.gather(*codes) == [4101, 4101, 4101, 4105]
    await real.say({"type": "ping", "id": 1})
    assert await real.hear() == {"type": "pong", "id": 1}
    for raw in (real, *raws):
        raw.close()
    while hub.descriptors > descriptors:
        assert time.monotonic() - began < 20
        await asyncio.sleep(0.05)
    assert hub.resident_bytes <= before + MIB


async def guests(port: int, count: int, headers: Callable[[int], tuple[str, ...]] = lambda n: ()) -> list[int | None]:
    """How silent sockets ended that came one after the other: a close code, or None for those that may stay."""

    async def end_of(raw: Raw) -> int | None:
        try:
            async with asyncio.timeout(0.5):
                return await raw.close_code()
        except TimeoutError:
            return None

    raws = [await Raw.open(port, headers=headers(number)) for number in range(count)]
    ends = await asyncio.gather(*[end_of(raw) for raw in raws])
    for raw in raws:
        raw.close()
    return ends


async def test_an_address_that_is_claimed_counts_for_nothing(redis_server: EmbeddedRedis) -> None:
    async with running_hub(redis_server.url + "?db=4", unauthenticated_per_address=3) as hub:
        forged = await guests(hub.port, 5, lambda n: (f"X-Forwarded-For: 10.0.0.{n}", f"Forwarded: for=10.0.0.{n}"))
        assert forged == [4101, 4101, None, None, None]


async def test_a_trusted_proxy_is_believed_and_its_client_is_not(redis_server: EmbeddedRedis) -> None:
    async with running_hub(
        redis_server.url + "?db=4", unauthenticated_per_address=3, trusted_proxies="127.0.0.0/8"
    ) as hub:
        assert await guests(hub.port, 5, lambda n: (f"X-Forwarded-For: 10.0.0.{n}",)) == [None] * 5
        for proxied in (
            lambda n: (f"X-Forwarded-For: 10.0.0.{n}, 192.0.2.1",),
            lambda n: (f"X-Forwarded-For: 10.0.0.{n}", "X-Forwarded-For: 192.0.2.2", "X-Forwarded-For: 127.0.0.9"),
        ):
            assert await guests(hub.port, 5, proxied) == [4101, 4101, None, None, None]


async def test_a_full_hub_makes_room_for_who_comes_last_and_counts_who_said_hello_out(
    redis_server: EmbeddedRedis,
) -> None:
    async with running_hub(redis_server.url + "?db=4", unauthenticated=2) as hub:
        wires = [await hub.join(f"user {n}") for n in range(4)]
        assert await guests(hub.port, 4) == [4101, 4101, None, None]
        assert [await wire.ping() for wire in wires] == [[]] * 4
        silent = await Raw.connect(hub.port)  # not even a request: a guest all the same
        await guests(hub.port, 2)
        assert await silent.rest() == b""
        silent.close()
