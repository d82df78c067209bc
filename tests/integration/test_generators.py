"""An operator's own generators through a worker and a hub: all promises hold, whatever their code does."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from hub.broker import keys
from hub.broker.broker import Broker
from tests.conftest import StartHub, StartWorker
from tests.installation import RunningHub, eventually, question
from tests.integration import own_code
from tests.integration.viewer import Screen, Viewer
from tests.wire import Map, text_of
from tests.workers.process import WorkerProcess
from workers.aside import Aside
from workers.providers.generator import AHEAD, GeneratorProvider
from workers.providers.registry import Providers
from workers.registration import load, parse

pytestmark = pytest.mark.timeout(120)  # a process takes a second to start, and ten on a busy machine

NAMES = ("story", "agent", "failing", "rubbish", "huge", "endless", "flood", "blocking", "deaf")
ALLOWED = "scripted,fallback,generator"
#: Leases that a test can wait for and a busy machine can keep.
SHORT: dict[str, Any] = {"lease_s": 2.5, "lease_grace_s": 0.3, "janitor_interval_s": 0.1}

Serve = Callable[..., Awaitable[RunningHub]]


@pytest.fixture
async def serve(start_hub: StartHub, start_worker: StartWorker) -> AsyncIterator[Serve]:
    """A hub, and a worker with the generators; settings of both as keywords."""
    for counter in (own_code.begun, own_code.made, own_code.ended):
        counter.clear()
    own_code.may_go_on.clear()
    side = Aside("generator", blocked_s=1.5)
    own = GeneratorProvider({name: getattr(own_code, name) for name in NAMES}, aside=side)
    providers = Providers(frozenset({"scripted", "fallback"}), made={"generator": own})

    async def serve(**settings: Any) -> RunningHub:
        hub = await start_hub(providers=ALLOWED, **settings)
        await start_worker(providers=providers, **settings)
        return hub

    yield serve
    own_code.may_go_on.set()
    await providers.close()


async def answer(hub: RunningHub, name: str, **options: Any) -> list[Map]:
    wire = await hub.join()
    await wire.send(question(f"q-{name}", model=f"generator/{name}", **options))
    return await wire.until("entry", kind="done")


def entries_of(frames: list[Map], kind: str) -> list[Any]:
    return [frame["data"] for frame in frames if frame["type"] == "entry" and frame.get("kind") == kind]


async def test_all_that_a_generator_says_reaches_viewers(serve: Serve) -> None:
    frames = await answer(await serve(), "agent")
    kinds = [frame.get("kind", "text") for frame in frames if frame["type"] in ("entry", "delta")]
    assert [kind for kind in dict.fromkeys(kinds) if kind != "queued"] == [
        "started", "source", "reasoning", "tool_call", "tool_input", "tool_ready", "tool_result", "citation", "text",
        "usage", "done",
    ]  # fmt: skip
    [source] = entries_of(frames, "source")
    assert (source["provider"], source["model"], source["mode"]) == ("generator", "agent", "live")
    assert entries_of(frames, "tool_ready") == [{"call": "c1", "input": {"city": "Lyon"}}]
    assert entries_of(frames, "tool_result")[0]["output"] == "sunny"
    assert text_of(frames) == "Why is the sky blue? It is sunny."
    done = frames[-1]["data"]
    assert (done["status"], done["stop_reason"]) == ("completed", "stop")
    assert (done["usage"]["input_tokens"], done["usage"]["output_tokens"]) == (12, 5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("failing", "the generator “failing” failed (ValueError)"),
        ("rubbish", "the generator “rubbish” yielded int: it may yield str, and what workers.generators has"),
        ("missing", "there is no generator “missing” on this worker; it has: " + ", ".join(NAMES)),
    ],
)
async def test_a_generator_that_fails_keeps_the_text_and_hurts_nobody(serve: Serve, name: str, said: str) -> None:
    hub = await serve()
    frames = await answer(hub, name)
    done = frames[-1]["data"]
    assert (done["status"], done["error"]["code"], done["error"]["message"]) == ("failed", "provider_error", said)
    assert text_of(frames) == ("" if name == "missing" else "So far ")
    assert (await answer(hub, "agent"))[-1]["data"]["status"] == "completed"


async def test_a_generator_that_fails_is_followed_by_who_else_may_answer(serve: Serve) -> None:
    frames = await answer(await serve(), "failing", fallbacks=["scripted/tokens=3,rate=0"])
    assert frames[-1]["data"]["status"] == "completed"
    assert text_of(frames).endswith("0000 0001 0002 ")
    assert entries_of(frames, "source")[-1]["reason"] == "failover"
    assert [reset["reason"] for reset in entries_of(frames, "reset")] == ["failover"]


async def test_a_generator_follows_a_model_that_fails(serve: Serve) -> None:
    wire = await (await serve()).join()
    model = "scripted/tokens=3,rate=0,fail_after=0,fault=overloaded"
    await wire.send(question("q", model=model, fallbacks=["generator/agent"]))
    frames = await wire.until("entry", kind="done")
    assert frames[-1]["data"]["status"] == "completed"
    assert [source["provider"] for source in entries_of(frames, "source")] == ["generator"]


async def test_a_huge_text_fills_its_log_and_disturbs_nobody(serve: Serve, broker: Broker) -> None:
    hub = await serve(run_ahead=100_000)
    watching = await hub.join()
    await watching.send(question("watched", model="scripted/tokens=60,rate=40,stamp=1", window=None))
    frames = await answer(hub, "huge", window=None)
    done = frames[-1]["data"]
    assert (done["status"], done["stop_reason"]) == ("truncated", "too_long")
    assert 3_000_000 < done["text_bytes"] < 5_000_000
    watched = await watching.until("entry", kind="done")
    due = [int(stamp) for stamp in text_of(watched).split()]
    assert max(later - earlier for earlier, later in zip(due, due[1:], strict=False)) < 1e9


async def test_a_cancel_closes_the_generator_within_a_second(serve: Serve) -> None:
    hub = await serve()
    wire = await hub.join()
    await wire.send(question("q", model="generator/endless"))
    stream = (await wire.expect("accepted"))["stream"]
    await wire.until("delta")
    since = time.monotonic()
    await wire.send({"type": "cancel", "id": "c", "stream": stream})
    frames = await wire.until("entry", kind="done")
    assert frames[-1]["data"]["status"] == "cancelled"
    await eventually(lambda: own_code.ended["endless"] == 1)
    assert time.monotonic() - since < 5  # a second, on a machine with nothing else to do


async def test_an_answer_that_nobody_waits_for_ends_its_generator(serve: Serve) -> None:
    hub = await serve()
    wire = await hub.join()
    await wire.send(question("q", model="generator/endless", on_abandon="cancel", abandon_after_ms=0))
    await wire.until("delta")
    await wire.close()
    await eventually(lambda: own_code.ended["endless"] == 1)


async def test_a_generator_that_swallows_its_cancel_does_not_hold_its_answer_up(serve: Serve) -> None:
    hub = await serve()
    wire = await hub.join()
    await wire.send(question("q", model="generator/deaf"))
    stream = (await wire.expect("accepted"))["stream"]
    await wire.until("delta")
    await wire.send({"type": "cancel", "id": "c", "stream": stream})
    frames = await wire.until("entry", kind="done")
    assert frames[-1]["data"]["status"] == "cancelled"
    assert (await answer(hub, "agent"))[-1]["data"]["status"] == "completed"


async def test_an_answer_that_is_not_read_stops_its_generator(serve: Serve, broker: Broker) -> None:
    hub = await serve(run_ahead=8)
    wire = await hub.join()
    await wire.send(question("q", model="generator/flood", window=4))
    stream = (await wire.expect("accepted"))["stream"]
    key = keys.stream_key("alice", stream)

    async def is_ahead() -> bool:
        [standing] = await broker.log.standings([key])
        return standing is not None and standing.top >= 12

    await eventually(is_ahead)
    assert (await answer(hub, "agent", window=None))[-1]["data"]["status"] == "completed"  # time went by
    # What viewers and the worker's bound allow, one list of events over it, and one that waits.
    assert own_code.made["flood"] <= 4 + 8 + 2 * AHEAD + 1
    await wire.send({"type": "ack", "stream": stream, "offset": 4, "window": None})
    await eventually(lambda: own_code.made["flood"] > 200)
    await wire.send({"type": "cancel", "id": "c", "stream": stream})
    await eventually(lambda: own_code.ended["flood"] == 1)


async def test_a_generator_that_blocks_fails_and_others_go_on(serve: Serve) -> None:
    hub = await serve()
    watching = await hub.join()
    await watching.send(question("watched", model="scripted/tokens=120,rate=40,stamp=1", window=None))
    frames = await answer(hub, "blocking")
    done = frames[-1]["data"]
    assert (done["status"], done["error"]["code"]) == ("failed", "provider_timeout")
    assert done["error"]["message"].startswith("the generator “blocking” blocked its thread")
    watched = await watching.until("entry", kind="done")
    due = [int(stamp) for stamp in text_of(watched).split()]
    assert len(due) == 120
    assert max(later - earlier for earlier, later in zip(due, due[1:], strict=False)) < 1e9, "a model was held up"
    assert (await answer(hub, "agent"))[-1]["data"]["status"] == "completed"


async def test_an_answer_beside_one_that_blocks_is_asked_for_again(serve: Serve) -> None:
    hub = await serve()
    viewer = Viewer(await hub.join())
    beside = await shown(viewer, "r1", "story")
    await viewer.see(beside, 2)
    await shown(viewer, "r2", "blocking")
    await viewer.watch(beside)
    assert beside.done is not None and beside.done["status"] == "completed"
    assert beside.text == "".join(own_code.WORDS)
    assert beside.told == [], "the same text came again, so nothing had to be taken back"


@pytest.mark.parametrize(
    ("place", "package", "text", "counts"),
    [
        ("examples.langgraph_agent:weather", "langgraph", "It is 18 °C and dry in Lyon.", False),
        ("examples.pydantic_ai_agent:weather", "pydantic_ai", '{"forecast":"a: 18 °C, dry"}', True),
    ],
)
async def test_an_example_streams_through(
    start_hub: StartHub, start_worker: StartWorker, place: str, package: str, text: str, counts: bool
) -> None:
    pytest.importorskip(package)
    own = GeneratorProvider(load(parse(place)))
    providers = Providers(frozenset(), made={"generator": own})
    hub = await start_hub(providers=ALLOWED)
    await start_worker(providers=providers)
    frames = await answer(hub, "weather")
    await providers.close()
    done = frames[-1]["data"]
    assert (done["status"], text_of(frames)) == ("completed", text)
    assert [ready["input"].keys() for ready in entries_of(frames, "tool_ready")] == [{"city"}]
    assert [result["output"].endswith("18 °C, dry") for result in entries_of(frames, "tool_result")] == [True]
    assert bool(done.get("usage") and done["usage"]["input_tokens"]) is counts


async def shown(viewer: Viewer, request: str, name: str, **options: Any) -> Screen:
    await viewer.wire.send(question(request, model=f"generator/{name}", window=None, **options))
    return viewer.show(await viewer.reply(request))


# -- processes


def registered(*names: str) -> str:
    return ",".join(f"tests.integration.own_code:{name}" for name in names)


async def test_a_killed_worker_costs_a_restart_or_an_end_as_the_request_says(
    start_hub: StartHub, redis_url: str
) -> None:
    hub = await start_hub(providers=ALLOWED, **SHORT)
    viewer = Viewer(await hub.join())
    async with WorkerProcess(redis_url, generators=registered("story"), **SHORT) as doomed:
        rules = ["restart", "continue", "fail"]
        screens = [await shown(viewer, f"r{rule}", "story", on_worker_loss=rule) for rule in rules]
        await viewer.until(lambda: all(len(screen.text) >= 25 for screen in screens))
        doomed.kill()
    async with WorkerProcess(redis_url, generators=registered("story"), **SHORT):
        await viewer.until(lambda: all(screen.is_over for screen in screens))
    *again, failed = screens
    for screen in again:
        assert screen.done is not None and screen.done["status"] == "completed"
        assert (screen.text, screen.told) == ("".join(own_code.WORDS), ["reset"])
    assert failed.done is not None and failed.done["error"]["code"] == "worker_lost"
    assert failed.told == [] and len(failed.text) >= 25


async def test_a_worker_whose_generators_do_not_end_leaves_in_time(start_hub: StartHub, redis_url: str) -> None:
    hub = await start_hub(providers=ALLOWED)
    viewer = Viewer(await hub.join())
    names = ("blocking", "stuck", "deaf")
    async with WorkerProcess(redis_url, generators=registered(*names), drain_timeout_s=1) as worker:
        screens = [await shown(viewer, f"r-{name}", name) for name in reversed(names)]
        await viewer.until(lambda: all(screen.text for screen in screens))
        since = time.monotonic()
        worker.terminate()
        assert await worker.ended() == 0
        assert time.monotonic() - since < 20
        assert "worker" in worker.log and "left" in worker.log


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("no_such_module:run", "workers: HEADRACE_GENERATORS: there is no module “no_such_module”"),
        (registered("story", "story"), "workers: HEADRACE_GENERATORS: tests.integration.own_code:story and "),
    ],
)
async def test_a_worker_that_cannot_have_its_generators_says_so_in_one_line(setting: str, said: str) -> None:
    environ = {"HEADRACE_REDIS_URL": "redis://127.0.0.1:1", "HEADRACE_GENERATORS": setting, "PATH": "/usr/bin:/bin"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workers", env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 2, signal.strsignal(-process.returncode) if process.returncode else ""
    assert out == b""
    assert err.decode().startswith(said)
    assert err.decode().count("\n") == 1
