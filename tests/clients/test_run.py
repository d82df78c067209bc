"""A run: the application's functions are called, and the model is asked again with what they return."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import headrace
from headrace import Client, Done, Event, Queued, Text, Tool, ToolResult
from tests.clients.model_hub import Log
from tests.clients.scripted_hub import Frame, Peer, ScriptedHub


def said(*pieces: str, calls: dict[str, tuple[str, Any]] | None = None, stop: str = "", **done: Any) -> Log:
    """A finished answer that may end with calls: id → name, arguments."""
    log = Log()
    log.add("queued", {"model": "standard"})
    for piece in pieces:
        log.add("text", {"text": piece})
    for call, (name, arguments) in (calls or {}).items():
        log.add("tool_call", {"call": call, "name": name})
        log.add("tool_ready", {"call": call, "input": arguments})
    log.finish(**({"stop_reason": stop or ("tool_calls" if calls else "stop")} | done))
    return log


class Model:
    """Answers each new request with the next log; the same request with the same one."""

    def __init__(self, *logs: Log) -> None:
        self.logs = list(logs)
        self.requests: dict[str, Frame] = {}
        self.streams: dict[str, Log] = {}

    async def play(self, peer: Peer) -> None:
        await peer.welcome()
        while True:
            frame = await peer.receive()
            if frame["type"] == "cancel":
                await peer.send({"type": "ok", "id": frame["id"]})
            if frame["type"] != "generate":
                continue
            key = frame["request"]
            if key not in self.requests:
                self.requests[key] = frame
                self.streams[key] = self.logs[len(self.requests) - 1]
                self.streams[key].stream = f"g_{len(self.requests)}"
            log = self.streams[key]
            answer = {"offset": 0, "mark": "m1", "top": log.top, "state": "queued", "window": 256}
            await peer.send({"type": "accepted", "id": frame["id"], "stream": log.stream, **answer})
            for offset in range(1, log.top + 1):
                await peer.send(log.frame(offset, offset))

    @property
    def asked(self) -> list[Frame]:
        return list(self.requests.values())


@asynccontextmanager
async def client_of(model: Model) -> AsyncIterator[Client]:
    async with ScriptedHub(model.play) as hub, headrace.connect(hub.url, "t") as client:
        yield client


def double(number: int) -> int:
    """Twice as much."""
    return 2 * number


async def test_calls_are_run_and_the_model_is_asked_again_with_their_results() -> None:
    model = Model(
        said("Let me see.", calls={"c1": ("double", {"number": 4}), "c2": ("double", {"number": "4"})}),
        said("It is 8."),
    )
    async with client_of(model) as client, client.run("Twice 4?", tools=[double, "search"], model="fast") as run:
        events = [event async for event in run if not isinstance(event, headrace.Live)]
        assert await run.text() == "It is 8."
    first, second = model.asked
    assert first["tools"] == second["tools"] == [Tool(double).declaration(), {"type": "worker", "name": "search"}]
    assert first["model"] == second["model"] == "fast"
    wrong = "ValidationError: Expected `int`, got `str` - at `$.number`"
    assert second["messages"] == [
        {"role": "user", "content": "Twice 4?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "calls": [
                {"call": "c1", "name": "double", "input": {"number": 4}},
                {"call": "c2", "name": "double", "input": {"number": "4"}},
            ],
        },
        {"role": "tool", "content": "8", "call": "c1"},
        {"role": "tool", "content": wrong, "call": "c2", "error": True},
    ]
    assert [event for event in events if isinstance(event, ToolResult)] == [
        ToolResult("c1", "8"), ToolResult("c2", wrong, error=True),
    ]  # fmt: skip
    assert [type(event) for event in events if isinstance(event, Done | Queued | ToolResult)] == [
        Queued, ToolResult, ToolResult, Queued, Done,
    ]  # fmt: skip
    assert "".join(event.text for event in events if isinstance(event, Text)) == "Let me see.It is 8."
    assert [message.role for message in run.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert repr(run) == f"<Run {run.generation!r}>"


async def test_a_repeated_run_asks_nothing_twice_while_its_tools_say_the_same() -> None:
    values = iter([1, 1, 2])

    def sensor() -> int:
        return next(values)

    model = Model(said(calls={"c1": ("sensor", {})}), said("one"), said("two"))
    async with client_of(model) as client:
        texts = [await client.run("?", tools=[sensor], request="r" * 128).text() for _ in range(3)]
    assert texts == ["one", "one", "two"]
    assert len(model.requests) == 3
    assert all(len(key) <= 128 for key in model.requests)


async def test_another_run_shares_no_key() -> None:
    model = Model(*[said(calls={"c1": ("double", {"number": 1})}), said("two")] * 2)
    async with client_of(model) as client:
        for _ in range(2):
            assert await client.run("?", tools=[double]).text() == "two"
    assert len(model.requests) == 4


async def test_calls_of_a_round_run_together_and_a_failing_one_is_told() -> None:
    met = asyncio.Barrier(2)

    async def meet() -> str:
        await asyncio.wait_for(met.wait(), 10)
        return "met"

    def fails() -> None:
        raise LookupError("nothing there")

    model = Model(
        said(calls={"a": ("meet", {}), "b": ("meet", {}), "c": ("fails", {}), "d": ("absent", {})}), said("ok")
    )
    async with client_of(model) as client:
        assert await client.run("?", tools=[meet, fails]).text() == "ok"
    assert [(turn["content"], turn.get("error")) for turn in model.asked[1]["messages"][2:]] == [
        ("met", None),
        ("met", None),
        ("LookupError: nothing there", True),
        ("there is no tool absent; known: meet, fails", True),
    ]


async def test_rounds_are_bounded() -> None:
    again = {"c1": ("double", {"number": 1})}
    model = Model(*[said(f"round {number}", calls=again) for number in range(4)])
    async with client_of(model) as client:
        run = client.run("?", tools=[double], rounds=3)
        with pytest.raises(headrace.RoundsExhausted, match=r"double.*`rounds`") as exhausted:
            await run.text()
        assert (exhausted.value.text, exhausted.value.tools) == ("round 2", ["double"])
        assert [use.call for use in run.generation.tool_calls] == ["c1"]
        assert len(model.requests) == 3


async def test_a_forced_choice_is_for_the_first_round() -> None:
    model = Model(said(calls={"c1": ("double", {"number": 1})}), said("two"))
    async with client_of(model) as client:
        assert await client.run("?", tools=[double], tool_choice="required").text() == "two"
    assert [request.get("tool_choice") for request in model.asked] == ["required", None]


@pytest.mark.parametrize(
    ("log", "error"),
    [
        (said("par", calls={"c1": ("double", {"number": 1})}, stop="length", status="truncated"), None),
        (
            said("par", calls={"c1": ("double", {"number": 1})}, stop="error", status="failed"),
            headrace.GenerationFailed,
        ),
    ],
)
async def test_an_answer_that_did_not_end_for_its_calls_ends_the_run(
    log: Log, error: type[headrace.HeadraceError] | None
) -> None:
    async with client_of(Model(log)) as client:
        run = client.run("?", tools=[double])
        if error is None:
            assert await run.text() == "par"
        else:
            with pytest.raises(error):
                await run.text()
        assert run.messages[1:] == [headrace.Message("assistant", "par")]


async def test_a_refused_round_is_raised_where_the_run_is_read() -> None:
    async def play(peer: Peer) -> None:
        await peer.welcome()
        frame = await peer.receive()
        refusal = {"type": "error", "id": frame["id"], "code": "unknown_model", "message": "no", "retry": "no"}
        await peer.send(refusal)
        await peer.receive()

    async with ScriptedHub(play) as hub, headrace.connect(hub.url, "t") as client:
        with pytest.raises(headrace.RequestRejected, match="unknown_model"):
            await client.run("?", tools=[double]).text()


async def until_called(
    end: Callable[[headrace.Run, asyncio.Task[list[Event]]], Any],
) -> tuple[headrace.Run, asyncio.Task[list[Event]], bool, Model]:
    """A run is ended while its tool runs: the run, its reader, whether the tool was cancelled, the model."""
    called, was_cancelled = asyncio.Event(), False

    async def waits() -> None:
        nonlocal was_cancelled
        called.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled = True
            raise

    model = Model(said(calls={"c1": ("waits", {})}), said("never"))
    async with client_of(model) as client:
        run = client.run("?", tools=[waits])

        async def read() -> list[Event]:
            return [event async for event in run]

        reading = asyncio.create_task(read())
        async with asyncio.timeout(10):
            await called.wait()
            ending = end(run, reading)
            if asyncio.iscoroutine(ending):
                await ending
            await asyncio.wait([reading])
    return run, reading, was_cancelled, model


@pytest.mark.parametrize("end", [headrace.Run.cancel, headrace.Run.aclose])
async def test_a_run_can_be_ended_while_its_tools_run(end: Any) -> None:
    run, reading, was_cancelled, model = await until_called(lambda run, reading: end(run))
    assert was_cancelled and len(model.requests) == 1
    assert isinstance(reading.exception(), headrace.GenerationClosed)
    with pytest.raises(headrace.GenerationClosed):
        await anext(run)


async def test_cancelling_the_reader_ends_the_tools_and_the_run() -> None:
    run, reading, was_cancelled, model = await until_called(lambda run, reading: reading.cancel())
    assert reading.cancelled() and was_cancelled and len(model.requests) == 1
    with pytest.raises(headrace.GenerationClosed):
        await anext(run)


async def test_a_client_that_was_closed_meanwhile_ends_the_run() -> None:
    model = Model(said(calls={"c1": ("closes", {})}), said("never"))
    async with client_of(model) as client:

        async def closes() -> None:
            await client.aclose()

        run = client.run("?", tools=[closes])
        for _ in range(2):
            with pytest.raises(headrace.GenerationClosed):
                await run.text()


async def test_between_tools_cancelling_cancels_the_generation() -> None:
    model = Model(Log())
    async with client_of(model) as client:
        run = client.run("?", tools=[double])
        await run.cancel()
        await run.aclose()
        with pytest.raises(headrace.GenerationClosed):
            await run.text()


async def test_what_nobody_could_run_is_refused_at_once() -> None:
    async with client_of(Model()) as client:
        with pytest.raises(headrace.InvalidRequest, match="Tool\\(function"):
            client.run("?", tools=[{"name": "x", "input_schema": {"type": "object"}}])
        with pytest.raises(headrace.InvalidRequest, match="rounds"):
            client.run("?", tools=[double], rounds=0)
        with pytest.raises(headrace.InvalidRequest, match="watched"):
            client.run("?", tools=[double], attach=False)
        with pytest.raises(headrace.InvalidRequest, match="role"):
            client.run([{"role": "nobody"}])
        with pytest.raises(TypeError, match="tool's name"):
            client.run("?", tools=[lambda x: x])
        with pytest.raises(TypeError, match="annotation"):
            client.generate("?", tools=[Tool.__init__])
