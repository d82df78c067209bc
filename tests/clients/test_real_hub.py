"""The client against real hubs, a real worker and a real Redis: what the scripted hubs may have got wrong."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

import headrace
from headrace import Text
from tests.conftest import StartHub
from tests.installation import RunningHub, token
from workers.worker import Worker


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_an_answer_cut_again_and_again_is_whole(
    encoding: Literal["json", "msgpack"], hub: RunningHub, worker: Worker
) -> None:
    async with headrace.connect(hub.url, token("alice"), encoding=encoding) as client:
        generation = client.generate("go", model="scripted/tokens=120,rate=300", window=16)
        pieces = []
        async for event in generation:
            if isinstance(event, Text):
                pieces.append(event.text)
                if len(pieces) in (5, 20, 40):
                    socket = client._link._socket
                    assert socket is not None
                    socket.transport.abort()
        assert "".join(pieces) == await generation.text()
        assert (generation.verified, generation.reconnects) == (True, 3)


async def test_an_answer_goes_on_through_another_hub(start_hub: StartHub, worker: Worker) -> None:
    first, second = await start_hub(), await start_hub()
    async with headrace.connect(first.url, token("alice")) as client:
        generation = client.generate("go", model="scripted/tokens=100,rate=200")
        async for event in generation:
            if isinstance(event, Text):
                break
        stream, cursor, text = await generation.accepted(), generation.cursor, generation.text_so_far
    async with headrace.connect(second.url, token("alice")) as client:
        resumed = client.attach(stream, after=cursor, text=text)
        assert (await resumed.text()).startswith(text)
        assert resumed.verified is True


async def test_a_reader_that_pauses_gets_everything_when_it_goes_on(hub: RunningHub, worker: Worker) -> None:
    async with headrace.connect(hub.url, token("alice")) as client:
        slow = client.generate("go", model="scripted/tokens=200,rate=0", window=2)
        fast = client.generate("go", model="scripted/tokens=200,rate=0")
        await slow.accepted()
        assert len(await fast.text()) == len(await slow.text()) == 1000
        assert slow.verified is True


async def test_cancel_list_and_refusals(hub: RunningHub, worker: Worker) -> None:
    async with headrace.connect(hub.url, token("alice")) as client:
        generation = client.generate("go", model="scripted/tokens=5000,rate=50")
        await generation.cancel()
        with pytest.raises(headrace.GenerationCancelled):
            await generation.text()
        assert [info.stream for info in await client.streams()] == [generation.stream]
        with pytest.raises(headrace.RequestRejected, match="unknown_model"):
            await client.generate("go", model="nobody/nothing").text()
        with pytest.raises(headrace.NotFound):
            await client.attach("g_absent").text()
    with pytest.raises(headrace.AuthenticationFailed):
        async with headrace.connect(hub.url, "forged"):
            pass


async def test_many_answers_over_one_connection(hub: RunningHub, worker: Worker) -> None:
    async with headrace.connect(hub.url, token("alice")) as client:
        generations = [client.generate("go", model="scripted/tokens=40,rate=100") for _ in range(30)]
        texts = await asyncio.gather(*(generation.text() for generation in generations))
    assert {len(text) for text in texts} == {200}
    assert all(generation.verified for generation in generations)
