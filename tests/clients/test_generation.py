"""One generation as its application sees it: events, times, the end, whatever the order (docs/protocol.md §5)."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

import headrace
from tests.clients.core_driver import accepted, attached, delta
from tests.clients.model_hub import Frame, Log
from tests.clients.shell import Shell


class Scene:
    """One client and what it asked for: g_1, accepted on an open connection."""

    def __init__(self, **options: Any) -> None:
        self.shell = Shell(headrace.connect("ws://model"))
        self.shell.open()
        self.generation = self.shell.client.generate("?", **options)
        self.asked = self.shell.sent()[-1]

    def accept(self, **changes: Any) -> Scene:
        self.shell.receive(accepted(self.asked["id"], **changes))
        return self

    def receive(self, *frames: Frame) -> None:
        self.shell.receive(*frames)

    async def said(self) -> Frame:
        """What the client says next, once its tasks had their turns."""
        for _ in range(100):
            if frames := self.shell.sent():
                return frames[-1]
            await asyncio.sleep(0)
        raise AssertionError("the client says nothing")


def frames_of(log: Log) -> list[Frame]:
    return [log.frame(offset, offset) for offset in range(1, log.top + 1)]


def entry(offset: int, kind: str, **data: Any) -> Frame:
    return {"type": "entry", "stream": "g_1", "offset": offset, "kind": kind, "data": data}


async def test_before_the_hub_answers_there_is_no_stream_and_afterwards_there_is() -> None:
    scene = Scene()
    generation = scene.generation
    assert repr(generation) == "<Generation None waiting offset=0 unread=0>"
    waiting = asyncio.create_task(generation.accepted())
    await asyncio.sleep(0)
    scene.accept()
    assert await waiting == await generation.accepted() == "g_1"
    assert repr(generation) == "<Generation g_1 queued offset=0 unread=0>"


async def test_a_refusal_is_raised_wherever_it_is_waited_for() -> None:
    scene = Scene()
    error = {"type": "error", "code": "unknown_model", "message": "no", "retry": "no"}
    scene.receive(error | {"id": scene.asked["id"]})
    for wait in (scene.generation.accepted, scene.generation.done, scene.generation.text, scene.generation.__anext__):
        with pytest.raises(headrace.RequestRejected, match="unknown_model"):
            await wait()


async def test_times_and_speed_are_counted_from_the_request_to_the_content() -> None:
    scene = Scene().accept()
    generation = scene.generation
    assert generation.tokens_per_second is None
    scene.shell.time = 1.5
    scene.receive(entry(1, "source", provider="p", model="m", mode="live"), delta(2, "a"))
    scene.shell.time = 3.5
    scene.receive(delta(3, "b"), entry(4, "usage", output_tokens=8))
    for _ in range(4):
        await anext(generation)
    assert (generation.ttft, generation.tokens_per_second) == (1.5, 4.0)
    assert generation.source is not None and generation.source.provider == "p"


async def test_content_at_one_moment_has_no_speed() -> None:
    scene = Scene().accept()
    scene.receive(delta(1, "a"), entry(2, "usage", output_tokens=8))
    await anext(scene.generation)
    await anext(scene.generation)
    assert scene.generation.tokens_per_second is None


async def test_of_a_stream_attached_to_later_the_hub_tells_the_time() -> None:
    scene = Scene()
    generation = scene.shell.client.attach("g_2")
    scene.receive(attached(scene.shell.sent()[-1]["id"], stream="g_2"))
    log = Log.of_text("a", stream="g_2")
    log.entries[-1][1]["ttft_ms"] = 250
    scene.receive(*frames_of(log))
    assert await generation.text() == "a"
    assert generation.ttft == 0.25


@pytest.mark.parametrize(
    ("status", "error"), [("cancelled", headrace.GenerationCancelled), ("failed", headrace.GenerationFailed)]
)
async def test_a_bad_end_is_an_event_to_who_iterates_and_an_error_to_who_wants_text(
    status: str, error: type[headrace.GenerationFailed]
) -> None:
    scene = Scene().accept()
    log = Log()
    log.add("text", {"text": "half"})
    log.finish(status)
    scene.receive(*frames_of(log))
    events = [event async for event in scene.generation]
    assert isinstance(events[-1], headrace.Done) and events[-1].status == scene.generation.status == status
    with pytest.raises(error) as raised:
        await scene.generation.text()
    assert raised.value.text == "half"


async def test_a_retry_asks_the_same_with_the_token_of_the_failure() -> None:
    scene = Scene(model="fast", system="Be brief.").accept()
    with pytest.raises(headrace.InvalidRequest, match="nothing to retry: this generation is queued"):
        scene.generation.retry()
    failed = {"code": "provider_error", "message": "it broke", "retry": "backoff"}
    done = {"status": "failed", "stop_reason": "error", "error": failed, "retry_token": "q8"}
    scene.receive(entry(1, "done", **done, text_bytes=0, text_sha256=sha256("")))
    await scene.generation.done()
    again = scene.generation.retry(model="premium")
    asked = await scene.said()
    assert again is not scene.generation and asked["retry_of"] == {"stream": "g_1", "retry_token": "q8"}
    assert (asked["model"], asked["system"]) == ("premium", "Be brief.")
    assert asked["messages"] == scene.asked["messages"] and asked["request"] != scene.asked["request"]


async def test_what_somebody_else_asked_cannot_be_asked_again() -> None:
    shell = Shell(headrace.connect("ws://model"))
    shell.open()
    generation = shell.client.attach("g_1")
    shell.receive(attached(shell.sent()[-1]["id"]))
    failed = {"code": "provider_error", "message": "it broke", "retry": "backoff"}
    done = {"status": "failed", "stop_reason": "error", "error": failed, "retry_token": "q8"}
    shell.receive(entry(1, "done", **done, text_bytes=0, text_sha256=sha256("")))
    await generation.done()
    with pytest.raises(headrace.InvalidRequest, match="is not known here"):
        generation.retry()


async def test_an_end_that_cannot_be_read_is_no_end_to_wait_for() -> None:
    scene = Scene().accept()
    scene.receive(delta(1, "a"), entry(2, "done", status="later"))
    assert isinstance(await anext(scene.generation), headrace.Text)
    with pytest.raises(headrace.ProtocolViolation, match="cannot be read"):
        await scene.generation.done()


async def test_a_wrong_text_is_read_once_more_and_then_reported() -> None:
    scene = Scene().accept()
    wrong = frames_of(Log.of_text("abc"))
    wrong[1]["text"] = "abX"
    scene.receive(*wrong)
    shown: list[headrace.Event] = []

    async def show() -> None:
        async for event in scene.generation:
            shown.append(event)

    showing = asyncio.create_task(show())
    again = await scene.said()
    assert again["type"] == "attach" and "after" not in again
    scene.receive(attached(again["id"]), *wrong)
    await showing
    assert [event for event in shown if isinstance(event, headrace.Restarted)] == [headrace.Restarted("digest")]
    with pytest.raises(headrace.DigestMismatch):
        await scene.generation.text()
    assert scene.generation.verified is False


async def test_a_wrong_text_that_cannot_be_read_again_is_reported_with_the_reason() -> None:
    scene = Scene().accept()
    wrong = frames_of(Log.of_text("abc"))
    wrong[1]["text"] = "abX"
    scene.receive(*wrong)
    waiting = asyncio.create_task(scene.generation.text())
    again = await scene.said()
    error = {"type": "error", "id": again["id"], "code": "not_found", "message": "", "retry": "no"}
    scene.receive(error)
    with pytest.raises(headrace.DigestMismatch) as raised:
        await waiting
    assert isinstance(raised.value.__cause__, headrace.NotFound)


async def test_of_statuses_the_newest_unread_is_kept_and_unknown_ones_are_passed_over() -> None:
    scene = Scene().accept()
    for state in ("queued", "later", "stalled"):
        scene.receive({"type": "status", "stream": "g_1", "state": state})
    scene.receive({"type": "live", "stream": "g_1"}, delta(1, "a"))
    events = [await anext(scene.generation) for _ in range(3)]
    assert events == [headrace.Status("stalled"), headrace.Live(), headrace.Text("a")]


async def test_a_second_reader_waits_and_takes_nothing_away() -> None:
    scene = Scene().accept()
    seen: list[headrace.Event] = []

    async def read() -> None:
        async for event in scene.generation:
            seen.append(event)

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(scene.generation.text())
    await asyncio.sleep(0)
    scene.receive(*frames_of(Log.of_text("a", "b")))
    assert await waiting == "ab"
    await reading
    assert len(seen) == 4


async def test_a_reader_that_gave_up_is_followed_by_who_waits() -> None:
    scene = Scene().accept()
    reading = asyncio.ensure_future(scene.generation.__anext__())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(scene.generation.done())
    await asyncio.sleep(0)
    reading.cancel()
    scene.receive(*frames_of(Log.of_text("a")))
    assert (await waiting).status == "completed"


async def test_what_was_only_started_has_a_stream_and_no_end() -> None:
    scene = Scene(attach=False).accept()
    assert await scene.generation.accepted() == "g_1"
    with pytest.raises(headrace.GenerationClosed, match="without watching"):
        await scene.generation.done()


async def test_leaving_lets_go_of_what_is_unread_and_twice_is_once() -> None:
    async with Scene().accept().generation as generation:
        pass
    await generation.aclose()
    with pytest.raises(headrace.GenerationClosed):
        await generation.text()


async def test_leaving_before_the_answer_says_so_to_who_waits_for_it() -> None:
    scene = Scene()
    await scene.generation.aclose()
    with pytest.raises(headrace.GenerationClosed):
        await scene.generation.accepted()


async def test_going_to_the_background_waits_for_the_hub_also_when_all_is_said() -> None:
    scene = Scene().accept()
    scene.receive(*frames_of(Log.of_text("a")))
    leaving = asyncio.create_task(scene.generation.detach("continue"))
    detach = await scene.said()
    assert (detach["type"], detach["on_abandon"]) == ("detach", "continue")
    scene.receive({"type": "ok", "id": detach["id"]})
    await leaving


async def test_leaving_what_arrived_whole_tells_nobody_and_it_can_still_be_read() -> None:
    scene = Scene().accept()
    scene.receive(*frames_of(Log.of_text("a")))
    await scene.generation.detach()
    assert "detach" not in [frame["type"] for frame in scene.shell.sent()]
    assert await scene.generation.text() == "a"


async def test_what_arrived_whole_can_still_be_read_after_going_to_the_background() -> None:
    scene = Scene().accept()
    scene.receive(*frames_of(Log.of_text("a")))
    leaving = asyncio.create_task(scene.generation.detach("continue"))
    scene.receive({"type": "ok", "id": (await scene.said())["id"]})
    await leaving
    assert isinstance([event async for event in scene.generation][-1], headrace.Done)
    assert await scene.generation.text() == "a"


async def test_a_cancel_is_durable_when_it_returns() -> None:
    scene = Scene().accept()
    cancelling = asyncio.create_task(scene.generation.cancel())
    cancel = await scene.said()
    assert cancel["type"] == "cancel" and not cancelling.done()
    scene.receive({"type": "ok", "id": cancel["id"]})
    await cancelling


async def test_another_history_empties_the_queue_and_says_so_first() -> None:
    scene = Scene().accept()
    scene.receive(delta(1, "a"), delta(2, "b"))
    await anext(scene.generation)
    scene.receive(attached(None, resumed=False, mark="n1"), delta(1, "A"))
    events = [await anext(scene.generation) for _ in range(2)]
    assert events == [headrace.Restarted("history"), headrace.Text("A")], "and not the unread `b`"
    assert scene.generation.text_so_far == scene.generation.fold.text == "A"


async def test_a_resume_says_nothing_to_the_application_but_counts() -> None:
    scene = Scene().accept()
    scene.receive(delta(1, "a"))
    scene.shell.core.closed()
    scene.shell.open()
    again = scene.shell.sent()[-1]
    scene.receive(attached(again["id"], offset=1), delta(2, "b"))
    assert [await anext(scene.generation) for _ in range(2)] == [headrace.Text("a"), headrace.Text("b")]
    assert scene.generation.reconnects == 1


async def test_the_end_of_the_client_ends_what_is_watched_and_what_was_read_stands() -> None:
    scene = Scene().accept()
    scene.receive(delta(1, "a"))
    scene.shell.close(headrace.ConnectionFailed("over"))
    assert await anext(scene.generation) == headrace.Text("a")
    with pytest.raises(headrace.ConnectionFailed, match="over"):
        await anext(scene.generation)


async def test_the_end_of_the_client_changes_nothing_about_what_arrived_whole() -> None:
    scene = Scene().accept()
    scene.receive(*frames_of(Log.of_text("a")))
    scene.generation._fail(headrace.ConnectionFailed("over"))
    assert await scene.generation.text() == "a"


async def test_calls_are_told_as_turns_once_the_answer_ended_for_their_sake() -> None:
    scene = Scene().accept()
    generation = scene.generation
    scene.receive(
        delta(1, "Hm."),
        entry(2, "tool_call", call="t1", name="look"),
        entry(3, "tool_ready", call="t1", input={"q": 1}),
        entry(4, "done", status="completed", stop_reason="tool_calls", text_bytes=3, text_sha256=sha256("Hm.")),
    )
    for _ in range(3):
        await anext(generation)
    assert [(use.call, use.name, use.input) for use in generation.tool_calls] == [("t1", "look", {"q": 1})]
    assert generation.turns() == [headrace.Message("assistant", "Hm.")]
    await generation.done()
    assert generation.turns() == [headrace.Message("assistant", "Hm.", [headrace.Call("t1", "look", {"q": 1})])]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
