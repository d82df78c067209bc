"""Tails brought in line with their logs: what is missing is read, and a viewer is put back only if it must be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from hub import reconcile
from hub import relay as relay_module
from hub.broker.keys import StreamKey
from hub.reconcile import Reconciler
from hub.tail import ENTRY_BYTES, TAIL_BYTES
from tests.hub.scene import Scene


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene([])
    yield scene
    await scene.end()


def restarts(scene: Scene, number: int) -> list[dict[str, Any]]:
    """What a viewer was pushed of its own accord, not asked for."""
    return [frame for frame in scene.viewers[number].told if frame["type"] == "attached" and "id" not in frame]


async def watched(scene: Scene, entries: int) -> None:
    """One live viewer, and a log of so many entries of text."""
    scene.attach(0, None, None)
    await scene.settle()
    scene.log.append(entries)
    scene.deliver(3, scene.log.top)
    scene.relayed = scene.log.top


async def ahead(scene: Scene, behind: int = 3) -> None:
    """A second viewer comes from another hub, which had relayed more than this one's tail has."""
    await watched(scene, 4)
    scene.log.attempt("m2")
    scene.log.append(behind)
    scene.attach(1, None, scene.log.top)
    await scene.settle()
    assert scene.viewers[1].is_attached and scene.viewers[1].offset > scene.tail.top


async def test_a_viewer_ahead_of_its_hub_goes_on_when_the_hub_has_caught_up(scene: Scene) -> None:
    await ahead(scene)
    assert scene.viewers[1].lives == 0, "its replay has not ended while its hub has less than it has"
    scene.log.append(2)
    scene.deliver(7, scene.log.top)
    await scene.come_to_rest()
    scene.check()
    assert scene.viewers[1].lives == 1
    assert restarts(scene, 1) == []


async def test_a_viewer_ahead_keeps_its_place_when_the_tail_begins_again(scene: Scene) -> None:
    """Its mark is the one that it came with; what the tail's own runs say there is another attempt."""
    await ahead(scene)
    scene.tail.runs.add(5, "forked")  # this hub followed an attempt that Redis lost
    await scene.relay.repair(scene.tail)
    await scene.settle()
    assert [frame["resumed"] for frame in restarts(scene, 0)] == [False]
    assert [frame["resumed"] for frame in restarts(scene, 1)] == [True]
    await scene.come_to_rest()
    scene.check()


async def test_a_viewer_ahead_is_put_back_when_the_place_it_had_was_lost(scene: Scene) -> None:
    """The tail's own part of the log is unchanged: only this viewer saw what is gone."""
    await ahead(scene)
    scene.log.lose(scene.log.top - 2, "m3")
    await scene.relay.repair(scene.tail)
    await scene.come_to_rest()
    assert restarts(scene, 0) == []
    assert [frame["resumed"] for frame in restarts(scene, 1)] == [False]
    scene.check()


async def test_a_viewer_ahead_is_put_back_when_parts_of_another_history_reach_its_place(scene: Scene) -> None:
    await ahead(scene)
    seen = scene.log.top
    scene.log.lose(seen - 2, "m3")
    scene.log.append(4)
    scene.deliver(scene.tail.top + 1, seen)
    scene.deliver(seen + 1, scene.log.top)
    await scene.come_to_rest()
    assert [frame["resumed"] for frame in restarts(scene, 1)] == [False]
    scene.check()


async def lost_end(scene: Scene, count: int) -> list[Any]:
    """Redis forgets the newest entries, of a run whose owner lives; they are returned."""
    await watched(scene, 4)
    scene.log.append(6)
    scene.deliver(scene.tail.top + 1, scene.log.top)
    await scene.settle()
    lost = scene.log.entries[-count:]
    del scene.log.entries[-count:]
    await scene.relay.repair(scene.tail)
    await scene.settle()
    return lost


async def test_an_end_that_its_owner_appends_again_disturbs_nobody(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "APPENDED_AGAIN_S", 0.02)
    lost = await lost_end(scene, 3)
    assert scene.tail.is_short
    scene.log.entries += lost
    scene.log.append(2)
    while scene.tail.is_short:
        await scene.settle()
    await scene.come_to_rest()
    assert restarts(scene, 0) == []
    scene.check()


async def test_an_end_that_stays_lost_is_told_at_the_second_look(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "APPENDED_AGAIN_S", 0.02)
    await lost_end(scene, 3)
    assert restarts(scene, 0) == []
    while scene.tail.is_short:
        await scene.settle()
    await scene.come_to_rest()
    assert [frame["resumed"] for frame in restarts(scene, 0)] == [False]
    scene.check()


async def test_a_long_gap_is_read_on_in_pages_and_nobody_begins_again(scene: Scene) -> None:
    await watched(scene, 4)
    scene.log.append(5000)
    held: list[int] = []
    read = scene.log.read

    async def watch_held(key: Any, first: int, count: int) -> Any:
        held.append(scene.relay._held.bytes)
        return await read(key, first, count)

    scene.log.read = watch_held  # type: ignore[method-assign]
    await scene.relay.repair(scene.tail)
    await scene.come_to_rest()
    scene.check()
    assert restarts(scene, 0) == []
    assert max(scene.log.asked) <= 512
    assert max(held) <= TAIL_BYTES + 512 * (ENTRY_BYTES + 32), "a page is let go before the next but one"


async def test_a_log_that_loses_its_end_while_it_is_read_begins_again_from_what_is_left(scene: Scene) -> None:
    await watched(scene, 4)
    scene.log.append(1500)
    read = scene.log.read

    async def lose_first(key: Any, first: int, count: int) -> Any:
        if first > 512:
            scene.log.read = read  # type: ignore[method-assign]
            scene.log.lose(200, "m2")
        return await read(key, first, count)

    scene.log.read = lose_first  # type: ignore[method-assign]
    await scene.relay.repair(scene.tail)
    await scene.come_to_rest()
    assert [frame["resumed"] for frame in restarts(scene, 0)] == [False]
    scene.check()


async def test_a_viewer_far_behind_is_never_sent_past_a_window_that_shrank_while_its_log_was_read(scene: Scene) -> None:
    await watched(scene, 600)
    forgotten(scene)
    scene.attach(1, 3, None)
    await scene.settle()
    viewer = scene.viewers[1]
    assert viewer.offset == 3
    read = scene.log.read

    async def shrink(key: Any, first: int, count: int) -> Any:
        page = await read(key, first, count)
        viewer.say(type="ack", offset=3, window=1)
        viewer.limit = 4
        return page

    scene.log.read = shrink  # type: ignore[method-assign]
    viewer.ack(3)
    await scene.settle()
    assert viewer.offset == 4


def forgotten(scene: Scene) -> None:
    """The stream is longer than what a hub holds of one."""
    scene.tail._let_go(len(scene.tail.entries))
    scene.tail.is_long = True


async def test_viewers_at_the_same_place_of_a_long_log_share_their_reads(scene: Scene) -> None:
    await watched(scene, 600)
    forgotten(scene)
    for number in range(1, 5):
        scene.attach(number, None, None)
    await scene.come_to_rest()
    scene.check()
    assert scene.log.asked == [2, 512, 90], "the first viewer's two entries, and two pages for the others"


async def test_a_paced_viewer_far_behind_reads_its_log_only_when_its_time_has_come(scene: Scene) -> None:
    await watched(scene, 1200)
    forgotten(scene)
    scene.attach(1, None, None)
    viewer = scene.viewers[1]
    viewer.asked += 1
    viewer.say(type="attach", id=viewer.asked, window=None, pace_ms=5000)
    await scene.settle()
    assert 2 < viewer.offset < scene.log.top, "the entries at its beginning and one delta"
    assert len(scene.log.asked) <= 4
    viewer.endpoint.closed()


async def test_a_finished_stream_without_a_log_is_gone_and_no_empty_answer(scene: Scene) -> None:
    await watched(scene, 4)
    scene.log.is_done = True
    scene.log.entries.clear()
    await scene.relay.repair(scene.tail)
    scene.attach(1, None, None)
    await scene.settle()
    for viewer in scene.viewers:
        assert viewer.told[-1]["code"] == "gone"
    assert scene.relay.tails == {}


class Interest:
    """Where hubs leave their interest, as far as leaving goes: it fails as often as it is told to."""

    def __init__(self, scene: Scene, failures: int) -> None:
        self.left: list[tuple[StreamKey, str]] = []
        self._failures = failures
        scene.log.leave = self.leave  # type: ignore[attr-defined]

    async def leave(self, key: StreamKey, mailbox: str) -> None:
        if self._failures:
            self._failures -= 1
            raise ConnectionError
        self.left.append((key, mailbox))


async def test_a_leave_that_was_lost_is_repeated_under_the_name_that_it_was_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "LINGER_S", 0.0)
    await watched(scene, 4)
    interest = Interest(scene, failures=1)
    scene.viewers[0].endpoint.closed()
    key = scene.tail.key
    reconciler = Reconciler(scene.relay)
    with pytest.raises(ConnectionError):
        await reconciler._withdraw(scene.node.now() + 60)
    scene.relay.mailbox = "h2"  # Redis came back, and the mailbox with it under another name
    await reconciler._withdraw(scene.node.now() + 60)
    assert interest.left == [(key, "h1")]
    assert scene.relay.strays == set()


async def test_interest_in_a_stream_that_is_watched_again_is_withdrawn_only_under_a_former_name(scene: Scene) -> None:
    await watched(scene, 4)
    interest = Interest(scene, failures=0)
    key = scene.tail.key
    scene.relay.strays = {(key, "h0"), (key, "h1")}
    await Reconciler(scene.relay)._withdraw(scene.node.now())
    assert interest.left == [(key, "h0")]
    assert scene.relay.strays == set()
