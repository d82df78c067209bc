"""OpenAI's own package for Node against a real hub and worker. It comes with `npm install` in this folder."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.installation import RunningHub, token
from workers.worker import Worker

HERE = Path(__file__).parent
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(
    NODE is None or not (HERE / "node_modules" / "openai").exists(),
    reason="needs Node 20 and OpenAI's package for it: (cd tests/completions && npm install)",
)


async def test_the_client_for_node_reads_everything(
    hub: RunningHub, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.completions.face.KEEP_ALIVE_S", 0.1)
    assert NODE is not None
    asking = await asyncio.create_subprocess_exec(
        NODE,
        HERE / "asks.mjs",
        env={**os.environ, "HUB": f"http://127.0.0.1:{hub.port}/v1", "KEY": token()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(50):
            out, err = await asking.communicate()
    finally:
        if asking.returncode is None:
            asking.kill()
            await asking.wait()
    assert asking.returncode == 0, err.decode()
    heard = json.loads(out)
    five = "0000 0001 0002 0003 0004 "
    assert {"fast", "standard", "premium"} <= set(heard["models"])
    assert heard["whole"] == {"text": five, "model": "scripted/tokens=5,rate=0", "usage": 5}
    streamed = heard["streamed"]
    assert (streamed["text"], streamed["finish"], streamed["usage"]) == (five, "stop", 5)
    assert streamed["stream"] == streamed["id"]
    assert streamed["silent"] >= 1, "an event that keeps the connection alive"
    assert heard["calls"] == ['{"number": 1}', '{"number": 2}']
    roles = ["user", "assistant", "tool", "assistant"]
    assert heard["looped"] == {"text": "The result is: the sky over Oslo", "roles": roles}
    assert heard["unknown"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found"}
    assert heard["limited"] == {"kind": "RateLimitError", "status": 429, "code": "provider_rate_limited"}
    assert heard["partial"] == "0000 0001 "
    assert (heard["broken"]["kind"], heard["broken"]["code"]) == ("APIError", "provider_error")
