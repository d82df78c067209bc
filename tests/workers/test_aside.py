"""Code that is not ours, aside: what it may do to itself, and what it cannot do to others."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from tests.installation import eventually
from workers import aside
from workers.aside import Aside, Blocked, Quit


@pytest.fixture
async def side() -> AsyncIterator[Aside]:
    made = Aside("test", blocked_s=1.0)
    yield made
    await made.close()


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aside-test"]


class Waits:
    """Code that does nothing until it is cancelled."""

    def __init__(self) -> None:
        self.began, self.ended = threading.Event(), threading.Event()

    async def forever(self) -> None:
        self.began.set()
        try:
            await asyncio.sleep(3600)
        finally:
            self.ended.set()


async def _double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def test_a_result_comes_back_from_another_thread(side: Aside) -> None:
    async def here() -> int:
        return threading.get_ident()

    assert await side.call(_double, 21) == 42
    assert await side.call(here) != threading.get_ident()
    assert await side.call(here) == await side.call(here)


async def test_an_exception_comes_through_as_it_is(side: Aside) -> None:
    async def fail() -> None:
        raise KeyError("no such city")

    with pytest.raises(KeyError, match="no such city"):
        await side.call(fail)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
async def test_what_would_end_a_process_ends_one_call(side: Aside, error: type[BaseException]) -> None:
    async def fail() -> None:
        raise error

    with pytest.raises(Quit, match=error.__name__):
        await side.call(fail)
    assert await side.call(_double, 1) == 2


async def test_a_task_of_the_code_that_exits_leaves_the_thread_running(side: Aside) -> None:
    async def spawn() -> None:
        async def leave() -> None:
            sys.exit(3)

        with pytest.raises(SystemExit):
            await asyncio.create_task(leave())

    await side.call(spawn)
    assert await side.call(_double, 1) == 2


async def test_cancelling_the_caller_cancels_the_code(side: Aside) -> None:
    waits = Waits()
    task = asyncio.create_task(side.call(waits.forever))
    await eventually(waits.began.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waits.ended.is_set()


async def test_a_caller_waits_no_longer_than_a_second_for_code_that_swallows_its_cancel(side: Aside) -> None:
    began, may_end = threading.Event(), threading.Event()

    async def stay() -> None:
        began.set()
        while not may_end.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(side.call(stay))
    await eventually(began.is_set)
    since = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 0.9 < time.monotonic() - since < 3
    assert await side.call(_double, 1) == 2
    may_end.set()


async def test_a_blocked_thread_is_given_up_and_another_takes_over(side: Aside) -> None:
    may_go_on, blocks = threading.Event(), threading.Event()

    async def block() -> None:
        blocks.set()
        may_go_on.wait(600)

    async def wait() -> None:
        await asyncio.sleep(3600)

    innocent = asyncio.create_task(side.call(wait))
    with pytest.raises(Blocked) as caught:
        await side.call(block)
    assert caught.value.is_own and caught.value.by.endswith("block")
    with pytest.raises(Blocked) as other:
        await innocent
    assert not other.value.is_own and other.value.by == caught.value.by
    assert await side.call(_double, 1) == 2
    assert len(_threads()) == 2
    may_go_on.set()
    await eventually(lambda: len(_threads()) == 1)


async def test_this_loop_turns_while_that_one_is_blocked(side: Aside) -> None:
    may_go_on = threading.Event()

    async def block() -> None:
        may_go_on.wait(600)

    blocked = asyncio.create_task(side.call(block))
    turns = 0
    while not blocked.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 5
    assert isinstance(blocked.exception(), Blocked)
    may_go_on.set()


async def test_a_loop_in_python_is_ended_and_does_not_spin_on(side: Aside) -> None:
    async def spin() -> None:
        while True:
            pass

    with pytest.raises(Blocked):
        await side.call(spin)
    await eventually(lambda: not _threads())


async def test_code_that_is_slow_but_awaits_is_not_given_up(side: Aside) -> None:
    async def work() -> str:
        for _ in range(20):
            time.sleep(0.05)  # noqa: ASYNC251
            await asyncio.sleep(0)
        return "done"

    assert await side.call(work) == "done"


async def test_values_come_in_order_and_then_the_end(side: Aside) -> None:
    async def count() -> AsyncIterator[int]:
        for number in range(1000):
            yield number
            if number % 7 == 0:
                await asyncio.sleep(0)

    got = [number async for numbers in side.iterate(count, 16) for number in numbers]
    assert got == list(range(1000))


async def test_values_before_an_exception_are_seen(side: Aside) -> None:
    async def count() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise ValueError("enough")

    got: list[int] = []
    with pytest.raises(ValueError, match="enough"):
        async for numbers in side.iterate(count, 16):
            got += numbers
    assert got == [1, 2]


async def test_an_iterator_is_not_asked_for_more_than_the_bound_holds(side: Aside) -> None:
    made = 0

    async def count() -> AsyncIterator[int]:
        nonlocal made
        while True:
            made += 1
            yield made

    async with aclosing(side.iterate(count, 8)) as numbers:
        taken = len(await anext(numbers))
        await eventually(lambda: made == taken + 8)
        await side.call(_double, 1)  # the loop there turned, and nothing was made
        assert made == taken + 8
        assert len(await anext(numbers)) == 8
        await eventually(lambda: made == taken + 16)


async def test_an_iterator_that_never_waits_lets_others_have_their_turn(side: Aside) -> None:
    taken, is_over = 0, False

    async def never_waits() -> AsyncIterator[int]:
        made = 0
        while not is_over:
            made += 1
            yield made
            while taken < made and not is_over:  # there is always room, so that it is never made to wait
                time.sleep(0.0005)  # noqa: ASYNC251

    async with aclosing(side.iterate(never_waits, 4)) as bursts:
        task = asyncio.create_task(side.call(_double, 1))
        async for numbers in bursts:
            taken = numbers[-1]
            if task.done():
                break
        is_over = True
    assert task.result() == 2


async def test_closing_closes_the_iterator_there(side: Aside) -> None:
    ended = threading.Event()

    async def wait() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            ended.set()

    numbers = side.iterate(wait, 8)
    assert await anext(numbers) == [1]
    await numbers.aclose()
    assert ended.is_set()


async def test_closing_an_iterator_that_waits_for_room_closes_it_too(side: Aside) -> None:
    ended = threading.Event()

    async def flood() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.set()

    numbers = side.iterate(flood, 8)
    await anext(numbers)
    await numbers.aclose()
    assert ended.is_set()


async def test_an_iterator_that_goes_on_after_it_was_closed_hurts_nobody(side: Aside) -> None:
    class Insists:
        """What a generator that yields after GeneratorExit does, without what Python prints when it is collected."""

        def __init__(self) -> None:
            self.made = 0

        def __aiter__(self) -> Insists:
            return self

        async def __anext__(self) -> int:
            self.made += 1
            if self.made > 1:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(3600)
            return self.made

        async def aclose(self) -> None:
            raise RuntimeError("async generator ignored GeneratorExit")

    insists = Insists()
    numbers = side.iterate(lambda: insists, 8)
    assert await anext(numbers) == [1]
    await eventually(lambda: insists.made == 2)
    since = time.monotonic()
    await numbers.aclose()
    assert time.monotonic() - since < 3
    assert insists.made == 2
    assert await side.call(_double, 1) == 2


async def test_closing_leaves_no_thread(side: Aside) -> None:
    waits = Waits()
    task = asyncio.create_task(side.call(waits.forever))
    await eventually(waits.began.is_set)
    [thread] = _threads()
    await side.close()
    assert waits.ended.is_set() and not thread.is_alive()
    with pytest.raises(Quit):
        await task
    with pytest.raises(RuntimeError, match="closed"):
        await side.call(_double, 1)


async def test_closing_does_not_wait_for_a_blocked_thread() -> None:
    side, blocks, may_go_on = Aside("test", blocked_s=30), threading.Event(), threading.Event()

    async def block() -> None:
        blocks.set()
        may_go_on.wait(600)

    task = asyncio.create_task(side.call(block))
    await eventually(blocks.is_set)
    since = time.monotonic()
    await side.close()
    assert time.monotonic() - since < 5
    may_go_on.set()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: not _threads())


async def test_a_thread_full_of_code_that_does_not_end_is_left_for_a_new_one(
    side: Aside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "LEFTOVERS", 2)
    may_end, began = threading.Event(), [0]

    async def stay() -> None:
        began[0] += 1
        while not may_end.is_set():
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                continue

    tasks = [asyncio.create_task(side.call(stay)) for _ in range(2)]
    await eventually(lambda: began[0] == 2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    [first] = _threads()

    async def here() -> Any:
        return threading.current_thread()

    assert await side.call(here) is not first
    await eventually(lambda: not first.is_alive())
    may_end.set()


async def test_with_too_many_blocked_threads_nothing_is_called(side: Aside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "THREADS", 0)
    may_go_on = threading.Event()

    async def block() -> None:
        may_go_on.wait(600)

    with pytest.raises(Blocked):
        await side.call(block)
    with pytest.raises(Blocked, match="something"):
        await side.call(_double, 1)
    may_go_on.set()
    await eventually(lambda: not _threads())
    assert await side.call(_double, 1) == 2


def test_a_logged_traceback_holds_no_text_of_the_exception() -> None:
    try:
        raise ValueError("the prompt of a person".upper())
    except ValueError as error:
        told = aside.where(error)
    assert "THE PROMPT" not in told
    assert "ValueError" in told and "test_aside.py" in told
