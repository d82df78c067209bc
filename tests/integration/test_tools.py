"""Tools that run in the worker, over real HTTP and with both SDKs: what viewers see, and what models are asked."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace.protocol.frames import Call, Message
from hub.broker.broker import Broker
from hub.broker.embedded import EmbeddedRedis
from hub.broker.keys import stream_key
from hub.broker.log import SCRIPTS
from hub.broker.usage import UsageQueue, UsageRow
from tests.conftest import StartWorker
from tests.fakes import Script
from tests.faults.redis_proxy import RedisProxy, delay_command
from tests.installation import RunningHub, eventually, question, running_worker
from tests.integration import sample_tools
from tests.integration.failover import Told, scene
from tests.wire import Map, Wire, text_of
from tests.workers.listener import log_of
from tests.workers.process import WorkerProcess
from workers.worker import Worker

TOOLS = "tests.integration.sample_tools"
#: An error inside of a stream, after which the next provider is asked at once.
OVERLOADED = {"type": "overloaded_error"}
SHORT: dict[str, Any] = {"lease_s": 2.5, "lease_grace_s": 0.3, "janitor_interval_s": 0.1}
FORMATS = pytest.mark.parametrize("format_", ["anthropic", "openai"])
FACES = {
    "anthropic": "anthropic/claude-haiku-5-5",
    "openai": "openai/gpt-6-luna",
    "responses": "responses/gpt-6-luna",
}
NEXT = {
    "anthropic": ["anthropic/claude-haiku-5-5", "backup/gpt-6-luna"],
    "openai": ["openai/gpt-6-luna", "backup/gpt-6-luna"],
}


def worker_tools(*names: str) -> list[dict[str, Any]]:
    return [{"type": "worker", "name": name} for name in names]


def calling(name: str, *texts: str, **given: Any) -> Script:
    """A model that says something and calls a tool, its arguments in pieces."""
    return calls((name, given), texts=texts)


def calls(*wanted: tuple[str, dict[str, Any]], texts: Sequence[str] = ()) -> Script:
    tools = []
    for name, given in wanted:
        arguments = json.dumps(given)
        tools.append((name, [arguments[:5], arguments[5:]]))
    return Script(texts=texts, tools=tools)


def results(told: Told) -> list[dict[str, Any]]:
    return told.all("tool_result")


def turns(body: dict[str, Any]) -> list[dict[str, Any]]:
    """What was asked after the question, in either format."""
    return [message for message in body["messages"] if message["role"] != "system"][1:]


# -- whole loops


@FORMATS
async def test_a_model_calls_reads_the_result_and_answers(broker: Broker, redis_url: str, format_: str) -> None:
    async with scene(broker, redis_url, tools=TOOLS) as stage:
        script = [
            calling("weather", "Let me ", "look.", city="Graz"),
            calling("add", a=1, b=2),
            Script(texts=("Blue, ", "and 3.")),
        ]
        told = await stage.ask(FACES[format_], script, tools=worker_tools("weather", "add"))
        records = [record for record in stage.primary.records if record.status == 200]
    weather = '{"city":"Graz","sky":"blue","days":1}'
    assert (told.done["status"], told.done["stop_reason"], told.primary) == ("completed", "stop", 3)
    assert told.text == "Let me look.Blue, and 3."
    kinds = [kind for kind in told.kinds if kind not in ("text", "tool_input")]
    step = ["source", "tool_call", "tool_ready", "tool_result"]
    assert kinds == ["queued", "started", *step, *step, "source", "done"]
    assert [result["output"] for result in results(told)] == [weather, "3"]
    ids = [call["call"] for call in told.all("tool_call")]
    assert len(set(ids)) == 2 and [result["call"] for result in results(told)] == ids
    assert [source.get("call") for source in told.all("source")] == [None, 2, 3]
    assert "".join(piece["delta"] for piece in told.all("tool_input") if piece["call"] == ids[0]) == '{"city": "Graz"}'
    if format_ == "anthropic":
        assert turns(records[2].body) == [
            {"role": "assistant", "content": [
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": ids[0], "name": "weather", "input": {"city": "Graz"}},
            ]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": ids[0], "content": weather}]},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": ids[1], "name": "add", "input": {"a": 1, "b": 2}}
            ]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": ids[1], "content": "3"}]},
        ]  # fmt: skip
        assert records[0].body["tools"][0]["description"] == "The weather of a city."
    else:
        assert [turn["role"] for turn in turns(records[2].body)] == ["assistant", "tool", "assistant", "tool"]
        first, answered, second, _ = turns(records[2].body)
        assert (first["content"], second["content"]) == ("Let me look.", None)
        assert first["tool_calls"] == [
            {"id": ids[0], "type": "function", "function": {"name": "weather", "arguments": '{"city":"Graz"}'}}
        ]
        assert answered == {"role": "tool", "tool_call_id": ids[0], "content": weather}


@pytest.mark.parametrize("format_", FACES)
async def test_calls_of_one_step_run_at_the_same_time(broker: Broker, redis_url: str, format_: str) -> None:
    sample_tools._together.clear()
    async with scene(broker, redis_url, tools=TOOLS) as stage:
        together = calls(*[("meet", {"number": number, "others": 3}) for number in range(3)])
        told = await stage.ask(FACES[format_], [together, Script(texts=("Met.",))], tools=worker_tools("meet"))
    assert [result["output"] for result in results(told)] == ["0", "1", "2"]
    assert (told.text, told.done["status"], told.primary) == ("Met.", "completed", 2)
    body = stage.primary.last.body
    last = (body.get("messages") or body["input"])[-1]
    assert len(last["content"]) == 3 if format_ == "anthropic" else "2" in last.values()


@FORMATS
async def test_whatever_goes_wrong_with_a_tool_the_answer_goes_on(
    broker: Broker, redis_url: str, format_: str, logs: pytest.LogCaptureFixture
) -> None:
    async with scene(broker, redis_url, tools=TOOLS) as stage:
        wrong = calls(
            ("broken", {}), ("no_city", {"city": "Atlantis"}), ("sleepy", {}), ("weather", {"days": 1}), ("made_up", {})
        )
        not_json = Script(texts=(), tools=[("weather", ['{"city": '])])
        told = await stage.ask(
            FACES[format_], [wrong, not_json, Script(texts=("Sorry.",))],
            tools=worker_tools("broken", "no_city", "sleepy", "weather"),
        )  # fmt: skip
        sent = json.dumps(stage.primary.last.body)
    assert (told.text, told.done["status"]) == ("Sorry.", "completed")
    assert all(result["error"] for result in results(told))
    outputs = [result["output"] for result in results(told)]
    assert outputs[0] == "the tool failed (ValueError)" and outputs[1] == "there is no weather in Atlantis"
    assert outputs[2] == "the tool did not answer within 0.2 s" and outputs[3].startswith("wrong arguments: city:")
    assert outputs[4].startswith("there is no tool “made_up”; there are: broken, ")
    assert outputs[5] == "the arguments are no valid JSON object"
    assert sent.count('"is_error": true') == (6 if format_ == "anthropic" else 0)
    assert "hunter2" not in sent + logs.text and "Atlantis" not in logs.text


async def test_a_long_output_is_cut_for_the_model_and_for_viewers_alike(broker: Broker, redis_url: str) -> None:
    async with scene(broker, redis_url, tools=TOOLS) as stage:
        told = await stage.ask(FACES["openai"], [calling("long"), Script(texts=("Long.",))], tools=worker_tools("long"))
        sent = stage.primary.last.body["messages"][-1]["content"]
    [result] = results(told)
    assert result["truncated"] and result["output"] == sent and len(sent.encode()) == 24 * 1024


async def test_steps_are_bounded(broker: Broker, redis_url: str) -> None:
    async with scene(broker, redis_url, tools=TOOLS) as stage:
        told = await stage.ask(FACES["openai"], [calling("add", a=1, b=1)], tools=worker_tools("add"))
    assert (told.done["status"], told.done["stop_reason"]) == ("truncated", "tool_steps")
    assert (told.primary, len(results(told))) == (8, 7)


async def test_a_forced_tool_is_forced_in_the_first_step_only(broker: Broker, redis_url: str) -> None:
    async with scene(broker, redis_url, tools=TOOLS) as stage:
        await stage.ask(
            FACES["openai"], [calling("add", a=1, b=1), Script()], tools=worker_tools("add"), tool_choice="required"
        )
        asked = [record.body.get("tool_choice") for record in stage.primary.records]
    assert asked == ["required", None]


async def test_each_step_is_paid_for_once(broker: Broker, redis_url: str) -> None:
    async with scene(broker, redis_url, tools=TOOLS) as stage:
        told = await stage.ask(
            FACES["anthropic"], [calling("add", "So: ", a=1, b=1), calling("add", "And: ", a=1, b=2), Script()],
            tools=worker_tools("add"),
        )  # fmt: skip
        rows = await _rows(broker, 3)
    once = {row.id: row for row in rows}  # a row may come twice, the ledger takes it once
    assert [id_.rpartition("/")[2] for id_ in once] == ["1", "2", "3"]
    assert not any(row.estimated for row in rows)
    assert told.done["usage"]["input_tokens"] == sum(row.input_tokens for row in once.values()) == 36


async def _rows(broker: Broker, count: int) -> list[UsageRow]:
    """What waits for the ledger, once it is so many."""
    queue = UsageQueue(broker.connections.control)

    async def are_there() -> bool:
        return await queue.waiting() >= count

    await eventually(are_there)
    await queue.ensure()
    return [row for _, row in await queue.take("tests", 100)]


# -- the client's own tools


OWN = {"name": "locate", "description": "Where the user is", "input_schema": {"type": "object", "properties": {}}}


@FORMATS
async def test_a_client_s_tool_ends_the_answer_and_its_results_are_read_in_another(
    broker: Broker, redis_url: str, format_: str
) -> None:
    tools = [OWN, *worker_tools("add")]
    async with scene(broker, redis_url, tools=TOOLS) as stage:
        both = calls(("locate", {}), ("add", {"a": 1, "b": 2}), texts=("One moment.",))
        told = await stage.ask(FACES[format_], [both], tools=tools)
        assert (told.done["status"], told.done["stop_reason"], told.primary) == ("completed", "tool_calls", 1)
        locate, add = told.all("tool_call")
        assert results(told) == [{"call": add["call"], "output": "3"}], "the worker's own is run before"
        turns = [
            Message("user", "question 1"),
            Message("assistant", told.text, calls=[Call(locate["call"], "locate", {}), Call(add["call"], "add", {})]),
            Message("tool", "Graz", call=locate["call"]),
            Message("tool", "3", call=add["call"]),
        ]
        again = calls(("add", {"a": 3, "b": 4}))
        told = await stage.ask(FACES[format_], [again, Script(texts=("In Graz.",))], before=turns, tools=tools)
    assert (told.text, told.done["stop_reason"]) == ("In Graz.", "stop")
    assert [result["output"] for result in results(told)] == ["7"]


async def test_a_client_s_results_go_through_a_hub(hub: RunningHub, worker: Worker) -> None:
    wire = await hub.join()
    asked = question("r1", model="scripted/tool=locate,rate=0", tools=[OWN], content="Where?")
    await wire.send(asked)
    frames = await wire.until("entry", kind="done")
    assert frames[-1]["data"]["stop_reason"] == "tool_calls"
    [call] = [frame["data"]["call"] for frame in frames if frame.get("kind") == "tool_call"]
    turns = [
        {"role": "assistant", "content": "", "calls": [{"call": call, "name": "locate", "input": {}}]},
        {"role": "tool", "call": call, "content": "Graz"},
    ]
    await wire.send({**asked, "id": "r2", "request": "r2", "messages": [*asked["messages"], *turns]})
    assert text_of(await wire.until("entry", kind="done")) == "The result is: Graz"


# -- refused before it costs anything


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"tools": [{"name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "computer_20250124", "name": "computer"}]}, "tools[0].type"),
        ({"tools": [{"name": "a"}], "tool_choice": {"name": "b"}}, "`tool_choice`"),
        ({"messages": [{"role": "tool", "call": "x", "content": ""}]}, "messages[0]"),
        (
            {"messages": [
                {"role": "assistant", "calls": [{"call": "x", "name": "a", "input": {}}]},
                {"role": "user", "content": "?"},
            ]},
            "messages[1]",
        ),
    ],
)  # fmt: skip
async def test_tools_that_nobody_could_be_asked_with_are_refused(
    hub: RunningHub, fields: dict[str, Any], place: str
) -> None:
    wire = await hub.join()
    await wire.send({**question("r1"), **fields})
    error = await wire.expect("error", id="r1", code="invalid_request", retry="no")
    assert place in error["message"]


async def test_a_tool_that_this_worker_lacks_is_told(hub: RunningHub, worker: Worker) -> None:
    wire = await hub.join()
    await wire.send(question("r1", tools=worker_tools("weather")))
    done = (await wire.until("entry", kind="done"))[-1]["data"]
    assert (done["status"], done["error"]["code"], done["error"]["retry"]) == ("failed", "provider_error", "backoff")
    assert "“weather”" in done["error"]["message"] and "HEADRACE_TOOLS" in done["error"]["message"]


# -- while a tool runs


async def ask_scripted(wire: Wire, request: str, tool: str, given: Map | str = "", **options: Any) -> None:
    content = given if isinstance(given, str) else json.dumps(given)
    await wire.send(
        question(request, model=f"scripted/tool={tool},rate=0", tools=worker_tools(*tool.split("+")),
                 content=content or "{}", **options)
    )  # fmt: skip


async def test_a_cancel_ends_a_tool_at_once(hub: RunningHub, start_worker: StartWorker) -> None:
    sample_tools.EVENTS.clear()
    await start_worker(tools=TOOLS)
    wire = await hub.join()
    await ask_scripted(wire, "r1", "endless")
    stream = (await wire.until("entry", kind="tool_ready"))[-1]["stream"]
    await eventually(lambda: "endless began" in sample_tools.EVENTS)
    cancelled_at = time.monotonic()
    await wire.send({"type": "cancel", "id": "c", "stream": stream})
    done = (await wire.until("entry", kind="done"))[-1]["data"]
    assert (done["status"], time.monotonic() - cancelled_at < 2) == ("cancelled", True)
    await eventually(lambda: "endless ended" in sample_tools.EVENTS)


async def test_a_tool_that_blocks_disturbs_no_other_answer(hub: RunningHub, start_worker: StartWorker) -> None:
    await start_worker(tools=TOOLS)
    wire, other = await hub.join(), await hub.join("bob")
    await other.send(question("r2", model="scripted/tokens=80,rate=80,stamp=1", window=None))
    await other.until("delta")
    await ask_scripted(wire, "r1", "blocking", {"seconds": 0.7})
    stamps = [int(stamp) for stamp in text_of(await other.until("entry", kind="done")).split()]
    gaps = [(after - before) / 1e9 for before, after in zip(stamps, stamps[1:], strict=False)]
    assert max(gaps) < 0.5, f"the other answer stood still for {max(gaps):.2f} s"
    assert "awake" in text_of(await wire.until("entry", kind="done"))


async def test_leases_are_kept_and_nobody_is_abandoned_while_a_tool_runs(
    hub: RunningHub, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Longer than a lease, with a provider whose clocks would be over, under one viewer who waits."""
    worker = await start_worker(tools=TOOLS, **SHORT)
    wire = await hub.join()
    until = tmp_path / "until"
    await ask_scripted(wire, "r1", "note", {"path": str(tmp_path / "log"), "until": str(until)}, abandon_after_ms=500)
    await wire.until("entry", kind="tool_ready")
    began = time.monotonic()
    [run] = worker.table.runs.values()
    await eventually(lambda: run.renewed_at > began + SHORT["lease_s"])
    until.touch()
    frames = await wire.until("entry", kind="done")
    assert "noted" in text_of(frames) and frames[-1]["data"]["status"] == "completed"
    assert [frame["kind"] for frame in frames if frame["type"] == "entry"].count("started") == 0


async def test_an_answer_that_nobody_waits_for_ends_while_its_tool_runs(
    broker: Broker, hub: RunningHub, start_worker: StartWorker
) -> None:
    sample_tools.EVENTS.clear()
    await start_worker(tools=TOOLS)
    wire = await hub.join()
    await ask_scripted(wire, "r1", "endless", abandon_after_ms=300)
    await wire.until("entry", kind="tool_ready")
    await wire.close()
    await eventually(lambda: "endless ended" in sample_tools.EVENTS)


# -- failover inside of a step


@FORMATS
@pytest.mark.parametrize("fault", [Script(status=529), Script(texts=("3",), fault="error", error=OVERLOADED)])
async def test_a_provider_that_fails_before_it_says_anything_in_a_later_step_is_replaced_in_silence(
    broker: Broker, redis_url: str, format_: str, fault: Script
) -> None:
    async with scene(broker, redis_url, tools=TOOLS, tiers={"t": {"models": NEXT[format_]}}) as stage:
        told = await stage.ask(
            "t", [calling("add", "Let me see. ", a=1, b=2), fault], [Script(texts=("It is 3.",))],
            tools=worker_tools("add"),
        )  # fmt: skip
        asked = turns(stage.backup.last.body)
    assert (told.text, told.done["status"]) == ("Let me see. It is 3.", "completed")
    assert told.all("notice") == [] and "reset" not in told.kinds and len(results(told)) == 1
    assert [turn["role"] for turn in asked] == ["assistant", "tool"], "the same messages, in the other's words"
    assert [source["provider"] for source in told.all("source")] == [format_, "backup"]


@FORMATS
async def test_text_of_a_later_step_is_gone_on_with_by_a_telling_that_repeats_it(
    broker: Broker, redis_url: str, format_: str
) -> None:
    async with scene(broker, redis_url, tools=TOOLS, tiers={"t": {"models": NEXT[format_]}}) as stage:
        broken = Script(texts=("It ", "is ", "three."), fault="error", fault_after=2, error=OVERLOADED)
        told = await stage.ask(
            "t", [calling("add", "Let me see. ", a=1, b=2), broken], [Script(texts=("It is ", "three."))],
            tools=worker_tools("add"),
        )  # fmt: skip
    assert (told.text, told.done["status"]) == ("Let me see. It is three.", "completed")
    assert "reset" not in told.kinds and [each["code"] for each in told.all("notice")] == ["failover"]


@FORMATS
@pytest.mark.parametrize("policy", [["splice", "restart"], ["restart"]])
async def test_a_later_step_starts_over_by_itself_and_no_tool_runs_again(
    broker: Broker, redis_url: str, format_: str, policy: list[str]
) -> None:
    """What was before it is told again after the `reset`: a tool that is not repeatable ran once."""
    tiers = {"t": {"models": NEXT[format_], "after_content": policy}}
    async with scene(broker, redis_url, tools=TOOLS, tiers=tiers) as stage:
        broken = Script(texts=("It ", "is ", "three."), fault="error", fault_after=2, error=OVERLOADED)
        told = await stage.ask(
            "t", [calling("add", "Let me see. ", a=1, b=2), broken], [Script(texts=("Three, ", "of course."))],
            tools=worker_tools("add"),
        )  # fmt: skip
    assert (told.text, told.done["status"]) == ("Let me see. Three, of course.", "completed")
    assert told.kinds.count("reset") == 1 and told.primary + told.backup == 3
    after = told.kinds[told.kinds.index("reset") + 1 :]
    shown = [kind for kind in after if kind not in ("source", "notice")]
    assert list(dict.fromkeys(shown)) == ["text", "tool_call", "tool_input", "tool_ready", "tool_result", "done"]
    calls_told = told.all("tool_call")
    assert calls_told[0] == calls_told[1] and results(told)[0] == results(told)[1]


async def test_a_call_that_broke_off_is_never_gone_on_with(broker: Broker, redis_url: str) -> None:
    tiers = {"t": {"models": ["hasty_openai/gpt-6-luna", "backup/gpt-6-luna"]}}
    half = (
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"add"}}]}}]}\n\n'
    )
    async with scene(broker, redis_url, tools=TOOLS, tiers=tiers) as stage:
        told = await stage.ask(
            "t", [Script(texts=(), extra=half, fault="stall")],
            [calling("add", a=1, b=2), Script(texts=("Three.",))], tools=worker_tools("add"),
        )  # fmt: skip
    assert (told.text, told.done["status"], len(results(told))) == ("Three.", "completed", 1)
    assert told.kinds.count("reset") == 1


async def test_whoever_answered_the_last_step_is_asked_first_in_the_next(broker: Broker, redis_url: str) -> None:
    async with scene(broker, redis_url, tools=TOOLS, tiers={"t": {"models": NEXT["anthropic"]}}) as stage:
        told = await stage.ask(
            "t", [Script(status=529)], [calling("add", a=1, b=2), Script(texts=("Three.",))], tools=worker_tools("add")
        )
    assert (told.text, told.primary, told.backup) == ("Three.", 1, 2)
    assert [source.get("reason") for source in told.all("source")] == ["failover", "failover"]


# -- a lost worker


async def test_a_tool_starts_only_once_its_call_is_in_the_log(
    broker: Broker, redis_server: EmbeddedRedis, hub: RunningHub, start_worker: StartWorker, tmp_path: Path
) -> None:
    names = {(await broker.connections.control.script_load(script)).lower(): name for name, script in SCRIPTS.items()}
    log, until = tmp_path / "log", tmp_path / "until"
    until.touch()
    async with RedisProxy(redis_server.url.removeprefix("unix://"), scripts=names) as proxy:
        proxy.decide = lambda call: delay_command(0.7) if b"tool_ready" in call.words else None
        wire = await hub.join()
        async with running_worker(proxy.url, tools=TOOLS):
            await ask_scripted(wire, "r1", "note", {"path": str(log), "until": str(until)})
            stream = (await wire.expect("accepted", id="r1"))["stream"]
            await eventually(log.exists)
            key = stream_key("alice", stream)
            assert "tool_ready" in [kind for kind, _ in await log_of(broker, key)]
            assert "noted" in text_of(await wire.until("entry", kind="done"))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["note", "note_again"])
async def test_a_worker_that_is_killed_while_a_tool_runs_runs_it_again_only_if_that_does_no_harm(
    broker: Broker, redis_url: str, hub: RunningHub, start_worker: StartWorker, tmp_path: Path, name: str
) -> None:
    log, until = tmp_path / "log", tmp_path / "until"
    wire = await hub.join()
    async with WorkerProcess(redis_url, tools=TOOLS, **SHORT) as doomed:
        await ask_scripted(wire, "r1", name, {"path": str(log), "until": str(until)})
        await wire.until("entry", kind="tool_ready")
        await eventually(lambda: log.exists() and log.read_text() == "ran\n")
        doomed.kill()
    until.touch()
    await start_worker(tools=TOOLS, **SHORT)
    frames: list[Map] = []
    while not frames or frames[-1].get("kind") != "done":
        frames.append(await wire.next(30))
    done = frames[-1]["data"]
    if name == "note":
        assert (done["status"], done["error"]["code"]) == ("failed", "worker_lost")
        assert log.read_text() == "ran\n", "it may have run to its end, and is not run again"
    else:
        assert (done["status"], log.read_text()) == ("completed", "ran\nran\n")
        assert "noted" in text_of(frames) and any(frame.get("kind") == "reset" for frame in frames)


async def test_a_worker_that_leaves_hands_back_an_answer_in_a_tool(
    hub: RunningHub, start_worker: StartWorker, tmp_path: Path
) -> None:
    log, until = tmp_path / "log", tmp_path / "until"
    leaving = await start_worker(tools=TOOLS, **SHORT)
    wire = await hub.join()
    await ask_scripted(wire, "r1", "note_again", {"path": str(log), "until": str(until)})
    await wire.until("entry", kind="tool_ready")
    await eventually(log.exists)
    leaving.stop()
    leaving.stop()
    until.touch()
    await start_worker(tools=TOOLS, **SHORT)
    done = (await wire.until("entry", kind="done"))[-1]["data"]
    assert done["status"] == "completed" and log.read_text() == "ran\nran\n"
