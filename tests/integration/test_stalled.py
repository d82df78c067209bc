"""A worker that hangs and nobody to take over: its viewers are told, once, within ten seconds (protocol §9)."""

from __future__ import annotations

import time

from tests.installation import RunningHub
from tests.workers.process import WorkerProcess


async def test_viewers_of_a_worker_that_hangs_are_told_once(hub: RunningHub, redis_url: str) -> None:
    alice = await hub.join("alice")
    async with WorkerProcess(redis_url) as worker:
        question = {"messages": [{"role": "user", "content": "go"}], "model": "scripted/tokens=2000,rate=20"}
        await alice.send({"type": "generate", "id": 1, "request": "r1", "window": None, **question})
        await alice.until("delta")
        worker.stop()
        stopped_at = time.monotonic()
        frames = await alice.until("status", state="stalled")
        assert time.monotonic() - stopped_at < 10
        worker.go_on()
        frames = await alice.until("delta")
        assert all(frame.get("state") != "stalled" for frame in frames)
