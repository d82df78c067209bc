"""Generations over a real WebSocket: what an application sees while connections and histories break."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

import headrace
from headrace import (
    Cursor,
    Done,
    Entry,
    Event,
    Generation,
    Live,
    Reset,
    Restarted,
    Source,
    Status,
    Text,
    Usage,
)
from tests.clients.core_driver import accepted, attached, delta
from tests.clients.log_hub import LogHub
from tests.clients.model_hub import Log
from tests.clients.scripted_hub import Peer, ScriptedHub

PIECES = ["Because", " blue", " light", " scatters", " most", ". 🌤", "\n\nAsk", " more", "!"]
STORY = "".join(PIECES)
ENCODINGS: list[Literal["json", "msgpack"]] = ["json", "msgpack"]


async def collect(generation: Generation) -> list[Event]:
    return [event async for event in generation]


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Text)]


def entry(offset: int, kind: str, **data: object) -> dict[str, object]:
    return {"type": "entry", "stream": "g_1", "offset": offset, "kind": kind, "data": data}


def done_of(log: Log) -> dict[str, object]:
    return entry(log.top, "done", **log.entries[-1][1])


# The happy path


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_an_answer_arrives_as_events_and_as_text(encoding: Literal["json", "msgpack"]) -> None:
    usage = {"input_tokens": 12, "output_tokens": 9}

    async def script(peer: Peer) -> None:
        log = Log.of_text("Hello", " there")
        log.entries[-1][1].update(usage=usage, ttft_ms=31)
        hello = await peer.welcome()
        assert (hello["token"], hello["client"]) == ("secret", "headrace-py/0.1")
        asked = await peer.expect("generate")
        assert asked["messages"] == [{"role": "user", "content": "Hi"}]
        assert (asked["model"], asked["system"], asked["window"]) == ("fast", "Be brief.", 256)
        await peer.send(accepted(asked["id"]))
        await peer.send(*(log.frame(offset, offset) for offset in (1, 2)), {"type": "live", "stream": "g_1"})
        await peer.send(log.frame(3, 3))
        await peer.send(log.frame(4, 4))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url, "secret", encoding=encoding) as client:
        generation = client.generate("Hi", model="fast", system="Be brief.")
        events = await collect(generation)
        assert [type(event) for event in events] == [Source, Text, Live, Text, Done]
        assert (generation.text_so_far, await generation.text()) == ("Hello there", "Hello there")
        assert (generation.stream, generation.cursor) == ("g_1", Cursor(4, "m1"))
        assert (generation.status, generation.verified, generation.error) == ("completed", True, None)
        assert generation.source == Source("scripted", "story", "live")
        assert generation.usage == Usage(12, 9)
        assert generation.ttft is not None and 0 < generation.ttft < 5
        assert generation.tokens_per_second is not None and generation.tokens_per_second > 0
        assert hub.peers[0].socket.subprotocol == f"headrace.v1.{encoding}"


async def test_text_alone_consumes_a_long_answer_as_it_comes() -> None:
    model = LogHub(Log.of_text(*(f"{number} " for number in range(500))))
    async with ScriptedHub(model.script()) as hub, headrace.connect(hub.url) as client:
        assert await client.generate("count", window=8).text() == model.log.text
    assert len(model.acks) >= 500 // 8


async def test_messages_may_be_dicts_and_the_request_key_may_be_given() -> None:
    model = LogHub(Log.of_text("x"))
    conversation = [
        {"role": "user", "content": "a"},
        headrace.Message(role="assistant", content="b"),
        {"role": "user", "content": "c"},
    ]
    async with ScriptedHub(model.script()) as hub, headrace.connect(hub.url) as client:
        await client.generate(conversation, request="mine").text()
    assert [message["content"] for message in model.requests[0]["messages"]] == ["a", "b", "c"]
    assert model.requests[0]["request"] == "mine"


async def test_several_generations_share_one_socket() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        logs = [Log.of_text(*word, stream=f"g_{word}") for word in ("red", "green", "blue")]
        for log in logs:
            asked = await peer.expect("generate")
            assert asked["messages"][0]["content"] == log.text
            await peer.send(accepted(asked["id"], stream=log.stream))
        for offset in range(1, 8):
            await peer.send(*(log.frame(offset, offset) for log in logs if offset <= log.top))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generations = [client.generate(word) for word in ("red", "green", "blue")]
        assert await asyncio.gather(*(item.text() for item in generations)) == ["red", "green", "blue"]
        assert len(hub.peers) == 1


# Resuming


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("merge", [1, 4])
@pytest.mark.parametrize("cut_after", range(13))
async def test_a_cut_at_any_frame_loses_and_doubles_nothing(
    cut_after: int, merge: int, encoding: Literal["json", "msgpack"]
) -> None:
    model = LogHub(Log.of_text(*PIECES), merge)
    async with (
        ScriptedHub(model.script(cut_after), model.script()) as hub,
        headrace.connect(hub.url, encoding=encoding) as client,
    ):
        generation = client.generate("Why is the sky blue?")
        events = await collect(generation)
        assert "".join(texts(events)) == STORY
        assert [type(event) for event in events if not isinstance(event, Text)] == [Source, Done]
        assert generation.verified is True
        was_cut = len(hub.peers) == 2
        assert generation.reconnects == (1 if was_cut and cut_after > 0 else 0)
    if was_cut:
        first, second = model.requests
        if cut_after == 0:  # nobody knows whether it was accepted: the same request again
            assert (second["type"], second["request"]) == ("generate", first["request"])
        else:
            assert second["type"] == "attach" and second["after"]["mark"] == "m1"


async def test_frames_between_attach_and_its_answer_are_not_shown() -> None:
    log = Log.of_text("a", "b", "c")

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]))
        await peer.send(log.frame(1, 1), log.frame(2, 2), log.frame(4, 4))  # 3 is missing
        again = await peer.expect("attach")
        assert again["after"] == {"offset": 2, "mark": "m1"}
        await peer.send(log.frame(3, 3), log.frame(4, 4))  # of the attachment that was superseded
        await peer.send(attached(again["id"], offset=2), log.frame(3, 3), log.frame(4, 4), log.frame(5, 5))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        assert texts(await collect(generation)) == ["a", "b", "c"]
        assert (generation.verified, generation.reconnects) == (True, 0)


async def test_another_history_empties_what_was_shown() -> None:
    old, new = LogHub(Log.of_text("old ", "words", mark="m1")), LogHub(Log.of_text("new", mark="n1"))
    async with ScriptedHub(old.script(3), new.script()) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        events = await collect(generation)
        restart = events.index(Restarted("history"))
        assert texts(events[:restart]) == ["old "]
        assert (texts(events[restart:]), await generation.text()) == (["new"], "new")
        assert generation.cursor == Cursor(3, "n1")


async def test_an_unsolicited_attached_is_obeyed() -> None:
    new = Log.of_text("new", mark="n1")

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]))
        await peer.send(delta(1, "old"), delta(2, " words"))
        await peer.send(attached(None, resumed=False, mark="n1"))
        await peer.send(*(new.frame(offset, offset) for offset in (1, 2, 3)))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        assert (await generation.text(), generation.verified) == ("new", True)


async def test_reset_voids_the_text_and_the_digest_covers_what_follows() -> None:
    log = Log("g_1", first_mark="m1")
    for kind, data in (
        ("text", {"text": "wrong"}),
        ("notice", {"code": "worker_lost"}),
        ("reset", {"reason": "worker_lost"}),
        ("text", {"text": "right"}),
    ):
        log.add(kind, data, "m1" if log.top < 1 else "m2")
    log.finish()
    async with ScriptedHub(LogHub(log).script()) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        events = await collect(generation)
        assert Reset("worker_lost") in events
        assert (generation.text_so_far, generation.verified) == ("right", True)
        assert generation.cursor == Cursor(5, "m2")


async def test_an_app_that_kept_its_cursor_and_text_resumes_and_checks_the_whole() -> None:
    model = LogHub(Log.of_text(*PIECES))
    async with ScriptedHub(model.script(5), model.script()) as hub:
        async with headrace.connect(hub.url) as client:
            generation = client.generate("x")
            async for _ in generation:
                if generation.cursor and generation.cursor.offset == 4:
                    break
            stream, cursor, text = await generation.accepted(), generation.cursor, generation.text_so_far
        async with headrace.connect(hub.url) as client:
            again = client.attach(stream, after=cursor, text=text)
            assert again.text_so_far == "Because blue light"
            assert (await again.text(), again.verified) == (STORY, True)


async def test_a_viewer_without_the_text_before_has_no_digest_to_check() -> None:
    model = LogHub(Log.of_text("a", "b", "c"))
    async with ScriptedHub(model.script()) as hub, headrace.connect(hub.url) as client:
        generation = client.attach("g_1", after=Cursor(3, "m1"))
        assert (await generation.text(), generation.verified) == ("c", None)


async def test_attaching_at_now_shows_what_comes_from_here_on() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        asked = await peer.expect("attach")
        assert asked["after"] == "now"
        await peer.send(attached(asked["id"], offset=7, mark="m7"), delta(8, "late"))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.attach("g_1", after="now")
        assert await anext(generation) == Text("late")
        assert generation.cursor == Cursor(8, "m7")


# Digests


def spoilt(log: Log) -> Log:
    bad = Log(log.stream, [*log.entries], [*log.marks], log.first_mark)
    bad.entries[1] = ("text", {"text": "spoilt"})
    return bad


async def test_a_wrong_text_is_read_again_once_from_the_start() -> None:
    good = Log.of_text("one", " two")

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]))
        await peer.send(*(spoilt(good).frame(offset, offset) for offset in range(1, 5)))
        again = await peer.expect("attach")
        assert "after" not in again
        await peer.send(attached(again["id"]), *(good.frame(offset, offset) for offset in range(1, 5)))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        events = await collect(generation)
        restart = events.index(Restarted("digest"))
        assert texts(events[restart:]) == ["one", " two"]
        assert [event for event in events if isinstance(event, Done)] == [events[-1]]
        assert (await generation.text(), generation.verified) == ("one two", True)


async def test_a_text_that_stays_wrong_is_reported() -> None:
    model = LogHub(spoilt(Log.of_text("one", " two")))
    async with ScriptedHub(model.script()) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        with pytest.raises(headrace.DigestMismatch) as caught:
            await generation.text()
        assert (caught.value.text, generation.verified) == ("spoilt two", False)
        assert (await generation.done()).status == "completed"
    assert [frame["type"] for frame in model.requests] == ["generate", "attach"]


async def test_a_text_that_cannot_be_read_again_is_reported_too() -> None:
    bad = spoilt(Log.of_text("one"))

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]))
        await peer.send(*(bad.frame(offset, offset) for offset in range(1, 4)))
        id = (await peer.expect("attach"))["id"]
        await peer.send({"type": "error", "id": id, "code": "not_found", "message": "no", "retry": "no"})
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        with pytest.raises(headrace.DigestMismatch) as caught:
            await client.generate("x").text()
        assert caught.value.text == "spoilt"


# Flow control


async def test_a_slow_reader_is_sent_no_more_than_its_window() -> None:
    model = LogHub(Log.of_text(*("x" * 40)))
    async with ScriptedHub(model.script()) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x", window=8)
        await generation.accepted()
        for taken in range(1, 30):
            await anext(generation)
            assert model.sent <= taken - 1 + 8
        acked = model.acks[-1]["offset"]
        assert acked <= 29
        assert await generation.text() == "x" * 40


async def test_nothing_is_acked_while_nobody_reads() -> None:
    log = Log.of_text(*"abcdefgh")
    was_silent = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"], window=4))
        await peer.send(*(log.frame(offset, offset) for offset in range(1, 5)))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):  # a burst is acked after 0.25 s
                await peer.receive()
        was_silent.set()
        assert (await peer.expect("ack"))["offset"] == 3
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x", window=4)
        await was_silent.wait()
        assert [type(await anext(generation)) for _ in range(3)] == [Source, Text, Text]


# What is not content


async def test_unknown_entries_frames_and_states_are_passed_over_and_acked() -> None:
    log = Log("g_1")
    log.add("hologram", {"size": 3})
    log.add("text", {"text": "a"})
    log.finish()

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"], window=2))
        await peer.send({"type": "weather", "stream": "g_1"}, {"type": "status", "stream": "g_1", "state": "dreaming"})
        await peer.send(log.frame(1, 1))
        assert await peer.expect("ack") == {"type": "ack", "stream": "g_1", "offset": 1}
        await peer.send(log.frame(2, 2), log.frame(3, 3))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x", window=2)
        assert await anext(generation) == Entry("hologram", {"size": 3})
        assert await generation.text() == "a"


async def test_of_unread_statuses_only_the_newest_is_kept() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]))
        for position in (3, 2, 1):
            await peer.send({"type": "status", "stream": "g_1", "state": "queued", "position": position})
        await peer.send({"type": "status", "state": "degraded"}, delta(1, "a"))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        seen = [await anext(generation)]
        while not isinstance(seen[-1], Text):
            seen.append(await anext(generation))
        assert seen[-2] == Status("degraded")
        assert generation.status == "degraded"


async def test_tools_reasoning_and_citations_are_folded() -> None:
    log = Log("g_1")
    for kind, data in (
        ("queued", {"model": "m", "tier": "fast"}),
        ("started", {"attempt": 1}),
        ("reasoning", {"text": "hm"}),
        ("tool_call", {"call": "t1", "name": "search"}),
        ("tool_ready", {"call": "t1", "input": {"q": "sky"}}),
        ("tool_result", {"call": "t1", "output": "blue"}),
        ("citation", {"url": "https://example.org"}),
        ("usage", {"input_tokens": 1, "output_tokens": 2, "estimated": True}),
        ("text", {"text": "Blue."}),
    ):
        log.add(kind, data)
    log.finish()
    async with ScriptedHub(LogHub(log).script()) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        assert await generation.text() == "Blue."
        fold = generation.fold
        assert (fold.reasoning, fold.tools["t1"].output, fold.citations) == (
            "hm",
            "blue",
            [{"url": "https://example.org"}],
        )
        assert generation.usage == Usage(1, 2, estimated=True)


# Two readers


async def test_text_waits_for_a_task_that_iterates_and_takes_nothing_from_it() -> None:
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        log = Log.of_text("a", "b")
        await peer.welcome()
        await peer.send(accepted((await peer.expect("generate"))["id"]))
        await peer.send(log.frame(1, 1))
        await release.wait()
        await peer.send(*(log.frame(offset, offset) for offset in (2, 3, 4)))
        await peer.until_closed()

    async with ScriptedHub(script) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        started = asyncio.Event()
        seen: list[Event] = []

        async def read() -> None:
            async for event in generation:
                seen.append(event)
                started.set()

        reading = asyncio.create_task(read())
        await started.wait()
        whole = asyncio.create_task(generation.text())
        release.set()
        assert await whole == "ab"
        await reading
        assert texts(seen) == ["a", "b"]


async def test_text_goes_on_where_an_iteration_was_left() -> None:
    model = LogHub(Log.of_text("a", "b", "c"))
    async with ScriptedHub(model.script()) as hub, headrace.connect(hub.url) as client:
        generation = client.generate("x")
        async for event in generation:
            if isinstance(event, Text):
                break
        assert await generation.text() == "abc"
