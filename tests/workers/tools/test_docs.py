"""What docs/tools.md shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from workers.steps import Wanted
from workers.tools import Caller
from workers.tools.runner import ToolRunner
from workers.tools.toolbox import Toolbox

PAGE = (Path(__file__).parents[3] / "docs" / "tools.md").read_text()
BLOCKS = [dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)]


async def test_the_tools_on_the_page_are_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    names = []
    for number, block in enumerate(BLOCKS):
        names.append(f"page_{number}_{abs(hash(str(tmp_path)))}")
        (tmp_path / f"{names[-1]}.py").write_text(block)
    runner = ToolRunner(Toolbox.load(",".join(names)), 30.0)
    assert runner.toolbox.names == ["forecast", "my_orders", "weather"]

    async def run(name: str, **given: str) -> tuple[str, bool]:
        result = await runner.run(Wanted("t1", name, given, True), runner.toolbox.names, Caller("alice", "acme", "g_1"))
        return result.output, result.error

    assert await run("weather", city="Graz") == ("sunny, 21 °C in Graz", False)
    assert f"The result is: {(await run('weather', city='Graz'))[0]}" in PAGE
    sunny = '{"city":"Graz","day":"2026-11-21","degrees":21}'
    assert await run("forecast", city="Graz", day="2026-11-21") == (sunny, False)
    assert await run("forecast", city="Linz", day="2026-11-21") == ("there is no forecast for Linz", True)
    assert await run("my_orders") == ('["a kettle"]', False)
    await runner.close()
