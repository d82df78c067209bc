"""Whatever a tool does becomes a result, and hurts nobody else."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from tests.installation import eventually
from tests.integration import sample_tools
from workers.providers import OUTPUT_BYTES, Stop, ToolCall, ToolReady, ToolResult
from workers.stepping import TOGETHER, results_of
from workers.steps import Steps, Wanted
from workers.tools import Caller, caller, tool
from workers.tools.declared import declared
from workers.tools.described import Tool
from workers.tools.runner import ToolRunner
from workers.tools.threads import THREADS, Ended, Threads
from workers.tools.toolbox import Toolbox

ALICE = Caller("alice", "acme", "g_1")


def toolbox(*functions: Callable[..., Any]) -> Toolbox:
    marks = [declared(function) for function in functions]
    return Toolbox([Tool(mark) for mark in marks if mark is not None])


@pytest.fixture
async def runner(no_task_left: None) -> AsyncIterator[ToolRunner]:
    runner = ToolRunner(Toolbox.load("tests.integration.sample_tools"), 30.0)
    yield runner
    await runner.close()


async def ran(runner: ToolRunner, name: str, **given: Any) -> ToolResult:
    return await runner.run(Wanted("t1", name, given, True), runner.toolbox.names, ALICE)


async def test_a_plain_and_an_async_tool_return_what_they_made(runner: ToolRunner) -> None:
    weather = await ran(runner, "weather", city="Graz")
    assert weather == ToolResult("t1", '{"city":"Graz","sky":"blue","days":1}')
    assert await ran(runner, "add", a=1, b=2) == ToolResult("t1", "3")


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("broken", {}, "the tool failed (ValueError)"),
        ("no_city", {"city": "Atlantis"}, "there is no weather in Atlantis"),
        ("sleepy", {}, "the tool did not answer within 0.2 s"),
        ("sleepy_plain", {}, "the tool did not answer within 0.2 s"),
        ("strange", {}, "the tool returned what JSON cannot hold (object)"),
        ("weather", {}, "wrong arguments: city: Missing required argument"),
        ("add", {"a": 1, "b": "two"}, "wrong arguments: b: Input should be a valid integer"),
    ],
)
async def test_what_goes_wrong_is_told_in_a_few_words(
    runner: ToolRunner, logs: pytest.LogCaptureFixture, name: str, given: dict[str, Any], told: str
) -> None:
    result = await ran(runner, name, **given)
    assert result.error and result.output.startswith(told), result
    assert "Traceback" not in result.output and "hunter2" not in result.output
    assert "hunter2" not in logs.text and "Atlantis" not in logs.text and "two" not in logs.text
    if name in ("broken", "sleepy"):
        assert f"tool='{name}'" in logs.text and (name != "broken" or "sample_tools.py" in logs.text)


async def test_a_tool_that_was_not_offered_is_not_run(runner: ToolRunner) -> None:
    result = await runner.run(Wanted("t1", "broken", {}, True), ["weather", "add"], ALICE)
    assert result == ToolResult("t1", "there is no tool “broken”; there are: add, weather", True)
    assert (await runner.run(Wanted("t1", "made_up", {}, True), ["weather", "made_up"], ALICE)).error


async def test_a_long_output_is_cut_and_says_so(runner: ToolRunner) -> None:
    result = await ran(runner, "long")
    assert result.truncated and not result.error and len(result.output.encode()) == OUTPUT_BYTES


async def test_what_a_tool_raises_to_end_the_process_is_a_failure_too() -> None:
    @tool
    def leave() -> None:
        sys.exit("goodbye")

    @tool
    async def leave_too() -> None:
        raise SystemExit

    @tool
    def interrupted() -> None:
        raise KeyboardInterrupt

    @tool
    def exhausted() -> None:
        raise StopIteration

    @tool
    async def cancelled() -> None:
        raise asyncio.CancelledError

    @tool
    def forgot() -> Any:
        return asyncio.sleep(0)

    @tool(timeout_s=5)
    def late() -> None:
        raise TimeoutError

    runner = ToolRunner(toolbox(leave, leave_too, interrupted, exhausted, cancelled, forgot, late), 30.0)
    outputs = {name: await ran(runner, name) for name in runner.toolbox.names}
    await runner.close()
    assert all(result.error for result in outputs.values())
    assert {name: result.output for name, result in outputs.items()} == {
        "leave": "the tool failed (SystemExit)",
        "leave_too": "the tool failed (SystemExit)",
        "interrupted": "the tool failed (KeyboardInterrupt)",
        "exhausted": "the tool failed (StopIteration)",
        "cancelled": "the tool failed (CancelledError)",
        "forgot": "the tool returned something to be awaited; it must be an `async def` itself",
        "late": "the tool failed (TimeoutError)",
    }


async def test_a_tool_that_blocks_its_loop_disturbs_nobody_here(runner: ToolRunner) -> None:
    blocking = asyncio.create_task(ran(runner, "blocking", seconds=0.6))
    longest, before = 0.0, time.monotonic()
    while not blocking.done():
        await asyncio.sleep(0.005)
        now = time.monotonic()
        longest, before = max(longest, now - before), now
    assert (await blocking).output == "awake"
    assert longest < 0.5, f"this loop stood still for {longest:.2f} s"


async def test_cancelling_ends_an_async_tool_and_leaves_a_plain_one(runner: ToolRunner) -> None:
    sample_tools.EVENTS.clear()
    running = asyncio.create_task(ran(runner, "endless"))
    await eventually(lambda: "endless began" in sample_tools.EVENTS)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled() and sample_tools.EVENTS == ["endless began", "endless ended"]


async def test_a_tool_knows_for_whom_it_runs() -> None:
    @tool
    def plainly() -> str:
        return caller().user

    @tool
    async def in_the_loop() -> str:
        await asyncio.sleep(0)
        return await asyncio.to_thread(lambda: caller().org)

    runner = ToolRunner(toolbox(plainly, in_the_loop), 30.0)
    asked = [(name, user) for name in ("plainly", "in_the_loop") for user in ("alice", "bob")]
    outputs = await asyncio.gather(
        *[runner.run(Wanted("t", name, {}, True), [name], Caller(user, f"org of {user}", "")) for name, user in asked]
    )
    await runner.close()
    assert [result.output for result in outputs] == ["alice", "bob", "org of alice", "org of bob"]
    with pytest.raises(LookupError):
        caller()


# -- several at a time


def steps(*calls: tuple[str, dict[str, Any]]) -> Steps:
    names = sorted({name for name, _ in calls})
    body = Body([Message("user", "?")], tools=[{"name": name} for name in names])
    made = Steps(body, names)
    for number, (name, given) in enumerate(calls):
        made.hear([ToolCall(f"t{number}", name), ToolReady(f"t{number}", given)])
    made.hear([Stop("tool")])
    return made


async def test_calls_of_one_step_run_together_and_are_told_in_order(runner: ToolRunner) -> None:
    sample_tools._together.clear()
    asked = steps(*[("meet", {"number": number, "others": TOGETHER}) for number in range(TOGETHER)])
    outputs = [result.output async for result in results_of(runner, asked, ALICE)]
    assert outputs == [str(number) for number in range(TOGETHER)]


async def test_a_result_is_told_as_soon_as_those_before_it_are(runner: ToolRunner) -> None:
    sample_tools.EVENTS.clear()
    asked = steps(("weather", {"city": "Graz"}), ("endless", {}), ("add", {"a": 1, "b": 1}))
    async with aclosing(results_of(runner, asked, ALICE)) as results:
        assert (await anext(results)).call == "t0"
        await eventually(lambda: "endless began" in sample_tools.EVENTS)
    assert sample_tools.EVENTS[-1] == "endless ended", "closing ends those that run"


async def test_no_more_than_eight_run_at_a_time() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    @tool
    def counted() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    runner = ToolRunner(toolbox(counted), 30.0)
    results = [result async for result in results_of(runner, steps(*[("counted", {})] * 3 * TOGETHER), ALICE)]
    await runner.close()
    assert len(results) == 3 * TOGETHER and not any(result.error for result in results)
    assert 1 < most <= TOGETHER


# -- threads


async def test_a_thread_that_hangs_keeps_its_place_and_others_wait_for_theirs() -> None:
    threads, release = Threads(2), threading.Event()
    hung = [asyncio.create_task(threads.call(release.wait, "hung")) for _ in range(2)]
    waiting = asyncio.create_task(threads.call(lambda: "next", "next"))
    await asyncio.sleep(0)
    hung[0].cancel()
    await asyncio.wait([hung[0]])
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done, "the thread of the one that was cancelled runs still"
    release.set()
    assert await waiting == "next" and await hung[1]
    assert THREADS >= 8


async def test_threads_pass_on_what_is_raised() -> None:
    threads = Threads()

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await threads.call(fail, "fail")
    with pytest.raises(Ended):
        await threads.call(sys.exit, "exit")
