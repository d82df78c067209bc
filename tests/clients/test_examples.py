"""The examples, run as anybody runs them: each a process of its own, against a scripted hub."""

from __future__ import annotations

import ast
import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.clients.log_hub import LogHub
from tests.clients.model_hub import Log
from tests.clients.scripted_hub import ScriptedHub
from tests.installation import RunningHub, token
from workers.worker import Worker

EXAMPLES = Path(__file__).parents[2] / "examples"


async def run(name: str, url: str, **environ: str) -> str:
    """What an example prints; it must end well within 20 s."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        EXAMPLES / name,
        env={**os.environ, "HEADRACE_URL": url, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    return out.decode()


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_fits_a_screen(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= 60


@pytest.mark.parametrize("name", ["client_10_lines.py", "sync_client.py"])
async def test_an_answer_is_printed(name: str) -> None:
    model = LogHub(Log.of_text("Because", " of", " the air."))
    async with ScriptedHub(model.script()) as hub:
        assert await run(name, hub.url, HEADRACE_TOKEN="t") == "Because of the air.\n"
        assert hub.peers[0].messages[0][0]["token"] == "t"


async def test_a_model_calls_a_function_of_the_program(hub: RunningHub, worker: Worker) -> None:
    environ = {"HEADRACE_TOKEN": token(), "HEADRACE_MODEL": "scripted/tool=weather,rate=0"}
    result = '{"city":"Do I need a coat in Oslo?","days":1,"sky":"blue","celsius":-4}'
    assert await run("tools_10_lines.py", hub.url, **environ) == f"[{result}]\nThe result is: {result}\n"


async def test_a_value_grows_until_it_is_an_object(hub: RunningHub, worker: Worker) -> None:
    environ = {"HEADRACE_TOKEN": token(), "HEADRACE_MODEL": "scripted/json=1,rate=100"}
    *snapshots, last = (await run("structured_output.py", hub.url, **environ)).splitlines()
    assert last == "title: place, place"
    assert ast.literal_eval(snapshots[-1]) == {"title": "title", "stops": [{"place": "place", "hours": 1}] * 2}
    assert len(snapshots) > 3 and all(isinstance(ast.literal_eval(snapshot), dict) for snapshot in snapshots)


async def test_an_app_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    model = LogHub(Log.of_text("Once ", "upon ", "a ", "time."))
    kept = tmp_path / "kept.json"
    async with ScriptedHub(model.script()) as hub:
        first = await run("resume_after_restart.py", hub.url, HEADRACE_KEPT=str(kept))
        assert first.startswith("Once upon a …\n") and kept.exists()
        second = await run("resume_after_restart.py", hub.url, HEADRACE_KEPT=str(kept))
    assert second == "Once upon a time.\nThe text is whole: True\n"
    assert not kept.exists()
    assert model.requests[1]["after"] == {"offset": 4, "mark": "m1"}
