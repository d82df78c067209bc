"""Answers by a schema, over real HTTP and both SDKs: what models are asked, and what becomes of their answers."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
import pydantic
import pytest

import headrace
from headrace.protocol.frames import Delta, EntryFrame
from hub.broker.broker import Broker
from hub.completions.completion import Completion
from hub.completions.reading import Reading
from tests.fakes import Script
from tests.installation import RunningHub, token
from tests.integration.failover import MODELS, Scene, Told, scene
from workers.worker import Worker

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "degrees": {"type": "number"},
        "days": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city", "degrees", "days"],
    "additionalProperties": False,
}
OSLO = '{"city": "Oslo", "degrees": -3.5, "days": ["Monday"]}'
BOTH = pytest.mark.parametrize("name", ["anthropic", "openai"])


def pieces(text: str, size: int = 7) -> Script:
    return Script(texts=tuple(text[at : at + size] for at in range(0, len(text), size)))


@pytest.fixture
async def stage(broker: Broker, redis_url: str) -> AsyncIterator[Scene]:
    models = {"anthropic/claude-wordy-5-5": {"schema": False}, "openai/gpt-wordy": {"schema": False}}
    async with scene(broker, redis_url, models=models) as stage:
        yield stage


async def ask(stage: Scene, name: str, answer: Script | str, **fields: Any) -> Told:
    script = pieces(answer) if isinstance(answer, str) else answer
    return await stage.ask(f"{name}/{MODELS[name]}", [script], **({"schema": WEATHER} | fields))


@BOTH
async def test_a_fitting_answer_is_asked_for_in_the_providers_own_way(stage: Scene, name: str) -> None:
    told = await ask(stage, name, OSLO, system="Be brief.")
    assert (told.done["status"], told.text) == ("completed", OSLO)
    body = stage.primary.last.body
    if name == "anthropic":
        assert body["output_config"] == {"format": {"type": "json_schema", "schema": WEATHER}}
        assert body["system"] == "Be brief."
    else:
        assert body["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": WEATHER, "strict": True},
        }
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}


@BOTH
@pytest.mark.parametrize(
    "loose",
    [
        {word: value for word, value in WEATHER.items() if word != "additionalProperties"},
        WEATHER | {"properties": {**WEATHER["properties"], "city": {"type": "string", "minLength": 1, "default": "x"}}},
        {"type": "object"},
        {"allOf": [WEATHER]},
    ],
)
async def test_a_schema_that_providers_would_refuse_is_never_sent_as_it_is(
    stage: Scene, name: str, loose: dict[str, Any]
) -> None:
    """The fakes refuse what the providers do."""
    told = await ask(stage, name, OSLO, schema=loose)
    assert (told.done["status"], told.text, told.primary) == ("completed", OSLO, 1)


@pytest.mark.parametrize("model", ["anthropic/claude-wordy-5-5", "openai/gpt-wordy"])
async def test_a_model_without_schemas_is_asked_in_words(stage: Scene, model: str) -> None:
    fenced = f"```json\n{OSLO}\n```"
    told = await stage.ask(model, [pieces(fenced)], schema=WEATHER, system="Be brief.")
    assert (told.done["status"], told.text) == ("completed", fenced), "the text stays as it is"
    body = stage.primary.last.body
    said = body["system"] if "anthropic" in model else body["messages"][0]["content"]
    assert said.startswith("Be brief.\n\nAnswer with one JSON document")
    assert json.loads(said[said.index("{") :]) == WEATHER
    assert not {"output_config", "response_format"} & body.keys()


@BOTH
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ('{"city": "Oslo", "days": []}', 'the answer does not fit the schema: $ has no "degrees"'),
        (
            OSLO.replace("-3.5", '"cold"'),
            'the answer does not fit the schema: $.degrees is not a number: "cold"',
        ),
        (OSLO + " I hope this helps!", "the answer is not one JSON document: extra data (line 1, column 55)"),
        (OSLO[:-9], "the answer is not one JSON document: "),
        ("", "the answer is not one JSON document: there is no text"),
    ],
)
async def test_an_answer_that_does_not_fit_fails_and_is_kept(stage: Scene, name: str, answer: str, why: str) -> None:
    told = await ask(stage, name, answer)
    assert (told.done["status"], told.error, told.done["error"]["retry"]) == ("failed", "invalid_output", "now")
    assert told.done["error"]["message"].startswith(why)
    assert told.text == answer
    assert told.primary == 1


@BOTH
async def test_a_cut_answer_and_a_refusal_are_what_they_are(stage: Scene, name: str) -> None:
    cut = {"anthropic": "max_tokens", "openai": "length"}[name]
    told = await ask(stage, name, Script(texts=('{"city": "Os',), stop=cut))
    assert (told.done["status"], told.done["stop_reason"]) == ("truncated", "length")
    if name == "anthropic":
        told = await ask(stage, name, Script(texts=("I will not.",), stop="refusal"))
        assert (told.done["status"], told.done["stop_reason"]) == ("completed", "refusal")


@BOTH
async def test_a_second_telling_that_differs_replaces_the_first_and_is_judged_alone(stage: Scene, name: str) -> None:
    broken = Script(texts=('{"city": ', '"Bergen", '), fault="reset", fault_after=2)
    told = await stage.ask(f"{name}/{MODELS[name]}", [broken, pieces(OSLO)], schema=WEATHER)
    assert (told.done["status"], told.text) == ("completed", OSLO)
    assert told.kinds.count("reset") == 1


@BOTH
async def test_an_empty_second_answer_is_not_taken_for_the_first(broker: Broker, redis_url: str, name: str) -> None:
    tiers = {"fast": {"models": [f"{name}/{MODELS[name]}"], "after_content": ["restart"]}}
    async with scene(broker, redis_url, tiers=tiers) as stage:
        whole = Script(texts=(OSLO,), fault="reset", fault_after=1)
        told = await stage.ask("fast", [whole, Script(texts=())], schema=WEATHER)
        assert (told.error, told.text, told.kinds.count("reset")) == ("invalid_output", "", 1)


@BOTH
async def test_with_tools_the_schema_holds_for_what_follows_the_last_result(
    broker: Broker, redis_url: str, name: str
) -> None:
    looks = Script(texts=("I look. ",), tools=[("weather", ['{"city": "Oslo"}'])])
    async with scene(broker, redis_url, tools="tests.integration.sample_tools") as stage:
        for answer, status in ((OSLO, "completed"), ("It is cold.", "failed")):
            told = await stage.ask(
                f"{name}/{MODELS[name]}",
                [looks, pieces(answer)],
                schema=WEATHER,
                tools=[{"type": "worker", "name": "weather"}],
            )
            assert (told.done["status"], told.text) == (status, "I look. " + answer)
            assert told.kinds.count("tool_result") == 1


async def test_a_schema_that_is_hard_to_check_ends_as_invalid_output(stage: Scene) -> None:
    doubled: dict[str, Any] = {
        f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(40)
    }
    hard = {"type": "object", "$ref": "#/$defs/d0", "$defs": {**doubled, "d40": {"type": "string"}}}
    began = time.monotonic()
    told = await ask(stage, "openai", "{}", schema=hard)
    assert told.error == "invalid_output"
    assert told.done["error"]["message"].endswith("takes too long to be checked against this schema")
    assert time.monotonic() - began < 20


async def test_the_rules_do_not_answer_for_a_model_that_owes_a_document(broker: Broker, redis_url: str) -> None:
    async with scene(broker, redis_url, tiers={"fast": {"models": ["anthropic/claude-haiku-5-5"]}}) as stage:
        told = await stage.ask("fast", [Script(status=529)], schema=WEATHER)
        assert told.error == "provider_overloaded"
        told = await stage.ask("fallback/rules", schema=WEATHER)
        assert (told.error, told.done["error"]["retry"]) == ("provider_error", "no")
        assert "no provider has a key" in told.done["error"]["message"]


# -- hub, worker and clients together


class Weather(msgspec.Struct):
    city: str
    degrees: float
    days: list[str]


@dataclasses.dataclass
class City:
    """A city and what lies around it."""

    name: str
    founded: int
    near: list[City]


EXAMPLE = {"city": "city", "degrees": 1, "days": ["days 1", "days 2"]}
JSON = "scripted/json=1,rate=0"


async def test_a_type_is_asked_for_and_comes_back(hub: RunningHub, worker: Worker) -> None:
    async with headrace.connect(hub.url, token()) as client:
        generation = client.generate("Weather?", model="scripted/json=1,rate=200", schema=Weather)
        snapshots = [snapshot async for snapshot in generation.snapshots()]
        assert snapshots[-1] == EXAMPLE
        assert all(snapshot.items() <= EXAMPLE.items() or "days" in snapshot for snapshot in snapshots)
        assert await generation.value() == Weather("city", 1.0, ["days 1", "days 2"])
        later = client.attach(await generation.accepted())
        assert [snapshot async for snapshot in later.snapshots()][-1] == EXAMPLE
        assert await later.value(Weather) == Weather("city", 1.0, ["days 1", "days 2"])
        cities = client.generate('{"name": "Oslo", "founded": 1040, "near": []}', model=JSON, schema=City)
        assert await cities.value() == City("Oslo", 1040, [])


async def test_what_is_not_the_document_is_an_error_with_the_text(hub: RunningHub, worker: Worker) -> None:
    async with headrace.connect(hub.url, token()) as client:
        generation = client.generate("?", model="scripted/tokens=2,rate=0", schema=WEATHER)
        for wait in (generation.text, generation.value):
            with pytest.raises(headrace.InvalidOutput, match="not one JSON document") as raised:
                await wait()
            assert (raised.value.text, raised.value.retry) == ("0000 0001 ", "now")
        wrong = client.generate('{"city": 5}', model=JSON, schema={"type": "object"})
        assert await wrong.value() == {"city": 5}
        with pytest.raises(headrace.InvalidOutput, match=r"at `\$.city`") as raised:
            await wrong.value(Weather)
        cut = client.generate("?", model=JSON, schema=WEATHER, max_tokens=2)
        with pytest.raises(headrace.InvalidOutput, match=r"cut off \(length\)"):
            await cut.value()


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "strin"}, "$.type must be one of"),
        ({"properties": {"a": {"$ref": "https://example.org/schema"}}}, "$.properties.a.$ref must begin with #"),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "$.properties.a.pattern is no pattern that can be run in linear"),
        ({"anyOf": [{"$ref": "#"}]}, "$ comes back to itself"),
    ],
)
async def test_a_schema_that_is_no_schema_is_refused_by_the_hub(
    hub: RunningHub, schema: dict[str, Any], why: str
) -> None:
    async with headrace.connect(hub.url, token()) as client:
        with pytest.raises(headrace.RequestRejected) as raised:
            await client.generate("?", model=JSON, schema=schema).accepted()
        assert str(raised.value).startswith(f"invalid_request: `schema`: {why}")


async def test_openais_own_client_parses_it(hub: RunningHub, worker: Worker) -> None:
    class Answer(pydantic.BaseModel):
        city: str
        degrees: float
        days: list[str]

    asked: Any = [{"role": "user", "content": "Weather?"}]
    url = f"http://127.0.0.1:{hub.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=token(), max_retries=0, timeout=20) as client:
        parsed = await client.chat.completions.parse(model=JSON, messages=asked, response_format=Answer)
        assert parsed.choices[0].message.parsed == Answer(city="city", degrees=1, days=["days 1", "days 2"])
        async with client.chat.completions.stream(model=JSON, messages=asked, response_format=Answer) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.parsed == parsed.choices[0].message.parsed
        plain: Any = {"type": "json_object"}
        answer = await client.chat.completions.create(model=JSON, messages=asked, response_format=plain)
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
        with pytest.raises(openai.APIStatusError) as failed:
            await client.chat.completions.create(
                model="scripted/tokens=2,rate=0", messages=asked, response_format=plain
            )
        assert (failed.value.status_code, failed.value.code) == (502, "invalid_output")
        wrong: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=JSON, messages=asked, response_format=wrong)
        assert refused.value.param == "response_format"


@pytest.mark.parametrize(("is_document", "content"), [(True, "{}\n"), (False, "```json\n{}\n```")])
def test_a_whole_completion_leaves_the_fence_of_a_document_out(is_document: bool, content: str) -> None:
    completion = Completion(Reading(frozenset()), is_document)
    completion.feed(Delta("g_1", 1, text="```json\n{}\n```"))
    completion.feed(EntryFrame("g_1", 2, "done", {"status": "completed", "stop_reason": "stop"}))
    assert completion.object("g_1", "fast", 0)["choices"][0]["message"]["content"] == content
