"""An application's functions as tools: what the model is told of them, and what becomes of its arguments."""

from __future__ import annotations

import asyncio
import functools
import threading
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from msgspec import Meta

from headrace import Tool
from headrace.events import ToolResult
from headrace.tools import ERROR_CHARACTERS, OUTPUT_BYTES, declaration


class Unit(Enum):
    celsius = "C"
    kelvin = "K"


class Place(msgspec.Struct):
    city: str
    country: str = "NO"


def weather(
    city: Annotated[str, Meta(description="As on a map")], days: int = 1, unit: Literal["C", "F"] = "C"
) -> dict[str, Any]:
    """Forecast for a city.

    Knows a week ahead.
    """
    return {"city": city, "days": days, "unit": unit}


def test_a_function_is_told_by_its_signature_and_its_docstring() -> None:
    assert declaration(weather) == {
        "name": "weather",
        "description": "Forecast for a city.\n\nKnows a week ahead.",
        "input_schema": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "As on a map"},
                "days": {"type": "integer", "default": 1},
                "unit": {"enum": ["C", "F"], "default": "C"},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    }


def test_a_name_is_a_tool_of_the_workers_and_a_map_is_itself() -> None:
    assert declaration("search") == {"type": "worker", "name": "search"}
    own = {"name": "x", "input_schema": {"type": "object"}}
    assert declaration(own) == own and declaration(own) is not own


def test_a_tool_may_be_told_otherwise_than_its_function_says() -> None:
    schema = {"type": "object", "properties": {"q": {"type": "string"}}}
    tool = Tool(lambda **given: given, name="find", description="Finds", input_schema=schema)
    assert tool.declaration() == {"name": "find", "description": "Finds", "input_schema": schema}
    assert repr(tool) == "<Tool find>"


async def test_arguments_without_a_signature_are_passed_on_as_they_came() -> None:
    tool = Tool(lambda **given: given, name="find", input_schema={"type": "object"})
    assert await tool.answer("c1", {"anything": [1]}) == ToolResult("c1", '{"anything":[1]}')


def test_types_of_the_application_are_described_once() -> None:
    def route(start: Place, via: list[Place] = [], unit: Unit = Unit.kelvin, end: Place = Place("Oslo")) -> str:  # noqa: B006, B008
        return ""

    schema = Tool(route).input_schema
    assert schema["$defs"]["Place"]["required"] == ["city"]
    assert schema["properties"]["via"] == {"type": "array", "items": {"$ref": "#/$defs/Place"}, "default": []}
    assert schema["properties"]["unit"]["default"] == "K"
    assert schema["properties"]["end"]["default"] == {"city": "Oslo", "country": "NO"}
    assert schema["required"] == ["start"]
    Draft202012Validator.check_schema(schema)


def test_a_default_without_a_json_form_stays_at_home() -> None:
    def f(a: int | None = None, b: str = object()) -> None: ...  # type: ignore[assignment]

    schema = Tool(f).input_schema
    assert (schema["properties"]["a"].get("default"), schema["properties"]["b"]) == (None, {"type": "string"})
    assert schema["required"] == []


class Desk:
    def book(self, day: int) -> str:
        """Book."""
        return f"booked {day}"

    def __call__(self, day: int) -> str:
        return ""


async def test_a_method_is_a_tool_without_its_self() -> None:
    tool = Tool(Desk().book)
    assert tool.declaration()["input_schema"]["required"] == ["day"]
    assert (await tool.answer("c", {"day": 3})).output == "booked 3"


def unknown(a: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    ...


def bare(a) -> None:  # type: ignore[no-untyped-def]
    ...


def many(*a: int) -> None: ...


def by_place(a: int, /) -> None: ...


def odd(a: complex) -> None: ...


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (unknown, "Nowhere"),
        (bare, "its parameter `a` has no type annotation"),
        (many, "`a` cannot be given by name"),
        (by_place, "`a` cannot be given by name"),
        (odd, "`a` has a type without a JSON form: .*complex"),
        (lambda: "", "cannot be a tool's name"),
        (functools.partial(weather, days=2), "cannot be a tool's name"),
        (Desk, "a tool is a function"),
        (7, "a tool is a function, not 7"),
    ],
)
def test_what_cannot_be_described_is_named(function: Any, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        declaration(function)


# -- the schema and the check are one ----------------------------------------------------------------------

HINTS: dict[str, Any] = {
    "text": str,
    "short": Annotated[str, Meta(max_length=2)],
    "number": int,
    "positive": Annotated[int, Meta(ge=1)],
    "real": float,
    "flag": bool,
    "word": Literal["a", "b"],
    "unit": Unit,
    "maybe": int | None,
    "list": list[int],
    "map": dict[str, bool],
    "place": Place,
    "either": int | list[str],
    "any": Any,
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "a", "C", "abc", 0.5]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["city", "country", "x"]), inner, max_size=2)
        | st.just({"city": "Oslo"})
    ),
    max_leaves=3,
)


@given(st.lists(st.tuples(st.sampled_from(sorted(HINTS)), st.booleans(), VALUES, st.booleans()), max_size=3), st.data())
@settings(max_examples=100, deadline=None)
def test_what_the_schema_allows_is_what_the_function_is_called_with(
    parameters: list[tuple[str, bool, Any, bool]], data: st.DataObject
) -> None:
    source = ", ".join(f"p{i}{'=None' if optional else ''}" for i, (_, optional, _, _) in enumerate(parameters))
    names: dict[str, Any] = {}
    exec(f"def f(*{', ' if source else 'a'}{source}): got.append(locals())", names)
    got: list[dict[str, Any]] = []
    names["got"] = got
    f = names["f"]
    if not source:
        f = lambda: got.append({})  # noqa: E731
    f.__annotations__ = {f"p{i}": HINTS[kind] for i, (kind, *_) in enumerate(parameters)}
    tool = Tool(f, name="f")
    arguments = {f"p{i}": value for i, (_, _, value, is_given) in enumerate(parameters) if is_given}
    if data.draw(st.integers(0, 9)) == 0:
        arguments["surplus"] = 1
    Draft202012Validator.check_schema(tool.input_schema)
    allowed = Draft202012Validator(tool.input_schema).is_valid(arguments)
    result = asyncio.run(tool.answer("c", arguments))
    assert (not result.error, len(got)) == (allowed, int(allowed)), result
    if allowed:
        assert all(got[0][name] is None for name in got[0] if name not in arguments)


# -- running it --------------------------------------------------------------------------------------------


async def test_a_text_stays_what_it_is_and_anything_else_becomes_json() -> None:
    async def told(value: Any) -> str:
        def f() -> Any:
            return value

        return (await Tool(f).answer("c", {})).output

    assert [await told(value) for value in ("yes", None, [1, "a"], Place("Oslo"))] == [
        "yes", "null", '[1,"a"]', '{"city":"Oslo","country":"NO"}',
    ]  # fmt: skip
    assert await told("half \ud83d of it") == "half ? of it"


async def test_a_plain_function_runs_beside_the_loop_and_an_async_one_on_it() -> None:
    def plain() -> int:
        return threading.get_ident()

    async def on_loop() -> int:
        return threading.get_ident()

    def makes_one() -> Any:
        return on_loop()

    here = str(threading.get_ident())
    assert (await Tool(plain).answer("c", {})).output != here
    assert (await Tool(on_loop).answer("c", {})).output == here
    assert (await Tool(makes_one).answer("c", {})).output == here


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"city": 1}, r"Expected `str`, got `int` - at `\$.city`"),
        ({}, "missing required field `city`"),
        ({"town": "Oslo"}, "there is no argument 'town'; known: city, days, unit"),
        (None, "must be a JSON object"),
        ([], "must be a JSON object"),
    ],
)
async def test_wrong_arguments_are_told_to_the_model(arguments: Any, why: str) -> None:
    result = await Tool(weather).answer("c", arguments)
    assert result.error
    with pytest.raises(ValueError, match=why):
        raise ValueError(result.output)


async def test_a_function_that_fails_is_a_result_with_an_error() -> None:
    def fails() -> None:
        raise RuntimeError("x" * 2 * ERROR_CHARACTERS)

    async def times_out_by_itself() -> None:
        raise TimeoutError("of its own")

    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    def returns_rubbish() -> Any:
        return object()

    result = await Tool(fails).answer("c", {})
    assert result.error and result.output.startswith("RuntimeError: xxx") and len(result.output) == ERROR_CHARACTERS
    assert await Tool(times_out_by_itself).answer("c", {}) == ToolResult("c", "TimeoutError: of its own", error=True)
    assert await Tool(cancels_itself).answer("c", {}) == ToolResult("c", "cancels_itself was cancelled", error=True)
    assert (await Tool(returns_rubbish).answer("c", {})).output.startswith("TypeError: Encoding objects of type object")


async def test_a_function_that_takes_too_long_is_given_up() -> None:
    ended = asyncio.Event()

    async def sleeps() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with asyncio.timeout(4):
        result = await Tool(sleeps, timeout=0.02).answer("c", {})
    assert result == ToolResult("c", "sleeps took longer than 0.02 s", error=True)
    assert ended.is_set()

    release = threading.Event()

    def blocks() -> None:
        release.wait(10)

    try:
        result = await Tool(blocks, timeout=0.02).answer("c", {})
    finally:
        release.set()
    assert result.output == "blocks took longer than 0.02 s"


async def test_a_long_output_is_cut_between_characters() -> None:
    def long() -> str:
        return "a" + "é" * OUTPUT_BYTES

    result = await Tool(long).answer("c", {})
    assert result.truncated and len(result.output.encode()) == OUTPUT_BYTES - 1
    assert result.output.endswith("é")


async def test_cancelling_is_passed_on() -> None:
    async def sleeps() -> None:
        await asyncio.Event().wait()

    running = asyncio.create_task(Tool(sleeps).answer("c", {}))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
