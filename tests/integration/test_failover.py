"""Providers that fail, over real HTTP and with both SDKs: what becomes of an answer, fault by fault.

The table in docs/providers.md is what the matrix saw. `UPDATE_DOCS=1 pytest …/test_failover.py -k matrix` writes it.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from hub.broker.broker import Broker
from tests.fakes import Script
from tests.faults.ports import deaf_port, free_port
from tests.installation import RunningHub, question
from tests.integration.failover import CLOCKS, MODELS, Scene, Told, entry, scene
from tests.wire import text_of
from workers.providers.continuation import GO_ON
from workers.providers.registry import Providers
from workers.worker import Worker

PAGE = Path(__file__).parents[2] / "docs" / "providers.md"
OTHER = ("Quite ", "another ", "answer.")
TEXTS = tuple(f"{number:03d} " for number in range(8))
WHOLE = "".join(TEXTS)
SHOWN = 3

#: A refusal in the words of each format.
_REFUSES = {
    "anthropic": Script(texts=("I would rather not.",), stop="refusal"),
    "openai": Script(texts=(), extra=b'data: {"choices":[{"index":0,"delta":{"refusal":"I would rather not."}}]}\n\n'),
    "responses": Script(texts=("I would rather not.",), stop="refusal"),
}
_FILTERED: dict[str, dict[str, Any]] = {
    "anthropic": {"message": "Output blocked by content filtering policy"},
    "openai": {"code": "content_filter", "message": "blocked"},
    "responses": {"code": "content_filter", "message": "blocked"},
}
_TOO_LONG: dict[str, dict[str, Any]] = {
    "anthropic": {"message": "prompt is too long: 9 tokens > 8 maximum"},
    "openai": {"code": "context_length_exceeded", "message": "too long"},
    "responses": {"code": "context_length_exceeded", "message": "too long"},
}

#: How the primary answers, by fault and format. A text instead of a script: a provider at such a port.
BEFORE: dict[str, Any] = {
    "nobody listens at its address": "dead",
    "does not take the connection": "deaf",
    "takes the request and does not answer": Script(headers_s=30),
    "429 with `retry-after`": Script(status=429, headers={"retry-after": "1"}),
    "429 without": Script(status=429),
    "529": Script(status=529),
    "503": Script(status=503),
    "500": Script(status=500),
    "502, 520 and other words of a gateway": Script(status=502),
    "408, 504": Script(status=504),
    "409, 425": Script(status=409),
    "401": Script(status=401),
    "403": Script(status=403),
    "402, or a quota that is used up": Script(status=402),
    "404: no such model": Script(status=404),
    "400: context too long, the next model takes more": _TOO_LONG,
    "413": Script(status=413),
    "400: blocked by a content filter": _FILTERED,
    "400: anything else": Script(status=400),
    "an HTML page with status 200": Script(raw_body=("text/html", b"<h1>hello</h1>")),
    "a redirect": Script(status=302, headers={"location": "/elsewhere"}),
}
BOTH: dict[str, Any] = {
    "an error inside the stream": "error",
    "the connection is reset": "reset",
    "the body is cut off": "cut",
    "the body ends without the format's last event": "end",
    "a malformed event": "malformed",
    "invalid UTF-8": "invalid_utf8",
    "no byte for too long": "stall",
    "signs of life and nothing else for too long": "pings",
}
REFUSED = "the model refuses, and says so"
NOTHING = "–"
#: Waited out: with little patience, in the test.
SLOW = ("takes the request and does not answer", *list(BOTH)[-2:])


def scripts(fault: str, format_: str, after: int) -> Script | str:
    if fault == REFUSED:
        return _REFUSES[format_]
    if fault in BOTH:
        return Script(texts=TEXTS, fault=BOTH[fault], fault_after=after)
    script = BEFORE[fault]
    return Script(status=400, error=script[format_]) if isinstance(script, dict) else script


def outcome(told: Told, shown: str) -> str:
    """In the words of the table. What is not one of the known ways is an AssertionError."""
    if told.done["status"] == "completed" and told.done["stop_reason"] != "stop":
        assert (told.backup, told.kinds.count("reset")) == (0, 0)
        return f"ends, `{told.done['stop_reason']}`"
    calls = told.all("source")[-1].get("call", 1) if told.all("source") else 1
    again = "the same once more, then " if calls == 3 else ""
    if told.done["status"] == "failed":
        assert (told.text, told.backup) == (shown, 0)
        return f"ends, `{told.error}`" + (", text kept" if shown else "")
    assert told.done["status"] == "completed" and told.text == "".join(OTHER) and told.backup == 1
    sources = [(source["provider"], source.get("reason")) for source in told.all("source")]
    assert sources[-1] == ("backup", "failover")
    notices = [notice["code"] for notice in told.all("notice")]
    if not shown:
        assert (len(sources), told.kinds.count("reset"), notices) == (1, 0, []), "a failover that nobody sees"
        return f"{again}the next"
    assert told.kinds.count("reset") == 1 and notices == ["retrying"] * (calls - 2) + ["failover"]
    return f"{again}the next, `reset`"


async def test_the_matrix_of_faults_is_what_the_page_says(
    broker: Broker, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with deaf_port() as deaf:
        providers = {
            f"{where}_{format_}": entry(format_, port, is_hasty=True)
            for where, port in (("dead", free_port()), ("deaf", deaf))
            for format_ in MODELS
        }
        names = [*providers, *MODELS, *[f"hasty_{format_}" for format_ in MODELS]]
        model = {name: f"{name}/{MODELS[name.rpartition('_')[2]]}" for name in names}
        tables: dict[str, Any] = {
            "providers": providers,
            "models": {**{each: {"context": 1000} for each in model.values()}, "backup/gpt-6-luna": {"context": 2000}},
            "tiers": {name: {"models": [model[name], "backup/gpt-6-luna"]} for name in names},
        }
        async with scene(broker, redis_url, **tables) as stage:
            rows, times = await played(stage)
    with capsys.disabled():
        print("\nseconds to the end of the next provider's answer:", times)  # noqa: T201
    table = "\n".join(
        [
            "| fault | before the first content | after it |",
            "|---|---|---|",
            *(f"| {fault} | {before} | {after} |" for fault, before, after in rows),
        ]
    )
    page = PAGE.read_text()
    head, _, rest = page.partition("<!-- faults: written by the tests -->\n")
    _, _, tail = rest.partition("\n<!-- end -->")
    written = f"{head}<!-- faults: written by the tests -->\n{table}\n<!-- end -->{tail}"
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(written)
    assert page == written or os.environ.get("UPDATE_DOCS"), (
        "run it again with UPDATE_DOCS=1, and look at the difference"
    )


async def played(stage: Scene) -> tuple[list[tuple[str, str, str]], dict[str, float]]:
    """Every row, and how long the fast ones took."""
    cases = [(fault, after, format_) for fault in BEFORE | BOTH for after in (0, SHOWN) for format_ in MODELS]
    cases = [case for case in cases if case[0] in BOTH or not case[1]]
    cases += [(REFUSED, SHOWN, format_) for format_ in MODELS]
    seen: dict[tuple[str, int], dict[str, str]] = {}
    times: dict[str, float] = {}

    async def play(fault: str, after: int, format_: str) -> None:
        script = scripts(fault, format_, after)
        tier = f"hasty_{format_}" if fault in SLOW else format_
        if isinstance(script, str):
            tier = f"{script}_{format_}"
        primary = [Script() if isinstance(script, str) else script]
        told = await stage.ask(tier, primary, [Script(texts=OTHER)])
        shown = "".join(TEXTS[:after]) if fault in BOTH else ""
        seen.setdefault((fault, after), {})[format_] = outcome(told, shown)
        times[f"{fault}, {after}"] = round(told.took_s, 2)

    for start in range(0, len(cases), 8):
        async with asyncio.TaskGroup() as group:
            for case in cases[start : start + 8]:
                group.create_task(play(*case))
    for fault in (*BEFORE, *BOTH, REFUSED):
        for after in (0, SHOWN):
            seen.setdefault((fault, after), {"": NOTHING})
    return [(fault, _said(seen[fault, 0]), _said(seen[fault, SHOWN])) for fault in (*BEFORE, *BOTH, REFUSED)], times


def _said(outcomes: dict[str, str]) -> str:
    """One outcome if all formats have the same."""
    formats: dict[str, list[str]] = {}
    for format_ in sorted(outcomes):
        formats.setdefault(outcomes[format_], []).append(format_)
    if len(formats) == 1:
        return next(iter(formats))
    return "; ".join(f"{', '.join(names)}: {told}" for told, names in formats.items())


# -- time


async def test_a_provider_that_takes_no_connection_costs_five_seconds(
    broker: Broker, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with deaf_port() as deaf:
        hole = entry("openai", deaf)
        tiers = {"t": {"models": ["hole/gpt-6-luna", "backup/gpt-6-luna"]}}
        async with scene(broker, redis_url, providers={"hole": hole}, tiers=tiers) as stage:
            told = await stage.ask("t")
    with capsys.disabled():
        print(f"\nblackhole: the next provider's answer after {told.took_s:.2f} s")  # noqa: T201
    assert told.all("source")[-1]["provider"] == "backup"
    assert 4.5 <= told.took_s <= 10


@pytest.mark.parametrize(
    "script", [Script(status=500), Script(status=529), Script(fault="error"), Script(fault="drop")]
)
async def test_what_fails_at_once_costs_no_time(
    broker: Broker, redis_url: str, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        await stage.ask("anthropic")  # everything is loaded and connected
        told = await stage.ask("anthropic", [script])
    with capsys.disabled():
        print(f"\n{script.fault or script.status}: the next provider's answer after {told.took_s:.3f} s")  # noqa: T201
    assert told.all("source")[0]["provider"] == "backup"
    assert told.took_s < 3, "0.3 s on an idle machine"


# -- one telling, or a reset between

TIERS = {name: {"models": [f"{name}/{MODELS[name]}", "backup/gpt-6-luna"]} for name in MODELS}


@pytest.mark.parametrize("format_", MODELS)
async def test_wherever_an_answer_breaks_viewers_have_one_whole_telling(
    broker: Broker, redis_url: str, format_: str
) -> None:
    """Every place of the cut, every fault; the second telling is the same in other pieces, or differs anywhere."""
    faults: list[Any] = ["cut", "reset", "end", "error", "malformed"]

    async def broken(after: int, fault: Any, differs_at: int | None) -> None:
        first = Script(texts=TEXTS, fault=fault, fault_after=after)
        again = WHOLE if differs_at is None else WHOLE[:differs_at] + "#" + WHOLE[differs_at + 1 :]
        pieces = [again[start : start + 5] for start in range(0, len(again), 5)]
        told = await stage.ask(format_, [first, Script(texts=pieces)], [Script(texts=pieces)])
        where = f"{fault} after {after}, differs at {differs_at}"
        assert told.done["status"] == "completed", where
        same = differs_at is None or differs_at >= after * 4
        assert told.text == again, where
        assert told.kinds.count("reset") == (0 if same else 1), where
        assert len(told.all("usage")) >= 1

    async with scene(broker, redis_url, tiers=TIERS) as stage:
        cuts: list[tuple[int, Any, int | None]] = [(after, faults[after % 5], None) for after in range(1, 9)]
        cuts += [
            (after, faults[after % 5], place) for after in (1, 5) for place in (0, 3, after * 4 - 1, after * 4, 31)
        ]
        async with asyncio.TaskGroup() as group:
            for cut in cuts:
                group.create_task(broken(*cut))


async def test_a_second_telling_that_is_shorter_is_the_new_answer(broker: Broker, redis_url: str) -> None:
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        for texts in (TEXTS[:2], ()):
            told = await stage.ask("openai", [Script(texts=TEXTS, fault="cut", fault_after=5), Script(texts=texts)])
            assert (told.done["status"], told.text) == ("completed", "".join(texts))
            assert told.kinds.count("reset") == 1


@pytest.mark.parametrize(
    ("policy", "text", "status"),
    [
        (["error"], WHOLE[:12], "failed"),
        (["splice", "error"], WHOLE[:12], "failed"),
        (["restart"], "".join(OTHER), "completed"),
        (["continue", "error"], WHOLE[:12] + "".join(OTHER), "completed"),
        (["splice", "continue", "error"], WHOLE[:12] + "".join(OTHER), "completed"),
    ],
)
async def test_the_tier_s_policy_says_what_becomes_of_shown_text(
    broker: Broker, redis_url: str, policy: list[str], text: str, status: str
) -> None:
    tiers = {"t": {"models": ["hasty_anthropic/claude-haiku-5-5", "backup/gpt-6-luna"], "after_content": policy}}
    async with scene(broker, redis_url, tiers=tiers) as stage:
        broken = Script(texts=TEXTS, fault="stall", fault_after=SHOWN)
        stage.backup.by_prompt[GO_ON] = Script(texts=OTHER)
        told = await stage.ask("t", [broken], [Script(texts=OTHER)])
    assert (told.text, told.done["status"]) == (text, status)
    assert told.kinds.count("reset") == (policy == ["restart"])
    assert ("retry_token" in told.done) == (status == "failed")


async def test_inside_of_thinking_or_a_tool_call_an_answer_starts_over(broker: Broker, redis_url: str) -> None:
    tiers: dict[str, Any] = {**TIERS, "t": {"models": ["hasty_openai/gpt-6-luna", "backup/gpt-6-luna"]}}
    async with scene(broker, redis_url, tiers=tiers) as stage:
        opens = (
            b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f"}}]}}]}\n\n'
        )
        told = await stage.ask("t", [Script(texts=TEXTS, extra=opens, fault="stall")], [Script(texts=OTHER)])
        assert told.text == "".join(OTHER) and told.kinds.count("reset") == 1
        thinks = Script(texts=TEXTS, reasoning=("hm",), fault="cut", fault_after=SHOWN)
        told = await stage.ask("anthropic", [thinks, Script(texts=TEXTS, reasoning=("oh", "well"))])
        assert told.text == WHOLE and told.kinds.count("reset") == 0
        assert b"".join(data for kind, data in told.entries if kind == "reasoning") == b"hm"


# -- who answers


async def test_when_all_of_a_tier_fail_the_rules_answer_and_say_why(broker: Broker, redis_url: str) -> None:
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        down = [Script(status=529)]
        told = await stage.ask("anthropic", down, down)
        assert told.all("source")[-1] == {
            "provider": "fallback", "model": "rules", "mode": "fallback", "reason": "providers_failed", "call": 3,
        }  # fmt: skip
        assert told.done["status"] == "completed" and "ask again" in told.text
        named = await stage.ask("anthropic/claude-haiku-5-5", down, down)
        assert (named.error, named.backup, named.text) == ("provider_overloaded", 0, "")


async def test_a_request_brings_its_own_fallbacks(broker: Broker, redis_url: str) -> None:
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        told = await stage.ask(
            "anthropic/claude-haiku-5-5", [Script(status=503)], [Script(texts=OTHER)], fallbacks=["backup/gpt-6-luna"]
        )
        assert told.text == "".join(OTHER)
        first = await stage.ask("anthropic", provider="backup", backup=[Script(texts=OTHER)])
        assert (first.text, first.primary) == ("".join(OTHER), 0), "a preferred provider is asked first"


async def test_a_wait_that_a_provider_names_is_waited_where_nobody_else_is_there(
    broker: Broker, redis_url: str
) -> None:
    limited = Script(status=429, headers={"retry-after-ms": "300"})
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        told = await stage.ask("openai/gpt-6-luna", [limited, Script(texts=TEXTS)])
        assert (told.text, told.primary) == (WHOLE, 2) and told.took_s >= 0.3
        long = Script(status=429, headers={"retry-after": "60"})
        told = await stage.ask("openai/gpt-6-luna", [long])
        assert told.done["error"]["code"] == "provider_rate_limited" and told.done["error"]["after_ms"] == 60_000


async def test_what_a_model_does_not_take_is_left_out_and_said(broker: Broker, redis_url: str) -> None:
    models = {"anthropic/claude-haiku-5-5": {"sampling": False}}
    async with scene(broker, redis_url, tiers=TIERS, models=models) as stage:
        told = await stage.ask("anthropic", temperature=0.3)
        assert "temperature" not in stage.primary.last.body
        assert told.all("notice") == [
            {"code": "parameter_dropped", "provider": "anthropic/claude-haiku-5-5", "parameter": "temperature"}
        ]
        silent = await stage.ask("anthropic", [Script(status=529)], temperature=0.3)
        assert stage.backup.last.body["temperature"] == 0.3 and silent.all("notice") == []


# -- breakers


async def test_a_provider_that_keeps_failing_is_left_alone_by_every_worker(broker: Broker, redis_url: str) -> None:
    down = [Script(status=529)]
    async with scene(broker, redis_url, kind=Providers, tiers=TIERS) as stage:
        for _ in range(5):
            await stage.ask("anthropic", down, [Script(texts=OTHER)])
        deadline = time.monotonic() + 10
        while (told := await stage.ask("anthropic", down, [Script(texts=OTHER)])).primary:
            assert time.monotonic() < deadline, "it is asked on and on"
        assert told.text == "".join(OTHER) and told.all("source")[0]["reason"] == "failover"
        named = await stage.ask("anthropic/claude-haiku-5-5")
        assert (named.error, named.primary) == ("provider_overloaded", 0)
        assert (await stage.ask("openai")).primary == 1, "others are not touched"


async def test_a_refused_key_is_not_tried_on_every_request(broker: Broker, redis_url: str) -> None:
    async with scene(broker, redis_url, kind=Providers, tiers=TIERS) as stage:
        assert (await stage.ask("openai", [Script(status=401)])).primary == 1
        told = await stage.ask("openai", [Script(status=401)])
        assert (told.primary, told.done["status"]) == (0, "completed")
        told = await stage.ask("openai/gpt-6.1-terra")
        assert (told.primary, told.done["status"]) == (0, "failed"), "nor with another model"


def test_the_page_names_every_clock() -> None:
    page = PAGE.read_text()
    for clock in (*CLOCKS, "total_s"):
        assert re.search(rf"`{clock}`", page), clock


# -- through a hub


async def test_a_viewer_asks_with_fallbacks_and_is_told_what_happened(hub: RunningHub, worker: Worker) -> None:
    wire = await hub.join()
    failing, well = "scripted/tokens=9,rate=0,fail_after=4,fault=idle", "scripted/tokens=9,rate=0"
    await wire.send(question("r1", model=failing, fallbacks=[well]))
    frames = await wire.until("entry", kind="done")
    assert text_of(frames) == "".join(f"{number:04d} " for number in range(9)), "the same telling, gone on with"
    notices = [frame["data"] for frame in frames if frame.get("kind") == "notice"]
    assert notices == [{"code": "failover", "provider": "scripted"}]
    assert [frame["data"].get("reason") for frame in frames if frame.get("kind") == "source"] == [None, "failover"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"provider": "nobody"}, "unknown_model"),
        ({"fallbacks": ["fast", "nobody/x"]}, "unknown_model"),
        ({"fallbacks": ["fast"] * 9}, "invalid_request"),
    ],
)
async def test_a_choice_that_means_nothing_is_refused(hub: RunningHub, fields: dict[str, Any], code: str) -> None:
    wire = await hub.join()
    await wire.send(question("r1", **fields))
    await wire.expect("error", id="r1", code=code)
