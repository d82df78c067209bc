"""What a chat shows of tools."""

from __future__ import annotations

import asyncio
import subprocess
from asyncio.subprocess import PIPE
from collections.abc import Iterator

import pytest

from headrace import ToolCall, ToolInput, ToolReady, ToolResult
from hub.cli.paper import Paper
from hub.cli.toolline import SHOWN, ToolEvent, ToolLines
from tests.cli.command import HEADRACE, development, environment, run
from tests.cli.test_chat import CTRL_D, PROMPT, terminal
from tests.cli.test_paper import Screen
from tests.clients.scripted_hub import ScriptedHub
from tests.clients.test_run import Model, said


def shown(*events: ToolEvent) -> list[str]:
    screen = Screen()
    tools = ToolLines(Paper(screen, 300))
    for event in events:
        tools.show(event)
    return [row.rstrip() for row in screen.rows if row.strip()]


def test_a_call_is_a_line_that_grows_and_its_result_another() -> None:
    events: list[ToolEvent] = [ToolCall("c1", "look"), ToolInput("c1", '{"at":\n'), ToolInput("c1", " 1}")]
    assert shown(*events[:2]) == ['⚙ look {"at":']
    events += [ToolReady("c1", {"at": 1})]
    assert shown(*events) == ['⚙ look {"at":  1}', "look …"]
    assert shown(*events, ToolResult("c1", "  blue\nand red ")) == ['⚙ look {"at":  1}', "✓ look: blue …"]
    assert shown(*events, ToolResult("c1", "no", error=True))[1:] == ["✖ look: no"]


def test_calls_that_run_together_are_named_until_each_has_its_result() -> None:
    both: list[ToolEvent] = [ToolCall("a", "one"), ToolReady("a", {}), ToolCall("b", "two"), ToolReady("b", {})]
    assert shown(*both) == ["⚙ one", "⚙ two", "one, two …"]
    assert shown(*both, ToolResult("b", "x")) == ["⚙ one", "⚙ two", "✓ two: x", "one …"]


def test_calls_whose_pieces_come_mixed_are_told_one_at_a_time() -> None:
    mixed: list[ToolEvent] = [ToolCall("a", "one"), ToolCall("b", "two"), ToolInput("a", "{1}"), ToolInput("b", "{2}")]
    assert shown(*mixed, ToolReady("b", {"n": 2}), ToolReady("a", {"n": 1})) == [
        "⚙ one", "⚙ two {2}", '⚙ one {"n":1}', "two, one …",
    ]  # fmt: skip


def test_what_is_long_is_cut() -> None:
    long = "x" * (SHOWN - 1)
    events: list[ToolEvent] = [
        ToolCall("c1", "f"),
        ToolInput("c1", long),
        ToolInput("c1", "yz"),
        ToolInput("c1", "!"),
        ToolReady("c1"),
    ]
    assert shown(*events)[0] == f"⚙ f {long}y…"
    assert shown(*events, ToolResult("c1", 2 * long))[1] == f"✓ f: {long}x …"


def test_a_result_whose_call_was_not_seen_is_shown_all_the_same() -> None:
    assert shown(ToolResult("c9", "42")) == ["✓ a tool: 42"]


@pytest.fixture(scope="module")
def hub_url() -> Iterator[str]:
    with development(__name__, HEADRACE_TOOLS="tests.integration.sample_tools") as (_, url):
        yield url


def test_tools_of_the_workers_are_offered_and_their_lines_come_before_the_answer(hub_url: str) -> None:
    arguments = ("--model", "scripted/tool=add+broken,rate=0", "--tool", "add", "--tool", "broken")
    with terminal(hub_url, *arguments) as chatting:
        for _ in range(2):  # the second time with the first one's calls in its history
            chatting.wait_for(PROMPT)
            chatting.type('{"a": 1, "b": 2}\n')
            chatting.wait_for(r'⚙ add \{"a":1,"b":2\}')
            chatting.wait_for(r"⚙ broken")
            chatting.wait_for(r"✓ add: 3")
            chatting.wait_for(r"✖ broken: ")
            chatting.wait_for(r"The result is: 3")
        chatting.wait_for(PROMPT)
        chatting.type(CTRL_D)
        assert chatting.end() == 0
        assert "Traceback" not in chatting.shown


def test_a_script_gets_the_answer_without_the_tools(hub_url: str) -> None:
    done = run(
        "chat", "--model", "scripted/tool=add,rate=0", "--tool", "add", stdin='{"a": 1, "b": 2}\n',
        environ=environment(HEADRACE_URL=hub_url),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "The result is: 3\n", "")


async def test_the_next_question_brings_along_what_the_tools_returned() -> None:
    log = said("Hm. ", calls={"c1": ("look", {"at": 1})})
    log.entries.pop(), log.marks.pop()
    log.add("tool_result", {"call": "c1", "output": "blue"})
    log.add("text", {"text": "It is blue."})
    log.finish(stop_reason="stop")
    model = Model(log, said("You are welcome."))
    async with ScriptedHub(model.play) as hub:
        process = await asyncio.create_subprocess_exec(
            *HEADRACE, "chat", "--tool", "look", "--url", hub.url, stdin=PIPE, stdout=PIPE, env=environment()
        )
        async with asyncio.timeout(50):
            out, _ = await process.communicate(b"What is it?\nThanks!\n")
    assert out.decode() == "Hm. It is blue.\n\nYou are welcome.\n"
    assert model.asked[1]["messages"] == [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "Hm. ", "calls": [{"call": "c1", "name": "look", "input": {"at": 1}}]},
        {"role": "tool", "content": "blue", "call": "c1"},
        {"role": "assistant", "content": "It is blue."},
        {"role": "user", "content": "Thanks!"},
    ]


def test_a_call_that_nobody_runs_is_remarked_and_the_chat_goes_on(hub_url: str) -> None:
    with terminal(hub_url, "--model", "scripted/tokens=2,rate=0,tools=1") as chatting:
        for _ in range(2):
            chatting.wait_for(PROMPT)
            chatting.type("go\n")
            chatting.wait_for("nobody here runs what the model called")
            chatting.wait_for(r"g_\w{16}")


def test_a_tool_that_no_worker_has_is_one_line(hub_url: str) -> None:
    done = subprocess.run(
        [*HEADRACE, "chat", "--tool", "absent", "--model", "scripted/rate=0"],
        input="go\n", capture_output=True, text=True, env=environment(HEADRACE_URL=hub_url), timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "absent" in done.stderr
