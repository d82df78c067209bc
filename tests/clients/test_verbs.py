"""Starting, cancelling, leaving and listing generations, and every way in which one can fail."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import headrace
from headrace import Done, Text
from tests.clients.core_driver import accepted, attached, delta
from tests.clients.log_hub import LogHub
from tests.clients.model_hub import Log
from tests.clients.scripted_hub import LIMITS, Frame, Peer, Script, ScriptedHub


def ending(status: str, **fields: Any) -> Log:
    """A log of one piece that ends in this way."""
    log = Log("g_1")
    log.add("text", {"text": "so far"})
    log.finish(status, **fields)
    return log


def refusing(code: str, retry: str = "no", **fields: Any) -> Script:
    """A hub that refuses whatever is asked after `hello`."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        frame = await peer.receive()
        error = {"type": "error", "id": frame["id"], "code": code, "message": "because", "retry": retry}
        await peer.send(error | fields)
        await peer.until_closed()

    return script


# Endings


async def test_a_failed_answer_raises_with_its_text_and_what_to_do() -> None:
    error = {"code": "provider_overloaded", "message": "too busy", "retry": "after", "after_ms": 2000}
    log = ending("failed", error=error, retry_token="rt_1")
    async with ScriptedHub(LogHub(log).script()) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        with pytest.raises(headrace.GenerationFailed, match="provider_overloaded: too busy") as caught:
            await generation.text()
        failure = caught.value
        assert (failure.code, failure.retry, failure.after_ms) == ("provider_overloaded", "after", 2000)
        assert (failure.text, failure.retry_token, failure.stream) == ("so far", "rt_1", "g_1")
        assert generation.error is failure and generation.status == "failed"
        assert (await generation.done()).retry_token == "rt_1"


async def test_iterating_over_a_failed_answer_ends_with_its_done_and_does_not_raise() -> None:
    error = {"code": "worker_lost", "message": "gone", "retry": "backoff"}
    model = LogHub(ending("failed", error=error))
    async with ScriptedHub(model.script()) as hub, headrace.connect(hub.url) as client:
        last = [event async for event in client.generate("x")][-1]
        assert isinstance(last, Done) and last.status == "failed"


async def test_a_truncated_answer_is_an_answer() -> None:
    model = LogHub(ending("truncated", stop_reason="max_tokens"))
    async with ScriptedHub(model.script()) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        assert (await generation.text(), generation.status) == ("so far", "truncated")


async def test_a_cancel_is_answered_and_the_text_raises_cancelled() -> None:
    log = ending("cancelled", stop_reason="cancelled")

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]), log.frame(1, 1))
        cancel = await peer.expect("cancel")
        assert cancel["stream"] == "g_1"
        await peer.send({"type": "ok", "id": cancel["id"]}, log.frame(2, 2))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        await generation.cancel()
        with pytest.raises(headrace.GenerationCancelled) as caught:
            await generation.text()
        assert (caught.value.code, caught.value.text) == ("cancelled", "so far")


async def test_a_cancel_that_was_cut_off_is_sent_again() -> None:
    log = ending("cancelled", stop_reason="cancelled")

    async def cut(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]))
        await peer.expect("cancel")
        peer.cut()

    async def answer(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(attached((await peer.expect("attach"))["id"]))
        await peer.send({"type": "ok", "id": (await peer.expect("cancel"))["id"]})
        await peer.send(log.frame(1, 1), log.frame(2, 2))
        await peer.until_closed()

    async with ScriptedHub(cut, answer) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        await generation.cancel()
        assert (await generation.done()).status == "cancelled"


# Refusals


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("rate_limited", headrace.RequestRejected),
        ("unknown_model", headrace.RequestRejected),
        ("not_found", headrace.NotFound),
        ("gone", headrace.StreamGone),
    ],
)
async def test_a_refused_request_raises_by_its_code(code: str, expected: type[headrace.RequestRejected]) -> None:
    script = refusing(code, "after", after_ms=700)
    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        with pytest.raises(expected, match=f"{code}: because") as caught:
            await generation.text()
        assert (caught.value.code, caught.value.retry, caught.value.after_ms) == (code, "after", 700)
        with pytest.raises(expected):
            await anext(generation)
        with pytest.raises(expected):
            await generation.cancel()


async def test_a_stream_that_vanishes_raises_gone_after_what_was_read() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]), delta(1, "a"))
        await peer.send({"type": "error", "stream": "g_1", "code": "gone", "message": "vanished", "retry": "no"})
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        assert await anext(generation) == Text("a")
        with pytest.raises(headrace.StreamGone):
            await anext(generation)
        assert generation.text_so_far == "a"


async def test_a_refused_cancel_raises() -> None:
    async with ScriptedHub(refusing("forbidden")) as hub, headrace.connect(hub.url) as client:
        with pytest.raises(headrace.RequestRejected, match="forbidden"):
            await client.cancel("g_1")


async def test_a_hub_that_does_not_answer_a_cancel_is_not_waited_for_for_ever() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url, answer_timeout=0.05) as client:
        with pytest.raises(headrace.ConnectionFailed, match="safe to ask again"):
            await client.cancel("g_1")


@pytest.mark.parametrize(
    "options",
    [
        {"window": 0},
        {"window": "many"},
        {"max_tokens": 0},
        {"model": ""},
        {"on_worker_loss": "pray"},
        {"colour": "red"},
    ],
)
async def test_an_option_that_no_hub_accepts_raises_before_anything_is_sent(options: dict[str, Any]) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.until_closed()

    async with ScriptedHub(script) as hub:
        async with headrace.connect(hub.url) as client:
            with pytest.raises(headrace.InvalidRequest):
                client.generate("x", **options)
            with pytest.raises(headrace.InvalidRequest):
                client.generate([{"role": "wizard", "content": "x"}])
            with pytest.raises(headrace.InvalidRequest):
                client.attach("")
        assert hub.peers[0].messages == [[{"type": "hello", "client": "headrace-py/0.1"}]]


async def test_a_request_longer_than_the_hub_takes_is_refused_here() -> None:
    model = LogHub(Log.of_text("still here"))

    async def script(peer: Peer) -> None:
        await peer.expect("hello")
        await peer.send(
            {"type": "welcome", "connection": "c", "user": "u", "heartbeat_ms": 20000}
            | {"limits": LIMITS | {"message_bytes": 1000}}
        )
        await peer.send(accepted((await peer.expect("generate"))["id"]))
        await peer.send(*(model.log.frame(offset, offset) for offset in (1, 2, 3)))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        with pytest.raises(headrace.RequestRejected, match="too_large"):
            await client.generate("x" * 2000).text()
        assert await client.generate("x").text() == "still here"


async def test_a_done_that_cannot_be_read_is_no_end_to_wait_for() -> None:
    log = Log("g_1")
    log.add("done", {"status": "vanished"})
    async with ScriptedHub(LogHub(log).script()) as hub, headrace.connect(hub.url) as client:
        with pytest.raises(headrace.ProtocolViolation, match="done"):
            await client.generate("x").text()


# Starting and leaving


async def test_a_generation_can_be_started_without_watching() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        asked = await peer.expect("generate")
        assert asked["attach"] is False
        await peer.send(accepted(asked["id"]))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x", attach=False)
        assert await generation.accepted() == "g_1"
        assert [event async for event in generation] == []
        with pytest.raises(headrace.GenerationClosed, match="without watching"):
            await generation.text()


async def leave_early(client: headrace.Client) -> headrace.Generation:
    async with client.generate("x") as generation:
        async for event in generation:
            if isinstance(event, Text):
                break
    return generation


async def test_leaving_early_detaches_and_other_generations_go_on() -> None:
    other = Log.of_text("other", stream="g_2")

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]), delta(1, "a"))
        assert await peer.expect("detach") == {"type": "detach", "stream": "g_1"}
        await peer.send(delta(2, "late"))
        await peer.send(accepted((await peer.expect("generate"))["id"], stream="g_2"))
        await peer.send(*(other.frame(offset, offset) for offset in (1, 2, 3)))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = await leave_early(client)
        with pytest.raises(headrace.GenerationClosed):
            await generation.text()
        assert generation.text_so_far == "a"
        assert await client.generate("y").text() == "other"


async def test_the_last_detach_goes_out_before_the_client_closes() -> None:
    left: list[Frame] = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]), delta(1, "a"))
        left.append(await peer.expect("detach"))

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        await leave_early(client)
    assert left == [{"type": "detach", "stream": "g_1"}]


async def test_going_to_the_background_waits_until_the_hub_took_note() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]))
        detach = await peer.expect("detach")
        assert detach["on_abandon"] == "continue"
        await peer.send({"type": "ok", "id": detach["id"]})
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        await generation.detach(on_abandon="continue")


async def test_an_app_lists_its_streams() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        asked = await peer.expect("list")
        assert asked["state"] == "running"
        item = {"stream": "g_1", "state": "running", "top": 4, "created_ms": 17}
        await peer.send({"type": "streams", "id": asked["id"], "streams": [item]})
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        (info,) = await client.streams("running")
        assert (info.stream, info.state, info.top, info.created_ms) == ("g_1", "running", 4, 17)


async def test_what_is_still_watched_when_the_client_closes_says_so() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]))
        await peer.until_closed()

    async with ScriptedHub(script) as hub:
        async with headrace.connect(hub.url) as client:
            generation = client.generate("x")
            await generation.accepted()
            waiting = asyncio.create_task(generation.text())
        with pytest.raises(headrace.GenerationClosed, match="closed"):
            await waiting
        with pytest.raises(headrace.GenerationClosed):
            client.generate("y")
