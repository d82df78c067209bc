"""Each way in which Redis can forget, refuse or stall: what viewers are told, and that every answer ends once."""

from __future__ import annotations

import asyncio
import copy
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from headrace.protocol.entries import decode_data
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.embedded import EmbeddedRedis
from hub.broker.settings import BrokerSettings
from tests.faults.sentinel import SentinelSetup
from tests.installation import HubProcess, RunningHub, eventually, question, running_hub, running_worker, token
from tests.integration.own_redis import (
    Admin,
    demote,
    demote_and_fall_silent,
    dump,
    fail_to_save,
    fill_up,
    have_room,
    logged,
    own_redis,
    promote,
    put_back,
    save_nothing,
    want_none,
    want_replicas,
)
from tests.integration.test_connections import fetch
from tests.integration.viewer import Screen, Viewer, pieces
from tests.workers.test_worker import watched_worker
from workers.worker import Worker


@asynccontextmanager
async def installation(url: str, **settings: Any) -> AsyncIterator[tuple[RunningHub, Worker, Viewer]]:
    """A hub, a worker, and a viewer of the hub's."""
    async with running_hub(url, **settings) as hub, running_worker(url, **settings) as worker:
        yield hub, worker, Viewer(await hub.join())


def speech(tokens: int) -> str:
    """A model that says so many pieces, a hundred a second."""
    return f"scripted/tokens={tokens},rate=100"


async def answers(viewer: Viewer, request: str) -> Screen:
    """Work goes on: a whole answer."""
    screen = await viewer.generate(request, "scripted/tokens=5,rate=0")
    await viewer.watch(screen)
    assert screen.text == pieces(5) and screen.told == []
    return screen


# -- what was written is gone


async def test_a_restart_without_persistence_is_told_as_gone_and_work_goes_on(no_task_left: None) -> None:
    async with own_redis() as (server, _), installation(server.url) as (_, worker, viewer):
        screens = [await viewer.generate(f"r{number}", speech(100_000)) for number in range(3)]
        await asyncio.to_thread(server.kill)
        await viewer.until(lambda: {"type": "status", "state": "degraded", "after_ms": 1000} in viewer.others)
        await asyncio.to_thread(server.start)
        await viewer.watch()
        assert [screen.told for screen in screens] == [["gone"]] * 3
        await eventually(lambda: not worker.table.runs, "the end of the runs")
        again = await answers(viewer, "r0")  # its key was forgotten with it
        assert again.stream not in {screen.stream for screen in screens}


async def test_a_flush_is_told_as_gone_and_closes_the_provider(no_task_left: None) -> None:
    async with own_redis() as (server, admin), running_hub(server.url) as hub:
        broker = Broker.connect(server.url, BrokerSettings())
        async with watched_worker(broker, server.url) as (_, provider):
            viewer = Viewer(await hub.join())
            screen = await viewer.generate("r1", speech(100_000))
            await viewer.see(screen, 10)
            await admin.flushall()
            await viewer.watch(screen)
            assert screen.told == ["gone"]
            await eventually(lambda: provider.open == 0, "the close of the provider")
            await viewer.wire.send({"type": "attach", "id": 1, "stream": screen.stream, "after": screen.cursor})
            assert (await viewer.reply(1))["code"] == "not_found"
            await answers(viewer, "r2")
        await broker.close()


async def test_an_idle_worker_serves_what_lies_in_a_lane_without_a_group(no_task_left: None) -> None:
    """The group went, a request came, and only then does the worker look: a group made anew at `$` would skip it."""
    async with own_redis() as (server, admin), running_hub(server.url) as hub:
        viewer = Viewer(await hub.join())
        screen = await viewer.generate("r1", speech(5))
        stored = await dump(admin)
        assert not await admin.xinfo_groups(keys.lane("standard"))
        await admin.flushall()
        await viewer.watch(screen)
        assert screen.told == ["gone"]
        async with running_worker(server.url):
            await put_back(admin, stored)
            screen = await viewer.attach(screen)
            await viewer.watch(screen)
        assert screen.text == pieces(5)


async def test_an_append_only_file_that_lost_its_end_is_filled_up_from_the_worker(
    no_task_left: None, tmp_path: Path
) -> None:
    """What a crash of the machine costs with `everysec`: nothing, as long as the worker lives."""
    async with (
        own_redis(appendonly="everysec", directory=tmp_path) as (server, _),
        installation(server.url) as (_, _, viewer),
    ):
        screen = await viewer.generate("r1", speech(200))
        await viewer.see(screen, 60)
        [file] = (tmp_path / "appendonlydir").glob("*.incr.aof")
        kept = file.stat().st_size
        await viewer.see(screen, 100)
        await asyncio.to_thread(server.kill)
        assert file.stat().st_size > kept
        os.truncate(file, kept)
        await asyncio.to_thread(server.start)
        await viewer.watch(screen)
        assert screen.text == pieces(200) and screen.told in ([], ["resumed: false"])  # if a hub looked before it was
        replayed = await viewer.attach(screen)
        await viewer.watch(replayed)
        assert (replayed.text, replayed.kinds, replayed.done) == (screen.text, screen.kinds, screen.done)


async def test_a_cursor_past_what_redis_kept_is_not_resumed_in_silence(no_task_left: None) -> None:
    """The worker is gone as well, so what was lost stays lost: whoever saw it is told to begin again."""
    settings = {"lease_s": 1.0, "lease_grace_s": 0.2, "janitor_interval_s": 0.1}
    async with (
        own_redis() as (server, admin),
        running_hub(server.url) as hub,
        running_hub(server.url) as other_hub,
    ):
        viewer, wanderer = Viewer(await hub.join()), Viewer(await other_hub.join())
        async with running_worker(server.url, **settings):
            screen = await viewer.generate("r1", speech(100))
            await viewer.see(screen, 10)
            stored = await dump(admin)
            await viewer.see(screen, 30)
        elsewhere = wanderer.screens[screen.stream] = copy.deepcopy(screen)
        await put_back(admin, stored)
        attach = {"type": "attach", "id": 1, "stream": screen.stream, "after": screen.cursor, "window": None}
        await wanderer.wire.send(attach)
        answer = await wanderer.reply(1)
        assert (answer["resumed"], answer["offset"]) == (False, 0)
        elsewhere.take(answer)
        async with running_worker(server.url, **settings):
            await asyncio.gather(viewer.watch(), wanderer.watch())
        for seen in (screen, elsewhere):
            assert seen.text == pieces(100) and seen.told[0] == "resumed: false"
        assert screen.done == elsewhere.done


async def test_an_attempt_number_that_is_issued_twice_fences_by_its_mark(no_task_left: None) -> None:
    """Redis lost the claim. Another worker gets the same number, and the first may not write into its answer."""
    async with own_redis() as (server, admin), running_hub(server.url) as hub:
        broker = Broker.connect(server.url, BrokerSettings())
        viewer = Viewer(await hub.join())
        screen = await viewer.generate("r1", speech(150))
        stored = await dump(admin)
        # The last place is for takeovers: whoever has one answer takes no second request.
        async with watched_worker(broker, server.url, worker_concurrency=1) as (first, provider):
            await viewer.see(screen, 20)
            [run] = first.table.runs.values()
            async with running_worker(server.url) as second:
                await put_back(admin, stored)
                await viewer.watch(screen)
                assert screen.told == ["resumed: false"] and screen.text == pieces(150)
                await eventually(lambda: provider.open == 0 and not first.table.runs, "the end of the first run")
                [(key, other)] = second.table.runs.items()
                assert other.mark != run.mark
        entries = await logged(admin, key)
        assert [decode_data(kind, data) for kind, data in entries if kind == "started"] == [{"attempt": 1}]
        assert [kind for kind, _ in entries].count("done") == 1
        assert await admin.hget(keys.meta(key), "mark") == other.mark.encode()
        await broker.close()


# -- nothing can be written


Order = Callable[[Admin], Awaitable[None]]


@pytest.mark.parametrize(
    ("refuse", "recover", "reads"),
    [
        pytest.param(fill_up, have_room, True, id="OOM"),
        pytest.param(fail_to_save, save_nothing, True, id="MISCONF"),
        pytest.param(want_replicas, want_none, True, id="NOREPLICAS"),
        pytest.param(demote, promote, True, id="READONLY"),
        pytest.param(demote_and_fall_silent, promote, False, id="MASTERDOWN"),
    ],
)
async def test_a_redis_that_refuses_writes_is_told_and_costs_a_pause(
    no_task_left: None, tmp_path: Path, refuse: Order, recover: Order, reads: bool, logs: pytest.LogCaptureFixture
) -> None:
    async with (
        own_redis(directory=tmp_path) as (server, admin),
        installation(server.url) as (_, worker, viewer),
    ):
        before = await answers(viewer, "before")
        screen = await viewer.generate("r1", speech(150))
        await viewer.see(screen, 10)
        [run] = [run for run in worker.table.runs.values() if run.ended_at is None]
        await refuse(admin)
        await eventually(lambda: run.generation.held or run.generation.paused, "the pause")
        await viewer.wire.send(question("r2"))
        refusal = await viewer.reply("r2")
        assert refusal["code"] == "overloaded" and refusal["after_ms"] > 0
        if reads:
            await viewer.wire.send({"type": "list", "id": 2})
            listed = await viewer.reply(2)
            assert len(listed["streams"]) >= 2
            replayed = await viewer.attach(before)
            await viewer.watch(replayed)
            assert replayed.text == before.text
        assert run.generation.held or run.generation.paused
        await recover(admin)
        await viewer.watch(screen)
        assert screen.text == pieces(150) and screen.told == [] and screen.kinds.count("started") == 1
        await answers(viewer, "r2")
    assert not [record for record in logs.records if record.exc_info]


async def first_word(server: EmbeddedRedis) -> bytes:
    """The answer to a PING, by hand: while it loads a file Redis answers once a second, and a client of a library
    would try again behind our back."""
    try:
        reader, writer = await asyncio.open_unix_connection(server.url.removeprefix("unix://"))
    except OSError:
        return b""
    async with asyncio.timeout(5):
        writer.write(b"PING\r\n")
        answer = await reader.readline()
    writer.close()
    return answer


async def test_a_redis_that_is_loading_its_file_is_waited_for(no_task_left: None, tmp_path: Path) -> None:
    async with (
        own_redis(appendonly="always", directory=tmp_path) as (server, admin),
        installation(server.url) as (_, _, viewer),
    ):
        await admin.config_set("appendfsync", "no")
        filling = admin.pipeline(transaction=False)
        for number in range(5000):
            filling.set("filling", number)
        await filling.execute()
        screen = await viewer.generate("r1", speech(100))
        await viewer.see(screen, 10)
        await asyncio.to_thread(server.kill)
        server.arguments = ("--key-load-delay", "1000")  # microseconds a command: some 5 s
        starting = asyncio.create_task(asyncio.to_thread(server.start))

        async def is_loading() -> bool:
            return (await first_word(server)).startswith(b"-LOADING")

        await eventually(is_loading, "the word that it loads")
        await starting
        await viewer.watch(screen)
        assert screen.text == pieces(100) and screen.told == []
        await answers(viewer, "r2")


# -- too slow, too late


@pytest.mark.parametrize("stall", ["SIGSTOP", "CLIENT PAUSE"])
async def test_three_seconds_of_silence_cause_no_takeover_and_nothing_twice(
    no_task_left: None, stall: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a lease: afterwards each of them looks over, until its owner gets through. And longer than appends
    wait for their answer: they are sent again, and Redis finds both when it wakes up."""
    monkeypatch.setattr("workers.appender.COMMAND_TIMEOUT_S", 1.0)
    async with own_redis() as (server, admin), installation(server.url, lease_s=2.0) as (_, worker, viewer):
        screens = [await viewer.generate(f"r{number}", speech(300)) for number in range(10)]
        async with running_worker(server.url, lease_s=2.0) as other:
            await viewer.see(screens[-1], 10)
            if stall == "SIGSTOP":
                os.kill(server.pid, signal.SIGSTOP)
                await asyncio.sleep(3)  # the stall itself
                os.kill(server.pid, signal.SIGCONT)
            else:
                await admin.client_pause(3000)
            await viewer.watch()
            assert not other.table.runs
        for screen in screens:
            assert screen.text == pieces(300) and screen.told == [] and screen.kinds.count("started") == 1
        for key in worker.table.runs:
            entries = await logged(admin, key)
            assert [kind for kind, _ in entries].count("done") == 1
            assert "".join(decode_data(kind, data)["text"] for kind, data in entries if kind == "text") == pieces(300)


class Listener:
    """Where Redis will be: takes connections and drops them, counting."""

    def __init__(self) -> None:
        self.count = 0

    def drop(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        writer.transport.abort()


async def test_processes_that_start_before_redis_wait_for_it_without_a_storm(no_task_left: None) -> None:
    server = EmbeddedRedis(port=0)
    nobody = Listener()
    listening = await asyncio.start_server(nobody.drop, "127.0.0.1", server.port)
    hub: Any = HubProcess(server.tcp_url, HEADRACE_PROVIDERS="scripted")
    environ = {**os.environ, "HEADRACE_REDIS_URL": server.tcp_url}
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workers", env=environ, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await eventually(lambda: nobody.count > 4, "the first tries")
        wire = await hub.connect()
        assert (await fetch(hub, "/healthz"))[0] == 200
        assert (await fetch(hub, "/readyz"))[0] == 503
        loop = asyncio.get_running_loop()
        before, began = nobody.count, loop.time()
        await asyncio.sleep(3)  # long enough to count
        assert 2 <= nobody.count - before <= 2 * 10 * (loop.time() - began)
        listening.close()
        await listening.wait_closed()
        await asyncio.to_thread(server.start)

        async def is_ready() -> bool:
            return (await fetch(hub, "/readyz"))[0] == 200

        await eventually(is_ready, "the hub")
        await wire.send({"type": "hello", "token": token()})
        await wire.expect("welcome")
        await answers(Viewer(wire), "r1")
        await wire.close()
    finally:
        hub.kill()
        worker.kill()
        await worker.wait()
        listening.close()
        await asyncio.to_thread(server.stop)


# -- another server, which has not everything


async def test_a_failover_that_loses_writes_is_told_and_ends_every_answer(no_task_left: None) -> None:
    setup = SentinelSetup()
    await asyncio.to_thread(setup.__enter__)
    try:
        async with installation(setup.url) as (_, worker, viewer):
            through = await viewer.generate("through", speech(600))  # begins before the loss and ends after it
            ending = await viewer.generate("ending", speech(60))  # its `done` is lost
            await viewer.see(through, 20)
            await asyncio.to_thread(setup.lose_writes)
            lost = await viewer.generate("lost", speech(600))  # nothing of it is kept
            await viewer.until(lambda: ending.is_over and len(lost.text) > 50)
            assert ending.text == pieces(60)
            await asyncio.to_thread(setup.kill_primary)
            await viewer.watch()
            assert "degraded" in {frame.get("state") for frame in viewer.others}
            assert through.text == pieces(600) and through.told in ([], ["resumed: false"]) and lost.told == ["gone"]
            successor = await asyncio.to_thread(setup.wait_for_failover)
            admin = redis.asyncio.Redis.from_url(successor.url)

            async def is_whole() -> bool:
                logs = [await logged(admin, key) for key in worker.table.runs]
                return all(log and log[-1][0] == "done" for log in logs)

            await eventually(is_whole, "the end that was lost")
            await admin.aclose()
            replayed = await viewer.attach(ending)
            await viewer.watch(replayed)
            assert (replayed.text, replayed.done) == (ending.text, ending.done)
            await answers(viewer, "after")
            assert (await answers(viewer, "lost")).stream != lost.stream
    finally:
        await asyncio.to_thread(setup.stop)
