"""What a model is told of a function, and what it may be called with."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from workers.tools import tool
from workers.tools.declared import declared
from workers.tools.described import Tool, UnusableTools, WrongArguments


class Place(BaseModel):
    name: str


@dataclass
class Span:
    days: int


def described(function: Callable[..., Any], **options: Any) -> Tool:
    mark = declared(tool(**options)(function))
    assert mark is not None
    return Tool(mark)


def forecast(
    city: Annotated[str, Field(description="A city", min_length=2)],
    day: date,
    unit: Literal["C", "F"] = "C",
    *,
    places: list[Place] | None = None,
    span: Span | None = None,
) -> str:
    """The weather of a day.

    In words.
    """
    return f"{city} {day:%d.%m.} {unit} {places} {span}"


def test_a_model_is_told_name_docstring_and_arguments() -> None:
    spec = described(forecast).spec
    assert (spec.name, spec.description) == ("forecast", "The weather of a day.\n\nIn words.")
    properties = spec.schema["properties"]
    assert properties["city"] == {"description": "A city", "minLength": 2, "type": "string"}
    assert properties["unit"] == {"default": "C", "enum": ["C", "F"], "type": "string"}
    assert list(properties) == ["city", "day", "unit", "places", "span"]
    assert (spec.schema["type"], spec.schema["required"]) == ("object", ["city", "day"])


def test_a_tool_without_arguments_has_an_empty_object() -> None:
    def now() -> str:
        return ""

    assert described(now).spec.schema["properties"] == {} and described(now).spec.description == ""
    assert described(now).arguments({}) == {}


def test_arguments_arrive_as_the_signature_says() -> None:
    given = {"city": "Graz", "day": "2026-11-21", "places": [{"name": "x"}], "span": {"days": "3"}}
    arguments = described(forecast).arguments(given)
    assert arguments == {
        "city": "Graz", "day": date(2026, 11, 21), "unit": "C", "places": [Place(name="x")], "span": Span(3),
    }  # fmt: skip
    assert forecast(**arguments).startswith("Graz 21.11. C")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "no valid JSON object"),
        ([1], "no valid JSON object"),
        ({}, "city: Missing required argument; day: Missing required argument"),
        ({"city": "Graz", "day": "soon"}, "day: "),
        ({"city": "G", "day": "2026-11-21"}, "city: "),
        ({"city": "Graz", "day": "2026-11-21", "unit": "K"}, "unit: Input should be 'C' or 'F'"),
        ({"city": "Graz", "day": "2026-11-21", "wind": 1}, "wind: Unexpected"),
        ({"city": "Graz", "day": "2026-11-21", "places": [{}]}, "places.0.name: "),
    ],
)
def test_what_is_wrong_with_arguments_is_told_by_name(given: Any, told: str) -> None:
    with pytest.raises(WrongArguments, match=told):
        described(forecast).arguments(given)


def test_a_heap_of_faults_is_told_in_a_few_lines() -> None:
    with pytest.raises(WrongArguments) as wrong:
        described(forecast).arguments({f"x{number}" * 50: number for number in range(100)})
    assert len(str(wrong.value)) <= 1020


def test_options_of_the_decorator_are_kept_and_the_function_stays_what_it_is() -> None:
    @tool(name="add-up", timeout_s=2.5, repeatable=True)
    def add(a: int, b: int) -> int:
        return a + b

    @tool
    async def plain() -> None:
        """Nothing."""

    assert add(1, 2) == 3 and asyncio.run(plain()) is None
    first, second = declared(add), declared(plain)
    assert first is not None and second is not None
    assert (Tool(first).name, Tool(first).timeout_s, Tool(first).repeatable) == ("add-up", 2.5, True)
    assert (Tool(second).name, Tool(second).timeout_s, Tool(second).repeatable) == ("plain", None, False)
    assert not Tool(first).is_async and Tool(second).is_async
    assert declared(len) is None and declared(3) is None


def test_a_wrapper_of_a_tool_is_no_tool_by_itself() -> None:
    @tool
    def add(a: int) -> int:
        return a

    @functools.wraps(add)
    def wrapper(a: int) -> int:
        return add(a)

    assert declared(wrapper) is None


def by_position(a: int, /) -> int:
    return a


def any_number(*numbers: int) -> int:
    return sum(numbers)


def of_a_strange_type(a: Iterator[Place] | Tool) -> None: ...


def of_an_unknown_type(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def generator() -> Iterator[int]:
    yield 1


async def stream() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (by_position, "given by name"),
        (any_number, "given by name"),
        (of_a_strange_type, "cannot be described to a model"),
        (of_an_unknown_type, "Nowhere"),
        (generator, "returns one result"),
        (stream, "returns one result"),
        (Span, "returns one result"),
    ],
)
def test_a_function_that_no_model_could_call_is_told_with_its_place(function: Any, why: str) -> None:
    with pytest.raises(UnusableTools, match=why) as unusable:
        described(function)
    assert "\n" not in str(unusable.value) and function.__name__ in str(unusable.value)
    assert "test_described" in str(unusable.value)


def test_a_name_that_no_provider_takes_is_told() -> None:
    with pytest.raises(UnusableTools, match=r"@tool\(name=…\)"):
        described(lambda: None)
    with pytest.raises(UnusableTools):
        described(forecast, name="the weather")


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"timeout_s": -1}, {"timeout_s": float("nan")}])
def test_a_time_limit_is_more_than_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        tool(**options)(forecast)


def test_what_cannot_be_called_is_no_tool() -> None:
    with pytest.raises(TypeError, match="functions"):
        tool("weather")  # type: ignore[call-overload]
